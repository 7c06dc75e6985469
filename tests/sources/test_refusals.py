"""What the Hub says when it gives no file: its own words, and a hint that follows the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncfetch
from asyncfetch.errors import (
    AccessError,
    AsyncfetchError,
    GatedRepositoryError,
    NetworkError,
    RateLimitedError,
    RepositoryNotFoundError,
    ServerError,
)
from asyncfetch.network.ranges import Target
from asyncfetch.network.reading import read_span
from asyncfetch.network.transport import Reply, Transport
from asyncfetch.sources.hub import Hub
from asyncfetch.sources.refusals import Asked, refusal
from asyncfetch.sources.settings import Settings
from asyncfetch.spans import Span
from asyncfetch.words import fit_to_show

from ..kit.canaries import PASSWORD, SIGNATURE, TOKEN, shown
from ..kit.fault_server import QUICK, FaultServer, Status

PAGE = "https://hub.example/org/name"
PATH = "/org/name/resolve/main/index.json"


def answer(status: int, message: str = "", code: str = "", body: bytes = b"", **headers: str) -> Reply:
    named = {"x-error-message": message, "x-error-code": code, **headers}
    return Reply("https://hub.example/x", status, {k: v for k, v in named.items() if v}, body, truncated=False)


def refused(reply: Reply, *, authenticated: bool = True) -> AsyncfetchError:
    return refusal(reply, Asked("org/name", "index.json", "main", PAGE, authenticated))


# -- tokens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["", "RepoNotFound"])
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    "message",
    [
        'User Access Token "laptop" is expired',
        "token is expired",
        "The token has expired.",
        "Invalid credentials in Authorization header",
        "Invalid token",
        "Invalid user token.",
        "The access token was revoked",
        "Your token is not valid",
    ],
)
def test_a_token_that_is_not_accepted(message: str, status: int, code: str) -> None:
    """It is the token's fault and no missing repository: access, exit code 4, and what to do with the token."""
    error = refused(answer(status, message, code))
    assert type(error) is AccessError
    assert message.rstrip(".") in error.message
    assert "unset HF_TOKEN" in error.hint


@pytest.mark.parametrize("message", ["", "Invalid username or password.", "Repository not found", "Who are you?"])
def test_what_401_says_of_a_missing_repository(message: str) -> None:
    """The Hub answers so for what is missing or private too; what it says besides is passed on."""
    error = refused(answer(401, message), authenticated=False)
    assert type(error) is RepositoryNotFoundError
    assert ("The server says" in error.message) is (message not in ("", "Repository not found"))


# -- gates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("Your request to access model org/name is awaiting a review from the repo authors.", "Wait until"),
        ("Your request to access model org/name is pending.", "Wait until"),
        ("Your request to access model org/name has been rejected by the repo's authors.", "another repository"),
        ("Access to model org/name is restricted. You must accept the terms to access it.", "Accept its terms"),
        ("You must agree to share your contact information.", "Accept its terms"),
        ("You are not in the authorized list. Visit the page to ask for access.", "Ask for access"),
        ("Access to model org/name is restricted. You must be authenticated to access it. Please log in.", "HF_TOKEN"),
        ("Please enable access to public gated repositories in your fine-grained token settings.", "Let the token"),
        ("", "Accept its terms"),
        ("Something new", "Accept its terms"),
    ],
)
def test_each_gate_has_its_own_words(message: str, hint: str, status: int) -> None:
    """Awaiting, rejected, terms, sign-in: what the Hub says is said, and the hint is about that."""
    error = refused(answer(status, message, "GatedRepo"))
    assert isinstance(error, GatedRepositoryError)
    assert error.said == message
    assert message.rstrip(".") in error.message
    assert hint in error.hint
    assert PAGE in error.hint or "Let the token" in hint


# -- other words -----------------------------------------------------------------------------------


def test_words_in_json() -> None:
    """Where the header is missing, the Hub's JSON tells; what is no such JSON tells nothing."""
    body = json.dumps({"error": "This model is being moved"}).encode()
    assert "being moved" in refused(answer(403, body=body, **{"content-type": "application/json"})).message
    for odd in (b"", b"{", b"[]", b'{"error": 7}', b'{"error": {}}', b'{"other": "x"}', b"[" * 100_000):
        error = refused(answer(403, body=odd, **{"content-type": "application/json"}))
        assert type(error) is AccessError


@pytest.mark.parametrize("status", [400, 402, 405, 406, 409, 410, 418, 422, 451])
def test_other_statuses(status: int) -> None:
    """The code and the words, for once; such an answer is not asked for again."""
    error = refused(answer(status, "Payment required", "SomeCode"))
    assert isinstance(error, NetworkError)
    assert f"answered {status} (SomeCode, Payment required)" in error.message
    assert not error.transient


@pytest.mark.anyio
async def test_words_of_a_server_that_fails(server: FaultServer) -> None:
    """What it says of its failure comes out after the last attempt."""
    server.fault(PATH, Status(503, {"x-error-message": "Down for an hour"}), forever=True)
    async with Transport(QUICK) as transport:
        with pytest.raises(ServerError, match=r"answered 503 \(Down for an hour\)"):
            await Hub(transport, Settings(server.url, None, False), "org/name").ask("index.json", "main", limit=5)


@pytest.mark.anyio
async def test_words_wherever_they_are_said(server: FaultServer) -> None:
    """Of a rate limit, of a refused part, and of a folder that is no repository."""
    words = {"x-error-message": "Quota of 1000 requests"}
    folder = PATH.replace("index.json", "x.safetensors.index.json")
    server.fault(PATH, Status(429, {**words, "retry-after": "9999"}), Status(403, words))
    server.fault(folder, Status(401, words))
    async with Transport(QUICK) as transport:
        with pytest.raises(RateLimitedError, match="Quota of 1000"):
            await Hub(transport, Settings(server.url, None, False), "org/name").ask("index.json", "main", limit=5)
    async with Transport(QUICK) as transport:
        with pytest.raises(AccessError, match=r"answered 403\. The server says: Quota of 1000"):
            await read_span(transport, Target(server.url + PATH), Span(0, 5), file="x", size=9)
    with pytest.raises(AccessError, match=r"answered 401\. The server says: Quota of 1000"):
        await asyncfetch.load_async(server.url + folder)


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("Fine.", "Fine."),
        ("two\r\nlines\tand \x1b[31mred\x07", "two lines and [31mred"),
        ("What? Why?", "What? Why?"),
        (f"see https://user:{PASSWORD}@h/x?X-Amz-Signature={SIGNATURE}&a=b now", "see https://h/x?… now"),
        (f"sent Bearer {TOKEN}, or {TOKEN}.", "sent Bearer …, or hf_…."),
        ("x" * 500, "x" * 199 + "…"),
        ("\u202eevil\u2066", "evil"),
        ("", ""),
    ],
    ids=["plain", "controls", "questions", "link", "tokens", "long", "bidi", "empty"],
)
def test_what_is_fit_to_show(text: str, fit: str) -> None:
    """One line of so many letters at most, without what controls a terminal and without secrets."""
    assert fit_to_show(text) == fit


@given(st.text(max_size=400), st.integers(1, 50))
def test_any_text_is_made_fit(text: str, limit: int) -> None:
    """Printable, bounded, and nothing fails."""
    fit = fit_to_show(text, limit)
    assert len(fit) <= limit
    assert fit.isprintable()


@given(st.integers(400, 599), st.text(max_size=80), st.sampled_from(["", "GatedRepo", "RepoNotFound", "Other"]))
def test_any_refusal_is_an_error_of_ours(status: int, message: str, code: str) -> None:
    """Whatever stands in the headers, and no format string or pattern in it means anything."""
    for authenticated in (True, False):
        error = refused(answer(status, message + "{page}\\1", code), authenticated=authenticated)
        assert isinstance(error, AsyncfetchError)
        assert len(str(error)) < 700


# -- tokens that cannot be used --------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "headers"),
    [(401, {}), (403, {}), (403, {"x-error-code": "GatedRepo"}), (401, {"x-error-code": "RepoNotFound"})],
)
async def test_a_token_that_could_not_be_read(server: FaultServer, status: int, headers: dict[str, str]) -> None:
    """Nothing is said of it until one is needed; then it is."""
    server.hub("org/name", {"index.json": b"{}"})
    settings = Settings(server.url, None, False, "The token file '/x' cannot be read: Permission denied.")
    async with Transport(QUICK) as transport:
        hub = Hub(transport, settings, "org/name")
        assert (await hub.ask("index.json", "main", limit=5)).prefix == b"{}"
        server.fault(PATH, Status(status, headers))
        with pytest.raises((AccessError, RepositoryNotFoundError)) as caught:
            await hub.ask("index.json", "main", limit=5)
    assert "The token file '/x' cannot be read" in caught.value.hint
    assert not shown(repr(vars(caught.value)))


def test_what_is_shown_of_an_answer() -> None:
    """No token that the Hub repeats, and no signed link."""
    said: Any = f"Bearer {TOKEN} at https://h/x?X-Amz-Signature={SIGNATURE}"
    for status, code in ((401, ""), (403, ""), (403, "GatedRepo"), (422, "Odd"), (401, "RepoNotFound")):
        error = refused(answer(status, said, code))
        assert not shown(f"{error} {vars(error)}")
