"""The protocol of the Hugging Face Hub: revisions, metadata on redirects, signed links, errors.

One GET of `/<repository>/resolve/<revision>/<file>` tells all: commit, etag (which is the file's
hash) and size ride on the answer, be it the file itself or a redirect to a signed link. The
token goes to the endpoint's origin only; what storage answers is never believed about hashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from ..errors import AccessError, ChangedError, ProtocolError, RepositoryNotFoundError, redact_url
from ..format.index import index_too_large
from ..network.ranges import Target, strong
from ..network.reading import read_all, read_span
from ..network.transport import Reply, Transport
from ..network.urls import may_identify, no_downgrade, origin_of, redirected
from ..spans import MiB, Span
from ..storage.cache import is_commit, path_inside
from ..storage.checksums import Checksum, checksum_of_etag, digest_of
from ..storage.listings import Records
from .located import PREFIX_LIMIT, SourceFile
from .refusals import Asked, refusal
from .settings import DEFAULT_ENDPOINT, Settings

__all__ = ["Hub", "HubFile", "size_of"]

T = TypeVar("T", list[Any], dict[str, Any])

_REDIRECTS = (301, 302, 303, 307, 308)
_NO_API = (404, 405, 501)  # of a mirror that serves files alone
_API_LIMIT = 32 * MiB  # bytes of an answer
_SET_ENDPOINT = "Set HF_ENDPOINT or pass endpoint= to the Hub that it leads to."
_METADATA = ("x-repo-commit", "x-linked-etag", "x-linked-size")


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the Hub says of one file, and the first bytes of it.

    `size` is what it tells, None if nothing; the bytes and their hash may show that it was wrong. `link` is where
    storage serves the bytes (a signed URL), None if the Hub does so itself. `prefix` is empty where the bytes are
    behind the link, and `cut` where it is not the whole file. `validator` is the ETag of the bytes as the Hub itself
    serves them, where it is fit for If-Range: a mirror's is often not the file's hash. `splittable` is false where
    the Hub itself serves the bytes and sent all of them to a range.
    """

    commit: str
    etag: str
    checksum: Checksum
    size: int | None
    link: str | None = field(repr=False)
    prefix: bytes
    cut: bool
    validator: str | None
    splittable: bool


class Hub:
    """One repository on one endpoint, by its name in addresses: `owner/name`, or `datasets/owner/name`.

    `passes` is told where a redirect leads before it is followed, and raises where that is not to be.
    """

    def __init__(
        self,
        transport: Transport,
        settings: Settings,
        name: str,
        *,
        passes: Callable[[str], None] = lambda _url: None,
    ) -> None:
        self._passes = passes
        self.transport = transport
        self.settings = settings
        self.name = name
        self.api = name if name.startswith("datasets/") else f"models/{name}"
        endpoint = origin_of(settings.endpoint)
        # The official site has more than one name; one may send to another with the token.
        self._trusted = {endpoint}
        if endpoint == origin_of(DEFAULT_ENDPOINT):
            self._trusted.add(origin_of("https://hf.co"))

    def url(self, file: str, revision: str) -> str:
        """The address of a file. Raises SourceError for a name or a revision that would leave the repository.

        Quoting is not enough: HTTP clients resolve dot segments before they send
        (RFC 3986, section 5.2.4), and the token would go along.
        """
        path_inside(revision)
        path_inside(file)
        return f"{self.settings.endpoint}/{self.name}/resolve/{quote(revision, safe='')}/{quote(file)}"

    def headers(self, url: str) -> dict[str, str]:
        """What goes to `url`: the token only to a trusted origin."""
        headers = {"x-hf-download-counter": "1"}
        if origin_of(url) not in self._trusted:
            return {}
        if self.settings.token:
            headers["authorization"] = f"Bearer {self.settings.token}"
        return headers

    async def ask(
        self, file: str, revision: str, *, limit: int, whole: bool = False, told: str | None = None
    ) -> HubFile:
        """Ask for a file: what the Hub says of it, and up to `limit` bytes of its beginning.

        `whole` asks for the file without a range, for small files. `told` is the file whose download
        this serves, for events. Raises the tree's NotFoundError,
        AccessError and NetworkError kinds. Nothing is written.
        """
        reply = await self._fetch(file, revision, limit=limit, whole=whole, told=told)
        self._raise_for(reply, file, revision)
        return self._file_of(reply, revision)

    async def read_whole(self, file: str, revision: str, *, limit: int) -> tuple[HubFile, bytes]:
        """An index and all its bytes, wherever they are served. More than `limit`: InvalidIndexError.

        Its hash is the caller's to check. A size that does not lead to bytes of that hash is not believed:
        then they are read to their end.
        """
        found = await self.ask(file, revision, limit=limit, whole=True)
        if found.cut or (found.size or 0) > limit:
            raise index_too_large(file, limit)
        if found.link is None:
            return found, found.prefix

        async def renew() -> Target:
            again = await self.ask_again(file, found.commit, etag=found.etag)
            return replace(self.target_of(file, again), hashed=True)

        target, size = replace(self.target_of(file, found), hashed=True), found.size
        if size is not None:
            with suppress(ChangedError):
                data = await read_span(self.transport, target, Span(0, size), file=file, size=size, renew=renew)
                if digest_of(data, found.checksum.algorithm) == found.checksum.hex:
                    return found, data
        data = await read_all(self.transport, target, limit=limit, file=file, renew=renew)
        if len(data) > limit:
            raise index_too_large(file, limit)
        return found, data

    async def commit_of(self, revision: str) -> str | None:
        """The commit that a branch or a tag names; None from a server that does not tell. Raises as `ask` does."""
        path_inside(revision)
        reply = await self._ask_api(f"revision/{quote(revision, safe='')}", revision)
        if reply.status != 200:
            return None
        commit = _json_of(reply, dict).get("sha")
        if not isinstance(commit, str) or not is_commit(commit):
            raise ProtocolError("no commit in the answer, so this is not a Hub (or a proxy answered)", url=reply.url)
        return commit

    async def listing(self, revision: str) -> Records | None:
        """All files of a revision; None from a server that lists none. Raises the errors of `ask`.

        Of which commit they are, the answer does not tell.
        """
        path_inside(revision)
        query, asked = "recursive=true&expand=false", set[str]()
        records: dict[str, Mapping[str, int | str]] = {}
        while query not in asked:
            asked.add(query)
            reply = await self._ask_api(f"tree/{quote(revision, safe='')}?{query}", revision)
            if reply.status != 200:
                return None
            records |= records_of(_json_of(reply, list), reply.url)
            following = following_page(reply.headers.get("link", ""))
            if following is None:
                return records
            query = following
        raise ProtocolError("the pages of its listing lead in a circle", url=reply.url)

    async def glance(self, revision: str) -> list[str] | None:
        """The names of its files on the first page of its listing, None if it has none. Raises as `ask` does."""
        path_inside(revision)
        reply = await self._ask_api(f"tree/{quote(revision, safe='')}?recursive=true", revision)
        if reply.status != 200:
            return None
        return [name for name in records_of(_json_of(reply, list), reply.url) if name.isprintable()]

    async def _ask_api(self, path: str, revision: str) -> Reply:
        """An answer of the API about this repository. It is 200, or says that there is no such API."""
        url = f"{self.settings.endpoint}/api/{self.api}/{path}"
        reply = await self.transport.fetch(url, limit=_API_LIMIT, headers=self.headers(url), may_follow=self._follows)
        code = reply.headers.get("x-error-code")
        if reply.status not in _NO_API or code not in (None, "", "EntryNotFound"):  # others tell of the repository
            self._raise_for(reply, path.partition("?")[0], revision)
        return reply

    async def told(self, path: str) -> object:
        """The JSON that the API answers to a path below it; None if that is none. Raises the network's errors."""
        url = f"{self.settings.endpoint}/api/{path}"
        reply = await self.transport.fetch(url, limit=MiB, headers=self.headers(url), may_follow=self._follows)
        try:
            return json.loads(reply.body) if reply.status == 200 and not reply.truncated else None
        except (ValueError, RecursionError):
            return None

    def target_of(self, file: str, found: HubFile) -> Target:
        """Where the bytes of a file are served, by what was found."""
        if found.link is not None:
            return Target(found.link, neutral=True, signed=True)
        url = self.url(file, found.commit)
        return Target(url, self.headers(url), validator=found.validator)

    async def ask_again(self, file: str, revision: str, *, etag: str, limit: int = 1) -> HubFile:
        """What the Hub says now of a file that is known, and a new link. ChangedError if it is another file by now."""
        again = await self.ask(file, revision, limit=limit, told=file)
        if again.etag != etag:
            raise ChangedError(file, "the Hub names another hash for it")
        return again

    async def target(self, file: SourceFile, revision: str, *, renew: bool = False) -> Target:
        """Where the bytes of a known file are served; the Hub is asked for what is not known yet, and to renew it."""
        if file.target is None or renew:
            limit = PREFIX_LIMIT if file.target is None else 1  # of a small file the first answer brings the whole
            again = await self.ask_again(file.name, revision, etag=file.key, limit=limit)
            if file.target is None:
                file.prefix, file.splittable = again.prefix, again.splittable
                file.size = file.size if again.size is None else again.size
            file.target = self.target_of(file.name, again)
        return file.target

    async def look(self, file: str, revision: str) -> HubFile | Reply:
        """What the Hub says of a file, or its answer as it came where it is a refusal. Costs a byte at the most."""
        reply = await self._fetch(file, revision, limit=1, whole=False, told=None)
        return reply if reply.status >= 400 and reply.status != 416 else self._file_of(reply, revision)

    async def _fetch(self, file: str, revision: str, *, limit: int, whole: bool, told: str | None) -> Reply:
        url = self.url(file, revision)
        headers = self.headers(url)
        if not whole:
            headers["range"] = f"bytes=0-{limit - 1}"
        return await self.transport.fetch(url, limit=limit, headers=headers, may_follow=self._follows, file=told)

    def _follows(self, redirect: Reply, target: str) -> bool:
        if not self._may_follow(redirect, target):
            return False
        self._passes(target)
        return True

    def _may_follow(self, redirect: Reply, target: str) -> bool:
        """Within one site; and to wherever another Hub may be, as a mirror does that sends on to the official one.

        A redirect that tells the commit is the answer itself, and its target is storage.
        """
        if may_identify(redirect.url, target) or origin_of(target) in self._trusted:
            return True
        return not is_commit(redirect.headers.get("x-repo-commit", "")) and no_downgrade(redirect.url, target)

    def _file_of(self, reply: Reply, revision: str) -> HubFile:
        headers = _metadata_of(reply)
        commit = headers.get("x-repo-commit", "")
        if not is_commit(commit):
            raise self._no_hub(reply)
        if is_commit(revision) and commit != revision:
            raise ProtocolError(f"commit {revision} was asked for and {commit} answered", url=reply.url)
        etag = clean_etag(headers.get("x-linked-etag") or headers.get("etag", ""))
        checksum = checksum_of_etag(etag)
        if checksum is None:
            raise ProtocolError("the answer's etag is no hash, so the file cannot be verified", url=reply.url)
        elsewhere = reply.status in _REDIRECTS
        link = redirected(reply.url, headers["location"]) if elsewhere else None
        if link is not None and not no_downgrade(reply.url, link):
            raise ProtocolError(f"it redirects from https to http, to {redact_url(link)}", url=reply.url)
        validator = None if elsewhere else strong(headers)
        prefix, splittable = (b"", True) if elsewhere else (reply.body, reply.status != 200)
        size, cut = size_of(headers, reply.status), reply.truncated and not elsewhere
        return HubFile(commit, etag, checksum, size, link, prefix, cut, validator, splittable)

    def _raise_for(self, reply: Reply, file: str, revision: str) -> None:
        """The Hub's error codes as errors of ours. 401 may mean missing, private or a bad token."""
        status = reply.status
        if status < 400 or status == 416:
            if status in (200, 206) or (status in _REDIRECTS and reply.headers.get("location")):
                return
            if status == 416 and size_of(reply.headers, status) == 0:
                return  # an empty file has no first byte
            raise ProtocolError(f"unexpected status {status}", url=reply.url)
        sent = self.settings.token is not None and self._gets_token(reply.url)
        page = redact_url(f"{self.settings.endpoint}/{self.name}")
        error = refusal(reply, Asked(self.name, file, revision, page, authenticated=sent))
        if isinstance(error, AccessError | RepositoryNotFoundError) and not sent:
            if self.settings.token is not None:
                error.hint = f"{self._leads_to(reply)}, where the token does not go along. {_SET_ENDPOINT}"
            elif self.settings.token_fault:
                error.hint = f"{self.settings.token_fault} {error.hint}"
        raise error

    def _gets_token(self, url: str) -> bool:
        return may_identify(self.settings.endpoint, url) or origin_of(url) in self._trusted

    def _leads_to(self, reply: Reply) -> str:
        scheme, host, port = origin_of(reply.url)
        return f"{redact_url(self.settings.endpoint)} sends on to {scheme}://{host}:{port}"

    def _no_hub(self, reply: Reply) -> ProtocolError:
        """An answer without a commit: what that tells, and what to do about it."""
        what, hint = "no commit in the answer, so this is not a Hub (or a proxy answered)", None
        if reply.status in _REDIRECTS:
            target = redact_url(redirected(reply.url, reply.headers["location"]))
            what = f"it redirects to {target}, which is less safe and is not followed; the redirect tells no commit"
            hint = _SET_ENDPOINT
        elif reply.passed:
            what, hint = f"{what}; {self._leads_to(reply)}", _SET_ENDPOINT
        return ProtocolError(what, url=reply.url, hint=hint)


def _metadata_of(reply: Reply) -> Mapping[str, str]:
    """The headers of an answer; what the Hub tells of a file may stand on the last redirect to it instead."""
    if "x-repo-commit" in reply.headers:
        return reply.headers
    telling = next((headers for headers in reversed(reply.passed) if "x-repo-commit" in headers), {})
    return {**reply.headers, **{name: telling[name] for name in _METADATA if name in telling}}


def _json_of(reply: Reply, kind: type[T]) -> T:
    """The document in an answer, which is of this kind. Raises ProtocolError."""
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    if reply.truncated or not isinstance(document, kind):
        raise ProtocolError("the answer is no JSON of the Hub's", url=reply.url)
    return document


def records_of(page: list[Any], url: str) -> dict[str, Mapping[str, int | str]]:
    """The files on one page of a listing (https://huggingface.co/docs/hub/api, `/tree`)."""
    records: dict[str, Mapping[str, int | str]] = {}
    try:
        for entry in page:
            if entry["type"] == "file":
                record: dict[str, int | str] = {"size": int(entry["size"]), "blob_id": str(entry["oid"])}
                if lfs := entry.get("lfs"):
                    record |= {"lfs_sha256": str(lfs["oid"]), "lfs_size": int(lfs["size"])}
                records[str(entry["path"])] = record
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ProtocolError("the listing is none of the Hub's", url=url) from None
    return records


def following_page(link: str) -> str | None:
    """The query of the next page that a Link header names (RFC 8288). The address is ours: a mirror's Link may
    lead past the mirror.
    """
    match = re.search(r"<([^<>]*)>\s*;[^<]*\brel\s*=\s*\"?next\b", link, re.IGNORECASE)
    return urlsplit(match[1]).query or None if match else None


def clean_etag(value: str) -> str:
    """The opaque part of an ETag header, weak or strong, with or without quotes."""
    return value.strip().removeprefix("W/").strip('"')


def size_of(headers: Mapping[str, str], status: int) -> int | None:
    """The size of the whole file that an answer tells: X-Linked-Size, Content-Range, Content-Length."""
    linked = headers.get("x-linked-size", "")
    ranged = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d{1,18})", headers.get("content-range", ""), re.ASCII)
    length = headers.get("content-length", "") if status == 200 else ""
    for text in (linked, ranged[1] if ranged else "", length):
        if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
            return int(text)
    return None
