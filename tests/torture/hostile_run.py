"""Downloads with a hostile name at one place of the conversation; run apart, as it watches the process it runs in.

    python -m tests.torture.hostile_run 1000 7 /tmp/tree weight_map commit

makes 1000 calls for each place, with seed 7 and the cache /tmp/tree/a/b/cache. An audit hook sees each file
that is written, and each that is read in /tmp/tree but outside of the cache; a server sees each request as it
was sent. Prints counts as JSON; the first call that breaks a rule ends the run, with the name that did it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hypothesis.configuration
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

import asyncfetch
from asyncfetch.errors import AsyncfetchError

from ..kit.fault_server import QUICK, Answer, FaultServer, Seen
from ..kit.files import index_bytes, safetensors_bytes
from . import hostile_names as hostile

TOKEN = "hf_canary_token"
INDEX = "model.safetensors.index.json"
GOOD = "good.safetensors"
SHARD = safetensors_bytes({"t": ("U8", (4,), b"data"), "u": ("U8", (4,), b"more")})
POLICY = replace(QUICK, attempts=1, connect_timeout=1, connections=2)
ON_PATHS = {  # audit events, and how many of their arguments are paths that change
    "os.mkdir": 1, "os.rename": 2, "os.link": 2, "os.remove": 1, "os.rmdir": 1, "os.truncate": 1, "os.chmod": 1,
    "os.chown": 1, "os.utime": 1, "shutil.move": 2, "shutil.rmtree": 1,
}  # fmt: skip


class Watch:
    """An audit hook: what is done to files outside of the cache, once it is on."""

    def __init__(self, tree: Path, cache: Path) -> None:
        self.tree, self.cache = str(tree), str(cache)
        self.on, self.seen = False, 0
        self.broken: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            self.look(event, path, bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)))
        elif event == "os.symlink":  # where it leads is seen when all is over: it is renamed before it is used
            self.look(event, arguments[1], True)
        for path in arguments[: ON_PATHS.get(event, 0)]:
            self.look(event, path, True)

    def look(self, event: str, path: Any, writes: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        text = os.path.normpath(os.path.abspath(os.fsdecode(path)))
        self.seen += 1
        if text == self.cache or text.startswith(self.cache + "/") or text == os.devnull:
            return
        if writes or text.startswith(self.tree + "/"):
            self.broken.append(f"{event} {text!r}")


class Server(FaultServer):
    """The Hub for any path at all, and storage beside it. It keeps each target as it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[str, Seen]] = []
        self.calls = 0
        self.arrange()

    def arrange(self, index: bytes = b"", status: int = 200, **headers: str) -> None:
        """What the next call finds: an index, or the single file; the status and the headers of it."""
        self.targets.clear()
        self.calls += 1
        self.commit = f"{self.calls:040x}"  # so that the cache answers for nothing
        self.index, self.status = index, status
        self.headers = {name.replace("_", "-"): hostile.as_header(value) for name, value in headers.items()}

    def _answer(self, seen: Seen, path: str) -> Answer:
        self.targets.append((path, seen))
        body = self.index if INDEX in path else SHARD if path.endswith(".safetensors") or seen.second else b""
        if not body:
            return Answer(404, {"x-error-code": "EntryNotFound", "x-repo-commit": self.commit, **self.headers})
        headers = {"x-repo-commit": self.commit, "etag": f'"{hashlib.sha256(body).hexdigest()}"'}
        headers["content-disposition"] = 'attachment; filename="../../canary.safetensors"'
        at_home = is_home(self, seen)
        if at_home:
            headers |= {"x-linked-size": str(len(body)), **self.headers}
        if self.status != 200 and at_home and path.startswith("/org/model/resolve/"):
            return Answer(self.status, headers)
        return self._part(seen, body, headers)

    def _part(self, seen: Seen, body: bytes, headers: dict[str, str]) -> Answer:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", ""))
        if match is None or int(match[1]) >= len(body):
            return Answer(200, headers, body)
        last = min(int(match[2] or len(body)), len(body) - 1)
        headers["content-range"] = f"bytes {match[1]}-{last}/{len(body)}"
        return Answer(206, headers, body[int(match[1]) : last + 1])


def is_home(server: FaultServer, seen: Seen) -> bool:
    """Whether a request came to the endpoint, under the endpoint's own name."""
    return not seen.second and seen.headers.get("host") == server.url.removeprefix("http://")


Call = tuple[str, dict[str, Any]]


@dataclass
class Place:
    """Where a hostile name can stand. `arrange` puts it there and says what to call; requests are in `stays`.

    With the name `right` all of the download goes well: it is tried first, so that not all is refused alike.
    """

    names: Callable[[Server], SearchStrategy[str]]
    arrange: Callable[[Server, str], Call]
    stays: str | None = r"/org/model/resolve/"
    trusted: bool = True  # whether the server is the endpoint, so that it may see the token
    right: str | None = None


def mapped(server: Server, name: str) -> Call:
    server.arrange(index_bytes({"t": GOOD, "u": name}))
    return "org/model", {"endpoint": server.url}


def on_web(server: Server, name: str) -> Call:
    server.arrange(index_bytes({"t": GOOD, "u": name}), x_repo_commit="", etag='"strong"')
    return f"{server.url}/folder/", {"endpoint": server.storage_url}


def headed(header: str, status: int = 200, index: bytes = b"") -> Callable[[Server, str], Call]:
    def arrange(server: Server, value: str) -> Call:
        server.arrange(index, status, **{header: value})
        return "org/model", {"endpoint": server.url}

    return arrange


def called(**options: str) -> Callable[[Server, str], Call]:
    """The name as an argument, "{}" in the text of one."""

    def arrange(server: Server, name: str) -> Call:
        server.arrange(index_bytes({"t": GOOD}))
        addresses = {"{here}": server.url, "{storage}": server.storage_url, "{}": name}
        given = {key: re.sub(r"{\w*}", lambda match: addresses[match[0]], text) for key, text in options.items()}
        return given.pop("source", "org/model"), {"endpoint": server.url, **given}

    return arrange


def checksums(server: Server, name: str) -> Call:
    server.arrange()
    return "org/model", {"endpoint": server.url, "checksums": {name: "sha256:" + "0" * 64}}


ANY_REPOSITORY = r"/[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?/resolve/"
LINKS = {"index": index_bytes({"t": GOOD}), "shard": b""}
PLACES: dict[str, Place] = {
    "weight_map": Place(lambda _: hostile.shards, mapped, right="second.safetensors"),
    "weight_map of a web folder": Place(
        lambda _: hostile.shards, on_web, r"/folder/", trusted=False, right="second.safetensors"
    ),
    "commit": Place(lambda _: hostile.hashes, headed("x_repo_commit"), right="b" * 40),
    "etag": Place(lambda _: hostile.long_hashes, headed("etag")),
    "linked etag": Place(lambda _: hostile.long_hashes, headed("x_linked_etag")),
    "etag of the index": Place(lambda _: hostile.hashes, headed("etag", index=LINKS["index"])),
    "location": Place(
        lambda server: hostile.locations(
            server.url, [server.storage_url, server.url.replace("localhost", "127.0.0.1")]
        ),
        headed("location", status=302),
        None,
    ),
    "location of the index": Place(
        lambda server: hostile.locations(
            server.url, [server.storage_url, server.url.replace("localhost", "127.0.0.1")]
        ),
        headed("location", status=307, index=LINKS["index"]),
        None,
    ),
    "repository": Place(lambda _: hostile.repo_ids, called(source="{}"), ANY_REPOSITORY, right="other/model"),
    "page": Place(
        lambda _: hostile.names,
        called(source="{here}/org/model/resolve/main/{}"),
        ANY_REPOSITORY,
        right="model.safetensors",
    ),
    "page of a repository": Place(
        lambda _: hostile.repo_ids, called(source="{here}/{}"), ANY_REPOSITORY, right="model"
    ),
    "revision": Place(lambda _: hostile.revisions, called(revision="{}"), right="refs/pr/1"),
    "revision after @": Place(lambda _: hostile.revisions, called(source="org/model@{}"), right="v1.0"),
    "subfolder": Place(lambda _: hostile.revisions, called(subfolder="{}"), right="unet"),
    "variant": Place(lambda _: hostile.variants, called(variant="{}"), right="fp16"),
    "checksums": Place(lambda _: hostile.names, checksums),
    "web address": Place(
        lambda _: hostile.names, called(source="{here}/{}", endpoint="{storage}"), None, trusted=False, right="model"
    ),
    "web host": Place(lambda _: hostile.names, called(source="http://127.0.0.1:{}"), None),
}


@dataclass
class Run:
    """One place, many names."""

    server: Server
    place: Place
    watch: Watch
    portal: BlockingPortal
    outcomes: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    def many(self, count: int, seed: int) -> None:
        if self.place.right is not None:
            self.one(self.place.right)

        @hypothesis.seed(seed)
        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(self.place.names(self.server))
        def check(name: str) -> None:
            self.one(name)

        check()

    def one(self, name: str) -> None:
        source, options = self.place.arrange(self.server, name)
        self.watch.on = True
        try:
            self.portal.call(self._download, source, options)
            outcome = "downloaded"
        except AsyncfetchError as error:
            outcome = type(error).__name__
        finally:
            self.watch.on = False
        self.outcomes[outcome] += 1
        self.requests += len(self.server.targets)
        assert not self.watch.broken, self.watch.broken
        for target, seen in list(self.server.targets):
            self.check(target, seen)

    async def _download(self, source: str, options: dict[str, Any]) -> None:
        await asyncfetch.download_async(source, cache_dir=self.watch.cache, token=TOKEN, policy=POLICY, **options)

    def check(self, target: str, seen: Seen) -> None:
        may_see = self.place.trusted and is_home(self.server, seen)
        assert may_see or TOKEN not in f"{target} {seen.headers}", f"the token went to {seen}"
        if self.place.stays is not None and not seen.second:
            as_file = re.sub(r"^/api/models(/.*?)/(tree|revision)/", r"\1/resolve/", target)  # a listing, by a commit
            assert re.match(self.place.stays, as_file, re.ASCII), f"outside of the repository: {target!r}"
            parts = unquote(target).split("/")[1:]
            assert not {"", ".", ".."} & set(parts), f"not a plain path: {target!r}"
            assert not re.search(r"[\\\x00-\x20\x7f]", target), f"not a plain path: {target!r}"


def main(count: int, seed: int, tree: Path, places: list[str]) -> None:
    cache = tree / "a" / "b" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    hypothesis.configuration.set_hypothesis_home_dir(tree.with_name(f"{tree.name}-hypothesis"))
    watch = Watch(tree, cache)
    with Server() as server, start_blocking_portal() as portal:
        for name in places:
            run = Run(server, PLACES[name], watch, portal)
            run.many(count, seed)
            print(json.dumps({"place": name, "outcomes": run.outcomes, "requests": run.requests}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
