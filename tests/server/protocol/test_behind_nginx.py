"""nginx in front of the server, as people set it up: TLS, gzip, buffers, a path of its own."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme

from asyncfetch.server import Server

from ...kit.canaries import TOKEN
from ...kit.fault_server import FaultServer
from ..clients import hub
from ..trees import write

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

WEIGHTS = random.Random(8).randbytes(3_000_000)
CONFIG = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {served}
}}
"""
OVER_TLS = """
gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; proxy_buffering on; proxy_http_version 1.1;
server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
    {locations}
}}
"""
PLAIN = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; {directives} }} }}"
SILENT = 'proxy_http_version 1.1; proxy_set_header Connection "";'  # nothing in a request tells of the proxy
HEADERS = "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;"


@contextmanager
def nginx(folder: Path, served: str) -> Iterator[None]:
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, served=served))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def over_tls(folder: Path, port: int, locations: dict[str, str]) -> str:
    """Each location, whose path ends in a slash, leads to a server."""
    lines = [f"location {path} {{ proxy_pass {url}/; {HEADERS} }}" for path, url in locations.items()]
    return OVER_TLS.format(folder=folder, port=port, locations=" ".join(lines))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client that trusts the proxy, as do the processes that it starts."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    transport = httpx.HTTPTransport(retries=8, verify=httpx.create_ssl_context())  # until it listens
    with httpx.Client(transport=transport) as made:
        yield made


def listed(client: httpx.Client, public: str) -> list[str]:
    """The files, page by page, each where the one before says."""
    paths: list[str] = []
    url = f"{public}/api/models/org/m/tree/main?limit=1&recursive=true"
    while url:
        assert url.startswith(f"{public}/api/models/org/m/tree/")
        answer = client.get(url)
        assert answer.headers["content-encoding"] == "gzip"
        paths += [entry["path"] for entry in answer.json() if entry["type"] == "file"]
        url = answer.links.get("next", {}).get("url", "")
    return paths


@pytest.mark.heavy
def test_clients_come_through(tmp_path: Path, client: httpx.Client) -> None:
    """Over a folder and over another Hub, below a path and at the root: links stay, bytes, sizes and hashes arrive."""
    files = {"a.json": b"{}" * 5000, "model.safetensors": WEIGHTS, "sub/b.txt": b"b" * 9000}
    for name, data in files.items():
        write(tmp_path / "root" / "org" / "m" / name, data)
    port = free_port()
    origin = f"https://127.0.0.1:{port}"
    cache = tmp_path / "cache"
    with (
        Server(tmp_path / "root", public_url=f"{origin}/folder") as folder,
        Server(cache, upstream=folder.url, public_url=f"{origin}/cache") as below,
        Server(cache, upstream=folder.url) as at_root,
        nginx(tmp_path, over_tls(tmp_path, port, {"/folder/": folder.url, "/cache/": below.url, "/": at_root.url})),
    ):
        for number, public in enumerate((f"{origin}/folder", f"{origin}/cache", origin)):
            assert listed(client, public) == sorted(files)
            page = f"{public}/org/m/resolve/main/model.safetensors"
            digest = hashlib.sha256(WEIGHTS).hexdigest()
            told = client.head(page).headers
            assert (told["x-linked-size"], told["x-linked-etag"]) == (str(len(WEIGHTS)), f'"{digest}"')
            part = client.get(page, headers={"Range": "bytes=1000000-2999999", "Accept-Encoding": "identity"})
            assert (part.status_code, part.content) == (206, WEIGHTS[1_000_000:])
            code = """
import hashlib
from pathlib import Path
path = Path(snapshot_download("org/m"))
result = {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
          for file in path.rglob("*") if file.is_file()}
"""
            found = hub(public, tmp_path / str(number), code)
            assert found == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        refused = client.get(f"{origin}/org/m/resolve/main/none")
        assert (refused.status_code, refused.headers["x-error-code"]) == (404, "EntryNotFound")


@pytest.mark.parametrize(
    ("directives", "public_url"),
    [
        ("", None),
        ("proxy_http_version 1.1;", None),
        (f"{SILENT} proxy_set_header X-Real-IP $remote_addr;", None),
        (SILENT, "https://models.example.org"),
        pytest.param(SILENT, None, marks=pytest.mark.skipif(os.geteuid() != 0, reason="nginx runs as the same user")),
    ],
    ids=["as-it-comes", "http-1.1", "real-ip", "public-url", "another-user"],
)
def test_who_comes_through_may_change_nothing(tmp_path: Path, directives: str, public_url: str | None) -> None:
    """Nor see the names of what is not for everybody, however little nginx was told of the server behind it."""
    evict = {"url": "/api/asyncfetch/kept/evict", "json": {"repository": "team/private"}}
    with FaultServer() as source:
        source.listing(source.hub("team/private", {"config.json": b"{}"}))
        source.token = TOKEN
        with Server(tmp_path / "cache", upstream=source.url, public_url=public_url) as server:
            port = free_port()
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            assert httpx.get(f"{server.url}/team/private/resolve/main/config.json", headers=bearer).content == b"{}"
            served = PLAIN.format(port=port, url=server.url, directives=directives)
            with (
                nginx(tmp_path, served),
                httpx.Client(transport=httpx.HTTPTransport(retries=8), base_url=f"http://127.0.0.1:{port}") as outside,
                httpx.Client(base_url=server.url) as here,
            ):
                outside.headers["Host"] = "models.example.org"
                refused = outside.post(**evict)
                assert (refused.status_code, refused.headers["x-error-code"]) == (403, "NotAdmin")
                assert outside.get("/api/asyncfetch/kept").json() == []
                assert "team/private" not in outside.get("/").text
                assert here.post(**evict).status_code == (200 if public_url is None else 403)
