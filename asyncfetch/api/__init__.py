"""What people call: the public functions, blocking and not, and what they return."""
