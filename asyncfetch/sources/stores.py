"""A bucket's store, asked through obstore (the extra `cloud`): signed links and listings.

Everything here blocks: call it in a thread. obstore runs tokio underneath, which knows asyncio alone and does not
outlive a fork. No text of obstore's is shown as it is: it holds URLs and whole answers, and those hold signatures.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlsplit

from ..errors import AsyncfetchError, SourceError
from ..policy import Policy
from .bucket import BucketSource
from .signature import for_blob, with_header
from .store_env import Way, way_to
from .store_refusals import refusal_of_credentials, refusal_of_listing, said_by

__all__ = ["PAGE", "Link", "Listed", "Store"]

PAGE = 1000  # objects: those that one request lists
LIFETIME = 3600.0  # seconds for which a link is signed: as long as Azure's and Google's shortest-lived tokens
_LONG = 86_400.0  # seconds: the longest time-out that obstore is given, which knows of none without an end
_MARGIN = 60.0  # seconds before its end at which another one is made
_PROBE = 1.0  # seconds for the machine itself to say that it has credentials: it is on the machine
_READING = "https://www.googleapis.com/auth/devstorage.read_only"
_CHECKSUMS = ("x-amz-checksum-mode", "ENABLED")

_pid: int | None = None  # of the process in which obstore has been used


@dataclass(frozen=True, slots=True)
class Link:
    """Where an object is read. `headers` go along; it ends at `until`, by `time.monotonic`; None: it does not end."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Opened:
    store: Any
    way: Way
    provider: _Provider | None = field(default=None, repr=False)


class Store:
    """The store of one bucket, as `environ` says that it is to be asked. Threads may share it."""

    def __init__(self, source: BucketSource, policy: Policy, environ: Mapping[str, str]) -> None:
        self.source = source
        self._policy, self._environ = policy, environ
        self._region: str | None = None
        self._known: _Opened | None = None
        self._unsigned: Any = None
        self._lock = threading.Lock()

    @property
    def found(self) -> str:
        """Which credentials were found, for messages."""
        return self._known.way.found if self._known is not None else ""

    @property
    def region(self) -> str | None:
        """Where the store said that the bucket is."""
        return self._region

    @property
    def anonymous(self) -> bool:
        """Whether nobody's credentials go along."""
        return self._known is not None and self._known.way.kind == "anonymous"

    def link(self, key: str) -> Link:
        """A link to read an object, signed where somebody asks. Sends nothing where the credentials are at hand."""
        opened = self._open()
        match opened.way.kind:
            case "anonymous":
                return Link(self._plain(key))
            case "sas":
                return Link(f"{self._plain(key)}?{opened.way.config['sas_key']}")
            case "bearer":
                token = opened.way.config["bearer_token"]
                return Link(self._plain(key), {"authorization": f"Bearer {token}"})
        if opened.provider is not None and self.source.scheme == "gs":  # a user's credentials sign nothing
            told = self._asked(opened.provider)
            return Link(self._plain(key), {"authorization": f"Bearer {told['token']}"}, _monotonic(told["expires_at"]))
        url = self._asked(lambda: _sign(opened.store, "GET", key))
        if self.source.scheme == "az" and key != quote(key):
            url = self._signed_for_blob(url, key, opened.way)
        return Link(url, until=time.monotonic() + LIFETIME - _MARGIN)

    def _signed_for_blob(self, url: str, key: str, way: Way) -> str:
        secret = way.config.get("account_key")
        if secret is None:
            hint = "Use the account's key or an access signature, or give it a plain name."
            raise SourceError(f"With these credentials ({way.found}) no name such as {key!r} can be signed.", hint=hint)
        return for_blob(url, secret, f"{way.config['account_name']}/{self.source.bucket}/{key}")

    def checksum_link(self, key: str) -> Link | None:
        """A link by which HEAD tells the checksums of an S3 object; None where none can be made.

        The header that asks for them has to be signed, which needs the secret.
        """
        opened = self._open()
        if self.source.scheme != "s3":
            return None
        if opened.way.kind == "anonymous":
            return Link(self._plain(key), dict([_CHECKSUMS]))
        secret = opened.way.config.get("secret_access_key")
        if opened.provider is not None:
            secret = self._asked(opened.provider)["secret_access_key"]
        if secret is None:
            return None
        url = self._asked(lambda: _sign(opened.store, "HEAD", key))
        return Link(with_header("HEAD", url, secret, *_CHECKSUMS), dict([_CHECKSUMS]))

    def list(self, prefix: str) -> Iterator[list[Listed]]:
        """All objects below a prefix, page by page."""
        opened = self._open()
        pages = self._asked(lambda: _obstore().list(opened.store, prefix or None, chunk_size=PAGE), listing=True)
        while page := self._asked(lambda: next(pages, None), listing=True):
            yield [Listed(one["path"], one["size"], one["e_tag"] or "") for one in page]

    def move_to(self, region: str) -> None:
        """Ask in another region from now on."""
        with self._lock:
            if region != self._region:
                self._region, self._known, self._unsigned = region, None, None

    def _open(self) -> _Opened:
        with self._lock:
            if self._known is None:
                _refuse_forks()
                self._known = self._asked(self._opened)
            return self._known

    def _opened(self) -> _Opened:
        way = way_to(self.source, self._environ)
        if self._region is not None:
            way = Way(way.kind, way.found, {**way.config, "region": self._region}, way.library, way.machine)
        if way.kind == "machine":
            return self._opened_by_machine(way)
        if way.kind == "library":
            return self._opened_by(way, _provider(way, self._environ))
        return self._opened_by(way)

    def _opened_by_machine(self, way: Way) -> _Opened:
        """With the credentials of the machine, if it has some; else nobody's: a public bucket wants none."""
        nobodys = "was not asked"
        try:
            provider = None
            if way.library == "azure-identity" and find_spec("azure") is not None:  # it knows of `az login` too
                provider = _provider(way, self._environ)
            elif not _answers(way.machine):
                return self._opened_by(Way("anonymous", way.found, way.config))
            elif way.library == "google-auth":
                provider = _provider(way, self._environ)
            opened = self._opened_by(Way("chain", "the credentials of this machine are used", way.config), provider)
            _sign(opened.store, "GET", "model.safetensors") if provider is None else provider()
            return opened
        except Exception as error:  # whatever speaks at that address: it has no credentials for us
            nobodys = said_by(error)
        return self._opened_by(Way("anonymous", f"{way.found} ({nobodys})", way.config))

    def _opened_by(self, way: Way, provider: _Provider | None = None) -> _Opened:
        stores = _obstore().store
        endpoint, config = self.source.endpoint, dict(way.config)
        if way.kind == "anonymous":
            config["skip_signature"] = True
        options = {
            "client_options": {
                "allow_http": endpoint.lower().startswith("http://"),
                "connect_timeout": timedelta(seconds=min(self._policy.connect_timeout, _LONG)),
                "timeout": timedelta(seconds=min(self._policy.read_timeout, _LONG)),
            },
            "retry_config": {"max_retries": 0},  # one rule says what is tried again, and it is ours
        }
        if provider is not None:
            options["credential_provider"] = provider
        match self.source.scheme:
            case "s3":
                config |= {"endpoint": endpoint} if endpoint else {}
                return _Opened(stores.S3Store(self.source.bucket, config=config, **options), way, provider)
            case "gs":
                config |= {"base_url": endpoint} if endpoint else {}
                return _Opened(stores.GCSStore(self.source.bucket, config=config, **options), way, provider)
            case _:
                config["endpoint"] = endpoint
                return _Opened(stores.AzureStore(self.source.bucket, config=config, **options), way, provider)

    def _plain(self, key: str) -> str:
        """The address of an object without a signature: that of a link which nobody's key has signed."""
        if self.source.scheme == "gs":
            home = self.source.endpoint or "https://storage.googleapis.com"
            return f"{home}/{quote(self.source.bucket)}/{quote(key)}"
        known = self._open().way.config
        nobody = {"access_key_id": "nobody", "secret_access_key": "nobody", "skip_signature": False}
        if self.source.scheme == "az":
            nobody = {"account_name": known["account_name"], "account_key": "bm9ib2R5", "skip_signature": False}
        elif "region" in known:
            nobody["region"] = known["region"]
        if self._unsigned is None:
            self._unsigned = self._opened_by(Way("static", "", nobody)).store
        return _sign(self._unsigned, "GET", key).partition("?")[0]

    def _asked(self, work: Callable[[], Any], *, listing: bool = False) -> Any:
        """What `work` returns; what it raises is told as errors of ours: of a listing, or of who is to ask."""
        error: BaseException | None = None
        try:
            return work()
        except AsyncfetchError:
            raise
        except Exception as raised:
            error = raised
        raise (refusal_of_listing if listing else refusal_of_credentials)(
            error, self
        ) from None  # its text shows URLs and answers: so it is no cause of ours


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        hint = "Run: pip install 'asyncfetch[cloud]'"
        raise SourceError("Buckets are asked through obstore, which is not installed.", hint=hint) from error
    return obstore


def _refuse_forks() -> None:
    """obstore waits for ever in a child of a process that has used it (https://github.com/tokio-rs/tokio/issues/4301)."""
    global _pid
    if _pid not in (None, os.getpid()):
        hint = "Start it with multiprocessing's `spawn` or `forkserver`, or use buckets only after the fork."
        raise SourceError(
            "This process was forked from one that had used a bucket, where obstore cannot work.", hint=hint
        )
    _pid = os.getpid()


def _sign(store: Any, method: str, key: str) -> str:
    return str(_obstore().sign(store, method, key, timedelta(seconds=LIFETIME)))


def _answers(url: str) -> bool:
    """Whether anybody listens there. Found out by a connection, since obstore would ask for minutes."""
    parts = urlsplit(url)
    with suppress(OSError, ValueError), socket.create_connection((parts.hostname or "", parts.port or 80), _PROBE):
        return True
    return False


def _monotonic(then: datetime | None) -> float | None:
    return None if then is None else time.monotonic() + (then - datetime.now(UTC)).total_seconds() - _MARGIN


class _Provider:
    """Gives credentials by the provider's own library: those that it gave last, until they end."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._last: Mapping[str, Any] = {}
        self._until: float | None = 0.0

    def __call__(self) -> Mapping[str, Any]:
        with self._lock:
            if self._until is not None and time.monotonic() >= self._until:
                self._last = self._ask()
                self._until = _monotonic(self._last["expires_at"])
            return self._last


def _provider(way: Way, environ: Mapping[str, str]) -> _Provider:
    """What gives credentials. Raises SourceError where the library that knows them is not installed."""
    try:
        if way.library == "boto3":
            import boto3
            from obstore.auth.boto3 import Boto3CredentialProvider

            return _Provider(Boto3CredentialProvider(boto3.Session(profile_name=environ.get("AWS_PROFILE") or None)))
        if way.library == "google-auth":
            import google.auth
            import google.auth.transport.requests
            from obstore.auth.google import GoogleCredentialProvider

            return _Provider(GoogleCredentialProvider(google.auth.default(scopes=[_READING])[0]))
        from obstore.auth.azure import AzureCredentialProvider

        return _Provider(AzureCredentialProvider())
    except ImportError as error:
        hint = f"Run: pip install {way.library}{' requests' if way.library == 'google-auth' else ''}"
        raise SourceError(f"These credentials need {way.library}: {way.found}.", hint=hint) from error
