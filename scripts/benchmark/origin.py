"""nginx as a Hub: metadata on one origin, a redirect, and the bytes on a second origin; plain and TLS."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import trustme

COMMIT = "a" * 40


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Origin:
    """Serves root/<name> as repository bench/<name>. Use as a context manager.

    `data_port` sends data links through another port, where a proxy stands. `narrow`: of those bytes few wait in
    buffers of the kernel, so that what is counted as sent is what was received.
    """

    root: Path
    work: Path
    data_port: int | None = None
    narrow: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Origin:
        self.work.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.ca))
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self.work / "server.pem"))
        for name in ("http", "http_data", "https", "https_data"):
            self.ports[name] = free_port()
        config = self.work / "nginx.conf"
        config.write_text(self._config())
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        self._process = subprocess.Popen(
            [nginx, "-c", str(config), "-p", str(self.work)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for port in self.ports.values():
            _wait_for(port)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

    @property
    def ca(self) -> Path:
        return self.work / "ca.pem"

    def endpoint(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.ports[scheme]}"

    def data_url(self, scheme: str, name: str, file: str) -> str:
        port = self.data_port or self.ports[scheme + "_data"]
        return f"{scheme}://127.0.0.1:{port}/{name}/{file}"

    @property
    def workers(self) -> list[int]:
        """The processes that serve."""
        if self._process is None:
            return []
        pid = self._process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def count(self) -> tuple[int, int]:
        """(connections, requests) since the last call of this or of `sent`."""
        lines = self._logged()
        return len({connection for connection, *_ in lines}), len(lines)

    def sent(self) -> tuple[int, int]:
        """Bytes of shards, and of all else with all heads, since the last call of this or of `count`."""
        lines = self._logged()
        data = sum(int(body) for *_, body, path in lines if path.endswith(".safetensors"))
        return data, sum(int(line[3]) for line in lines) - data

    def _logged(self) -> list[list[str]]:
        log = self.work / "access.log"
        lines = log.read_text().splitlines() if log.exists() else []
        with open(log, "w"):
            pass
        return [line.split(maxsplit=5) for line in lines]

    def _config(self) -> str:
        buffer = " sndbuf=65536" if self.narrow else ""
        return f"""
worker_processes 2; daemon off; pid {self.work}/nginx.pid; error_log {self.work}/error.log;
events {{ worker_connections 1024; }}
http {{
  log_format counted '$connection $request_method $status $bytes_sent $body_bytes_sent $uri';
  access_log {self.work}/access.log counted;
  sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path {self.work}/body; proxy_temp_path {self.work}/proxy; fastcgi_temp_path {self.work}/fcgi;
  uwsgi_temp_path {self.work}/uwsgi; scgi_temp_path {self.work}/scgi;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_certificate {self.work}/server.pem; ssl_certificate_key {self.work}/server.pem;
  server {{ listen 127.0.0.1:{self.ports["http"]} backlog=1024; {self._hub("http")} }}
  server {{ listen 127.0.0.1:{self.ports["http_data"]} backlog=1024{buffer}; root {self.root}; }}
  server {{ listen 127.0.0.1:{self.ports["https"]} ssl backlog=1024; {self._hub("https")} }}
  server {{ listen 127.0.0.1:{self.ports["https_data"]} ssl backlog=1024; root {self.root}; }}
}}
"""

    def _hub(self, scheme: str) -> str:
        blocks = []
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir()):
            files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
            tree = []
            for path in files:
                etag, size = _etag(path, self.work), path.stat().st_size
                large = path.suffix == ".safetensors"
                entry: dict[str, object] = {"type": "file", "path": path.name, "size": size, "oid": etag}
                if large:
                    entry["lfs"] = {"oid": etag, "size": size, "pointerSize": 134}
                tree.append(entry)
                blocks.append(self._location(scheme, folder.name, path, etag, size, large))
            api = self.work / f"api-{folder.name}"
            api.mkdir(exist_ok=True)
            (api / "tree.json").write_text(json.dumps(tree))
            info = {"id": f"bench/{folder.name}", "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in files]}
            (api / "info.json").write_text(json.dumps(info))
            base = f"/api/models/bench/{folder.name}"
            json_of = "default_type application/json; root {api}; try_files"
            for pattern, answer in ((f"{base}(/revision/[^/]+)?$", "info"), (f"{base}/tree/", "tree")):
                blocks.append(f"location ~ ^{pattern} {{ {json_of.format(api=api)} /{answer}.json =404; }}")
        missing = f"add_header X-Repo-Commit {COMMIT} always; add_header X-Error-Code EntryNotFound always; return 404;"
        return "\n".join(blocks) + f"\nlocation / {{ {missing} }}"

    def _location(self, scheme: str, name: str, path: Path, etag: str, size: int, large: bool) -> str:
        pattern = f"^/bench/{name}/resolve/[^/]+/{path.name.replace('.', '[.]')}$"
        head = f"location ~ {pattern} {{ add_header X-Repo-Commit {COMMIT} always; "
        if not large:
            return head + f"etag off; add_header ETag '\"{etag}\"'; alias {path}; }}"
        link = self.data_url(scheme, name, path.name)
        linked = f"add_header X-Linked-Etag '\"{etag}\"' always; add_header X-Linked-Size {size} always; "
        return head + linked + f"return 302 {link}; }}"


def _etag(path: Path, work: Path) -> str:
    """sha256 of a shard, git's SHA-1 of an index; remembered by size and time."""
    status = path.stat()
    memo = work / "etags.json"
    known = json.loads(memo.read_text()) if memo.exists() else {}
    key = f"{path}:{status.st_size}:{status.st_mtime_ns}"
    if key not in known:
        with open(path, "rb") as stream:
            if path.suffix == ".json":
                data = stream.read()
                known[key] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            else:
                known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
        memo.write_text(json.dumps(known))
    return str(known[key])


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("nginx did not start; see error.log in the work folder")
