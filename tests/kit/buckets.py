"""Buckets in servers of their own processes: moto's for S3 (Google's XML is the same), Azurite for Azure."""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from asyncfetch.sources.store_env import DEVELOPMENT

from .canaries import PASSWORD
from .users import ROOT

__all__ = ["KEYS", "azurite", "killed_half_way", "make_container", "moto", "put", "without_stores"]

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": PASSWORD}

_CHILD = """
import sys, asyncfetch
source, cache = sys.argv[1:]
asyncfetch.load(source, cache_dir=cache, policy=asyncfetch.Policy(connections=1, min_split=1 << 30))
"""


@contextmanager
def moto() -> Iterator[int]:
    """The port of a server that speaks S3. It checks no signature."""
    command = [sys.executable, "-m", "tests.kit.moto_server"]
    with _serving(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True), r"(\d+)") as port:
        yield port


@contextmanager
def azurite(folder: Path) -> Iterator[int]:
    """The port of Azurite, Microsoft's own emulator. It checks signatures. Skips where scripts/azurite has not run."""
    script = Path(sys.prefix, "azurite/node_modules/azurite/dist/src/blob/main.js")
    node = shutil.which("node")
    if node is None or not script.exists():
        pytest.skip("NOT TESTED: Azure. Azurite is not installed: run scripts/azurite (it needs npm).")
    command = [
        node,
        str(script),
        "--blobPort",
        "0",
        "--inMemoryPersistence",
        "--disableTelemetry",
        "--skipApiVersionCheck",
    ]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with _serving(process, r"listens on http://127\.0\.0\.1:(\d+)") as port:
        yield port


@contextmanager
def _serving(process: subprocess.Popen[str], sign: str) -> Iterator[int]:
    """The port that a server tells on stdout. What it says later is dropped with it."""
    try:
        assert process.stdout is not None
        found = next(filter(None, (re.search(sign, line) for line in process.stdout)), None)
        assert found is not None, "the server ended before it listened"
        yield int(found[1])
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def put(port: int, bucket: str, files: Mapping[str, bytes], *, hashed: bool = True) -> None:
    """Put files for everybody into a bucket of moto's, with the SHA-256 of each, as `aws s3api put-object` can."""
    scope = "Credential=a/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"
    headers = {"authorization": f"AWS4-HMAC-SHA256 {scope}", "x-amz-acl": "public-read"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path, content in [(bucket, b""), *((f"{bucket}/{quote(key)}", content) for key, content in files.items())]:
        hashing = {"x-amz-sdk-checksum-algorithm": "SHA256"} if hashed and "/" in path else {}
        connection.request("PUT", f"/{path}", content, headers | hashing)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 409), (path, answer.status)  # 409: the bucket is there already
    connection.close()


def make_container(port: int, name: str, *, public: bool = False) -> None:
    """Make a container of Azurite's: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key"""
    account, key = DEVELOPMENT["account_name"], base64.b64decode(DEVELOPMENT["account_key"])
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03"}
    headers |= {"x-ms-blob-public-access": "container"} if public else {}
    said = "".join(f"{header}:{headers[header]}\n" for header in sorted(headers))
    text = "PUT" + "\n" * 12 + f"{said}/{account}/{account}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.digest(key, text.encode(), "sha256")).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers["authorization"] = f"SharedKey {account}:{signature}"
    connection.request("PUT", f"/{account}/{name}?restype=container", b"", headers)
    assert connection.getresponse().status == 201
    connection.close()


def _journal_of(cache: Path) -> Any:
    """The journal of the only partial, once it lists more than what came with the header."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for path in cache.glob("models--*/blobs/*.map.incomplete"):
            told = json.loads(path.read_text())
            if told["spans"] and told["spans"][0][1] > 1 << 20:
                return told
        time.sleep(0.01)
    raise AssertionError("no journal")


def killed_half_way(source: str, cache: Path, stalled: threading.Event) -> int:
    """Load `source` in a process that is killed half-way: how many bytes its journal says."""
    child = subprocess.Popen([sys.executable, "-c", _CHILD, source, str(cache)], cwd=ROOT)
    try:
        assert stalled.wait(30)
        ((start, stop),) = _journal_of(cache)["spans"]
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert start == 0
    return int(stop)


def without_stores(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Nothing of the user's own store settings, and no machine that could have credentials."""
    for name in os.environ:
        if re.match("AWS_|AZURE|GOOGLE|GCE_|CLOUDSDK_|STORAGE_EMULATOR|NO_GCE", name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
