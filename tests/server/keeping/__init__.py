"""What is kept of another Hub, and for whom there is room."""
