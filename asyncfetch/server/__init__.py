"""A directory of models, or another Hub, served with the protocol of the Hugging Face Hub. Needs the extra `serve`."""

from .server import Record, Server, ServerOptions, create_app, serve

__all__ = ["Record", "Server", "ServerOptions", "create_app", "serve"]
