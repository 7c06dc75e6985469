"""From what the user named to a located checkpoint: its commit, its index, its files and headers."""
