"""Hashes of files, each taken once: kept for as long as a file stays as it is, and on disk over restarts.

    STATE/hashes-<digest of the directory>.jsonl    an object a line, the last one about a path counts

A file that has the same inode, size and time stamps has the same bytes: git trusts that too
(https://git-scm.com/docs/racy-git). Devices count while the server runs and not on disk: their numbers change
when a machine starts again. Blocking calls: run them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...errors import ChangedError
from ...spans import MiB
from ...storage.checksums import new_hash
from .layout import CLOCK_TICK
from .walk import open_listed, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .repository import Listed

__all__ = ["Hashes", "hash_file", "state_file"]

LOG = logging.getLogger("asyncfetch.server")
_STATE = ("inode", "size", "mtime_ns", "ctime_ns")


class _Kept(NamedTuple):
    """A hash, and the state of the file that has it: inode, size and time stamps. `device` as long as it is known."""

    state: tuple[int, ...]
    device: int | None
    hash: str


def state_file(folder: Path, root: Path) -> Path:
    """Where in `folder` the hashes of the files under `root` are kept."""
    return folder / f"hashes-{hashlib.sha256(os.fsencode(root)).hexdigest()[:16]}.jsonl"


def hash_file(listed: Listed, stop: threading.Event, advance: Callable[[int], None] = lambda _: None) -> str:
    """The hash of a file (hex). Raises ChangedError when it changes or cannot be read, or when `stop` is set."""
    age = time.time() - listed.signature.ctime_ns / 1e9
    if 0 <= age < CLOCK_TICK:  # a write in the same tick would leave the stamp as it is
        stop.wait(CLOCK_TICK - age)
    try:
        return _hash(listed, stop, advance)
    except OSError as error:
        raise ChangedError(listed.path, f"it cannot be read: {error.strerror}") from error


def _hash(listed: Listed, stop: threading.Event, advance: Callable[[int], None]) -> str:
    digest = new_hash(listed.algorithm, listed.signature.size)
    with open(open_listed(listed), "rb", buffering=0) as file:
        buffer = memoryview(bytearray(MiB))
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
            if stop.is_set():
                raise ChangedError(listed.path, "the server is stopping")
        if signature_of(os.fstat(file.fileno())) != listed.signature:
            raise ChangedError(listed.path, "it was written to")
    return digest.hexdigest()


class Hashes:
    """What is known of files, and the file where that is kept, if there is one."""

    def __init__(self, file: Path | None = None) -> None:
        self._known: dict[tuple[str, str], _Kept] = {}
        self._file = file
        self._telling = threading.Lock()
        if file is not None:
            self._read(file)

    def lookup(self, listed: Listed) -> str | None:
        """The hash of a file as it is listed; None when it is not known."""
        kept = self._known.get((listed.real, listed.algorithm))
        if kept is None or kept.state != _state_of(listed) or kept.device not in (None, listed.signature.device):
            return None
        return kept.hash

    def learn(self, listed: Listed, digest: str) -> None:
        """Keep the hash of a file."""
        self._known[listed.real, listed.algorithm] = _Kept(_state_of(listed), listed.signature.device, digest)
        if self._file is not None:
            self._write(self._file, _line(listed.real, listed.algorithm, _state_of(listed), digest), os.O_APPEND)

    def _read(self, file: Path) -> None:
        try:
            text = file.read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, NotADirectoryError):  # the first to be kept will tell
            return
        except OSError as error:
            LOG.warning("The hashes that were kept in %s cannot be read: %s.", file, error.strerror)
            return
        self._known = dict(_entries(text))
        if text.count("\n") > 2 * len(self._known) + 1000:  # most of it is of the past
            self._rewrite(file)

    def _rewrite(self, file: Path) -> None:
        self._known = {key: kept for key, kept in self._known.items() if os.path.lexists(key[0])}
        lines = [_line(*key, kept.state, kept.hash) for key, kept in self._known.items()]
        beside = file.with_name(f"{file.name}.{os.getpid()}.new")
        self._write(beside, "".join(lines), os.O_TRUNC)
        with suppress(OSError):
            os.replace(beside, file)

    def _write(self, file: Path, text: str, how: int) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
            try:
                os.write(descriptor, text.encode("ascii"))
            finally:
                os.close(descriptor)
        except OSError as error:
            with self._telling:  # two threads may fail at once
                told, self._file = self._file is None, None
            if not told:
                LOG.warning("Hashes cannot be kept in %s: %s. They will be taken again.", file.parent, error.strerror)


def _state_of(listed: Listed) -> tuple[int, ...]:
    return listed.signature[1:]


def _line(path: str, algorithm: str, state: tuple[int, ...], digest: str) -> str:
    known = {"path": path, "algorithm": algorithm, **dict(zip(_STATE, state, strict=True)), "hash": digest}
    return json.dumps(known) + "\n"


def _entries(text: str) -> Iterator[tuple[tuple[str, str], _Kept]]:
    """What the lines of a file say; whatever is none of ours, or was cut short, says nothing."""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            state = tuple(int(entry[name]) for name in _STATE)
            key, digest = (str(entry["path"]), str(entry["algorithm"])), str(entry["hash"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if len(digest) == {"sha256": 64, "git-sha1": 40}.get(key[1]):
            yield key, _Kept(state, None, digest)
