"""Good uses, and bad ones that both checkers refuse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_type

import httpx
import numpy as np

import asyncfetch
from asyncfetch import BlockingCheckpoint, BlockingClient, Client, Policy, Snapshot, StateDict, errors, events

if TYPE_CHECKING:
    from collections.abc import Callable


def report(event: events.Event) -> None:
    if isinstance(event, asyncfetch.events.Retrying):
        print(event.attempt)


async def functions(http: httpx.AsyncClient) -> None:
    state = await asyncfetch.load_async("org/model", dtype="bfloat16", storage="memory", select=["a.*", "b.*"])
    assert_type(state, StateDict)
    plain: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] | StateDict = state
    print(plain["a"].shape)
    await asyncfetch.load_async(Path("x"), select=lambda name: name.startswith("a"), dtype=np.float32, report=report)
    await asyncfetch.load_async("x", policy=Policy(connections=4), client=http, timeout=3, verify="always")
    snapshot = await asyncfetch.download_async("x", checksums={"a": "sha256:00"}, token=False, offline=True)
    assert_type(snapshot, Snapshot)
    async with asyncfetch.open_async("x", dtype=np.dtype("f4"), cache_dir="/tmp") as checkpoint:
        rows = await checkpoint.tensor("a", np.s_[:3])
        print(rows.shape, await checkpoint.shard_of("a", rank=0, world_size=2))
        print(await checkpoint.shard_of("a", rank=0, world_size=2, parts=(4, 1, 1), split="array_split"))
        several = await checkpoint.slices({"a": [np.s_[:3], np.s_[0, ::2]], "b": []}, dtype="bf16")
        print([part.shape for part in several["a"]])
        await checkpoint.shard_of("a", rank=0, world_size=2, split="shard")  # type: ignore[arg-type]
        await checkpoint.slices({"a": 1.5})  # type: ignore[dict-item]
    other = await asyncfetch.open_async("x")
    await other.aclose()
    async with asyncfetch.stream_async("x", early=True, memory_limit=1 << 20) as tensors:
        async for name, array in tensors:
            print(name.upper(), array.nbytes)
    await asyncfetch.load_pretrained_async(
        "x", cls=dict, dtype="auto", strict=True, model_kwargs={"a": 1}, revision="b"
    )
    await asyncfetch.load_pretrained_async("x", trust_remote_code="yes")  # type: ignore[arg-type]
    await asyncfetch.load_pretrained_async("x", dequantize=True)  # type: ignore[call-arg]
    assert_type(await asyncfetch.save_async(state, "x", max_shard_size="1GB", metadata={"a": "b"}), Snapshot)
    assert_type(asyncfetch.convert("x", Path("y"), dtype="bf16", rename=("a.", ""), max_shard_size=None), Snapshot)
    await asyncfetch.save_async(state, "x", max_shard_size=1.5)  # type: ignore[arg-type]
    await asyncfetch.convert_async("x", "y", shards=3)  # type: ignore[call-arg]
    found = await asyncfetch.load_into_async({"a": None}, "x", strict=False, dtype="fp16")
    print(found.loaded)
    assert_type(await asyncfetch.load_async("x", dequantize=True, dtype="bfloat16"), StateDict)
    await asyncfetch.load_async("x", dequantize="yes")  # type: ignore[call-overload]
    await asyncfetch.download_async("x", dequantize=True)  # type: ignore[call-arg]
    with asyncfetch.models.parameters_on_meta():
        model: dict[str, None] = {"a": None}
    await asyncfetch.load_into_async(model, "x", strict="missing", dtype="auto", rename=("module.", ""), skip="head.*")
    await asyncfetch.load_into_async(model, "x", device="cuda")
    await asyncfetch.load_into_async(model, {}, rename=[("a.", "b."), ("c.", None)], skip=["a", "b"])
    await asyncfetch.load_into_async(model, "x", rename={"a": "b", "c": None}, skip=lambda name: name == "a")
    await asyncfetch.load_into_async(model, "x", rename=lambda name: None if name == "a" else name.upper())

    assert_type(await asyncfetch.load_async("x", framework="numpy", rename=[("a.", "b."), ("c.", None)]), StateDict)
    print(len(await asyncfetch.load_async("x", framework="torch", device="cuda:0", rename=("model.", ""))))
    await asyncfetch.load_async("x", framework="jax")  # type: ignore[call-overload]
    asyncfetch.open_async("x", framework="torch", storage="disk")  # type: ignore[call-overload]

    await asyncfetch.load_async("x", selct="a")  # type: ignore[call-overload]
    await asyncfetch.load_async("x", storage="memroy")  # type: ignore[call-overload]
    await asyncfetch.load_async("x", verify="sometimes")  # type: ignore[call-overload]
    await asyncfetch.load_async("x", dtype=3.0)  # type: ignore[call-overload]
    await asyncfetch.load_async("x", client=5)  # type: ignore[call-overload]
    await asyncfetch.load_async("x", policy={})  # type: ignore[call-overload]
    await asyncfetch.load_async("x", report=print, select=5)  # type: ignore[call-overload]
    await asyncfetch.load_async(42)  # type: ignore[call-overload]
    await asyncfetch.inspect_async("x", checksums={})  # type: ignore[call-arg]
    await asyncfetch.verify_async("x", token="t")  # type: ignore[call-arg]
    await asyncfetch.load_into_async({}, "x", mmap=True)  # type: ignore[call-arg]
    await asyncfetch.load_into_async({}, "x", strict="unexpected")  # type: ignore[arg-type]
    await asyncfetch.load_into_async({}, "x", device=1.5)  # type: ignore[arg-type]
    await asyncfetch.load_into_async({}, "x", rename=3)  # type: ignore[arg-type]
    print(asyncfetch.lode)  # type: ignore[attr-defined]


class TorchLike:
    """What a dtype of torch is to a type checker."""

    is_floating_point = True
    itemsize = 2


def blocking(dtype: TorchLike) -> None:
    assert_type(asyncfetch.load("x", revision="main", subfolder="a", variant="fp16", dtype=dtype), StateDict)
    checkpoint = asyncfetch.open("x", timeout=5.0)
    assert_type(checkpoint, BlockingCheckpoint)
    print(len(asyncfetch.open("x", framework="torch").state_dict()), asyncfetch.load("x", framework="torch").keys())
    print(checkpoint.tensor("a").shape, checkpoint.nbytes)
    checkpoint.close()
    for name, array in asyncfetch.stream("x", storage="memory"):
        print(name, array.shape)
    with asyncfetch.open("x") as opened:
        print(opened.state_dict("a.*").keys())

    asyncfetch.load("x", selct="a")  # type: ignore[call-overload]
    asyncfetch.load("x", storage="memroy")  # type: ignore[call-overload]
    asyncfetch.open("x", storage="memory")  # type: ignore[call-overload]
    asyncfetch.stream("x", early="yes")  # type: ignore[call-overload]
    checkpoint.tensor("a", dtyp="f4")  # type: ignore[call-arg]


async def clients(http: httpx.AsyncClient) -> None:
    async with Client(cache_dir="/tmp", token=True, client=http, offline=None) as client:
        assert_type(await client.load("x", dtype="float32", revision="main"), StateDict)
        async with client.stream("x") as tensors:
            async for name, _array in tensors:
                print(name)
        print((await client.inspect("x", select="a.*")).tensors)
        await client.load("x", cache_dir="/tmp")  # type: ignore[call-overload]
        await client.load("x", storage="memroy")  # type: ignore[call-overload]
        await client.inspect("x", verify="always")  # type: ignore[call-arg]
    Client(tokn="x")  # type: ignore[call-arg]
    with BlockingClient(policy=Policy()) as twin:
        assert_type(twin.load("x", verify="always"), StateDict)
        print(twin.open("x").keys())
        twin.load("x", endpoint="x")  # type: ignore[call-overload]


def failures(work: Callable[[], object]) -> int:
    try:
        work()
    except asyncfetch.NotFoundError as error:
        return len(error.message)
    except (errors.NetworkError, asyncfetch.TimedOutError) as error:
        return error.transient
    return 0
