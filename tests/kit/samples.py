"""Every event and every error once, for all tests that need one of each: a new one is added here and nowhere else.

`tests/test_events.py` and `tests/test_errors.py` see to it that none is missing.
"""

from __future__ import annotations

from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    CertificateError,
    ChangedError,
    CheckpointNotFoundError,
    ChecksumMismatchError,
    CorruptError,
    DiskFullError,
    EntryNotFoundError,
    GatedRepositoryError,
    InvalidHeaderError,
    InvalidIndexError,
    LinkExpiredError,
    MissingTensorError,
    ModelMismatchError,
    NetworkError,
    NotFoundError,
    OfflineError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SelectionError,
    ServerError,
    ShardNotFoundError,
    SourceError,
    StalledError,
    StorageError,
    TimedOutError,
)
from asyncfetch.events import (
    Event,
    FileProgress,
    FileStarted,
    FileState,
    FileVerified,
    FileWritten,
    Finished,
    NodeProgress,
    Resolved,
    Retrying,
    Waiting,
    Warned,
    Writing,
)

from .canaries import PASSWORD, SIGNATURE

# As in a load of one file of 100 bytes, of which an earlier run left 40.
EVENTS: tuple[Event, ...] = (
    Resolved("org/m", "a" * 40, None, (FileState("m.safetensors", 100, 40, "sha256:x"),)),
    FileStarted("m.safetensors", 100, 40),
    Warned("strange, but go on"),
    Retrying("m.safetensors", "reset", 1, 5, 0.1),
    Waiting("m.safetensors", "the server limits the request rate", 3.0),
    FileProgress("m.safetensors", 100, 100),
    FileVerified("m.safetensors", 100, "sha256:x"),
    Finished(1, 100, 60, 0.5),
    Writing("/models/new", (FileState("model.safetensors", 100, 0, None),)),
    FileWritten("model.safetensors", 100),
    NodeProgress("5414745ff0ed22e5", "127.0.0.2", "m.safetensors", 100, 100, False),
)

SIGNED = f"https://user:{PASSWORD}@cdn.example:8443/a/b.safetensors?X-Amz-Signature={SIGNATURE}#{SIGNATURE}"

# With all of their data, by class.
ERRORS: dict[type[AsyncfetchError], AsyncfetchError] = {
    type(error): error
    for error in (
        AsyncfetchError("It failed.", hint="Do this."),
        SourceError("No such source."),
        SelectionError("Nothing matches.", hint="Look again."),
        NotFoundError("It is not there."),
        RepositoryNotFoundError("org/name", authenticated=True, said="Who are you?"),
        RevisionNotFoundError("org/name", "v9"),
        EntryNotFoundError("a.json", "org/name", commit="a" * 40),
        ShardNotFoundError("b.safetensors", "org/name", "index.json"),
        CheckpointNotFoundError("org/name", ["one", "two"]),
        AccessError("No."),
        GatedRepositoryError("org/name", "https://hub.example/org/name", said="Not yet", hint="Wait."),
        CorruptError("Wrong bytes.", file="f"),
        InvalidIndexError("index.json", "not JSON", tensor="t"),
        InvalidHeaderError("f", "too long", tensor="t", hint="h"),
        MissingTensorError("f", "index.json", ["a", "b", "c", "d"]),
        ChecksumMismatchError("f", algorithm="sha256", expected="e", actual="a"),
        ChangedError("f", "its size is another one"),
        NetworkError("reset", url=SIGNED, retry_after=3.5),
        ServerError(503, url=SIGNED, retry_after=1.0, said="Busy"),
        ProtocolError("no length", url=SIGNED, transient=True),
        ProxyError(
            "the proxy http://p:3128 answered 503",
            url=SIGNED,
            hint="",
            proxy="http://p:3128",
            status=503,
            transient=True,
        ),
        StalledError("nothing came", url=SIGNED),
        LinkExpiredError(403, url=SIGNED),
        CertificateError("not trusted", url=SIGNED),
        RateLimitedError(SIGNED, 60.0),
        StorageError("/cache/x", "denied", hint="chmod"),
        DiskFullError("/cache/x", needed=1_000_000, free=5),
        OfflineError("org/name", "the index"),
        TimedOutError(30.0),
        ModelMismatchError(missing=["a"], unexpected=["b"], shapes={"c": ((1, 2), (2, 1))}),
    )
}
