"""What another Hub says, how long that counts, and who may see it."""
