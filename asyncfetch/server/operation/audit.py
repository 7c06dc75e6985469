"""Who was sent what: a line of JSON for each request.

    {"time": "2026-01-31T12:00:00.000Z", "who": "token:1f3d...", "address": "10.0.0.7", "method": "GET",
     "path": "/org/name/resolve/main/model.safetensors", "range": "bytes=0-99", "status": 206, "bytes": 100,
     "from": {"cache": 100}, "whole": true, "seconds": 0.004}

`who` is the beginning of the SHA-256 of the token, `printf %s "$TOKEN" | sha256sum | cut -c1-16`, or "anonymous".
`from` tells where the bytes were: in the cache, in a fill under way, passed on from the source, in a folder of one's
own, or made as an answer. No token, query or other header is written. A file that logrotate moves away is begun anew.

Lines are written by a thread of their own. Where that cannot keep up, lines are left out, and one tells how many.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import sys
import threading
import time
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from typing import TYPE_CHECKING, Any

from ...errors import SourceError
from ...reasons import reason_of
from ..protocol.access_log import raw_path
from ..text import header_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Scope

    from ..counts import Origin

__all__ = ["Audit", "who_asks"]

LOG = logging.getLogger("asyncfetch.server")
_WAITING = 10_000  # lines
_LONGEST = 2000  # characters of what a client chose
_END = 5.0  # seconds for what is not written yet when the server stops


class Audit:
    """An audit log in the file `target`, or on stdout for "-". To be entered. Raises SourceError: it cannot be written.

    The file is readable for its owner and group alone.
    """

    def __init__(self, target: str) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue(_WAITING)
        self._left_out = 0
        try:
            self._handler = logging.StreamHandler(sys.stdout) if target == "-" else _File(target)
        except OSError as error:
            raise SourceError(f"The audit log {target} cannot be written: {reason_of(error)}.") from error
        self._handler.handleError = self._failed  # type: ignore[method-assign]
        self._said = False

    def begin(self) -> None:
        self._thread = threading.Thread(target=self._write, name="asyncfetch audit", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Write what is left, for some seconds. Blocks."""
        try:
            self._lines.put(None, timeout=_END)
        except queue.Full:
            LOG.warning("The audit log could not be written to its end.")
            return
        self._thread.join(_END)
        self._handler.close()

    def note(
        self, scope: Scope, status: int, bytes_by_origin: Mapping[Origin, int], *, whole: bool, began: float
    ) -> None:
        """One request, which `began` at this time, in seconds since 1970. Does not block."""
        line = json.dumps(_record(scope, status, bytes_by_origin, whole=whole, began=began))
        try:
            if self._left_out:
                self._lines.put_nowait(json.dumps({"time": _text_of(time.time()), "left_out": self._left_out}))
                self._left_out = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            self._handler.emit(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def _failed(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        if not self._said:  # the next line may find room again
            self._said = True
            LOG.error("The audit log cannot be written: %s. Lines are missing from now on.", sys.exc_info()[1])


class _File(WatchedFileHandler):
    """A file that is opened anew when it was moved away."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return TextIOWrapper(os.fdopen(descriptor, "ab"), encoding="utf-8")


def who_asks(scope: Scope) -> str:
    """A name for who asks, by which its token cannot be found: "token:" and 16 hex digits, or "anonymous"."""
    sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    token = sent.partition(b" ")[2].strip()
    return f"token:{hashlib.sha256(token).hexdigest()[:16]}" if token else "anonymous"


def _record(
    scope: Scope, status: int, bytes_by_origin: Mapping[Origin, int], *, whole: bool, began: float
) -> dict[str, Any]:
    asked = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"range"), None)
    sent = {origin: nbytes for origin, nbytes in bytes_by_origin.items() if nbytes}
    return {
        "time": _text_of(began),
        "who": who_asks(scope),
        "address": (scope.get("client") or ("-",))[0],
        "method": scope["method"],
        "path": header_text(raw_path(scope)[:_LONGEST]),
        **({} if asked is None else {"range": header_text(asked[:100])}),
        "status": status,
        "bytes": sum(sent.values()),
        "from": sent,
        "whole": whole,
        "seconds": round(time.time() - began, 3),
    }


def _text_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
