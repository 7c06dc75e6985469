"""What requests mean and what answers say."""

from __future__ import annotations

import pytest

from asyncfetch.errors import SourceError
from asyncfetch.server.protocol.signing import Signer
from asyncfetch.server.protocol.wire import Resource, parse_paths, parse_range, parse_resource, precondition


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/org/name/resolve/main/a/b.json", Resource("resolve", "org/name", "main", "a/b.json")),
        ("/name/resolve/main/a", Resource("resolve", "name", "main", "a")),
        ("/org/name/resolve/refs%2Fpr%2F1/a", Resource("resolve", "org/name", "refs/pr/1", "a")),
        ("/o/n/resolve/main/q%3Fx=1%23f%2520", Resource("resolve", "o/n", "main", "q?x=1#f%20")),
        ("/o/n/resolve/main/../../../x", Resource("resolve", "o/n", "main", "../../../x")),
        ("/api/models/name", Resource("info", "name")),
        ("/api/models/org/name", Resource("info", "org/name")),
        ("/api/models/org/name/revision/refs%2Fpr%2F1", Resource("info", "org/name", "refs/pr/1")),
        ("/api/models/name/tree/main", Resource("tree", "name", "main", "")),
        ("/api/models/org/name/tree/main/a%2Fb", Resource("tree", "org/name", "main", "a/b")),
        ("/api/models/org/name/tree/main/a/b/", Resource("tree", "org/name", "main", "a/b")),
        ("/api/models/org/name/paths-info/main", Resource("paths-info", "org/name", "main")),
        ("/api/whoami-v2", Resource("whoami")),
        ("/cdn/abc", Resource("cdn", path="abc")),
        ("/org/name/resolve/main", None),
        ("/api/models/org/name/commits/refs%2Fpr%2F1", Resource("commits", "org/name", "refs/pr/1")),
        ("/api/models/name/refs", Resource("refs", "name")),
        ("/api/models/org/name/auth-check", Resource("auth-check", "org/name")),
        ("/org/name/raw/main/a", Resource("raw", "org/name", "main", "a")),
        ("/datasets/org/name/resolve/main/a/b", Resource("resolve", "org/name", "main", "a/b", "datasets")),
        ("/datasets/name/raw/main/a", Resource("raw", "name", "main", "a", "datasets")),
        ("/api/datasets/org/name/tree/main/a", Resource("tree", "org/name", "main", "a", "datasets")),
        ("/api/datasets", Resource("list", kind="datasets")),
        ("/api/models", Resource("list")),
        ("/", Resource("home")),
        ("/org/name", Resource("page", "org/name")),
        ("/datasets/name", Resource("page", "name", kind="datasets")),
        ("/api/spaces/org/name", None),
        ("/api/agent-harnesses", None),
        ("/org/", None),
        ("/a/b/c/resolve/main/x", None),
        ("//", None),
    ],
)
def test_targets(path: str, expected: Resource | None) -> None:
    """Ids of one and two parts are told apart, and each part is decoded once."""
    assert parse_resource(path) == expected


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        (None, 10, None),
        ("bytes=0-", 10, range(10)),
        ("bytes=3-5", 10, range(3, 6)),
        ("Bytes=3-3", 10, range(3, 4)),
        ("bytes=3-99", 10, range(3, 10)),
        ("bytes=-4", 10, range(6, 10)),
        ("bytes=-99", 10, range(10)),
        ("bytes=5-3", 10, None),
        ("bytes=-", 10, None),
        ("bytes=0-1,3-4", 10, None),
        ("lines=0-1", 10, None),
        ("bytes=٣-5", 10, None),
        (f"bytes=3-{'9' * 5000}", 10, range(3, 10)),
        (f"bytes=-{'9' * 5000}", 10, range(10)),
    ],
)
def test_ranges(header: str | None, size: int, expected: range | None) -> None:
    """A single range is inclusive at both ends and clipped; what is not understood is ignored."""
    assert parse_range(header, size) == expected


@pytest.mark.parametrize(
    ("header", "size"),
    [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0), (f"bytes={'9' * 5000}-", 10)],
)
def test_ranges_without_bytes(header: str, size: int) -> None:
    """A range that holds no byte of the file is empty, not None."""
    assert parse_range(header, size) is not None
    assert not parse_range(header, size)


def test_paths() -> None:
    """Both bodies of paths-info mean the same."""
    form = parse_paths(b"paths=a%2Fb&paths=c&expand=True", "application/x-www-form-urlencoded", 2)
    assert (
        form == parse_paths(b'{"paths": ["a/b", "c"], "expand": true}', "application/json", 2) == (["a/b", "c"], True)
    )


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"paths": 1}', b'{"paths": [1]}', b"[" * 100_000, b"\xff"])
def test_bad_paths(body: bytes) -> None:
    """Whatever is not an object with paths is a ValueError."""
    with pytest.raises(ValueError):  # noqa: PT011
        parse_paths(body, "application/json", 2)


def test_signatures() -> None:
    """A signature is bound to the hash, the file and the end of its life."""
    signer = Signer(b"secret", 60)
    query = dict(pair.split("=") for pair in signer.query("00", "name", "file").split("&"))
    assert signer.refusal("00", query) is None
    for digest, changed in [
        ("01", {}),
        ("00", {"file": "other"}),
        ("00", {"Expires": "99999999999"}),
        ("00", {"X-Amz-Signature": "é"}),
    ]:
        refused = signer.refusal(digest, {**query, **changed})
        assert refused is not None
        assert refused.code == "SignatureDoesNotMatch"
    assert (Signer(b"other", 60).refusal("00", query) or query) != query
    late = dict(pair.split("=") for pair in Signer(b"secret", -1).query("00", "name", "file").split("&"))
    refused = signer.refusal("00", late)
    assert refused is not None
    assert refused.message == "Request has expired"


def test_an_empty_secret_is_refused() -> None:
    """Signing with nothing would let everyone sign."""
    with pytest.raises(SourceError, match="secret"):
        Signer(b"", 60)


@pytest.mark.parametrize(
    ("if_match", "if_none_match", "status"),
    [
        ("", "", None),
        ('"it"', "", None),
        ('"a", "it" ,"b"', "", None),
        ("*", "", None),
        ('"other"', "", 412),
        ('W/"it"', "", 412),  # the strong comparison
        ('"it,"', "", 412),
        ("it", "", 412),
        ("", '"it"', 304),
        ("", 'W/"it"', 304),  # the weak one
        ("", '"a,b",W/"it"', 304),
        ("", "*", 304),
        ("", '"other", "it', None),
        ("", "it", None),
        ('"it"', '"it"', 304),
        ('"other"', '"it"', 412),
        ("," * 60_000, '"' * 60_001, 412),
    ],
)
def test_preconditions(if_match: str, if_none_match: str, status: int | None) -> None:
    assert precondition(if_match, if_none_match, '"it"') == status
