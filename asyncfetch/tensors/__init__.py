"""Bytes that landed become tensors: merged, streamed, or gathered by range."""
