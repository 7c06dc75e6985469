"""What lies in the folders that are served: repositories, revisions, files and their hashes."""
