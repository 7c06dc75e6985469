"""The page for people who look after a server."""
