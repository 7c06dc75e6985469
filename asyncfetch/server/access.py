"""Who may ask a server that stands before another Hub, for which repositories, and with whose token it asks there.

A pattern names repositories: `org/*`, `datasets/org/name`. In it `*` stands for any characters, `?` for one, and a
pattern that is `*` alone for all there is. Letters are compared without their case: a Hub may find `ORG/name` where
there is `org/name`, and then it would pass where that is denied.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hmac import compare_digest
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response

from ..errors import SourceError
from ..tasks import off_loop
from .folders.layout import kind_and_name
from .protocol.answers import failure, invalid_credentials
from .protocol.peers import is_own_user
from .source.upstream import Who

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from .source.freshness import Answer

__all__ = ["Admin", "Door", "Rules", "is_for_others", "is_loopback"]

# Headers that proxies add, and clients do not.
_OF_PROXIES = frozenset({"forwarded", "via", "cdn-loop", "true-client-ip", "x-client-ip", "x-real-ip", "x-scheme"})
_PREFIXES_OF_PROXIES = ("x-forwarded-", "x-original-", "x-envoy-", "x-amzn-", "cf-", "fly-", "tailscale-")


class Rules(NamedTuple):
    """Which repositories may be asked for: those that `allow` names, all where it is empty, but for those of `deny`."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @classmethod
    def checked(cls, allow: Sequence[str], deny: Sequence[str]) -> Rules:
        """Raises SourceError for a pattern that can match nothing."""
        for pattern in (*allow, *deny):
            _, name = kind_and_name(pattern)
            usable = pattern.isprintable() and " " not in pattern and name and name.count("/") <= 1
            if not usable or pattern.startswith("models/"):
                raise SourceError(
                    f"{pattern!r} is no pattern of repositories.",
                    hint="Write org/name, org/*, datasets/org/name or datasets/*; a model has nothing before its id.",
                )
        return cls(tuple(allow), tuple(deny))

    def admit(self, kind: str, name: str) -> bool:
        """Whether a repository may be asked for; `kind` is one of layout.KINDS."""
        if any(_covers(pattern, kind, name) for pattern in self.deny):
            return False
        return not self.allow or any(_covers(pattern, kind, name) for pattern in self.allow)


def _covers(pattern: str, kind: str, name: str) -> bool:
    if pattern == "*":
        return True
    of_kind, named = kind_and_name(pattern)
    return of_kind == kind and fnmatchcase(name.lower(), named.lower())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def holds(request: Request, token: str) -> bool:
    """Whether a request sends `token`."""
    sent = request.headers.get("authorization", "").encode("latin-1")
    return compare_digest(sent, f"Bearer {token}".encode())


@dataclass(frozen=True)
class Door:
    """What clients may have, and as who they ask the source.

    `token` is what they are asked for, None for nothing. `upstream_token` goes to the source in place of theirs; where
    neither is set, each sends its own. Raises SourceError for an upstream token without a list of what it may open.
    """

    rules: Rules = field(default_factory=Rules)
    token: str | None = field(default=None, repr=False)
    upstream_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for token in (self.token, self.upstream_token):
            if token is not None and not _is_token(token):
                raise SourceError("A token is one word of printable ASCII characters.")
        if self.upstream_token is not None and not self.rules.allow:
            raise SourceError(
                "A token of the server's own opens what it may see to everybody who reaches the port, so it needs "
                "a list of the repositories that it is for.",
                hint="Name them: --allow ORG/NAME, --allow 'ORG/*', as often as needed.",
            )

    @property
    def shared(self) -> bool:
        """Whether all clients are one for the source."""
        return self.token is not None or self.upstream_token is not None

    def refusal(self, request: Request) -> Response | None:
        """The answer to who does not send the token that clients are asked for; None for who may come in."""
        if self.token is None or holds(request, self.token):
            return None
        if "authorization" in request.headers:
            return invalid_credentials()
        return failure(401, "Unauthorized", "This server asks for a token.")

    def who(self, request: Request) -> Who | Response:
        """As who the source is asked, or the answer to who may not ask. Sends no token of ours to the source."""
        if refused := self.refusal(request):
            return refused
        if self.shared:
            return Who(self.upstream_token)
        sent = request.headers.get("authorization")
        if sent is None:
            return Who(None)
        scheme, _, token = sent.partition(" ")
        return Who(token) if scheme.lower() == "bearer" and _is_token(token) else invalid_credentials()

    def whoami(self, request: Request) -> Response | None:
        """Who a client is, where the source cannot say it: whose account a token of ours is concerns nobody."""
        if not self.shared:
            return None
        if self.token is None and "authorization" not in request.headers:
            return invalid_credentials()
        return JSONResponse({"type": "user", "id": "local", "name": "local", "fullname": "local", "orgs": []})

    def listed(self, kind: str, answer: Answer) -> Answer:
        """A listing of repositories, without those that may not be asked for."""
        if answer.status != 200 or self.rules == Rules():
            return answer
        try:
            entries = [entry for entry in json.loads(answer.body) if self.rules.admit(kind, str(entry["id"]))]
        except (ValueError, TypeError, KeyError, RecursionError):
            entries = []
        headers = {name: value for name, value in answer.headers.items() if name != "x-total-count"}
        return answer._replace(body=json.dumps(entries).encode(), headers=headers)


def _is_token(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


@dataclass(frozen=True)
class Admin:
    """Who may change what a server does: jobs, pins, evictions.

    With a `token`, who sends it. Without one nobody; but where `local` says that only this machine reaches the server,
    who asks from here by its name, and as the user who runs it: a page elsewhere that leads a browser here has another
    Host (DNS rebinding), and what a proxy passes on shows that, or comes from another user. Who lets others in by
    what shows nothing and runs as that user (ssh -R, socat) needs the token.
    """

    token: str | None = field(default=None, repr=False)
    local: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not _is_token(self.token):
            raise SourceError("A token is one word of printable ASCII characters.")

    async def admits(self, request: Request) -> bool:
        """Whether a request may change something."""
        if not self.allows(request):
            return False
        client, server = request.scope["client"], request.scope["server"]
        return self.token is not None or await off_loop(lambda: is_own_user(client, server))

    def allows(self, request: Request) -> bool:
        """Whether it may, as far as the request itself tells."""
        if self.token is not None:
            return holds(request, self.token)
        client = request.client.host if request.client else ""
        passed_on = _is_passed_on(request)
        named = request.url.hostname or ""
        return self.local and not passed_on and is_loopback(client) and is_loopback(named.strip("[]"))


def is_for_others(public_url: str | None) -> bool:
    """Whether clients on other machines find the server at `public_url`."""
    return public_url is not None and not is_loopback(urlsplit(public_url).hostname or "")


def _is_passed_on(request: Request) -> bool:
    """Whether a proxy shows itself: by a header, or by how nginx asks unless it is told otherwise.

    That is in HTTP/1.0, and for the end of the connection; no browser does, nor does our own command.
    """
    asked_to_close = "close" in ",".join(request.headers.getlist("connection")).lower()
    if request.scope.get("http_version", "1.1") < "1.1" or asked_to_close:
        return True
    return any(name in _OF_PROXIES or name.startswith(_PREFIXES_OF_PROXIES) for name in request.headers)
