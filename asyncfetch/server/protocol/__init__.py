"""Requests and answers as clients of the Hub know them, and the connections over which they come."""
