"""Fetch and load sharded safetensors checkpoints: concurrent, resumable, verified, async and sync.

    state_dict = await asyncfetch.load_async("org/model")
    state_dict = asyncfetch.load("org/model")

The code lies in wings, in the order in which bytes move, read from the bottom to the top. A wing
imports only wings in the rows below it. Wings in one row (`|`) never import each other, within a
wing no circle forms, and nothing imports this file. `scripts/check` holds the code to this table.

    9  cli                           the command line
    8  server                        a folder of models, served with the Hub's protocol
    7  api                           what people call, blocking and not, and what they get
    6  engine | tensors              moving the bytes | bytes become tensors
    5  sources | models              from a name to a located checkpoint | a state dict into a model
    4  format | storage | network    headers and indexes | cache and partials | sockets and answers
    3  policy                        the knobs
    2  tasks | spans                 tasks that end as one | which bytes of a file
    1  errors | events               what went wrong | what happens
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .policy import __version__

if TYPE_CHECKING:
    from .api.functions import (
        download,
        download_async,
        dry_run,
        dry_run_async,
        inspect,
        inspect_async,
        load,
        load_async,
        verify,
        verify_async,
    )
    from .api.loading import load_into, load_into_async
    from .api.opened import BlockingCheckpoint, Checkpoint, StoredTensor, open, open_async  # noqa: A004
    from .api.results import Inspection, ShardInspection, Snapshot, VerifiedFile
    from .api.streaming import stream, stream_async
    from .errors import AsyncfetchError
    from .format.arrays import PackedArray
    from .models.into import LoadReport, unflatten
    from .policy import Policy

__all__ = [
    "AsyncfetchError",
    "BlockingCheckpoint",
    "Checkpoint",
    "Inspection",
    "LoadReport",
    "PackedArray",
    "Policy",
    "ShardInspection",
    "Snapshot",
    "StoredTensor",
    "VerifiedFile",
    "__version__",
    "download",
    "download_async",
    "dry_run",
    "dry_run_async",
    "inspect",
    "inspect_async",
    "load",
    "load_async",
    "load_into",
    "load_into_async",
    "open",
    "open_async",
    "stream",
    "stream_async",
    "unflatten",
    "verify",
    "verify_async",
]

_HOMES = {
    "AsyncfetchError": "errors",
    "BlockingCheckpoint": "api.opened",
    "Checkpoint": "api.opened",
    "LoadReport": "models.into",
    "PackedArray": "format.arrays",
    "Policy": "policy",
    "StoredTensor": "api.opened",
    "load_into": "api.loading",
    "load_into_async": "api.loading",
    "open": "api.opened",
    "open_async": "api.opened",
    "stream": "api.streaming",
    "stream_async": "api.streaming",
    "unflatten": "models.into",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: the libraries behind it take a while to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'api.functions')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
