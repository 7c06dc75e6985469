"""The libraries that models live in: each gets the verified tensors in its own way."""
