"""A load, shown to people: what its events add up to, the words for it, and where they appear."""
