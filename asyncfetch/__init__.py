"""Fetch and load sharded safetensors checkpoints: concurrent, resumable, verified, async and sync.

    state_dict = await asyncfetch.load_async("org/model")
    state_dict = asyncfetch.load("org/model")

The code reads in the order in which bytes move:

    what the user named -> source -> index -> plan -> transfer -> checkpoint -> state dict -> model

The package is flat. A file imports only from files above it in this order, and none imports this one:

  words and rules: no event loop, no network, no disk
    errors        every way to fail, as one tree; redacted URLs
    urls          what two URLs share, and where a redirect may lead
    events        what happens during a load, as frozen dataclasses
    policy        the knobs as one frozen value, and the one rule of what is retried
    recognition   what a file is that should be safetensors and is not
    header        a safetensors header, read as hostile input; the dtypes
    arrays        tensors as views on bytes; packed F4 and F6
    index         weight_map, read as hostile input; selection
    plan          wanted minus present, as spans; which connection fetches which
    slices        which bytes a part of a tensor needs, and in which ranges
  disk
    cache         the Hugging Face cache layout: look up, lock, publish
    claim         who writes a partial: one process alone
    partial       one file being received: spans, journal, running hash, publication
    segments      one shard being received into memory of its own for each tensor
  network
    network       sockets beneath httpcore: bursts, happy eyeballs, connections that serve again
    wall          where the network's errors become ours, and its log lines lose their secrets
    pool          httpx's requests over an httpcore pool with these sockets
    transport     requests and bodies; with pool, the only file that knows httpx
    ranges        a span of a remote file, and every check on the answer
    hub           the protocol of the Hub: commits, metadata on redirects, signed links, error codes
  finding
    source        what the user named: a repository, a URL, a path
    located       what that turned out to be: commit, index, files, headers
    finder        the order of candidates, index before shards; local folders
    hub_finder    a checkpoint in a repository of the Hub
    web_finder    a checkpoint on any web server
    resolve       from a request to a located checkpoint, held against its headers
  engine
    tasks         work that asyncio's own cancellation does not cut in two
    bookkeeping   what a transfer does in the cache around its bytes
    outlet        what a transfer hands over, and to whom
    transfer      connections pull spans; retry, verify, publish, report, cancel
    gather        parts of files into memory, by range or from disk
  tensors
    checkpoint    the merge: shards become one state dict
    feed          tensors on their way from a transfer to one reader, within a memory limit
    fit           what a model has against what a state dict has
    torch_module  a state dict into a torch module
    tree          a state dict into nested dicts and lists
    models        the one door to both
  faces
    session       one call: its settings, its transport, its steps
    portal        from blocking code into an event loop in a thread
    api           the public functions and their blocking twins
    streaming     tensors as they land
    loading       a checkpoint streamed into a model
    opened        tensors on demand: an opened checkpoint, async and blocking
    catalog       the models of a folder, as the Hub would list them
    wire          what a request to the server means, and what the answers say
    endpoints     the Hub's routes over a catalog
    server        a folder of models served with the Hub's protocol
    wording       numbers and states in words
    progress      the state of all files, from events
    terminal      progress drawn on a terminal, or as plain lines
    export        a state dict written as one safetensors file
    output        results and errors for people and for machines
    listing       tables of tensors and shards
    cli_options   the flags that commands share
    commands      the commands
    cli           the entry point; exit codes
    __main__      python -m asyncfetch
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .policy import __version__

if TYPE_CHECKING:
    from .api.functions import (
        Inspection,
        ShardInspection,
        Snapshot,
        VerifiedFile,
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
