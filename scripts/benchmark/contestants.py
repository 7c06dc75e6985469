"""One run of one contestant, in this process: `python -m scripts.benchmark.contestants NAME JSON`.

Prints one JSON line: seconds from nothing cached to the state dict, CPU seconds, peak memory, and
where it is asked for the lag of a 1 ms ticker on the event loop.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MiB = 1 << 20
Job = dict[str, Any]


def main() -> None:
    name, job = sys.argv[1], json.loads(sys.argv[2])
    target = Path(job["target"])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    result: dict[str, Any] = CONTESTANTS[name](job, target)
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    result["cpu"] = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    result["peak"] = (max(own.ru_maxrss, children.ru_maxrss) << 10) - result.pop("base", 0)
    print(json.dumps(result))
    shutil.rmtree(target, ignore_errors=True)


def _peak_now() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _anonymous_peak() -> int:
    """Anonymous memory now, in bytes: what a mapped file does not count for."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _on_loop(work: Callable[[], Awaitable[float]], *, ticker: bool = False) -> dict[str, Any]:
    """Run `work` and sample anonymous memory. `ticker`: beside one of 1 ms, whose lags count after the first second.

    It wakes the processor a thousand times a second, so it has runs of its own: curl carries none.
    """
    import anyio

    lags: list[float] = []
    anonymous = [_anonymous_peak()]

    async def tick() -> None:
        began = time.perf_counter()
        while True:
            before = time.perf_counter()
            await anyio.sleep(0.001)
            now = time.perf_counter()
            if now - began > 1:
                lags.append(now - before - 0.001)

    async def sample() -> None:
        while True:
            await anyio.sleep(0.05)
            anonymous.append(_anonymous_peak())

    async def run() -> float:
        async with anyio.create_task_group() as group:
            group.start_soon(sample)
            if ticker:
                group.start_soon(tick)
            seconds = await work()
            group.cancel_scope.cancel()
        return seconds

    seconds = anyio.run(run)
    lags.sort()
    result: dict[str, Any] = {"seconds": seconds, "anonymous": max(anonymous) - anonymous[0]}
    if lags:
        result |= {"lag_p99": lags[int(len(lags) * 0.99)], "lag_max": lags[-1]}
    return result


def asyncfetch(job: Job, target: Path) -> dict[str, Any]:
    import anyio  # noqa: F401
    import httpx  # noqa: F401
    import numpy  # noqa: F401

    import asyncfetch.api.call  # noqa: F401  # what a first call imports is not counted, as with the others
    import asyncfetch.api.functions as api
    from asyncfetch.events import FileVerified

    base = _peak_now()
    verified: list[float] = []

    def report(event: object) -> None:
        if isinstance(event, FileVerified):
            verified.append(time.perf_counter())

    merged = 0.0

    async def work() -> float:
        nonlocal merged
        began = time.perf_counter()
        options = {"endpoint": job["endpoint"], "cache_dir": target, "report": report}
        if job.get("hash", True):
            tensors = await api.load_async(job["repository"], storage=job["storage"], **options)
            ended = time.perf_counter()
            merged = ended - verified[-1]
            _check(tensors, job)
        else:
            await api.download_async(job["repository"], **options)
            ended = time.perf_counter()
        return ended - began

    if not job.get("hash", True):
        _no_hash()
    return _on_loop(work, ticker=job.get("ticker", False)) | {"base": base, "merge": merged}


def _no_hash() -> None:
    """Take hashing out, to compare the moving of bytes alone. Only here: the library has no such switch."""
    import asyncfetch.storage.partial as partial

    class Anything(str):
        __hash__ = str.__hash__

        def __ne__(self, other: object) -> bool:
            return False

    class NoHash:
        def update(self, data: memoryview) -> None: ...

        def hexdigest(self) -> str:
            return Anything("0" * 64)

    def catch_up(self: partial.Partial) -> bool:
        self._hashed = self.present.frontier
        return False

    partial.new_hash = lambda algorithm, size: NoHash()  # noqa: ARG005
    partial.Partial.catch_up = catch_up  # type: ignore[method-assign]


def huggingface_hub(job: Job, target: Path) -> dict[str, Any]:
    os.environ |= {
        "HF_ENDPOINT": job["endpoint"],
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    from huggingface_hub import snapshot_download

    base = _peak_now()
    began = time.perf_counter()
    path = snapshot_download(job["repository"], cache_dir=target)
    tensors = _load_files(sorted(Path(path).glob("*.safetensors")))
    seconds = time.perf_counter() - began
    _check(tensors, job)
    return {"seconds": seconds, "base": base}


def aria2(job: Job, target: Path) -> dict[str, Any]:
    urls = "\n".join(job["urls"]) + "\n"
    split = str(job.get("split", 4))
    piece = job.get("piece", "16M")
    command = [
        "aria2c",
        "-q",
        "-j16",
        f"-x{split}",
        f"-s{split}",
        f"-k{piece}",
        "--file-allocation=none",
        f"-d{target}",
    ]
    return _command([*command, f"--ca-certificate={job['ca']}", "-i-"], urls, job, target)


def curl(job: Job, target: Path) -> dict[str, Any]:
    config = "".join(f'url = "{url}"\noutput = "{target / Path(url).name}"\n' for url in job["urls"])
    command = ["curl", "-sS", "--parallel", "--parallel-max", "16", "--parallel-immediate", "--cacert", job["ca"]]
    return _command([*command, "-K", "-"], config, job, target)


def _command(command: list[str], text: str, job: Job, target: Path) -> dict[str, Any]:
    base = _peak_now()
    began = time.perf_counter()
    subprocess.run(command, input=text.encode(), check=True, stdout=subprocess.DEVNULL)
    if job.get("download_only"):
        return {"seconds": time.perf_counter() - began, "base": base}
    tensors = _load_files([target / Path(url).name for url in job["urls"]])
    seconds = time.perf_counter() - began
    _check(tensors, job)
    return {"seconds": seconds, "base": base}


def httpx(job: Job, target: Path) -> dict[str, Any]:
    """What one writes by hand: a task for each shard, `aiter_raw`, a file."""
    import anyio
    import httpx

    base = _peak_now()

    async def work() -> float:
        began = time.perf_counter()
        async with httpx.AsyncClient() as client, anyio.create_task_group() as group:

            async def one(url: str) -> None:
                async with client.stream("GET", url, headers={"accept-encoding": "identity"}) as response:
                    response.raise_for_status()
                    with open(target / Path(url).name, "wb") as stream:
                        async for chunk in response.aiter_raw():
                            stream.write(chunk)

            for url in job["urls"]:
                group.start_soon(one, url)
        tensors = _load_files([target / Path(url).name for url in job["urls"]])
        seconds = time.perf_counter() - began
        _check(tensors, job)
        return seconds

    return _on_loop(work) | {"base": base}


def raw_sockets(job: Job, target: Path) -> dict[str, Any]:
    """The limit: a blocking socket and a thread for each file, no HTTP library, no hash, no merge."""
    base = _peak_now()
    context = ssl.create_default_context(cafile=job["ca"])
    failures: list[BaseException] = []

    def fetch(url: str) -> None:
        try:
            parts = urlsplit(url)
            sock: socket.socket = socket.create_connection((parts.hostname or "", parts.port or 80))
            if parts.scheme == "https":
                sock = context.wrap_socket(sock, server_hostname=parts.hostname)
            sock.sendall(f"GET {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(65536)
            head, _, first = head.partition(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            descriptor = os.open(target / Path(url).name, os.O_RDWR | os.O_CREAT, 0o644)
            os.pwrite(descriptor, first, 0)
            at, buffer = len(first), memoryview(bytearray(MiB))
            while at < length:
                filled = 0
                while filled < len(buffer) and at + filled < length:
                    got = sock.recv_into(buffer[filled:])
                    if not got:
                        raise ConnectionError("closed early")
                    filled += got
                os.pwrite(descriptor, buffer[:filled], at)
                at += filled
            os.close(descriptor)
            sock.close()
        except BaseException as error:
            failures.append(error)

    began = time.perf_counter()
    threads = [threading.Thread(target=fetch, args=(url,)) for url in job["urls"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {"seconds": time.perf_counter() - began, "base": base}


def _load_files(paths: list[Path]) -> dict[str, Any]:
    from safetensors.numpy import load_file

    tensors: dict[str, Any] = {}
    for path in paths:
        tensors |= load_file(path)
    return tensors


def _check(tensors: dict[str, Any], job: Job) -> None:
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    if nbytes != job["nbytes"]:
        raise SystemExit(f"{nbytes} bytes of tensors instead of {job['nbytes']}")


CONTESTANTS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "asyncfetch": asyncfetch,
    "huggingface_hub": huggingface_hub,
    "aria2": aria2,
    "curl": curl,
    "httpx": httpx,
    "raw sockets": raw_sockets,
}

if __name__ == "__main__":
    main()
