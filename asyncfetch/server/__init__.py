"""A directory of models, served with the protocol of the Hugging Face Hub. Needs the extra `serve`."""

from .server import Options, Record, Server, create_app, serve

__all__ = ["Options", "Record", "Server", "create_app", "serve"]
