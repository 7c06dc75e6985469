"""Files on their way from another Hub."""
