"""Files on their way from another Hub, and those who read them meanwhile."""
