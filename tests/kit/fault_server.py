"""A server that speaks HTTP over raw sockets and breaks it on purpose, path by path and attempt by attempt.

    with FaultServer() as server:
        repository = server.hub("org/model", sharded_bytes(tensors))
        server.fault(repository.storage["model-00001-of-00003.safetensors"], OK, Truncate(1000), Reset(5000))

`hub` plays the Hub: metadata on a redirect, and signed links to storage on another port, so another
origin. `web` plays a plain folder. The faults of a path are used up one for each request to it; after
the last one it answers well. A tuple of faults strikes at once. `server.seen` has every request.
It runs in threads of its own with blocking sockets, so it shares no event loop with what it tests.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import re
import socket
import ssl
import struct
import termios
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any, Self
from urllib.parse import quote, unquote

import httpx
import numpy as np

from asyncfetch.network.transport import Transport
from asyncfetch.policy import Policy

from .canaries import SIGNATURE

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICK = Policy(
    backoff=0.01,
    max_backoff=0.05,
    patience=0,
    read_timeout=0.4,
    connect_timeout=2,
    progress_unit=1 << 16,
    stall_window=5,
)


@asynccontextmanager
async def transport_of(kind: str, policy: Policy = QUICK) -> AsyncIterator[Transport]:
    """The fast path with sockets of our own, or the generic path through a client of the caller."""
    if kind == "own":
        async with Transport(policy) as transport:
            yield transport
    else:
        async with httpx.AsyncClient(verify=False) as client, Transport(policy, client=client) as transport:
            yield transport


_LOOK = 64 * 1024  # bytes of a beginning that is looked at before the rest is asked for


@dataclass
class Seen:
    """One request. `sent` counts body bytes, `second` whether it came to the storage's port."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    connection: int
    second: bool
    status: int = 0
    sent: int = 0

    @property
    def start(self) -> int | None:
        """The first byte that was asked for; None without a Range."""
        match = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("range", ""))
        return int(match[1]) if match else None

    @property
    def looks(self) -> bool:
        """Whether it asks for the beginning alone, which holds the header."""
        match = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("range", ""))
        return match is not None and int(match[1]) < _LOOK


@dataclass(frozen=True)
class Answer:
    """What is about to be sent, and how. `framing` is "length", "chunked" or "eof".

    After `cut` bytes of the body comes `ending`: "close", "reset" or "stall". `pace` is (bytes,
    seconds): so many bytes, then a pause. `silent`: not even a status line. The
    lines of the head, the empty one too, end with `newlines` in turn.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    version: str = "HTTP/1.1"
    framing: str = "length"
    cut: int | None = None
    ending: str = "keep"
    newlines: tuple[str, ...] = ("\r\n",)
    pace: tuple[int, float] | None = None
    silent: bool = False
    revoke: bool = False
    raw: bytes | None = None  # sent as it is, instead of everything else
    full: bytes = b""  # the whole resource, of which body may be a range


Fault = Callable[[Answer], Answer]


def OK(answer: Answer) -> Answer:  # noqa: N802
    """No fault."""
    return answer


def LOOK(answer: Answer) -> Answer:  # noqa: N802
    """No fault for a look at the header, where one comes. If the next request is none, what follows is for that."""
    return answer


def Truncate(nbytes: int) -> Fault:  # noqa: N802
    """Close after `nbytes` of the body."""
    return lambda answer: replace(answer, cut=nbytes, ending="close")


def Reset(nbytes: int) -> Fault:  # noqa: N802
    """Send a RST after `nbytes` of the body."""
    return lambda answer: replace(answer, cut=nbytes, ending="reset")


def Stall(nbytes: int) -> Fault:  # noqa: N802
    """Say nothing more after `nbytes` of the body, and stay connected."""
    return lambda answer: replace(answer, cut=nbytes, ending="stall")


def Expire(nbytes: int) -> Fault:  # noqa: N802
    """Close after `nbytes` of the body; from then on the signed link of this request is refused."""
    return lambda answer: replace(answer, cut=nbytes, ending="close", revoke=True)


def Hangup(answer: Answer) -> Answer:  # noqa: N802
    """Close without a status line."""
    return replace(answer, silent=True, ending="close")


def ResetAtOnce(answer: Answer) -> Answer:  # noqa: N802
    """Send a RST instead of a status line."""
    return replace(answer, silent=True, ending="reset")


def Mute(answer: Answer) -> Answer:  # noqa: N802
    """Say nothing at all, and stay connected."""
    return replace(answer, silent=True, ending="stall")


def Drip(nbytes: int, seconds: float) -> Fault:  # noqa: N802
    """Send `nbytes`, pause for `seconds`, and so on."""
    return lambda answer: replace(answer, pace=(nbytes, seconds))


def Late(seconds: float) -> Fault:  # noqa: N802
    """Be far away: each answer takes so long."""

    def fault(answer: Answer) -> Answer:
        time.sleep(seconds)
        return answer

    return fault


def Status(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Fault:  # noqa: N802
    """Another answer altogether."""
    return lambda answer: Answer(status, dict(headers or {}), body)


def Lines(*newlines: str) -> Fault:  # noqa: N802
    """End the lines of the head with these in turn."""
    return lambda answer: replace(answer, newlines=newlines)


def Raw(data: bytes) -> Fault:  # noqa: N802
    """These bytes, whether they are HTTP or not."""
    return lambda answer: replace(answer, raw=data)


def Headers(**headers: str | None) -> Fault:  # noqa: N802
    """Set headers (underscores become hyphens), or remove them with None."""

    def fault(answer: Answer) -> Answer:
        changed = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        merged: dict[str, str | None] = {**{name.lower(): v for name, v in answer.headers.items()}, **changed}
        return replace(answer, headers={name: value for name, value in merged.items() if value is not None})

    return fault


def ContentRange(text: str) -> Fault:  # noqa: N802
    """Another Content-Range, where there is one; `{start}`, `{last}`, `{size}` are those of an honest answer."""

    def fault(answer: Answer) -> Answer:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("content-range", ""))
        if match is None:
            return answer
        numbers = {"start": int(match[1]), "last": int(match[2]), "size": int(match[3])}
        computed = re.sub(r"\{(\w+)([+-]\d+)?\}", lambda m: str(numbers[m[1]] + int(m[2] or 0)), text)
        return Headers(content_range=computed)(answer)

    return fault


def Shifted(answer: Answer) -> Answer:  # noqa: N802
    """A range of the right length that begins ten bytes too early, and says so; where there are ten."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("content-range", ""))
    if match is None or int(match[1]) < 10:
        return answer
    start, last = int(match[1]) - 10, int(match[2]) - 10
    return replace(
        Headers(content_range=f"bytes {start}-{last}/{match[3]}")(answer), body=answer.full[start : last + 1]
    )


def IgnoreRange(answer: Answer) -> Answer:  # noqa: N802
    """200 and the whole file, whatever was asked."""
    if answer.status != 206:
        return answer
    return replace(Headers(content_range=None)(answer), status=200, body=answer.full)


def Capped(nbytes: int) -> Fault:  # noqa: N802
    """Of a range at most so many bytes, as those who stand before a server may have it (RFC 9110, section 15.3.7)."""

    def fault(answer: Answer) -> Answer:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("content-range", ""))
        if match is None or len(answer.body) <= nbytes:
            return answer
        told = f"bytes {match[1]}-{int(match[1]) + nbytes - 1}/{match[2]}"
        return replace(Headers(content_range=told)(answer), body=answer.body[:nbytes])

    return fault


def Flip(position: int, mask: int = 1) -> Fault:  # noqa: N802
    """One wrong bit (or those of `mask`) in byte `position` of the file, if this answer holds it."""

    def fault(answer: Answer) -> Answer:
        match = re.match(r"bytes (\d+)-", answer.headers.get("content-range", "bytes 0-"))
        at = position - (int(match[1]) if match else 0)
        body = bytearray(answer.body)
        if answer.status in (200, 206) and 0 <= at < len(body):
            body[at] ^= mask
        return replace(answer, body=bytes(body))

    return fault


def Gzip(answer: Answer) -> Answer:  # noqa: N802
    """Compress, although identity was asked for."""
    return replace(Headers(content_encoding="gzip")(answer), body=gzip.compress(answer.body, 1))


def Chunked(answer: Answer) -> Answer:  # noqa: N802
    """Chunked transfer encoding: no length."""
    return replace(answer, framing="chunked")


def UntilClose(answer: Answer) -> Answer:  # noqa: N802
    """HTTP/1.0 and no length: the end of the connection is the end of the body."""
    return replace(
        answer, version="HTTP/1.0", framing="eof", ending="close" if answer.ending == "keep" else answer.ending
    )


def LoginPage(answer: Answer) -> Answer:  # noqa: N802
    """What a captive portal answers to anything."""
    return Answer(200, {"content-type": "text/html"}, b"<html><body>Please sign in.</body></html>")


@dataclass
class Resource:
    """What a path serves. `respond`, if set, answers instead of the bytes."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    respond: Callable[[Seen], Answer] | None = None
    second: bool = False
    signed: bool = False


def _tree_entry(name: str, body: bytes) -> dict[str, object]:
    """A file as the Hub's listing has it."""
    git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    lfs = {"lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}}
    return {
        "type": "file",
        "path": name,
        "size": len(body),
        "oid": git,
        **(lfs if name.endswith(".safetensors") else {}),
    }


@dataclass(frozen=True)
class Repository:
    """A repository of the played Hub: the paths of its files, and where storage serves them."""

    name: str
    files: Mapping[str, bytes]
    pages: Mapping[str, str]
    storage: Mapping[str, str]


def _is_open(sock: socket.socket) -> bool:
    """Whether the client has not closed it, also where its thread has not noticed yet (tcp_states.h)."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 1
    except OSError:  # this end is closed
        return False


class FaultServer:
    """See the module. `tls` is a server-side SSL context for both ports."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._scheme = "http" if tls is None else "https"
        self._listeners = [socket.create_server(("127.0.0.1", 0), backlog=128) for _ in range(2)]
        self.url, self.storage_url = (
            f"{self._scheme}://localhost:{listener.getsockname()[1]}" for listener in self._listeners
        )
        self.seen: list[Seen] = []
        self.resources: dict[str, Resource] = {}
        self.accepted = 0  # connections, whether or not a request came over them
        self.handshakes = 0
        self.most_at_once = 0  # connections that were open together
        self.token: str | None = None
        self._faults: dict[str, deque[Fault | tuple[Fault, ...]]] = defaultdict(deque)
        self._always: dict[str, Fault | tuple[Fault, ...]] = {}
        self._links = 0
        self._revoked: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    # -- what tests call ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        for listener, second in zip(self._listeners, (False, True), strict=True):
            self._start(self._accept, listener, second)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.go_away()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(5)

    def go_away(self) -> None:
        """Cut all connections, and let new ones be refused."""
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen again at the same ports."""
        ports = [int(url.rpartition(":")[2]) for url in (self.url, self.storage_url)]
        self._listeners = [socket.create_server(("127.0.0.1", port), backlog=128) for port in ports]
        self.__enter__()

    def fault(self, path: str, *faults: Fault | tuple[Fault, ...], forever: bool = False) -> None:
        """Script the next requests to `path`. `forever`: the last fault goes on."""
        self._faults[path].extend(faults)
        if forever:
            self._always[path] = faults[-1]

    def heal(self, path: str) -> None:
        """Drop what is left of the script of `path`."""
        self._faults.pop(path, None)
        self._always.pop(path, None)

    def to(self, path: str) -> list[Seen]:
        """The requests to `path` so far."""
        return [seen for seen in list(self.seen) if seen.path == path]

    def sent(self, path: str) -> int:
        """The body bytes that were sent for `path` so far."""
        return sum(seen.sent for seen in self.to(path))

    def covered(self, path: str, since: int = 0) -> int:
        """How many different bytes of `path` were sent by requests from `seen[since]` on.

        What a connection takes over from another, which had it in its socket, counts once.
        """
        return int((self.times_sent(path, since) > 0).sum())

    def times_sent(self, path: str, since: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How often each byte of `path` was sent, by requests from `seen[since]` on."""
        counts = np.zeros(len(self.resources[path].body), dtype=np.int64)
        for seen in self.seen[since:]:
            if seen.path == path:
                begin = seen.start or 0
                counts[begin : begin + seen.sent] += 1
        return counts

    @property
    def connections(self) -> int:
        """How many connections brought a request."""
        return len({seen.connection for seen in list(self.seen)})

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        """Block until `condition`; for use in a worker thread."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "the condition never came true"
            time.sleep(0.002)

    def web(self, folder: str, files: Mapping[str, bytes], **headers: str) -> str:
        """Serve `files` as a plain folder with strong ETags. Returns its URL."""
        for name, body in files.items():
            etag = f'"{hashlib.md5(body).hexdigest()[:16]}"'
            named = {"etag": etag, **{key.replace("_", "-").lower(): value for key, value in headers.items()}}
            self.resources[f"{folder}/{name}"] = Resource(body, {k: v for k, v in named.items() if v})
        return f"{self.url}{folder}/"

    def hub(
        self, repo: str, files: Mapping[str, bytes], *, commit: str = COMMIT, links: str = r".*\.safetensors"
    ) -> Repository:
        """Serve `files` as a repository. Those whose names match `links` are behind signed links."""
        pages, storage = {}, {}
        for name, body in files.items():
            large = name.endswith(".safetensors")
            etag = (
                hashlib.sha256(body).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            )
            named = {"x-repo-commit": commit, "etag": f'"{etag}"'}
            behind = re.fullmatch(links, name) is not None
            if behind:
                storage[name] = f"/storage/{etag}"
                opaque = {"etag": f'"{hashlib.md5(body).hexdigest()}"'}
                self.resources[storage[name]] = Resource(body, opaque, second=True, signed=True)
                page = Resource(respond=self._redirecting(storage[name], commit, etag, len(body)))
            else:
                page = Resource(body, named)
            pages[name] = f"/{repo}/resolve/{commit}/{quote(name)}"
            for revision in ("main", commit):
                self.resources[f"/{repo}/resolve/{revision}/{quote(name)}"] = page
        self.resources[f"/{repo}/"] = Resource(
            respond=lambda _seen: Answer(
                404, {"x-error-code": "EntryNotFound", "x-repo-commit": commit}, b"Entry not found"
            )
        )
        return Repository(repo, dict(files), pages, storage)

    def listing(
        self, repository: Repository, *, commit: str = COMMIT, per_page: int = 1000, elsewhere: str = ""
    ) -> str:
        """Serve the API's listing of a repository, in pages, and what `main` is. Returns the path of the listing.

        `elsewhere`: the origin that the links to the next pages name, as those of a mirror may.
        """
        names = sorted(repository.files)

        def respond(seen: Seen) -> Answer:
            begin = int((re.search(r"cursor=(\d+)", seen.query) or [0, 0])[1])
            page = [_tree_entry(name, repository.files[name]) for name in names[begin : begin + per_page]]
            headers = {"content-type": "application/json"}
            if begin + per_page < len(names):
                following = f"{elsewhere or self.url}{seen.path}?recursive=true&cursor={begin + per_page}"
                headers["link"] = f'<{following}>; rel="next"'
            return Answer(200, headers, json.dumps(page).encode())

        dataset = repository.name.startswith("datasets/")
        api = f"/api/{repository.name if dataset else f'models/{repository.name}'}"
        told = {
            "id": repository.name.removeprefix("datasets/"),
            "sha": commit,
            "siblings": [{"rfilename": name} for name in names],
        }
        for revision in ("main", commit):
            self.resources[f"{api}/tree/{revision}"] = Resource(respond=respond)
            self.resources[f"{api}/revision/{revision}"] = Resource(json.dumps(told).encode())
        return f"{api}/tree/{commit}"

    def _redirecting(self, path: str, commit: str, etag: str, size: int) -> Callable[[Seen], Answer]:
        def respond(_seen: Seen) -> Answer:
            with self._lock:
                self._links += 1
                link = f"{self.storage_url}{path}?X-Signature={SIGNATURE}-{self._links}"
            headers = {"x-repo-commit": commit, "x-linked-etag": f'"{etag}"', "x-linked-size": str(size)}
            return Answer(302, {**headers, "location": link}, b"Found. Redirecting")

        return respond

    # -- connections -------------------------------------------------------------------------

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, second: bool) -> None:
        number = int(second)
        while not self._closing.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            number += 2  # odd for the storage's port, even for the other
            self._start(self._serve, sock, number, second)

    def _serve(self, sock: socket.socket, number: int, second: bool) -> None:
        with self._lock:
            self._sockets.add(sock)
            self.most_at_once = max(self.most_at_once, sum(map(_is_open, self._sockets)))
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                raw, sock = sock, self._tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=True)
                with self._lock:
                    self.handshakes += 1
                    self._sockets.discard(raw)
                    self._sockets.add(sock)
            buffered = b""
            while True:
                while b"\r\n\r\n" not in buffered:
                    received = sock.recv(65536)
                    if not received:
                        return
                    buffered += received
                head, _, buffered = buffered.partition(b"\r\n\r\n")
                if not self._exchange(sock, head.decode("latin-1"), number, second):
                    return
        except OSError:
            pass
        finally:
            with self._lock:
                self._sockets.discard(sock)
            sock.close()

    def _exchange(self, sock: socket.socket, head: str, number: int, second: bool) -> bool:
        """One request and its answer. False: the connection ends here."""
        request, *lines = head.split("\r\n")
        method, target, _ = request.split(" ")
        path, _, query = target.partition("?")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        seen = Seen(method, unquote(path) if path not in self.resources else path, query, headers, number, second)
        with self._lock:
            self.seen.append(seen)
            script = self._faults[path]
            while script and script[0] in (LOOK, (LOOK,)) and not seen.looks:
                script.popleft()
            fault = script.popleft() if script else self._always.get(path, OK)
        answer = self._answer(seen, path)
        for one in fault if isinstance(fault, tuple) else (fault,):
            answer = one(answer)
        if answer.revoke:
            self._revoked.add(query)
        seen.status = 0 if answer.silent else answer.status
        return self._send(sock, answer, seen)

    def _answer(self, seen: Seen, path: str) -> Answer:
        """The honest answer to a request."""
        resource = self.resources.get(path) or self.resources.get(path.partition("resolve/")[0])
        if resource is None or resource.second != seen.second:
            return Answer(404, {}, b"nothing here")
        if self.token is not None and not seen.second and seen.headers.get("authorization") != f"Bearer {self.token}":
            return Answer(401, {"x-error-code": "RepoNotFound"}, b"")
        if resource.signed and (SIGNATURE not in seen.query or seen.query in self._revoked):
            return Answer(403, {"content-type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        if resource.respond is not None:
            return resource.respond(seen)
        body, headers = resource.body, {"accept-ranges": "bytes", **resource.headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", ""))
        condition = seen.headers.get("if-range")
        if match is None or (condition is not None and condition != headers.get("etag")):
            return Answer(200, headers, body, full=body)
        start, last = int(match[1]), min(int(match[2] or len(body)), len(body) - 1)
        if start >= len(body):
            return Answer(416, {**headers, "content-range": f"bytes */{len(body)}"})
        headers["content-range"] = f"bytes {start}-{last}/{len(body)}"
        return Answer(206, headers, body[start : last + 1], full=body)

    def _send(self, sock: socket.socket, answer: Answer, seen: Seen) -> bool:
        if answer.raw is not None:
            sock.sendall(answer.raw)
        elif not answer.silent:
            headers = {"date": "Mon, 01 Jan 2024 00:00:00 GMT", **answer.headers}
            if answer.framing == "length":
                headers.setdefault("content-length", str(len(answer.body)))
            elif answer.framing == "chunked":
                headers["transfer-encoding"] = "chunked"
            lines = [
                f"{answer.version} {answer.status} Scripted",
                *(f"{name}: {value}" for name, value in headers.items()),
            ]
            head = "".join(line + end for line, end in zip([*lines, ""], cycle(answer.newlines), strict=False))
            sock.sendall(head.encode("latin-1"))
            self._send_body(sock, answer, seen)
        if answer.ending == "reset":
            _drain(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif answer.ending == "stall":
            self._hold(sock)
        return answer.ending == "keep"

    def _send_body(self, sock: socket.socket, answer: Answer, seen: Seen) -> None:
        if seen.method == "HEAD":
            return
        body = memoryview(answer.body)[: answer.cut]
        step, pause = answer.pace or (65536, 0.0)
        for at in range(0, len(body), step):
            piece = body[at : at + step]
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.framing == "chunked" else piece)
            seen.sent += len(piece)
            if pause and self._closing.wait(pause):
                return
        if answer.framing == "chunked" and answer.cut is None:
            sock.sendall(b"0\r\n\r\n")

    def _hold(self, sock: socket.socket) -> None:
        """Keep the connection until the other side leaves or the server closes."""
        sock.settimeout(0.05)
        while not self._closing.is_set():
            try:
                if not sock.recv(1024):
                    return
            except TimeoutError:
                continue


def _drain(sock: socket.socket) -> None:
    """Wait until the other side has taken all that was sent: a RST throws the rest away."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        if struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0] == 0:
            return
        time.sleep(0.001)
