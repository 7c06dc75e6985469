"""nginx in front of the server, as people set it up: TLS, gzip, buffers, a path of its own."""

from __future__ import annotations

import hashlib
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
    gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any; proxy_buffering on; proxy_http_version 1.1;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem;
        {locations}
    }}
}}
"""
HEADERS = "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;"


@contextmanager
def nginx(folder: Path, port: int, locations: dict[str, str]) -> Iterator[None]:
    """Each location, whose path ends in a slash, leads to a server."""
    lines = [f"location {path} {{ proxy_pass {url}/; {HEADERS} }}" for path, url in locations.items()]
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, port=port, locations=" ".join(lines)))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


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
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    origin = f"https://127.0.0.1:{port}"
    cache = tmp_path / "cache"
    with (
        Server(tmp_path / "root", public_url=f"{origin}/folder") as folder,
        Server(cache, upstream=folder.url, public_url=f"{origin}/cache") as below,
        Server(cache, upstream=folder.url) as at_root,
        nginx(tmp_path, port, {"/folder/": folder.url, "/cache/": below.url, "/": at_root.url}),
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
