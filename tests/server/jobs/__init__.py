"""What is fetched before anybody asks for it."""
