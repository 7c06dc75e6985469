"""The endpoints over a folder of models."""
