"""Faults in bulk: every one of a kind, or thousands at random. Quick here, whole with scripts/torture."""
