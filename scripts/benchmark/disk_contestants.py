"""One load from the disk, in this process: `python -m scripts.benchmark.disk_contestants NAME JSON`.

Each first loads a small checkpoint, so that imports and what a first use costs do not count. Every page of every
tensor is touched before the clock stops: a state dict of which nothing was read yet is no load. Prints one JSON line.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]
Tensors = Iterable[tuple[str, Any]]


def main() -> None:
    name, job = sys.argv[1], json.loads(sys.argv[2])
    load = CONTESTANTS[name]
    take(load(Path(job["small"])))
    folder = Path(job["folder"])
    for path in shards(folder):
        (drop if job["cold"] else read)(path)
    resident = min if not job["cold"] else max
    before, cpu = resident(map(resident_part, shards(folder))), _cpu()
    if before > 0.02 if job["cold"] else before < 0.98:
        raise SystemExit(f"{before:.0%} of a file is in memory, which was to be {'cold' if job['cold'] else 'warm'}")
    began = time.perf_counter()
    nbytes = take(load(folder))
    seconds = time.perf_counter() - began
    if nbytes != job["nbytes"]:
        raise SystemExit(f"{nbytes} bytes of tensors instead of {job['nbytes']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(json.dumps({"seconds": seconds, "cpu": _cpu() - cpu, "peak": peak}))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def take(tensors: Tensors) -> int:
    """Touch every page of each tensor; how many bytes they have."""
    nbytes = 0
    for _, tensor in tensors:
        array = tensor if isinstance(tensor, np.ndarray) else tensor.detach().numpy()
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].sum()
        nbytes += array.nbytes
    return nbytes


# -- the page cache -------------------------------------------------------------------------------


def drop(path: Path) -> None:
    """Let the kernel forget what it holds of this file alone: others work on this machine.

    It keeps pages that are on their way or that a process which ends still has mapped, so it may take several times.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        for _ in range(50):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if resident_part(path) < 0.01:
                break
            time.sleep(0.1)
    finally:
        os.close(descriptor)


def read(path: Path) -> None:
    with open(path, "rb", buffering=0) as stream:
        buffer = memoryview(bytearray(1 << 20))
        while stream.readinto(buffer):
            pass


def resident_part(path: Path) -> float:
    """Which part of a file is in memory (mincore)."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        pages = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    address = np.frombuffer(pages, np.uint8).ctypes.data
    if ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), found):
        raise SystemExit("mincore does not answer")
    return float(np.mean(np.frombuffer(found, np.uint8) & 1))


# -- who loads ------------------------------------------------------------------------------------


def asyncfetch_numpy(folder: Path) -> Tensors:
    import asyncfetch

    return asyncfetch.load(folder).items()


def asyncfetch_torch(folder: Path) -> Tensors:
    import asyncfetch

    return asyncfetch.load(folder, framework="torch").items()


def asyncfetch_stream(folder: Path) -> Tensors:
    import asyncfetch

    return asyncfetch.stream(folder, framework="torch")


def asyncfetch_into(folder: Path) -> Tensors:
    import asyncfetch

    model = _model(folder)
    asyncfetch.load_into(model, folder)
    return model.state_dict().items()


def safetensors_torch(folder: Path) -> Tensors:
    from safetensors.torch import load_file

    return {name: tensor for path in shards(folder) for name, tensor in load_file(path).items()}.items()


def safetensors_numpy(folder: Path) -> Tensors:
    from safetensors.numpy import load_file

    return {name: array for path in shards(folder) for name, array in load_file(path).items()}.items()


def safetensors_stream(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in shards(folder):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def runai(folder: Path) -> Tensors:
    return dict(_runai(folder, owned=True)).items()


def runai_stream(folder: Path) -> Tensors:
    return _runai(folder, owned=False)


def _runai(folder: Path, *, owned: bool) -> Iterator[tuple[str, Any]]:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in shards(folder)], owned=owned)
        yield from streamer.get_tensors()


def fastsafetensors(folder: Path) -> Tensors:
    return dict(_fastsafetensors(shards(folder))).items()


def fastsafetensors_stream(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in shards(folder):
        yield from _fastsafetensors([path])


def _fastsafetensors(paths: list[Path]) -> list[tuple[str, Any]]:
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    loader = SafeTensorsFileLoader(SingleGroup(), "cpu", nogds=True)
    loader.add_filenames({0: [str(path) for path in paths]})
    try:
        buffer = loader.copy_files_to_device()
        return [(name, buffer.get_tensor(name)) for name in loader.get_keys()]
    finally:
        loader.close()


def _into(load: Callable[[Path], Tensors]) -> Callable[[Path], Tensors]:
    def into(folder: Path) -> Tensors:
        model = _model(folder)
        model.load_state_dict(dict(load(folder)), assign=True)
        return model.state_dict().items()

    return into


def _model(folder: Path) -> Any:
    """A module on the meta device whose buffers have the names and sizes of the checkpoint."""
    import torch
    from safetensors import safe_open

    model = torch.nn.Module()
    for path in shards(folder):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                at, *parents = reversed(name.split("."))
                module = model
                for part in reversed(parents):
                    if part not in dict(module.named_children()):
                        module.add_module(part, torch.nn.Module())
                    module = getattr(module, part)
                module.register_buffer(
                    at, torch.empty(opened.get_slice(name).get_shape(), dtype=torch.uint8, device="meta")
                )
    return model


CONTESTANTS: dict[str, Callable[[Path], Tensors]] = {
    "asyncfetch numpy": asyncfetch_numpy,
    "asyncfetch torch": asyncfetch_torch,
    "asyncfetch stream": asyncfetch_stream,
    "asyncfetch into": asyncfetch_into,
    "safetensors torch": safetensors_torch,
    "safetensors numpy": safetensors_numpy,
    "safetensors stream": safetensors_stream,
    "safetensors into": _into(safetensors_torch),
    "runai": runai,
    "runai stream": runai_stream,
    "runai into": _into(runai),
    "fastsafetensors": fastsafetensors,
    "fastsafetensors stream": fastsafetensors_stream,
    "fastsafetensors into": _into(fastsafetensors),
}

if __name__ == "__main__":
    main()
