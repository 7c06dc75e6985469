"""What is kept of another Hub, for whom there is room, and what goes."""
