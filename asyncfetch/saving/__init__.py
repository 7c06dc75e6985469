"""State dicts and checkpoints written into folders: as shards with their index, replaced as one."""
