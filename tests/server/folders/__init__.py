"""What lies in the folders that are served."""
