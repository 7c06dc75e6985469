"""Whose certificates are trusted, and what is said of one that is not."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from asyncfetch.errors import CertificateError
from asyncfetch.network import trust
from asyncfetch.network.sockets import Stream
from asyncfetch.network.transport import Transport

from ..kit.fault_server import QUICK, FaultServer
from ..kit.proxies import ConnectProxy
from ..kit.users import ROOT

BODY = bytes(range(256)) * 4000
PATH = "/files/x.bin"


def serving(authority: trustme.CA, host: str = "localhost", **times: Any) -> FaultServer:
    """A server with a certificate for `host`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, **times).configure_cert(context)
    server = FaultServer(tls=context)
    server.web("/files", {"x.bin": BODY})
    return server


async def fetch(server: FaultServer) -> bytes:
    async with Transport(QUICK) as transport:
        return (await transport.fetch(server.url + PATH, limit=1 << 20)).body


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of this machine counts; and what was read in another test is forgotten."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    trust._system.cache_clear()
    trust._named.cache_clear()
    yield
    trust._system.cache_clear()
    trust._named.cache_clear()


def rehashed(authority: trustme.CA, folder: Path) -> Path:
    """A folder with the certificate under the name of its hash, as `openssl rehash` makes it."""
    folder.mkdir()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(folder / "ca.pem")]
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    (folder / "ca.pem").rename(folder / f"{name}.0")
    return folder


# -- who is trusted --------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["file", "folder", "folders", "both", "requests", "curl"])
async def test_what_the_environment_names(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """SSL_CERT_FILE, SSL_CERT_DIR, and besides the system's store what requests and curl are told."""
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    match way:
        case "file":
            monkeypatch.setenv("SSL_CERT_FILE", f" {file}\n")
        case "folder":
            monkeypatch.setenv("SSL_CERT_DIR", str(rehashed(authority, tmp_path / "certs")))
        case "folders":
            monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'gone'}:{rehashed(authority, tmp_path / 'certs')}")
        case "both":
            monkeypatch.setenv("SSL_CERT_FILE", str(file))
            monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "gone"))
        case "requests":
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(file))
        case "curl":
            monkeypatch.setenv("CURL_CA_BUNDLE", str(file))
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone"))
    with serving(authority) as server:
        assert await fetch(server) == BODY


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variable", "make", "says"),
    [
        ("SSL_CERT_FILE", lambda _path: None, "No such file"),
        ("SSL_CERT_FILE", lambda path: path.mkdir(), "Is a directory"),
        ("SSL_CERT_FILE", lambda path: path.write_bytes(b""), "holds no certificate"),
        ("SSL_CERT_FILE", lambda path: path.write_bytes(b"\0\xff" * 50), "holds no certificate"),
        ("SSL_CERT_DIR", lambda _path: None, "openssl rehash"),
        ("SSL_CERT_DIR", lambda path: path.write_bytes(b""), "openssl rehash"),
        ("SSL_CERT_DIR", lambda path: path.mkdir(), "openssl rehash"),
    ],
)
@pytest.mark.parametrize("proxied", [False, True])
async def test_a_store_that_is_none(
    server: FaultServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variable: str,
    make: Callable[[Path], Any],
    says: str,
    proxied: bool,
) -> None:
    """An error that names the variable, at once, with and without a proxy; plain HTTP is not troubled."""
    make(tmp_path / "store")
    monkeypatch.setenv(variable, str(tmp_path / "store"))
    server.web("/files", {"x.bin": BODY})
    with ConnectProxy() as proxy:
        async with Transport(QUICK) as transport:
            if proxied:
                monkeypatch.setenv("HTTPS_PROXY", proxy.place)
            with pytest.raises(CertificateError, match=f"{variable} names.*{says}") as caught:
                await transport.fetch("https://localhost:9/x", limit=1)
            assert "system's store" in caught.value.hint
            assert (await transport.fetch(server.url + PATH, limit=1 << 20)).body == BODY
    assert not proxy.asked


def test_a_blank_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not set: the system's store."""
    assert trust.trusted({"SSL_CERT_FILE": " ", "SSL_CERT_DIR": "", "CURL_CA_BUNDLE": ""}) is trust.trusted({})


def test_the_store_of_certifi_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A slim container without ca-certificates has roots too, and each one is checked against."""
    nowhere = ssl.DefaultVerifyPaths(None, None, "", str(tmp_path / "cert.pem"), "", str(tmp_path / "certs"))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    monkeypatch.setattr(trust, "_BUNDLES", (str(tmp_path / "a.pem"), str(tmp_path)))
    context = trust.trusted({})
    assert context.cert_store_stats()["x509_ca"] > 50
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_store_in_another_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA) -> None:
    """A Python that was built elsewhere finds the store of the distribution it runs on."""
    nowhere = ssl.DefaultVerifyPaths(None, None, "", str(tmp_path / "cert.pem"), "", str(tmp_path / "certs"))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nowhere)
    authority.cert_pem.write_to_path(str(tmp_path / "bundle.crt"))
    monkeypatch.setattr(trust, "_BUNDLES", (str(tmp_path / "a.pem"), str(tmp_path / "bundle.crt")))
    assert trust.trusted({}).cert_store_stats()["x509_ca"] == 1


LOAD = """
import sys, anyio
from asyncfetch.network.transport import Transport
from asyncfetch.policy import Policy
async def main():
    async with Transport(Policy(attempts=1)) as transport:
        reply = await transport.fetch(sys.argv[1], limit=100)
        print(reply.status, len(reply.body))
try:
    anyio.run(main)
except Exception as error:
    print(type(error).__name__, error.reason)
"""


def test_the_real_store_of_the_system(authority: trustme.CA, tmp_path: Path) -> None:
    """A root that the administrator has added is trusted: here in a mount namespace of its own, so nowhere else."""
    bundle = Path(ssl.get_default_verify_paths().openssl_cafile)
    bundle = bundle if bundle.is_file() else next(filter(Path.is_file, map(Path, trust._BUNDLES)), bundle)
    if os.getuid() != 0 or shutil.which("unshare") is None or not bundle.is_file():
        pytest.skip("needs root, unshare (apt-get install util-linux) and ca-certificates")
    more = tmp_path / "more.pem"
    more.write_bytes(bundle.read_bytes() + b"\n" + authority.cert_pem.bytes())
    bind = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    environ = {name: value for name, value in os.environ.items() if not re.match("SSL_CERT_|.*_CA_BUNDLE", name)}
    with serving(authority) as server:
        command = [sys.executable, "-c", LOAD, server.url + PATH]
        plain = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, timeout=50)
        assert plain.stdout == "CertificateError unknown_root\n", plain.stderr
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", bind, "sh", str(more)]
        with_root = subprocess.run(
            [*inside, str(bundle.resolve()), *command],
            capture_output=True,
            text=True,
            env=environ,
            cwd=ROOT,
            timeout=50,
        )
        if "mount" in with_root.stderr and "denied" in with_root.stderr:
            pytest.skip("needs to mount, which this container may not")
        assert with_root.stdout == "200 100\n", with_root.stderr


@pytest.mark.anyio
async def test_contexts_of_truststore(monkeypatch: pytest.MonkeyPatch, authority: trustme.CA, tmp_path: Path) -> None:
    """What macOS and Windows have works with our sockets too: bursts, connections that serve again, refusals."""
    truststore = pytest.importorskip("truststore", reason="needs truststore: pip install truststore")
    monkeypatch.setattr(trust, "_system_store", lambda: truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    with serving(authority) as server:
        with pytest.raises(CertificateError) as caught:
            await fetch(server)
        assert caught.value.reason == "unknown_root"
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        before = server.handshakes
        async with Transport(QUICK) as transport:
            for _ in range(3):
                assert (await transport.fetch(server.url + PATH, limit=1 << 20)).body == BODY
            async with transport.open(server.url + PATH) as body:
                assert isinstance(body._stream, Stream)
        assert server.handshakes == before + 1


# -- what is said ----------------------------------------------------------------------------------

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@pytest.mark.anyio
@pytest.mark.parametrize("proxied", [False, True])
@pytest.mark.parametrize(
    ("fault", "says", "hint"),
    [
        ("unknown_root", "in the store", "SSL_CERT_FILE"),
        ("self_signed", "signed by itself", "SSL_CERT_FILE"),
        ("wrong_host", "another host", "address"),
        ("expired", "has expired", "clock"),
        ("not_yet_valid", "not valid yet", "clock"),
    ],
)
async def test_faults_of_certificates(
    authority: trustme.CA,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
    says: str,
    hint: str,
    proxied: bool,
) -> None:
    """Each has its own word, text and hint, straight and through a proxy, which is named; none is tried again."""
    named = trustme.CA() if fault in ("unknown_root", "self_signed") else authority
    named.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    times = {"expired": {"not_before": NOW - 9 * DAY, "not_after": NOW - 2 * DAY}}
    times["not_yet_valid"] = {"not_before": NOW + 2 * DAY, "not_after": NOW + 9 * DAY}
    server = serving(authority, "other.example" if fault == "wrong_host" else "localhost", **times.get(fault, {}))
    if fault == "self_signed":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self_signed(tmp_path, context)
        server._tls = context
    with server, ConnectProxy() as proxy:
        if proxied:
            monkeypatch.setenv("ALL_PROXY", proxy.place)
        with pytest.raises(CertificateError, match=f"not trusted: .*{says}") as caught:
            await fetch(server)
    assert caught.value.reason == fault
    assert hint in caught.value.hint
    assert not caught.value.transient
    assert (f"through the proxy http://{proxy.place}" in caught.value.message) is proxied
    assert server.accepted == 1


def self_signed(folder: Path, context: ssl.SSLContext) -> None:
    """Give a server a certificate that nobody else has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "self.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    context.load_cert_chain(folder / "self.pem", folder / "key.pem")
