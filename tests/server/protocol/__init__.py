"""Requests, answers and the connections over which they come."""
