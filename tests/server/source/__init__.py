"""What another Hub says, and how long that counts."""
