"""A load as spans and metrics of OpenTelemetry, for programs that use it. Needs its API alone, the extra `otel`.

    asyncfetch.load              a call, from its first step to its result; or asyncfetch.download, ...
        asyncfetch.resolve       from a name to a commit and its files
        asyncfetch.files         what is downloaded
            asyncfetch.file      a file, from its first connection until it is verified
        asyncfetch.merge         files become tensors
        asyncfetch.write         files are written into a folder

Retries, waits and warnings are span events. What is counted: bytes, retries, the seconds of each call. All of it is
what reporters are told, and has no secret.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any, NamedTuple

from ..errors import AsyncfetchError
from ..events import (
    Event,
    FileProgress,
    FileStarted,
    FileVerified,
    Finished,
    Resolved,
    Retrying,
    Waiting,
    Warned,
    Writing,
)
from ..words import fit_to_show
from .state import ProgressState

__all__ = ["Telemetry", "begin_telemetry", "is_used"]

_SCOPE = "asyncfetch"
_MERGING = frozenset({"load"})  # after its last byte


def is_used() -> bool:
    """Whether the program uses OpenTelemetry: it would have imported it by now, which takes a while."""
    return "opentelemetry.trace" in sys.modules


def begin_telemetry(operation: str, source: str) -> Telemetry | None:
    """Who makes spans of a call of `operation` that begins now, within the span that is current. May import."""
    try:
        return Telemetry(operation, fit_to_show(source), _instruments())
    except ImportError:  # it is half there
        return None


class _Instruments(NamedTuple):
    trace: Any
    downloaded: Any
    retries: Any
    duration: Any


@cache
def _instruments() -> _Instruments:
    """Made once: the API keeps what is made before a program says where to send it."""
    from opentelemetry import metrics, trace

    meter = metrics.get_meter(_SCOPE)
    return _Instruments(
        trace,
        meter.create_counter("asyncfetch.downloaded", "By", "Bytes that came over the network."),
        meter.create_counter("asyncfetch.retries", "{retry}", "Requests that failed and were sent again."),
        meter.create_histogram("asyncfetch.duration", "s", "How long a call took."),
    )


class Telemetry:
    """A reporter that makes spans. `end` is to be called once the call is over."""

    def __init__(self, operation: str, source: str, instruments: _Instruments) -> None:
        self._operation, self._instruments = operation, instruments
        self._tracer = instruments.trace.get_tracer(_SCOPE)
        self._labels = {"asyncfetch.operation": operation}
        self._began, self._state, self._counted = time.monotonic(), ProgressState(), 0
        self._spans: dict[str, Any] = {}  # that are open, by their names; of files by those of the files
        self._root = self._tracer.start_span(f"asyncfetch.{operation}", attributes={"asyncfetch.source": source})
        self._open("asyncfetch.resolve")

    def __call__(self, event: Event) -> None:
        if self._root is None:
            return
        self._count(event)
        match event:
            case Resolved():
                self._resolved(event)
            case FileStarted():
                attributes = {
                    "asyncfetch.file": event.file,
                    "asyncfetch.size": event.size,
                    "asyncfetch.present": event.present,
                }
                self._open("asyncfetch.file", self._files(), key=f"file {event.file}", **attributes)
            case FileVerified():
                self._close(f"file {event.file}")
            case Retrying():
                self._instruments.retries.add(1, self._labels)
                self._tell("retry", event.file, reason=event.reason, attempt=event.attempt, delay=event.delay)
            case Waiting():
                self._tell("wait", event.file, reason=event.reason, delay=event.delay)
            case Warned():
                self._tell("warning", event.file, message=event.message)
            case Finished():
                self._close("asyncfetch.files")
                self._root.set_attribute("asyncfetch.downloaded", event.downloaded)
                if self._operation in _MERGING:
                    self._open("asyncfetch.merge")
            case Writing():
                self._open("asyncfetch.write", **{"asyncfetch.folder": event.folder})
            case _:
                pass

    def end(self, error: BaseException | None = None) -> None:
        """All spans are over, because of `error` if there is one. A second time it does nothing."""
        root, self._root = self._root, None
        if root is None:
            return
        for key in reversed(list(self._spans)):
            self._close(key)
        labels = dict(self._labels)
        if error is not None:
            kind = type(error).__name__ if isinstance(error, Exception) else "cancelled"
            labels["error.type"] = kind
            root.set_attribute("error.type", kind)
            if isinstance(error, Exception):
                # No traceback: what other libraries write into theirs may have a secret.
                said = str(error) if isinstance(error, AsyncfetchError) else ""
                root.add_event("exception", {"exception.type": kind, "exception.message": said})
                root.set_status(self._instruments.trace.StatusCode.ERROR, said or kind)
        root.end()
        self._instruments.duration.record(time.monotonic() - self._began, labels)

    def _resolved(self, event: Resolved) -> None:
        self._close("asyncfetch.resolve")
        self._root.set_attribute("asyncfetch.files", len(event.files))
        self._root.set_attribute("asyncfetch.size", sum(file.size for file in event.files))
        if event.commit is not None:
            self._root.set_attribute("asyncfetch.commit", event.commit)
        if self._operation == "open":  # what is read of it later is no part of the call
            self.end()

    def _count(self, event: Event) -> None:
        if isinstance(event, Resolved | FileStarted | FileProgress | FileVerified) and not self._state.writing:
            self._state.apply(event, 0.0)
            self._instruments.downloaded.add(self._state.transferred - self._counted, self._labels)
            self._counted = self._state.transferred
        elif isinstance(event, Writing):
            self._state.writing = True

    def _files(self) -> Any:
        return self._spans.get("asyncfetch.files") or self._open("asyncfetch.files")

    def _open(self, name: str, parent: Any = None, *, key: str = "", **attributes: Any) -> Any:
        trace = self._instruments.trace
        self._close(key or name)
        context = trace.set_span_in_context(parent or self._root)
        self._spans[key or name] = span = self._tracer.start_span(name, context=context, attributes=attributes)
        return span

    def _close(self, key: str) -> None:
        span = self._spans.pop(key, None)
        if span is not None:
            span.end()

    def _tell(self, name: str, file: str | None, **what: str | float | None) -> None:
        """A span event of a file's span; or where it has none, of the step that goes on."""
        attributes = {f"asyncfetch.{key}": value for key, value in what.items() if value is not None}
        steps = (f"file {file}", "asyncfetch.files", "asyncfetch.resolve")
        span = next((self._spans[key] for key in steps if key in self._spans), self._root)
        span.add_event(name, attributes if file is None else {"asyncfetch.file": file, **attributes})
