"""Fetch and load sharded safetensors checkpoints: concurrent, resumable, verified, async and sync.

    state_dict = await asyncfetch.load_async("org/model")
    state_dict = asyncfetch.load("org/model")

The code lies in wings, in the order in which bytes move, read from the bottom to the top. A wing
imports only wings in the rows below it. Wings in one row (`|`) never import each other, within a
wing no circle forms, and nothing imports this file. `scripts/check` holds the code to this table.

    10  cli                           the command line
     9  server | adapters | cluster   models, or another Hub, served | models of other libraries | many nodes at once
     8  api                           what people call, blocking and not, and what they get
     7  saving                        tensors into a folder, as a checkpoint that is replaced as one
     6  engine | tensors              moving the bytes | bytes become tensors
     5  sources | models              from a name to a located checkpoint | a state dict into a model
     4  format | storage | network    headers and indexes | cache and partials | sockets and answers
     3  policy                        the knobs
     2  tasks | spans | progress      tasks that end as one | which bytes of a file | a load, shown to people
     1  errors | events               what went wrong | what happens
     0  reasons | words               what the system's refusals mean | what others wrote, fit to be shown
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import errors as errors
from . import events as events
from .api.client import BlockingClient, Client
from .api.functions import (
    download,
    download_async,
    dry_run,
    dry_run_async,
    inspect,
    inspect_async,
    load,
    load_async,
    load_into,
    load_into_async,
    open_async,
    stream,
    stream_async,
    verify,
    verify_async,
)
from .api.functions import open as open  # noqa: A004
from .api.results import Inspection, MemoryNeed, Quantized, ShardInspection, Snapshot, StateDict, VerifiedFile
from .api.saving import convert, convert_async, save, save_async
from .errors import (
    AccessError,
    AsyncfetchError,
    CertificateError,
    ChangedError,
    CheckpointNotFoundError,
    ChecksumMismatchError,
    CorruptError,
    DiskFullError,
    EntryNotFoundError,
    GatedRepositoryError,
    InvalidHeaderError,
    InvalidIndexError,
    LinkExpiredError,
    MissingTensorError,
    ModelMismatchError,
    NetworkError,
    NotFoundError,
    OfflineError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SelectionError,
    ServerError,
    ShardNotFoundError,
    SourceError,
    StalledError,
    StorageError,
    TimedOutError,
)
from .events import AsyncfetchWarning
from .policy import Policy, __version__

if TYPE_CHECKING:
    from . import cluster as cluster
    from . import models as models
    from . import server as server
    from .adapters.pretrained import load_pretrained, load_pretrained_async
    from .api.opened import BlockingCheckpoint, Checkpoint, StoredTensor
    from .format.arrays import PackedArray
    from .models.into import LoadReport, unflatten
    from .models.torch_tensors import to_torch

# Without `open`, so that `from asyncfetch import *` leaves the builtin alone.
__all__ = [
    "AccessError",
    "AsyncfetchError",
    "AsyncfetchWarning",
    "BlockingCheckpoint",
    "BlockingClient",
    "CertificateError",
    "ChangedError",
    "Checkpoint",
    "CheckpointNotFoundError",
    "ChecksumMismatchError",
    "Client",
    "CorruptError",
    "DiskFullError",
    "EntryNotFoundError",
    "GatedRepositoryError",
    "Inspection",
    "InvalidHeaderError",
    "InvalidIndexError",
    "LinkExpiredError",
    "LoadReport",
    "MemoryNeed",
    "MissingTensorError",
    "ModelMismatchError",
    "NetworkError",
    "NotFoundError",
    "OfflineError",
    "PackedArray",
    "Policy",
    "ProtocolError",
    "ProxyError",
    "Quantized",
    "RateLimitedError",
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "SelectionError",
    "ServerError",
    "ShardInspection",
    "ShardNotFoundError",
    "Snapshot",
    "SourceError",
    "StalledError",
    "StateDict",
    "StorageError",
    "StoredTensor",
    "TimedOutError",
    "VerifiedFile",
    "__version__",
    "convert",
    "convert_async",
    "download",
    "download_async",
    "dry_run",
    "dry_run_async",
    "errors",
    "events",
    "inspect",
    "inspect_async",
    "load",
    "load_async",
    "load_into",
    "load_into_async",
    "load_pretrained",
    "load_pretrained_async",
    "open_async",
    "save",
    "save_async",
    "stream",
    "stream_async",
    "to_torch",
    "unflatten",
    "verify",
    "verify_async",
]

# Behind these are libraries that take a while to load: they are imported when they are first used.
_HOMES = {
    "BlockingCheckpoint": "api.opened",
    "Checkpoint": "api.opened",
    "LoadReport": "models.into",
    "PackedArray": "format.arrays",
    "StoredTensor": "api.opened",
    "load_pretrained": "adapters.pretrained",
    "load_pretrained_async": "adapters.pretrained",
    "to_torch": "models.torch_tensors",
    "unflatten": "models.into",
}

if not TYPE_CHECKING:  # else every name would be one for it

    def __getattr__(name: str) -> object:
        if name in ("cluster", "models"):  # wings whose names are public, as those of errors and events are
            return import_module(f".{name}", __name__)
        if name == "server":
            try:
                return import_module(".server", __name__)
            except SourceError as error:  # its extra is missing: for those who look through all names, it is not there
                raise AttributeError(f"module {__name__!r} has no server here. {error}") from error
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*__all__, "open", "cluster", "models", "server", "__doc__", "__name__", "__path__"])
