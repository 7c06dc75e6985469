"""The server and what is around it: proxies, TLS, logs, and files that take long to be hashed."""

from __future__ import annotations

import logging
import os
import ssl
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trustme

from asyncfetch.errors import SourceError
from asyncfetch.server import Server, create_app
from asyncfetch.server.folders import catalog
from asyncfetch.server.protocol.access_log import shown_target

from ...kit.canaries import TOKEN
from ..trees import write

NEXT = "/api/models/m/tree/main?limit=1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model of two files."""
    for name in "ab":
        write(tmp_path / "root" / "m" / name, name.encode())
    return tmp_path / "root"


def following(client: httpx.Client, **headers: str) -> str:
    """Where the next page is said to be."""
    url: str = client.get(NEXT, headers=headers).links["next"]["url"]
    return url.partition("?")[0]


def test_links_behind_a_proxy(root: Path) -> None:
    """Links stay where the client came from: by the Host that a proxy hands on, or by the public URL."""
    path = "/api/models/m/tree/main"
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        assert following(client) == f"{server.url}{path}"
        assert following(client, Host="hub.test", **{"X-Forwarded-Proto": "https"}) == f"https://hub.test{path}"
    with Server(root, trusted_proxies="10.0.0.0/8") as server, httpx.Client(base_url=server.url) as client:
        assert following(client, Host="hub.test", **{"X-Forwarded-Proto": "https"}) == f"http://hub.test{path}"
    with Server(root, public_url="https://hub.test/models/") as server, httpx.Client(base_url=server.url) as client:
        assert following(client, Host="evil.test") == f"https://hub.test/models{path}"
        assert "export HF_ENDPOINT=https://hub.test/models<" in client.get("/").text


@pytest.mark.parametrize(
    "url", ["hub.test", "ftp://hub.test", "https://", "https://u:p@hub.test", "https://h?x=1", "http://["]
)
def test_a_public_url_that_is_none(root: Path, url: str) -> None:
    """Links would lead nowhere."""
    with pytest.raises(SourceError, match="public URL"):
        create_app(root, public_url=url)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str, ssl.SSLContext]:
    """A certificate of 127.0.0.1, its key, and a client's context that trusts it."""
    authority, paths = trustme.CA(), (tmp_path / "cert.pem", tmp_path / "key.pem")
    issued = authority.issue_cert("127.0.0.1")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(paths[0]), append=True)
    issued.private_key_pem.write_to_path(str(paths[1]))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return str(paths[0]), str(paths[1]), context


def test_tls(root: Path, certificate: tuple[str, str, ssl.SSLContext]) -> None:
    """With a certificate and its key it is https, links and large bodies included."""
    cert, key, context = certificate
    large = write(root / "m" / "large", bytes(range(256)) * 20_000).read_bytes()
    with Server(root, tls=(cert, key)) as server, httpx.Client(base_url=server.url, verify=context) as client:
        assert server.url.startswith("https://127.0.0.1:")
        assert client.get("/m/resolve/main/a").content == b"a"
        assert client.get("/m/resolve/main/large").content == large
        assert following(client).startswith(server.url)


def test_tls_that_cannot_work(root: Path, certificate: tuple[str, str, ssl.SSLContext], tmp_path: Path) -> None:
    """Files that are missing, swapped, or need a password are refused before anything listens."""
    cert, key, _ = certificate
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", key, "-out", str(locked), "-passout", "pass:x"], check=True, timeout=30
    )
    for pair in (("missing", key), (cert, "missing"), (key, cert), (cert, str(locked))):
        with pytest.raises(SourceError, match="TLS certificate"):
            Server(root, tls=pair)


def test_each_request_is_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line: client, method, path, status, bytes, time; a body that is broken off is said to be."""
    caplog.set_level(logging.INFO, "asyncfetch.server.access")
    os.truncate(root / "m" / "a", 1 << 25)
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        client.get("/m/resolve/main/b", headers={"Authorization": f"Bearer {TOKEN}"})
        client.head("/m/resolve/main/b")
        client.get("/api/models?search=m&limit=5&token=hf_other")
        client.put("/a%0d%0ab")
        with client.stream("GET", "/m/resolve/main/a") as answer:
            next(answer.iter_raw())
    lines = [record.getMessage() for record in caplog.records if record.name == "asyncfetch.server.access"]
    assert [line.rpartition(" ")[0] for line in lines[:4]] == [
        "127.0.0.1 GET /m/resolve/main/b 200 1",
        "127.0.0.1 HEAD /m/resolve/main/b 200 0",
        f"127.0.0.1 GET /api/models?search=m&limit=5&… 200 {len(client_text(root))}",
        "127.0.0.1 PUT /a%0d%0ab 404 34",
    ]
    assert all(line.endswith("ms") and float(line.split()[-1][:-2]) > 0 for line in lines[:4])
    assert lines[4].startswith("127.0.0.1 GET /m/resolve/main/a 200 ")
    assert lines[4].endswith("ms broken off")


def client_text(root: Path) -> str:
    """The listing of the only model."""
    with Server(root) as server:
        return httpx.get(f"{server.url}/api/models").text


@pytest.mark.parametrize(
    ("query", "shown"),
    [("", ""), ("expand=a&expand=b", "?expand=a&expand=b"), ("X-Amz-Signature=1", "?…"), ("limit=1&x=2", "?limit=1&…")],
)
def test_what_is_shown_of_a_query(query: str, shown: str) -> None:
    """Only what selects: it may hold a signature, or a token."""
    assert shown_target("/p\x1b", query) == f"/p?{shown}"


def test_an_answer_while_files_are_hashed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No client waits until it times out: it is told how far it is and when to ask again. Others are served."""
    monkeypatch.setattr(catalog, "PATIENCE", 0.1)
    os.truncate(write(root / "huge" / "w.safetensors"), 1 << 40)
    with Server(root) as server, httpx.Client(base_url=server.url) as client:
        for method, path in (("HEAD", "/huge/resolve/main/w.safetensors"), ("GET", "/api/models/huge")):
            for _ in range(100):  # to look at them may take so long too
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["x-error-code"]) == (503, "Hashing")
                if answer.headers["x-error-message"] != "The files are being looked at. Ask again in 1 s.":
                    break
            assert int(answer.headers["retry-after"]) > 1
            assert " of 1.1 TB. Ask again in " in answer.headers["x-error-message"]
            assert client.get("/m/resolve/main/a").content == b"a"
        assert client.get("/api/models/huge/auth-check").status_code == 200


def test_the_port_of_a_url_is_the_port(root: Path) -> None:
    """IPv6 too."""
    with Server(root, host="::1") as server:
        assert urlsplit(server.url).hostname == "::1"
        assert httpx.get(f"{server.url}/m/resolve/main/a").content == b"a"
