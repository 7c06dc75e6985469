"""Tensors onto a device, held against a stand-in whose copies happen late; and, where there is one, on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest

import asyncfetch
from asyncfetch.api import form
from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.models import device as devices
from asyncfetch.models import load_state_dict_into, parameters_on_meta
from asyncfetch.models.device import Ring
from asyncfetch.models.into import Loading
from asyncfetch.server import Server

from ..kit.files import sharded
from ..kit.late_device import LateDevice
from ..kit.torch_or_not import needs_torch, nn, torch

pytestmark = needs_torch
CPU_ONLY = pytest.mark.skipif(
    not hasattr(torch, "cuda") or torch.cuda.is_available(), reason="there is a GPU, or no torch"
)


def tensors_of(seed: int, *sizes: int) -> list[Any]:
    """Tensors of some bytes each, of dtypes in turn."""
    random = np.random.default_rng(seed)
    kinds = [torch.uint8, torch.bfloat16, torch.float32, torch.bool, torch.float8_e4m3fn, torch.complex64]
    made = []
    for n, size in enumerate(sizes):
        kind = kinds[n % len(kinds)]
        raw = random.integers(0, 2, size // kind.itemsize * kind.itemsize, dtype=np.uint8)
        made.append(torch.from_numpy(raw).view(kind).reshape(-1, 1) if size else torch.empty(0, 3, dtype=kind))
    return [*made, torch.tensor(2.5), torch.arange(64.0).reshape(8, 8).T]


def same(left: Any, right: Any) -> bool:
    left, right = (one.contiguous().reshape(-1).view(torch.uint8) for one in (left, right))
    return bool(torch.equal(left, right))


@pytest.mark.parametrize("buffers", [1, 2, 4])
@pytest.mark.parametrize("nbytes", [512, 4096, 1 << 16])
def test_a_buffer_is_written_again_only_when_it_was_read(buffers: int, nbytes: int, seed: int) -> None:
    """Tensors of less, and of many times, what a buffer holds: each has its values, whenever it is taken."""
    sizes = np.random.default_rng(seed).integers(0, 12_000, 24).tolist()
    given = tensors_of(seed, *sizes, 0, 50_000)
    late = LateDevice()
    ring = Ring(late, buffers=buffers, nbytes=nbytes)
    arrivals = [ring.put(tensor) for tensor in given]
    assert len(late.buffers) <= buffers
    assert all(buffer.numel() == nbytes for buffer in late.buffers)
    assert nbytes < 4096 or late.waiting, "nobody waits for what is not needed"
    for arrival, tensor in reversed(list(zip(arrivals, given, strict=True))):
        taken = arrival.take()
        assert (taken.dtype, taken.shape) == (tensor.dtype, tensor.shape)
        assert same(taken, tensor)
    ring.close()
    assert not late.waiting


def test_who_takes_a_tensor_waits_for_it() -> None:
    """Not before, and for no more than its own copies."""
    late = LateDevice()
    ring = Ring(late)
    first, second = (ring.put(torch.full((4,), float(n))) for n in (1, 2))
    assert late.waiting == 2
    assert first.take().tolist() == [1] * 4
    assert late.waiting == 1
    assert second.take().tolist() == [2] * 4
    assert late.taken == 2


def test_what_was_given_is_free_at_once() -> None:
    """Its bytes were read when `put` returns: its memory may be written or unmapped."""
    ring, given = Ring(LateDevice()), torch.ones(4)
    arrival = ring.put(given)
    given.zero_()
    assert arrival.take().tolist() == [1] * 4


class EndedError(Exception):
    """What ends a copy in its middle."""


@pytest.mark.parametrize("pieces", range(8))
def test_ended_anywhere_no_buffer_is_in_use(pieces: int) -> None:
    """A tensor of eight pieces that is given up at any of them: the buffers go when the device has read them."""
    late, left = LateDevice(), pieces

    def check() -> None:
        nonlocal left
        if not left:
            raise EndedError
        left -= 1

    ring = Ring(late, buffers=2, nbytes=512)
    with pytest.raises(EndedError):
        ring.put(torch.ones(1024), check)
    assert len(late.buffers) <= 2
    ring.close()
    assert (late.waiting, ring._buffers) == (0, [])
    with pytest.raises(SourceError, match="closed"):
        ring.put(torch.ones(1))


def test_a_device_that_stands_still(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Closing ends all the same, also under a `put` that waits; what the device may still read is never given back."""
    monkeypatch.setattr(devices, "_PATIENCE", 0.01)
    monkeypatch.setattr(devices, "_never_read", kept := [])
    late = LateDevice()
    ring = Ring(late, buffers=1, nbytes=512)
    ring.put(torch.ones(128))
    late.hangs = True
    said: list[BaseException] = []
    waits = threading.Event()

    def put() -> None:
        try:
            ring.put(torch.ones(128), waits.set)
        except SourceError as error:
            said.append(error)

    thread = threading.Thread(target=put)
    thread.start()
    assert waits.wait(10)
    ring.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed" in str(said[0])
    assert [buffer.memory is late.buffers[0] for buffer in kept] == [True]
    assert "has not read" in caplog.text


class Calls:
    """Stands for torch: says what was asked of it, and on which stream."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stream = "default"

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            words = [str(one) for one in args if isinstance(one, str | int | bool)]
            words += [f"{key}={value}" for key, value in options.items()]
            self.said.append(f"{self.stream}: {name}({', '.join(words)})")
            return self

        return call

    def Stream(self, device: Any) -> str:  # noqa: N802
        return f"copies of {device}"

    def current_stream(self, device: Any) -> Calls:
        self.said.append(f"current_stream({device})")
        return self

    @contextmanager
    def __call__(self, stream: str) -> Iterator[None]:
        self.stream, before = stream, self.stream
        yield
        self.stream = before


class _Hashable(SimpleNamespace):
    __hash__ = object.__hash__


def test_what_is_asked_of_cuda() -> None:
    """Memory and copies on the stream of copies, the event behind them there; the reader's stream waits for it."""
    fake = Calls()
    streams = SimpleNamespace(stream=fake, Stream=fake.Stream, Event=fake.Event, current_stream=fake.current_stream)
    copier: Any = devices.CudaCopier(_Hashable(empty=fake.empty, uint8="uint8", cuda=streams), "cuda:1")
    copier.pinned(64)
    tensor = copier.empty(SimpleNamespace(shape="(2, 3)", dtype="float32"))
    copier.copy(tensor, "piece")
    event = copier.record()
    copier.take(tensor, event)
    copier.settle()
    assert fake.said == [
        "default: empty(64, dtype=uint8, pin_memory=True)",
        "copies of cuda:1: empty((2, 3), dtype=float32, device=cuda:1)",
        "copies of cuda:1: copy_(piece, non_blocking=True)",
        "default: Event()",
        "default: record(copies of cuda:1)",
        "current_stream(cuda:1)",
        "default: wait_event()",
        "default: record_stream()",
        "current_stream(cuda:1)",
        "default: synchronize()",
    ]


# -- in the calls ----------------------------------------------------------------------------------

MODEL = {f"layer.{n}": np.random.default_rng(n).normal(size=(40, 7 + n)).astype(np.float32) for n in range(9)}


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> list[LateDevice]:
    """Rings of two small buffers; "cuda:0" is a device whose copies happen late."""
    made: list[LateDevice] = []

    def copier(*_: Any) -> LateDevice:
        made.append(LateDevice())
        return made[-1]

    monkeypatch.setattr(devices, "CudaCopier", copier)
    monkeypatch.setattr(form, "check_device", lambda device: None)
    monkeypatch.setattr(Ring.__init__, "__kwdefaults__", {"buffers": 2, "nbytes": 1024})
    return made


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    sharded(tmp_path / "models" / "org" / "net", MODEL, shards=3)
    with Server(tmp_path / "models") as server:
        yield server


def right(tensors: dict[str, Any]) -> bool:
    return tensors.keys() == MODEL.keys() and all(np.array_equal(tensors[name].numpy(), MODEL[name]) for name in MODEL)


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_load_and_stream_and_open(late: list[LateDevice], hub: Server, tmp_path: Path, storage: Any) -> None:
    """Each tensor has its values when it is the caller's, and nothing is left that reads a buffer."""
    options: dict[str, Any] = {
        "framework": "torch",
        "device": "cuda:0",
        "endpoint": hub.url,
        "cache_dir": tmp_path / "c",
    }
    assert right(asyncfetch.load("org/net", storage=storage, **options))
    for early in (False, True):
        found = {}
        with asyncfetch.stream("org/net", storage=storage, early=early, **options) as tensors:
            for name, tensor in tensors:
                assert np.array_equal(tensor.numpy(), MODEL[name]), "it is right when it is given"
                found[name] = tensor
        assert right(found)
    with asyncfetch.open("org/net", **options) as checkpoint:
        assert right(checkpoint.state_dict())
        assert np.array_equal(checkpoint.tensor("layer.3", np.s_[::-2]).numpy(), MODEL["layer.3"][::-2])
    assert len(late) == 4
    assert [one.waiting for one in late] == [0] * 4
    assert all(one.queued and len(one.buffers) <= 2 for one in late)


@pytest.mark.anyio
async def test_a_stream_that_is_left(late: list[LateDevice], hub: Server, tmp_path: Path, anyio_backend: Any) -> None:
    """After each number of tensors, by its end or by a cancellation: no buffer is in use afterwards."""
    options: dict[str, Any] = {
        "framework": "torch",
        "device": "cuda:0",
        "endpoint": hub.url,
        "cache_dir": tmp_path / "c",
    }
    for count in range(0, 10, 3):
        with anyio.CancelScope() as scope:
            async with asyncfetch.stream_async("org/net", storage="memory", **options) as tensors:
                for _ in range(count):
                    name, tensor = await anext(tensors)
                    assert np.array_equal(tensor.numpy(), MODEL[name])
                if count % 2:
                    scope.cancel()
                    await anext(tensors, None)
        assert scope.cancelled_caught is bool(count % 2)
        assert late[-1].waiting == 0
    assert len(late) == 4


def net() -> Any:
    made = nn.Module()
    made.layer = nn.ParameterList([nn.Parameter(torch.zeros(MODEL[f"layer.{n}"].shape)) for n in range(9)])
    made.register_buffer("positions", torch.arange(3), persistent=False)
    return made


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_a_model_on_meta_comes_to_be_on_the_device(
    late: list[LateDevice], hub: Server, tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters by the ring, and the buffers that were computed beside them."""
    options: dict[str, Any] = {"storage": storage, "endpoint": hub.url, "cache_dir": tmp_path / "c"}
    with parameters_on_meta():
        model = net()
    asyncfetch.load_into(model, "org/net", device="cuda:0", **options)
    assert right({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert len(late) == 1
    assert len(late[0].queued) >= 10
    assert (late[0].waiting, late[0].settled) == (0, 1)
    assert model.positions.tolist() == [0, 1, 2]
    assert any(model.positions.data_ptr() == target.data_ptr() for target, _ in late[0].queued), "it followed them"
    with pytest.raises(ModelMismatchError, match=r"layer\.0 is on cpu already, not on cuda:0") as caught:
        asyncfetch.load_into(net(), "org/net", device="cuda:0", **options)
    assert 'model.to("cuda:0")' in caught.value.hint


def test_copying_into_tensors_on_a_device(late: list[LateDevice], monkeypatch: pytest.MonkeyPatch) -> None:
    """assign=False: each goes through the ring, and is there when the call returns."""
    model = net()
    hollow = {name: np.broadcast_to(np.zeros((), np.float32), array.shape) for name, array in MODEL.items()}
    loading = Loading(model, hollow, strict=True, assign=False, aliases={})
    targets = loading._filler._targets  # type: ignore[union-attr]
    for slots in targets.values():
        for slot, own in slots.items():
            slots[slot] = OnDevice(own)
    for name, array in MODEL.items():
        loading.put(name, array)
    loading.finish()
    loading.close()
    assert right({name: parameter.detach() for name, parameter in model.named_parameters()})
    assert (len(late), late[0].taken, late[0].waiting) == (1, 9, 0)
    assert late[0].settled == 1


class OnDevice:
    """A tensor that says that it is on a device."""

    device = torch.device("cuda:0") if hasattr(torch, "device") else None

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def test_what_no_device_is_for(tmp_path: Path) -> None:
    """Arrays, trees, assign=False, meta, and what torch does not know: refused before anything is asked for."""
    options: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "cache_dir": tmp_path}
    for call in (asyncfetch.load, asyncfetch.stream, asyncfetch.open):
        with pytest.raises(SourceError, match="device= is for tensors of torch"):
            call("org/net", device="cpu", **options)
        for device in ("meta", "cuda:x", "nowhere", 3.5, []):
            with pytest.raises(SourceError, match="cannot be used"):
                call("org/net", framework="torch", device=device, **options)
    with pytest.raises(SourceError, match="cannot be used"):
        asyncfetch.load_into(net(), "org/net", device="nowhere", **options)
    with pytest.raises(SourceError, match=r"for a torch\.nn\.Module"):
        load_state_dict_into({"a": None}, {"a": np.zeros(1)}, device="cpu")
    with pytest.raises(SourceError, match="no memory yet"):
        load_state_dict_into(net(), MODEL, assign=False, device="cpu")


@CPU_ONLY
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    """It is named before anything is asked for."""
    options: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "cache_dir": tmp_path}
    for call in (asyncfetch.load, asyncfetch.stream, asyncfetch.open):
        with pytest.raises(SourceError, match=f"device='{device}' cannot be used"):
            call("org/net", framework="torch", device=device, **options)


def test_the_cpu_is_a_device(hub: Server, tmp_path: Path) -> None:
    """Where tensors are anyway: views, as without one; a model on meta comes to be there."""
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "c", "device": torch.device("cpu")}
    assert right(asyncfetch.load("org/net", framework="torch", **options))
    with parameters_on_meta():
        model = net()
    asyncfetch.load_into(model, "org/net", **options)
    assert right({name: parameter.detach() for name, parameter in model.named_parameters()})


@pytest.mark.skipif(not hasattr(torch, "cuda") or not torch.cuda.is_available(), reason="NOT TESTED: there is no GPU")
def test_on_a_gpu(hub: Server, tmp_path: Path) -> None:
    """The same with the calls of torch.cuda, also for a reader with a stream of its own."""
    options: dict[str, Any] = {"endpoint": hub.url, "cache_dir": tmp_path / "c", "device": "cuda"}
    loaded = asyncfetch.load("org/net", framework="torch", **options)
    assert right({name: tensor.cpu() for name, tensor in loaded.items()})
    with torch.cuda.stream(torch.cuda.Stream()):
        found = {
            name: (tensor * 1).cpu() for name, tensor in asyncfetch.stream("org/net", framework="torch", **options)
        }
    assert right(found)
    with parameters_on_meta():
        model = net()
    asyncfetch.load_into(model, "org/net", **options)
    assert model.positions.is_cuda
    assert right({name: parameter.detach().cpu() for name, parameter in model.named_parameters()})
    model.load_state_dict({name: torch.zeros(array.shape) for name, array in MODEL.items()})
    asyncfetch.load_into(model, "org/net", assign=False, endpoint=hub.url, cache_dir=tmp_path / "c")
    assert right({name: parameter.detach().cpu() for name, parameter in model.named_parameters()})
