"""Answers of the source, kept on disk under the hash of what was asked.

    STATE/answers/<2 hex digits>/<SHA-256 of the question>    a line of JSON, and then the body as it is

Nothing in a file says who asked. There are no more than MOST of them, and no more than MOST_BYTES: then those go that
were not needed for the longest time. Blocking calls: run them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ...storage.files import rename
from ...storage.locks import private_name
from ...tasks import off_loop
from .freshness import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Store"]

LOG = logging.getLogger("asyncfetch.server")
MOST = 100_000  # answers on disk
MOST_BYTES = 2**28  # of them all
PRUNE = 600.0  # seconds
_FORMAT = 1
_MOST_RECENT = 1000  # answers in memory
_MOST_RECENT_BYTES = 64 * 1024  # of one of them
_USED = 86400.0  # seconds after which the use of an answer is written down again
_FEWER = 0.9  # of what is allowed is left, so that the next answers do not prune again


class Store:
    """The answers that are kept in `folder`. `now` tells the seconds since 1970."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now
        self._recent: OrderedDict[str, Answer] = OrderedDict()
        self._lock = threading.Lock()  # guards _recent

    def recent(self, question: str) -> Answer | None:
        """The answer, if it is in memory. Does not block."""
        return self._recent.get(question)

    def get(self, question: str) -> Answer | None:
        """The answer that is kept; None where there is none that can be read."""
        if (known := self._recent.get(question)) is not None:
            return known
        try:
            path = self._path(question)
            head, _, body = path.read_bytes().partition(b"\n")
            told = json.loads(head)
            if told["format"] != _FORMAT or told["question"] != question or told["length"] != len(body):
                return None
            answer = Answer(
                int(told["status"]),
                {str(name): str(value) for name, value in told["headers"].items()},
                body,
                float(told["at"]),
                bool(told["fixed"]),
                bool(told["open"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        self._remember(question, answer)
        with suppress(OSError):
            if self._now() - path.stat().st_mtime > _USED:
                self._stamp(path)
        return answer

    def put(self, question: str, answer: Answer) -> None:
        """Keep an answer, by rename. Where that cannot be written, it is kept in memory and the log says so."""
        self._remember(question, answer)
        head = {"format": _FORMAT, "question": question, "length": len(answer.body), **answer._asdict()}
        del head["body"]
        path = self._path(question)
        temporary = private_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(json.dumps(head).encode() + b"\n" + answer.body)
            self._stamp(temporary)
            rename(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            LOG.warning("An answer of the source could not be kept in %s: %s.", self._folder, error)

    def drop(self, questions: Iterable[str]) -> None:
        """Keep the answers to them no longer."""
        for question in questions:
            with self._lock:
                self._recent.pop(question, None)
            with suppress(OSError):
                self._path(question).unlink()

    def holds_any(self) -> bool:
        """Whether any answer is kept."""
        try:
            return bool(self._recent) or any(self._folder.iterdir())
        except OSError:
            return False

    def prune(self) -> None:
        """Remove what is too much, and what a kill left behind."""
        recent = {self._path(question) for question in list(self._recent)}
        found = sorted(self._files(), key=lambda one: (one[2] in recent, one[0]))
        count, nbytes = len(found), sum(size for _, size, _ in found)
        before = count
        if count > MOST or nbytes > MOST_BYTES:
            for _, size, path in found:
                if count <= MOST * _FEWER and nbytes <= MOST_BYTES * _FEWER:
                    break
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    count, nbytes = count - 1, nbytes - size
            LOG.info("Removed %s answers of the source that nobody needed for the longest time.", before - count)

    async def prune_for_ever(self) -> None:
        """Call `prune` every PRUNE seconds."""
        while True:
            try:
                await off_loop(self.prune, slow=True)
            except Exception:
                LOG.exception("What is too much of %s could not be removed", self._folder)
            await anyio.sleep(PRUNE)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each answer was used, its bytes, and where it is. A folder that is gone meanwhile holds none."""
        for parent, _, names in os.walk(self._folder):
            for path in (Path(parent, name) for name in names):
                with suppress(OSError):
                    found = path.stat()
                    if path.suffix and self._now() - found.st_mtime > _USED:
                        path.unlink(missing_ok=True)
                    else:
                        yield found.st_mtime, found.st_size, path

    def _stamp(self, path: Path) -> None:
        os.utime(path, (self._now(), self._now()))

    def _path(self, question: str) -> Path:
        digest = hashlib.sha256(question.encode()).hexdigest()
        return self._folder / digest[:2] / digest

    def _remember(self, question: str, answer: Answer) -> None:
        with self._lock:
            self._recent.pop(question, None)
            if len(answer.body) <= _MOST_RECENT_BYTES:
                self._recent[question] = answer
            if len(self._recent) > _MOST_RECENT:
                self._recent.popitem(last=False)
