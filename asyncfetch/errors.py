"""Every way in which asyncfetch fails, as one tree.

    AsyncfetchError
    ├── SourceError                  what was asked for makes no sense
    │   └── SelectionError           nothing matches `select`
    ├── NotFoundError                it is not there
    │   ├── RepositoryNotFoundError
    │   ├── RevisionNotFoundError
    │   ├── EntryNotFoundError       one file of a source
    │   │   └── ShardNotFoundError   a shard that the index names
    │   └── CheckpointNotFoundError  no index and no single file, all candidates tried
    ├── AccessError                  it may be there, but not for this caller
    │   └── GatedRepositoryError
    ├── CorruptError                 the bytes are not what they should be
    │   ├── InvalidIndexError
    │   ├── InvalidHeaderError
    │   ├── MissingTensorError       the index names a tensor that its shard lacks
    │   ├── ChecksumMismatchError
    │   └── ChangedError             the file changed at its source while it was read
    ├── NetworkError                 the network or the server, after all retries
    │   ├── ServerError              a 5xx answer
    │   ├── ProtocolError            an answer that breaks the rules of HTTP or of the Hub
    │   ├── StalledError             too few bytes for too long
    │   ├── LinkExpiredError         a signed link that is refused, even when fetched anew
    │   ├── ProxyError               the proxy refuses or fails, not the server behind it
    │   └── CertificateError         never retried
    ├── RateLimitedError
    ├── StorageError                 the disk
    │   └── DiskFullError
    ├── OfflineError                 offline, and not in the cache
    ├── TimedOutError                a `timeout=` has passed; a TimeoutError too
    └── ModelMismatchError           the state dict does not fit the model

Each error carries its data as attributes, a stable `code`, a `hint` that says what to do, and `transient`: whether the
same call may succeed later. All survive pickling. No message holds a token, or credentials or the query of a URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .reasons import NO_ROOM, Writing, blamed, hint_of, larger, reason_of
from .words import misfits, quoted, redact_url, some_of, without_secrets

__all__ = [
    "AccessError", "AsyncfetchError", "CertificateError", "ChangedError", "CheckpointNotFoundError",
    "ChecksumMismatchError", "CorruptError", "DiskFullError", "EntryNotFoundError", "GatedRepositoryError",
    "InvalidHeaderError", "InvalidIndexError", "LinkExpiredError", "MissingTensorError", "ModelMismatchError",
    "NetworkError", "NotFoundError", "OfflineError", "ProtocolError", "ProxyError", "RateLimitedError",
    "RepositoryNotFoundError", "RevisionNotFoundError", "SelectionError", "ServerError", "ShardNotFoundError",
    "SourceError", "StalledError", "StorageError", "TimedOutError", "redact_url", "storage_errors",
]  # fmt: skip


class AsyncfetchError(Exception):
    """The root of the tree. `str(error)` is one sentence, then the hint if there is one."""

    code = "error"
    hint = ""
    transient = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        told = without_secrets(message)  # what the caller gives may be a URL in a wrong place
        super().__init__(re.sub(r"(?<!\.)(\.|\.{3}|[!?…])\s*\.$", r"\1", told))  # a server's words may have theirs
        if hint is not None:
            self.hint = hint

    @property
    def message(self) -> str:
        """What happened, and to what; without the hint."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


def _restore(cls: type[AsyncfetchError], args: tuple[object, ...], state: dict[str, Any]) -> AsyncfetchError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class SourceError(AsyncfetchError):
    """The source, the revision or an option is not usable as given."""

    code = "bad_source"


class SelectionError(SourceError):
    """`select` matches no tensor of the checkpoint."""

    code = "nothing_selected"


class NotFoundError(AsyncfetchError):
    """What was asked for does not exist."""

    code = "not_found"


class RepositoryNotFoundError(NotFoundError):
    """The Hub knows no such repository, or hides it from this caller: it answers 401 for both."""

    code = "repository_not_found"

    def __init__(self, repository: str, *, authenticated: bool, said: str = "") -> None:
        self.repository = repository
        who, hint = "without a token", "Check the spelling; if it is private, set HF_TOKEN or pass token=."
        if authenticated:
            who, hint = "with the token that was sent", "Check the spelling, and that the token may read it."
        super().__init__(f"Repository {repository!r} was not found {who}.{quoted(said)}", hint=hint)


class RevisionNotFoundError(NotFoundError):
    """The repository exists, the branch, tag or commit does not."""

    code = "revision_not_found"

    def __init__(self, repository: str, revision: str) -> None:
        self.repository, self.revision = repository, revision
        hint = "Give a branch, a tag or a full commit hash."
        super().__init__(f"Repository {repository!r} has no revision {revision!r}.", hint=hint)


class EntryNotFoundError(NotFoundError):
    """The source exists and has no such file."""

    code = "entry_not_found"

    def __init__(self, file: str, source: str, *, commit: str | None = None) -> None:
        self.file, self.source, self.commit = file, source, commit
        super().__init__(f"{source} has no file {file!r}.")


class ShardNotFoundError(EntryNotFoundError):
    """The index names a shard that its source lacks. There is no fallback for this."""

    code = "shard_not_found"
    hint = "The upload is incomplete or the index is stale: tell the publisher, or pin a revision."

    def __init__(self, file: str, source: str, index: str) -> None:
        super().__init__(file, source)
        self.index = index
        self.args = (f"{source} has no shard {file!r}, which {index!r} names.",)


class CheckpointNotFoundError(NotFoundError):
    """Neither an index nor a single safetensors file was found."""

    code = "checkpoint_not_found"

    def __init__(self, source: str, candidates: Sequence[str]) -> None:
        self.source, self.candidates = source, tuple(candidates)
        hint = "Name its folder with subfolder=, its variant with variant=, or give the file's own URL."
        super().__init__(f"{source} has no safetensors checkpoint; tried {', '.join(candidates)}.", hint=hint)


class AccessError(AsyncfetchError):
    """The server refuses this caller (401 or 403)."""

    code = "access_denied"
    hint = "Check that the token is valid and may read it (HF_TOKEN or token=)."


class GatedRepositoryError(AccessError):
    """The repository lets in those who asked for it and were let in, of which `page` tells. `said` is why not."""

    code = "gated_repository"

    def __init__(self, repository: str, page: str, *, said: str = "", hint: str | None = None) -> None:
        self.repository, self.page, self.said = repository, page, said
        hint = hint or f"Accept its terms at {page}, then set HF_TOKEN or pass token=."
        super().__init__(f"Repository {repository!r} is gated.{quoted(said)}", hint=hint)


class CorruptError(AsyncfetchError):
    """Bytes that are not what they should be."""

    code = "corrupt"

    def __init__(self, message: str, *, file: str, hint: str | None = None) -> None:
        self.file = file
        super().__init__(message, hint=hint)


class InvalidIndexError(CorruptError):
    """An index file that is not a usable `{"weight_map": {tensor: shard}}`."""

    code = "invalid_index"

    def __init__(self, file: str, reason: str, *, tensor: str | None = None) -> None:
        self.reason, self.tensor = reason, tensor
        super().__init__(f"{file}: {reason}.", file=file)


class InvalidHeaderError(CorruptError):
    """A file whose safetensors header breaks the rules of the format."""

    code = "invalid_header"

    def __init__(self, file: str, reason: str, *, tensor: str | None = None, hint: str = "") -> None:
        self.reason, self.tensor = reason, tensor
        super().__init__(f"{file}: {reason}.", file=file, hint=hint)


class MissingTensorError(CorruptError):
    """The index places a tensor in a shard whose header does not have it."""

    code = "missing_tensor"
    hint = "The index does not belong to these shards: tell the publisher, or pin a revision."

    def __init__(self, file: str, index: str, tensors: Sequence[str]) -> None:
        self.index, self.tensors = index, tuple(tensors)
        names = some_of([*map(repr, tensors)], 3)
        super().__init__(f"{index} places {len(tensors)} tensor(s) in {file} that it lacks: {names}.", file=file)


class ChecksumMismatchError(CorruptError):
    """All bytes arrived and their hash is wrong. Nothing of them is kept."""

    code = "checksum_mismatch"
    hint = "Nothing was kept. Try again; if it persists, the source or a proxy in between alters the file."

    def __init__(self, file: str, *, algorithm: str, expected: str, actual: str) -> None:
        self.algorithm, self.expected, self.actual = algorithm, expected, actual
        super().__init__(f"{file}: expected {algorithm} {expected}, got {actual}.", file=file)


class ChangedError(CorruptError):
    """The file at the source is another one than when the download began."""

    code = "changed"
    transient = True
    hint = "It was replaced while it was read; run the same call again."

    def __init__(self, file: str, what: str) -> None:
        super().__init__(f"{file} changed at its source: {what}.", file=file)


class NetworkError(AsyncfetchError):
    """The network or the server failed, and went on failing when retried."""

    code = "network"
    transient = True

    def __init__(self, message: str, *, url: str, hint: str | None = None, retry_after: float | None = None) -> None:
        self.url, self.retry_after = redact_url(url), retry_after
        super().__init__(f"{self.url}: {message}.", hint=hint)


class ServerError(NetworkError):
    """A 5xx, 408 or 425 answer: the server fails, or is not ready. `said` is what it says."""

    code = "server_error"

    def __init__(self, status: int, *, url: str, retry_after: float | None = None, said: str = "") -> None:
        self.status, self.said = status, said
        super().__init__(f"the server answered {status}{said and f' ({said})'}", url=url, retry_after=retry_after)


class ProtocolError(NetworkError):
    """An answer that breaks the rules: a wrong range, a missing length, an unexpected status."""

    code = "protocol"

    def __init__(self, message: str, *, url: str, transient: bool = False, hint: str | None = None) -> None:
        self.transient = transient
        super().__init__(message, url=url, hint=hint)


class ProxyError(NetworkError):
    """The proxy, named in `proxy` without a password, refuses or fails. `status`: with which answer, None for none."""

    code = "proxy"

    def __init__(self, message: str, *, url: str, hint: str, proxy: str | None, status: int | None, transient: bool):
        self.proxy, self.status, self.transient = proxy, status, transient
        super().__init__(message, url=url, hint=hint)


class StalledError(NetworkError):
    """The connection is open, and too little comes over it."""

    code = "stalled"


class LinkExpiredError(NetworkError):
    """The storage behind the source refuses a signed link. A new one is asked for before this comes out."""

    code = "link_expired"

    def __init__(self, status: int, *, url: str) -> None:
        self.status = status
        super().__init__(f"the storage refused the signed link with {status}", url=url)


class CertificateError(NetworkError):
    """The server's TLS certificate is not trusted. `reason` is a word of `network/wall.py:CERTIFICATE_FAULTS`."""

    code = "certificate"
    transient = False
    reason = "other"
    hint = "Check the clock and the certificate store; SSL_CERT_FILE names another one."


class RateLimitedError(AsyncfetchError):
    """429: each retry was answered so, or the wait that the server asks for is longer than the policy allows."""

    code = "rate_limited"
    transient = True
    hint = "Wait, or send a token: signed-in callers have a larger quota."

    def __init__(self, url: str, retry_after: float | None, said: str = "") -> None:
        self.url, self.retry_after = redact_url(url), retry_after
        wait = "" if retry_after is None else f", and asks to wait {retry_after:.0f} s"
        super().__init__(f"{self.url}: the server limits the request rate{wait}.{quoted(said)}")


class StorageError(AsyncfetchError):
    """The disk refused. `path` says where; the OSError is the cause."""

    code = "storage"

    def __init__(self, path: str, reason: str, *, hint: str | None = None) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}.", hint=hint)


class DiskFullError(StorageError):
    """Not enough room for what is missing. `needed` and `free` (None: unknown) are bytes; `writing` says for what."""

    code = "disk_full"

    def __init__(
        self, path: str, *, needed: int, free: int | None, used_up: str = "room", writing: Writing | None = None
    ) -> None:
        self.needed, self.free = needed, free
        room = f"{free:,} bytes are free" if free is not None else f"no {used_up} is left"
        super().__init__(path, f"{needed:,} bytes are needed and {room}" if needed else room, hint=larger(writing))


class OfflineError(AsyncfetchError):
    """Offline mode, and what is needed is not in the cache."""

    code = "offline"

    def __init__(self, source: str, what: str) -> None:
        self.source, self.what = source, what
        hint = "Unset HF_HUB_OFFLINE or pass offline=False once to fetch it."
        super().__init__(f"Offline, and {what} of {source} is not in the cache.", hint=hint)


class TimedOutError(AsyncfetchError, TimeoutError):
    """A call took longer than its `timeout`, `seconds`. What came is kept."""

    code = "timed_out"
    transient = True
    hint = "What came is kept: the same call goes on from there."

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"It took longer than the {seconds:g} s of timeout=.")


class ModelMismatchError(AsyncfetchError):
    """The state dict does not fit the model, which was not changed.

    `missing`, `unexpected`: names; `shapes`, `dtypes`: {name: (the model's, the checkpoint's)}; `reasons`: sentences.
    """

    code = "model_mismatch"

    def __init__(
        self, *, missing: Sequence[str] = (), unexpected: Sequence[str] = (), shapes: Mapping[str, Any] | None = None,
        dtypes: Mapping[str, Any] | None = None, reasons: Sequence[str] = (), hint: str | None = None,
    ) -> None:  # fmt: skip
        self.missing, self.unexpected, self.reasons = tuple(missing), tuple(unexpected), tuple(reasons)
        self.shapes, self.dtypes = dict(shapes or {}), dict(dtypes or {})
        named = {"missing": self.missing, "unexpected": self.unexpected}
        told = misfits(named, (self.shapes, self.dtypes), self.reasons)
        super().__init__(f"The state dict does not fit the model: {told}.", hint=hint)


@contextmanager
def storage_errors(path: object, *, needed: int = 0, writing: Writing | None = None) -> Iterator[None]:
    """Turn an OSError in the block into StorageError, or DiskFullError, about `path` or what the system names."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            used_up = NO_ROOM[error.errno]
            raise DiskFullError(str(path), needed=needed, free=None, used_up=used_up, writing=writing) from error
        raise StorageError(blamed(error, path), reason_of(error), hint=hint_of(error, writing=writing)) from error
