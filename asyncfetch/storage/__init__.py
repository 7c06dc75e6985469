"""The disk and memory that bytes land in: cache, locks, partials, hashes, buffers."""
