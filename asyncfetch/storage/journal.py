"""The journal of a partial: which of its spans are on disk, for a run that goes on with it. Blocking calls.

It is bound to the very file and content, may lag behind the bytes and never leads them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import storage_errors
from ..spans import Span, SpanSet

__all__ = ["forget_journal", "journal_of", "spans_on_disk", "write_journal"]

_JOURNAL_FORMAT = 1


def write_journal(
    journal: Path, descriptor: int, size: int, spans: Iterable[tuple[int, int]], *, identity: str
) -> None:
    """Write which spans of an open partial are on disk, atomically."""
    state = {
        "format_version": _JOURNAL_FORMAT,
        "identity": identity,
        "size": size,
        "inode": os.fstat(descriptor).st_ino,
        "spans": list(spans),
    }
    _replace_text(journal, json.dumps(state))


def forget_journal(journal: Path) -> None:
    """Remove a journal, if there is one."""
    with storage_errors(journal, writing="cache"):
        _temporary_of(journal).unlink(missing_ok=True)
        journal.unlink(missing_ok=True)


def spans_on_disk(path: Path, size: int, *, identity: str) -> SpanSet:
    """What the journal of the partial at `path` lists, if it is of this very file and content."""
    journal = journal_of(path)
    try:
        try:
            saved = json.loads(journal.read_bytes())
        except FileNotFoundError:  # a kill may have come between the two steps of `_replace_text`
            saved = json.loads(_temporary_of(journal).read_bytes())
        status = os.stat(path, follow_symlinks=False)
        found = (saved["format_version"], saved["identity"], saved["size"], saved["inode"])
        if found != (_JOURNAL_FORMAT, identity, size, status.st_ino) or status.st_size != size:
            return SpanSet()
        spans = [Span(int(start), int(stop)) for start, stop in saved["spans"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return SpanSet()
    return SpanSet(span for span in spans if span.stop <= size)


def _replace_text(path: Path, text: str) -> None:
    """Write a file beside `path` and rename it. A link planted at either name is replaced, not followed.

    ext4 writes a file out at once, which takes milliseconds, when it is renamed over another: so the other goes first.
    """
    temporary = _temporary_of(path)
    temporary.unlink(missing_ok=True)
    try:
        with open(temporary, "xb") as stream:
            stream.write(text.encode())
        path.unlink(missing_ok=True)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def journal_of(path: Path) -> Path:
    """Where the journal of the partial at `path` is."""
    return path.with_name(path.name.removesuffix(".incomplete") + ".map.incomplete")


def _temporary_of(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.tmp.incomplete")
