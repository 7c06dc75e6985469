"""Shards received into memory of their own for each tensor: how they are cut, landed, hashed and handed out."""

from __future__ import annotations

import hashlib
import itertools
import random
from typing import Any

import numpy as np
import pytest

from asyncfetch.format.header import PREFIX_BYTES, Header, parse_header
from asyncfetch.tensors.segments import Filled, TensorPartial, segments_of

from ..kit.files import safetensors_bytes

MIB = 1 << 20
_RANDOM = np.random.default_rng(1)
TENSORS: dict[str, Any] = {
    "first": np.zeros((0, 3), np.float32),
    "a": _RANDOM.integers(0, 255, 1000, dtype=np.uint8),
    "b": _RANDOM.integers(0, 255, 7, dtype=np.uint8),
    "big": _RANDOM.integers(0, 255, 3 * MIB, dtype=np.uint8),
    "none": np.zeros((2, 0), np.int64),
    "unwanted": _RANDOM.integers(0, 255, 5 * MIB // 2, dtype=np.uint8),
    "c": _RANDOM.integers(0, 255, 700_000, dtype=np.uint8),
    "d": _RANDOM.integers(0, 255, 700_000, dtype=np.uint8),
    "last": np.zeros((0,), np.uint8),
}
WANTED = [name for name in TENSORS if name != "unwanted"]
DATA = safetensors_bytes(TENSORS)


def header() -> Header:
    length = int.from_bytes(DATA[:PREFIX_BYTES], "little")
    return parse_header(memoryview(DATA)[PREFIX_BYTES : PREFIX_BYTES + length], file="f", file_size=len(DATA))


def partial_of(*, in_order: bool) -> TensorPartial:
    return TensorPartial(len(DATA), "sha256", segments_of(header(), WANTED), in_order=in_order)


def accept(partial: TensorPartial, start: int, stop: int) -> None:
    """As the transfer does it: into the place that the partial names, piece by piece."""
    while start < stop:
        view = partial.target(start, stop - start, memoryview(b""))
        view[:] = DATA[start : start + len(view)]
        partial.accept(start, view)
        start += len(view)


def arrays(taken: list[Filled]) -> dict[str, Any]:
    return {name: one.array(name, info, file="f") for one in taken for name, info in one.segment.tensors}


def right(found: dict[str, Any]) -> bool:
    return found.keys() == set(WANTED) and all(
        found[name].shape == TENSORS[name].shape and np.array_equal(found[name], TENSORS[name]) for name in WANTED
    )


def test_the_cuts() -> None:
    """No hole, no overlap; large tensors alone, small ones together up to 1 MiB, what is unwanted in 1 MiB pieces."""
    segments = segments_of(header(), WANTED)
    assert segments[0].start == 0
    assert segments[-1].stop == len(DATA)
    assert all(a.stop == b.start for a, b in itertools.pairwise(segments))
    names = [[name for name, _ in segment.tensors] for segment in segments]
    assert names == [[], ["first", "a", "b"], ["big"], ["none"], [], [], [], ["c"], ["d", "last"]]
    assert all(segment.nbytes <= MIB for segment in segments if not segment.tensors)


@pytest.mark.parametrize("seed", range(5))
def test_out_of_order(seed: int) -> None:
    """Pieces in any order, then what was left to hash: the hash and the arrays are right, each 64-byte aligned."""
    partial = partial_of(in_order=False)
    cuts = [0, *sorted(random.Random(seed).sample(range(1, len(DATA)), 40)), len(DATA)]
    pieces = list(itertools.pairwise(cuts))
    random.Random(seed).shuffle(pieces)
    for start, stop in pieces:
        accept(partial, start, stop)
        partial.take(unwanted=True)
    while partial.catch_up():
        partial.take(unwanted=True)
    assert partial.digest() == hashlib.sha256(DATA).hexdigest()
    found = arrays(partial.take_all())
    assert right(found)
    assert all(array.ctypes.data % 64 == 0 for array in found.values() if array.size)
    assert partial.buffer is None
    assert not partial._buffers


def test_in_order() -> None:
    """A tensor can be taken when its last byte is here and hashed, once; writing to it changes no hash."""
    partial = partial_of(in_order=True)
    found: dict[str, Any] = {}
    step, held = 300_000, []
    for start in range(0, len(DATA), step):
        stop = min(start + step, len(DATA))
        accept(partial, start, stop)
        taken = partial.take()
        assert all(one.segment.stop <= stop for one in taken)
        new = arrays(taken)
        assert not new.keys() & found.keys()
        found |= {name: array.copy() for name, array in new.items()}
        for array in new.values():
            array[...] = 0
        held.append(sum(len(buffer) for buffer in partial._buffers.values()))
    assert right(found)
    assert max(held) <= 3 * MIB
    assert partial.digest() == hashlib.sha256(DATA).hexdigest()


def test_data_from_elsewhere() -> None:
    """What was received into another place, such as the prefix, is copied over the segments that it covers."""
    partial = partial_of(in_order=True)
    partial.accept(0, memoryview(DATA))
    assert right(arrays(partial.take()))
    assert partial.digest() == hashlib.sha256(DATA).hexdigest()


def test_after_a_reset() -> None:
    """The second time the file is one buffer, its data aligned, and nothing of it is handed out before its end."""
    partial = partial_of(in_order=False)
    partial.accept(0, memoryview(bytes(len(DATA))))
    partial.take(unwanted=True)
    partial.reset()
    assert partial.received == 0
    accept(partial, 0, len(DATA))
    assert partial.take(unwanted=True) == []
    assert partial.digest() == hashlib.sha256(DATA).hexdigest()
    assert partial.buffer is not None
    assert bytes(partial.buffer) == DATA
    assert (np.frombuffer(partial.buffer, np.uint8).ctypes.data + header().data_start) % 64 == 0


def test_a_file_without_tensors() -> None:
    """A header alone is a file too."""
    data = safetensors_bytes({})
    length = int.from_bytes(data[:PREFIX_BYTES], "little")
    bare = parse_header(memoryview(data)[PREFIX_BYTES : PREFIX_BYTES + length], file="f", file_size=len(data))
    partial = TensorPartial(len(data), "sha256", segments_of(bare, ()), in_order=False)
    partial.accept(0, memoryview(data))
    assert partial.digest() == hashlib.sha256(data).hexdigest()
    assert partial.take_all() == []
