"""What two URLs share, and where a redirect may lead."""

from __future__ import annotations

import pytest

from asyncfetch.errors import ProtocolError
from asyncfetch.network.urls import no_downgrade, origin_of, redirected

from ..kit.canaries import PASSWORD, SIGNATURE, shown


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Hub.example/x", ("https", "hub.example", 443)),
        ("HTTP://hub.example:8080/", ("http", "hub.example", 8080)),
        ("http://user:pass@hub.example/", ("http", "hub.example", 80)),
        ("https://[::1]:8443/a", ("https", "::1", 8443)),
    ],
)
def test_origin(url: str, origin: tuple[str, str, int]) -> None:
    """Scheme, host and port; credentials and case do not count."""
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b?x=1", "https://hub.example/b?x=1"),
        ("c", "https://hub.example/a/c"),
        ("//cdn.example/f", "https://cdn.example/f"),
        ("http://other.example/", "http://other.example/"),
    ],
)
def test_redirected(location: str, target: str) -> None:
    """A Location is relative to where it was read."""
    assert redirected("https://hub.example/a/b", location) == target


@pytest.mark.parametrize(
    "location",
    ["http://[x/", "http://h:99999/", "http://h:port/", "//[/", f"http://user:{PASSWORD}@h\u2100/"],
    ids=["bracket", "port-too-high", "port-of-letters", "empty", "character"],  # no secret in the test's name
)
def test_senseless_locations(location: str) -> None:
    """A Location that is no address is the server's error, and its text is not repeated."""
    with pytest.raises(ProtocolError) as caught:
        redirected(f"https://hub.example/a?sig={SIGNATURE}", location)
    assert not shown(str(caught.value))
    assert not caught.value.transient


@pytest.mark.parametrize(
    ("here", "target", "allowed"),
    [
        ("https://a/", "https://b/", True),
        ("http://a/", "https://a/", True),
        ("http://a/", "http://b/", True),
        ("https://a/", "http://a/", False),
        ("https://a/", "file:///etc/passwd", False),
        ("http://a/", "ftp://a/", False),
    ],
)
def test_no_downgrade(here: str, target: str, allowed: bool) -> None:
    """Never from https to http, and to nothing but these two."""
    assert no_downgrade(here, target) is allowed
