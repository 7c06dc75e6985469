"""How the keeper gets what nobody else may know: over a socket of the machine that it shares with its driver.

What a task of Ray is called with travels through Ray, and may stay there: in its store, in what it tells of tasks, on
its disk. A token goes past all that.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from ..errors import NetworkError, storage_errors
from ..tasks import off_loop, plain_errors

__all__ = ["offered", "taken"]

_SECONDS = 30.0  # for the keeper to take it, once it runs


@asynccontextmanager
async def offered(secret: bytes) -> AsyncIterator[str]:
    """In the block, who has the path and is the same user may take `secret`. Raises StorageError."""
    folder = await off_loop(partial(tempfile.mkdtemp, prefix="asyncfetch-", dir=_short_folder()))
    path = f"{folder}/keeper"

    async def give(stream: SocketStream) -> None:
        async with stream:
            await stream.send(secret)

    try:
        with storage_errors(path):
            listener = await anyio.create_unix_listener(path, mode=0o600)
        with plain_errors():
            async with listener, anyio.create_task_group() as group:
                group.start_soon(listener.serve, give)
                yield path
                group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await off_loop(partial(shutil.rmtree, folder, ignore_errors=True))


async def taken(path: str) -> bytes:
    """The secret that is offered there. Raises NetworkError where nobody offers it."""
    parts = list[bytes]()
    try:
        with anyio.fail_after(_SECONDS):
            async with await anyio.connect_unix(path) as stream:
                parts += [part async for part in stream]
    except (OSError, TimeoutError, anyio.BrokenResourceError) as error:
        raise NetworkError("a worker of Ray beside the driver cannot reach it", url="ray") from error
    return b"".join(parts)


def _short_folder() -> str | None:
    """Where temporary files are, or /tmp where that has a longer name than a socket may have (unix(7))."""
    return None if len(tempfile.gettempdir()) < 60 or not Path("/tmp").is_dir() else "/tmp"  # noqa: S108
