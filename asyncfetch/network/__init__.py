"""Sockets, requests and bodies, and every check on an answer."""
