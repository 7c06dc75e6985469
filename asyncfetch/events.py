"""What happens during a load, as frozen dataclasses.

`report=` takes any callable of one event. It is called on the event loop, in order, so it must
not block; what it raises is logged once, and it is not called again. Without one, what is `Warned`
becomes an AsyncfetchWarning, and a line in the log "asyncfetch". That log tells at INFO what a load
did in a handful of lines, and at DEBUG each file and each request. Sizes are bytes, times are
seconds. `file` is the path within the source, as in the index.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "AsyncfetchWarning",
    "Event",
    "FileProgress",
    "FileStarted",
    "FileState",
    "FileVerified",
    "FileWritten",
    "Finished",
    "NodeProgress",
    "Notifier",
    "Reporter",
    "Resolved",
    "Retrying",
    "Waiting",
    "Warned",
    "Writing",
    "event_object",
]


@dataclass(frozen=True, slots=True)
class FileState:
    """One file of the checkpoint, before anything moves.

    `present` counts the bytes that need no transfer: all of them for a cached file, what an
    earlier run left for a partial one.
    """

    file: str
    size: int
    present: int
    checksum: str | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """The source is known: its commit, and every file with its size. The first event."""

    source: str
    commit: str | None
    index: str | None
    files: tuple[FileState, ...]


@dataclass(frozen=True, slots=True)
class FileStarted:
    """The first connection for a file opens. `present` bytes are on disk from an earlier run."""

    file: str
    size: int
    present: int


@dataclass(frozen=True, slots=True)
class FileProgress:
    """`received` of `size` bytes are here, or written. At most ten a second for each file."""

    file: str
    received: int
    size: int


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request failed and will be sent again after `delay` seconds.

    `attempt` counts the failures in a row without progress, of at most `attempts`: those of the
    policy, and twice as many while a server limits the rate. Where a server is away that gave a good
    answer before, `patience` is for how many seconds it will be tried at least, whatever `attempts` says;
    else it is None. `file` is None while the source is being resolved.
    """

    file: str | None
    reason: str
    attempt: int
    attempts: int
    delay: float
    patience: float | None = None

    @classmethod
    def after(
        cls,
        error: BaseException,
        file: str | None,
        *,
        attempt: int,
        attempts: int,
        delay: float,
        patience: float | None = None,
    ) -> Retrying:
        """What is told of `error` before the next attempt."""
        return cls(file, getattr(error, "message", str(error)), attempt, attempts, delay, patience)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing failed, and yet nothing moves: `reason` says for what is waited.

    `delay` is in seconds, None where nobody can tell: another process may be downloading the file.
    `file` is None while the source is being resolved. The next event of the file ends it.
    """

    file: str | None
    reason: str
    delay: float | None


@dataclass(frozen=True, slots=True)
class FileVerified:
    """A file is complete, its hash is right, and it is published.

    `checksum` is "algorithm:hex", or None where the source gives none to check against.
    """

    file: str
    size: int
    checksum: str | None


@dataclass(frozen=True, slots=True)
class Warned:
    """Something that the caller should know and that does not stop the load."""

    message: str
    file: str | None = None


class AsyncfetchWarning(UserWarning):
    """The category of what is `Warned` where no reporter listens: once for each call, when all is done."""


@dataclass(frozen=True, slots=True)
class Finished:
    """All is here. `downloaded` counts the bytes that came over the network."""

    files: int
    nbytes: int
    downloaded: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Writing:
    """Files are about to be written into `folder`, of which `present` bytes are there from an earlier run.

    From here on it is they whose progress is told.
    """

    folder: str
    files: tuple[FileState, ...]


@dataclass(frozen=True, slots=True)
class FileWritten:
    """A file is whole and on disk. It gets its place when all are."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """A node of a cluster, by its id and its address, has `present` of the `size` bytes that it is to have of a file.

    All: it is verified, unless they are parts that came by range (`asyncfetch.cluster.load`, with `tp_plan`).

    `downloads`: it is this node that brings the file from the source; else it comes from another node.
    """

    node: str
    address: str
    file: str
    present: int
    size: int
    downloads: bool


Event = (
    Resolved
    | FileStarted
    | FileProgress
    | Retrying
    | Waiting
    | FileVerified
    | Warned
    | Finished
    | Writing
    | FileWritten
    | NodeProgress
)
Reporter = Callable[[Event], None]


class Notifier:
    """Calls reporters, and stops calling one that raises: progress must not break a load."""

    def __init__(self, *reports: Reporter | None) -> None:
        self._reports = [report for report in reports if report is not None]

    def __call__(self, event: Event) -> None:
        for report in list(self._reports):
            try:
                report(event)
            except Exception:
                self._reports.remove(report)
                logging.getLogger("asyncfetch").exception("The reporter failed and is not called again")


def event_object(event: Event) -> dict[str, Any]:
    """`event` as a JSON object; its kind is in "event": "resolved", "file_progress" and so on.

    What has no end is null, since JSON has no number for it.
    """
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(event).__name__).lower()
    told = {name: None if value == math.inf else value for name, value in dataclasses.asdict(event).items()}
    return {"type": "event", "event": kind, **told}
