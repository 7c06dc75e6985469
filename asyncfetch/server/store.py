"""Answers of the source, kept on disk under the hash of what was asked.

    STATE/answers/<2 hex digits>/<SHA-256 of the question>    a line of JSON, and then the body as it is

Nothing in a file says who asked. Blocking calls: run them in a thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from ..storage.files import rename
from ..storage.locks import private_name
from .freshness import Answer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store"]

LOG = logging.getLogger("asyncfetch.server")
_FORMAT = 1
_MOST = 1000  # answers in memory
_MOST_BYTES = 64 * 1024  # of one of them


class Store:
    """The answers that are kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
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
            head, _, body = self._path(question).read_bytes().partition(b"\n")
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
            rename(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            LOG.warning("An answer of the source could not be kept in %s: %s.", self._folder, error)

    def drop(self, question: str) -> None:
        """Keep it no longer. Blocks."""
        with self._lock:
            self._recent.pop(question, None)
        with suppress(OSError):
            self._path(question).unlink()

    def _path(self, question: str) -> Path:
        digest = hashlib.sha256(question.encode()).hexdigest()
        return self._folder / digest[:2] / digest

    def _remember(self, question: str, answer: Answer) -> None:
        with self._lock:
            self._recent.pop(question, None)
            if len(answer.body) <= _MOST_BYTES:
                self._recent[question] = answer
            if len(self._recent) > _MOST:
                self._recent.popitem(last=False)
