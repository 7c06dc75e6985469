"""Benchmarks of asyncfetch against its peers, each contestant in a process of its own."""
