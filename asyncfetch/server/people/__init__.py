"""The page and the API for people who look after a server."""
