"""A client: what its calls share, what they do not, and its end."""

from __future__ import annotations

import functools
import inspect
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

import asyncfetch
from asyncfetch import BlockingClient, Client
from asyncfetch.errors import NetworkError, NotFoundError, SourceError, TimedOutError
from asyncfetch.events import Event, Finished, Retrying, Waiting
from asyncfetch.network import limits

from ..kit.fault_server import LOOK, Drip, FaultServer, Hangup, Status
from ..kit.files import safetensors_bytes, sharded_bytes
from ..kit.small_model import CALM, FILES, KINDS, TENSORS, same

ROOT = Path(__file__).parents[2]
COUNT = 8
METHODS = ("load", "download", "dry_run", "inspect", "verify", "load_into", "open", "stream")


def tensors_of(number: int, size: int = 400_000) -> dict[str, Any]:
    """The tensors of one of several models."""
    return {f"t{n}": np.full(size, 10 * number + n, np.uint8) for n in range(3)}


def client_of(server: FaultServer, cache: Path, **access: Any) -> Client:
    """A client of the server's hub."""
    return Client(**{"endpoint": server.url, "cache_dir": cache, "token": False, "policy": CALM, **access})


@pytest.mark.anyio
@KINDS
@pytest.mark.parametrize("storage", ["disk", "memory"])
async def test_many_loads_share_the_bound(server: FaultServer, tmp_path: Path, kind: str, storage: Any) -> None:
    """Eight checkpoints at once: never more connections to an origin than the bound, and all are right."""
    for number in range(COUNT):
        server.hub(f"org/m{number}", sharded_bytes(tensors_of(number), 3))
    loaded: dict[int, Any] = {}
    policy = replace(CALM, connections=3, min_split=50_000)
    async with httpx.AsyncClient() as own:
        client = client_of(server, tmp_path, policy=policy, client=own if kind == "client" else None)

        async def load(number: int) -> None:
            loaded[number] = await client.load(f"org/m{number}", storage=storage)

        async with anyio.create_task_group() as group:
            for number in range(COUNT):
                group.start_soon(load, number)
        await client.aclose()
    for number in range(COUNT):
        assert all(np.array_equal(loaded[number][name], array) for name, array in tensors_of(number).items())
    assert server.most_at_once <= 2 * 3  # two origins: the hub and its storage


@pytest.mark.anyio
async def test_the_bandwidth_is_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all calls receive is paid for on one account: by a clock that only their waits move."""
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] = max(now[0], mine := now[0] + seconds)
        assert now[0] == mine
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(limits.anyio, "sleep", sleep)
    shared = limits.Limits(replace(CALM, bandwidth_limit=1000.0))
    for call in [shared.for_call() for _ in range(COUNT)]:
        for _ in range(10):
            assert call.piece(5000) == 100
            await call.spend(100)
    assert now[0] - 1000.0 == pytest.approx(COUNT * 10 * 100 / 1000.0)


@pytest.mark.anyio
async def test_the_second_load_makes_no_new_connection(trusted: ssl.SSLContext, tmp_path: Path) -> None:
    """Over TLS, the next load from the same origin shakes no hands again."""
    with FaultServer(trusted) as server:
        for number in range(2):
            server.hub(f"org/m{number}", {"model.safetensors": safetensors_bytes(tensors_of(number))}, links="none")
        async with client_of(server, tmp_path) as client:
            await client.load("org/m0", storage="memory")
            before = server.handshakes
            await client.load("org/m1", storage="memory")
            assert server.handshakes == before >= 1


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_the_others_alone(server: FaultServer, tmp_path: Path) -> None:
    """One of two loads is cancelled in the middle; the other ends as if it were alone, and the client goes on."""
    slow, other = (server.hub(f"org/{name}", FILES) for name in ("slow", "other"))
    for path in slow.storage.values():
        server.fault(path, LOOK, Drip(20_000, 0.05), forever=True)
    async with client_of(server, tmp_path) as client:
        cancelled = anyio.Event()

        async def doomed(scope: anyio.CancelScope) -> None:
            with scope:
                await client.load("org/slow", storage="memory")
            cancelled.set()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as group:
            group.start_soon(doomed, scope)
            await anyio.to_thread.run_sync(server.wait_for, lambda: any(map(server.sent, slow.storage.values())))
            scope.cancel()
            assert same(await client.load("org/other"))
        assert cancelled.is_set()
        for path in slow.storage.values():
            server.heal(path)
        assert same(await client.load("org/slow"))
    assert other.storage


@pytest.mark.anyio
async def test_closing_waits(server: FaultServer, tmp_path: Path) -> None:
    """A load that runs when the client is closed ends well; a load after it is refused."""
    repository = server.hub("org/model", FILES)
    for path in repository.storage.values():
        server.fault(path, LOOK, Drip(50_000, 0.02), forever=True)
    client = client_of(server, tmp_path)
    loaded: list[Any] = []
    told: list[Event] = []

    async def load() -> None:
        loaded.append(await client.load("org/model", report=told.append))

    async with anyio.create_task_group() as group:
        group.start_soon(load)
        await anyio.to_thread.run_sync(server.wait_for, lambda: any(map(server.sent, repository.storage.values())))
        assert not any(isinstance(event, Finished) for event in told)
        await client.aclose()
        assert any(isinstance(event, Finished) for event in told)
    assert same(loaded[0])
    await client.aclose()
    with pytest.raises(SourceError, match="closed"):
        await client.load("org/model")


@pytest.mark.anyio
async def test_what_is_open_is_closed_with_the_client(server: FaultServer, tmp_path: Path) -> None:
    """A checkpoint without a block, and a stream inside of whose block the client is closed."""
    server.hub("org/model", FILES)
    client = client_of(server, tmp_path)
    checkpoint = await client.open("org/model")
    assert np.array_equal(await checkpoint.tensor("layer.1"), TENSORS["layer.1"])
    async with client.stream("org/model", storage="memory") as tensors:
        with anyio.fail_after(10):
            await client.aclose()
        with pytest.raises(SourceError, match="closed"):
            await anext(tensors)
    with pytest.raises(SourceError, match="closed"):
        await checkpoint.tensor("layer.0")
    await checkpoint.aclose()


@pytest.mark.anyio
async def test_the_environment_is_read_once(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the variables said at the first call stays for the life of the client."""
    server.hub("org/model", FILES)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    async with Client(cache_dir=tmp_path, token=False, policy=CALM) as client:
        assert same(await client.load("org/model"))
        monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
        assert same(await client.load("org/model", storage="memory"))


@pytest.mark.anyio
async def test_a_reader_that_stands_still_starves_nobody(server: FaultServer, tmp_path: Path) -> None:
    """A stream whose reader does something else holds no connection that another call waits for."""
    big = {f"t{n}": np.full(3_000_000, n, np.uint8) for n in range(8)}
    server.hub("org/big", sharded_bytes(big, 4))
    server.hub("org/model", FILES)
    policy = replace(CALM, connections=2)
    async with (
        client_of(server, tmp_path, policy=policy) as client,
        client.stream("org/big", storage="memory", memory_limit=3_500_000, early=True) as tensors,
    ):
        name, array = await anext(tensors)
        assert np.array_equal(array, big[name])
        with anyio.fail_after(20):
            assert same(await client.load("org/model", storage="memory"))
        rest = {name: array async for name, array in tensors}
        assert len(rest) == 7
        assert all(np.array_equal(big[name], array) for name, array in rest.items())


@pytest.mark.anyio
async def test_waits_are_told_to_their_own_call(server: FaultServer, tmp_path: Path) -> None:
    """A rate limit that one call met holds up the other, which is told so; a retry is told to its call alone."""
    server.hub("org/a", FILES)
    server.hub("org/b", FILES)
    page = "/org/a/resolve/main/model.safetensors.index.json"
    server.fault(page, Status(429, {"retry-after": "1"}))
    told: dict[str, list[Event]] = {"a": [], "b": []}
    async with client_of(server, tmp_path) as client:

        async def load(name: str) -> None:
            assert same(await client.load(f"org/{name}", report=told[name].append))

        async with anyio.create_task_group() as group:
            group.start_soon(load, "a")
            await anyio.to_thread.run_sync(server.wait_for, lambda: bool(server.to(page)))
            await anyio.to_thread.run_sync(server.wait_for, lambda: bool(told["a"]))
            group.start_soon(load, "b")
    assert [event.file for event in told["a"] if isinstance(event, Retrying)] == [None]
    assert not [event for event in told["b"] if isinstance(event, Retrying)]
    waits = [event for event in told["b"] if isinstance(event, Waiting)]
    assert waits
    assert waits[0].delay is not None
    assert 0 < waits[0].delay <= 1


def test_one_event_loop(tmp_path: Path) -> None:
    """A client is of the loop in which it was first used; in another one it says so."""
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(TENSORS))
    client = Client()
    anyio.run(client.inspect, tmp_path)
    with pytest.raises(SourceError, match="event loop"):
        anyio.run(client.inspect, tmp_path)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "access",
    [
        {"policy": {}},
        {"client": 5},
        {"client": httpx.AsyncClient},
        {"client": httpx.Client()},
        {"cache_dir": 3},
        {"token": 1.5},
        {"offline": "yes"},
        {"endpoint": b"x"},
    ],
    ids=lambda access: next(iter(access)),
)
async def test_senseless_access(access: dict[str, Any]) -> None:
    """A value of the wrong kind is an error of the tree that names what is allowed."""
    (name,) = access
    with pytest.raises(SourceError, match=f"^{name}= takes "):
        Client(**access)
    with pytest.raises(SourceError, match=f"^{name}= takes "):
        await asyncfetch.load_async("org/model", **access)


class Sync(httpx.Client):
    """A blocking client of the caller's own kind."""


class Plain:
    """What has httpx's two functions, and is no context: whether it can be awaited is seen when it answers."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.build_request = inner.build_request

    def send(self, request: Any, **options: Any) -> Any:
        return self.inner.send(request, **options)


class AtOnce(Plain):
    """One that has its answer at once, whatever it is asked."""

    def send(self, request: Any, **_: Any) -> Any:
        return httpx.Response(200, request=request)


class Wrapped(httpx.AsyncClient):
    """A client whose `send` is replaced, as tracing does it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        inner = super().send

        @functools.wraps(inner)
        def send(*args: Any, **options: Any) -> Any:
            self.sent += 1
            return inner(*args, **options)

        self.send = functools.partial(send)  # type: ignore[method-assign]


@pytest.mark.anyio
async def test_clients_of_other_kinds(server: FaultServer, tmp_path: Path) -> None:
    """Whatever can be awaited is sent with; a blocking client, and one that is closed, is told so before it sends."""
    server.hub("org/model", FILES)
    options: dict[str, Any] = {"endpoint": server.url, "token": False, "policy": CALM}
    async with Wrapped() as wrapped, httpx.AsyncClient() as inner:
        for number, client in enumerate((wrapped, Plain(inner), Plain(wrapped))):
            assert same(
                await asyncfetch.load_async("org/model", client=client, cache_dir=tmp_path / f"{number}", **options)
            )
    assert wrapped.sent
    before = len(server.seen)
    with Sync() as blocking, pytest.raises(SourceError, match=r"^client= takes an open httpx.AsyncClient, not .*Sync"):
        await asyncfetch.load_async("org/model", client=blocking, cache_dir=tmp_path / "none", **options)
    with pytest.raises(SourceError, match=r"^client= takes an open httpx.AsyncClient, not one that is closed"):
        Client(client=inner)
    with pytest.raises(SourceError, match="one that is closed"):
        await anyio.to_thread.run_sync(lambda: asyncfetch.load("org/model", client=wrapped, **options))
    assert len(server.seen) == before
    with httpx.Client() as blocking, pytest.raises(SourceError, match=r"no httpx\.AsyncClient: it sends at once"):
        await asyncfetch.load_async("org/model", client=Plain(blocking), cache_dir=tmp_path / "none", **options)
    with pytest.raises(SourceError, match=r"no httpx\.AsyncClient: Response came at once"):
        await asyncfetch.load_async("org/model", client=AtOnce(wrapped), cache_dir=tmp_path / "none", **options)


@pytest.mark.anyio
async def test_a_client_that_is_closed_between_two_calls(server: FaultServer, tmp_path: Path) -> None:
    """The next call says so; what is cached needs no client."""
    server.hub("org/a", FILES)
    async with httpx.AsyncClient() as own:
        client = client_of(server, tmp_path, client=own)
        assert same(await client.load("org/a"))
    before = len(server.seen)
    for call in (client.load, client.download, client.inspect):
        with pytest.raises(SourceError, match=r"The caller's httpx\.AsyncClient is closed"):
            await call("org/b")
    assert len(server.seen) == before
    await client.aclose()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: asyncfetch.load("x", revison="v"), "load() has no option 'revison'; is it 'revision'?"),
        (lambda: asyncfetch.open("x", cachedir="v"), "open() has no option 'cachedir'; is it 'cache_dir'?"),
        (lambda: asyncfetch.stream_async("x", qqqq=1), "stream_async() has no option 'qqqq'"),
        (lambda: asyncfetch.inspect("x", checksums={}), "inspect() has no option 'checksums'"),
        (lambda: Client(tokn="x"), "Client() has no option 'tokn'; is it 'token'?"),
        (lambda: Client().open("x", selct="*"), "Client.open() has no option 'selct'; is it 'select'?"),
        (lambda: BlockingClient().load("x", endpoint="y"), "BlockingClient.load() has no option 'endpoint'"),
        (lambda: asyncfetch.load(), "load() missing a required argument: 'source'"),
        (lambda: asyncfetch.load("x", "y"), "load() too many positional arguments"),
        (lambda: anyio.run(lambda: asyncfetch.load_async("x", dtyp=1)), "load_async() has no option 'dtyp'; is it 'dtype'?"),  # noqa: E501
    ],
)  # fmt: skip
def test_wrong_names(call: Callable[[], object], text: str) -> None:
    """A TypeError, as Python has it, that names the function which was called and the nearest option."""
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == text


def test_blocking_client(server: FaultServer, tmp_path: Path) -> None:
    """All methods, from several threads at once, and the end."""
    server.hub("org/model", FILES)
    before = set(threading.enumerate())
    with BlockingClient(endpoint=server.url, cache_dir=tmp_path, token=False, policy=CALM) as client:
        with ThreadPoolExecutor(4) as pool:
            assert all(map(same, pool.map(client.load, ["org/model"] * 4)))
        assert client.download("org/model").path.is_dir()
        assert len(client.dry_run("org/model").files) == 2
        assert len(client.inspect("org/model").tensors) == 2
        assert all(file.ok for file in client.verify("org/model"))
        model = {name: np.zeros_like(array) for name, array in TENSORS.items()}
        assert len(client.load_into(model, "org/model").loaded) == 2
        assert same(model)
        with client.open("org/model") as checkpoint:
            assert same(checkpoint.state_dict())
        assert same(dict(sorted(client.stream("org/model"))))
        left_open = client.open("org/model")
        with pytest.raises(NotFoundError):
            client.load("org/none")
    with pytest.raises(SourceError, match="closed"):
        client.load("org/model")
    with pytest.raises(SourceError, match="closed"):
        left_open.tensor("layer.0")
    left_open.close()
    client.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "asyncfetch portal"]


def test_methods_have_the_options_of_a_call() -> None:
    """Client and BlockingClient have the same methods, with what the functions take but for what is fixed."""
    access = set(inspect.signature(Client).parameters)
    for name in METHODS:
        ours = list(inspect.signature(getattr(Client, name)).parameters)
        assert ours == list(inspect.signature(getattr(BlockingClient, name)).parameters)
        function = list(inspect.signature(getattr(asyncfetch, name)).parameters)
        assert ours[1:] == [parameter for parameter in function if parameter not in access]


def test_open_and_stream_without_a_block(server: FaultServer, tmp_path: Path) -> None:
    """As the builtin open: used at once, closed by hand or at the end of the iteration; closing twice is once."""
    server.hub("org/model", FILES)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": CALM}
    checkpoint = asyncfetch.open("org/model", **options)
    assert list(checkpoint.keys()) == list(TENSORS)
    assert np.array_equal(checkpoint.tensor("layer.0"), TENSORS["layer.0"])
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(SourceError, match="closed"):
        checkpoint.tensor("layer.0")
    assert same(dict(sorted(asyncfetch.stream("org/model", **options))))
    tensors = asyncfetch.stream("org/model", **options)
    next(tensors)
    tensors.close()
    with pytest.raises(SourceError, match="closed"):
        next(tensors)


@pytest.mark.anyio
async def test_open_async_is_awaitable(server: FaultServer, tmp_path: Path) -> None:
    """`await open_async(...)` gives a checkpoint that is open until `aclose`, also as a block of its own."""
    server.hub("org/model", FILES)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": CALM}
    checkpoint = await asyncfetch.open_async("org/model", **options)
    assert np.array_equal(await checkpoint.tensor("layer.0"), TENSORS["layer.0"])
    await checkpoint.aclose()
    with pytest.raises(SourceError, match="closed"):
        await checkpoint.tensor("layer.0")
    async with await asyncfetch.open_async("org/model", **options) as checkpoint:
        assert same(await checkpoint.state_dict())
    with pytest.raises(SourceError, match="read in its block"):
        async for _ in asyncfetch.stream_async("org/model", **options):  # type: ignore[attr-defined]
            pass


@pytest.mark.anyio
async def test_time_outs(server: FaultServer, tmp_path: Path) -> None:
    """`timeout=` ends a call with an error that is a TimeoutError too; what came is kept for the next one."""
    repository = server.hub("org/model", FILES)
    path = repository.storage["model-00001-of-00002.safetensors"]
    server.fault(path, LOOK, Drip(10_000, 0.5), forever=True)
    async with client_of(server, tmp_path) as client:
        with pytest.raises(TimedOutError) as caught:
            await client.load("org/model", timeout=0.5)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.seconds == 0.5
        server.heal(path)
        assert same(await client.load("org/model", timeout=30))
    for wrong in (0, -1, "5", True):
        with pytest.raises(SourceError, match=r"^timeout= takes"):
            await asyncfetch.load_async("org/model", timeout=wrong)  # type: ignore[arg-type]


def test_a_blocking_handle_waits_no_longer_than_its_time_out(server: FaultServer, tmp_path: Path) -> None:
    """`timeout=` of open and stream is that of the opening and of each wait after it."""
    repository = server.hub("org/model", FILES)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "token": False, "policy": CALM}
    with asyncfetch.open("org/model", timeout=1.0, **options) as checkpoint:
        for path in repository.storage.values():
            server.fault(path, Drip(1000, 0.5), forever=True)
        with pytest.raises(TimedOutError):
            checkpoint.tensor("layer.0")
    with pytest.raises(TimedOutError):
        next(asyncfetch.stream("org/model", storage="memory", timeout=1.0, **options))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "code",
    [
        "c = asyncfetch.open('org/model', **o); c.tensor('layer.0')",
        "s = asyncfetch.stream('org/model', **o); next(s)",
        "b = asyncfetch.BlockingClient(**o); b.load('org/model'); k = b.open('org/model')",
        "c = asyncfetch.open('org/model', **o); del c",
    ],
)
def test_a_program_ends_with_what_it_left_open(server: FaultServer, tmp_path: Path, code: str) -> None:
    """What was never closed keeps no program from its end, and says nothing."""
    server.hub("org/model", FILES)
    begin = f"import asyncfetch; o = dict(endpoint={server.url!r}, cache_dir={str(tmp_path)!r}, token=False)\n"
    ran = subprocess.run(
        [sys.executable, "-c", begin + code + "\nprint('end')"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "end\n", "")


# Nobody has the stream any more but a cycle, which is collected by chance: here in a thread without which its loop
# cannot end, while that brings a file, or gives one its name.
FORGOTTEN = """
import gc, sys, threading, time
import asyncfetch

where, what, url, cache = sys.argv[1:]
gc.disable()
took, options = [], dict(endpoint=url, cache_dir=cache, token=False)

def collect():
    if forgotten.is_set() and not took:
        began = time.monotonic()
        gc.collect()
        took.append(time.monotonic() - began)

def hook(event, args):
    if event == "os.rename" and where == "worker" and threading.current_thread().name.startswith("AnyIO"):
        collect()

def report(event):
    if where == "loop" and isinstance(event, asyncfetch.events.FileProgress):
        collect()

def forget():
    class Holder:
        pass
    holder = Holder()
    holder.itself = holder
    if what == "client":
        holder.client = asyncfetch.BlockingClient(**options)
        holder.stream = holder.client.stream("org/model", report=report)
    else:
        holder.stream = asyncfetch.stream("org/model", report=report, **options)
    return next(thread for thread in threading.enumerate() if thread.name == "asyncfetch portal")

forgotten = threading.Event()
sys.addaudithook(hook)
thread = forget()
forgotten.set()
thread.join(20)
assert not thread.is_alive()
assert took[0] < 5, took
print("ended", flush=True)
"""


@pytest.mark.parametrize("what", ["stream", "client"])
@pytest.mark.parametrize("where", ["loop", "worker"])
def test_a_forgotten_stream_is_collected_by_its_own_loop(
    server: FaultServer, tmp_path: Path, where: str, what: str
) -> None:
    """It ends at once, whichever thread collects it, and says nothing; what it had not fetched yet never comes."""
    files = sharded_bytes({f"t{n}": np.full(900_000, n, np.uint8) for n in range(6)}, shards=6)
    server.hub("org/model", files)
    paths = [path for path in server.resources if path.startswith("/storage/")]
    for number, path in enumerate(paths):
        server.fault(path, *([LOOK] if number else []), Drip(20_000, 0.02 if number < 2 else 0.4), forever=True)
    command = [sys.executable, "-c", FORGOTTEN, where, what, server.url, str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=40)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ended\n", "")
    assert any(server.sent(path) < 800_000 for path in paths)


def test_a_local_source_makes_no_network_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment says of proxies is nothing to a folder on disk."""
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(TENSORS))
    monkeypatch.setenv("ALL_PROXY", "socks://nowhere:1")
    assert same(asyncfetch.load(tmp_path))


@pytest.mark.anyio
async def test_tracebacks_are_short(server: FaultServer, tmp_path: Path) -> None:
    """The caller's frame and at most two of ours, through the coroutine and through its twin; causes have none."""
    server.hub("org/model", FILES)
    page = "/org/model/resolve/main/model.safetensors.index.json"
    server.fault(page, Hangup, forever=True)
    options: dict[str, Any] = {"endpoint": server.url, "cache_dir": tmp_path, "policy": replace(CALM, attempts=1)}

    async def of_coroutine() -> None:
        await asyncfetch.load_async("org/model", **options)

    async def of_twin() -> None:
        await anyio.to_thread.run_sync(lambda: asyncfetch.load("org/model", **options))

    for call in (of_coroutine, of_twin):
        with pytest.raises(NetworkError) as caught:
            await call()
        files = [frame.filename for frame in inspect.getinnerframes(caught.value.__traceback__)]
        assert 1 <= len([file for file in files if "asyncfetch/" in file and "/tests/" not in file]) <= 2
        cause = caught.value.__cause__
        assert cause is not None
        assert cause.__traceback__ is None


def test_reprs_are_short(server: FaultServer, tmp_path: Path) -> None:
    """What a notebook shows of a result fits in a few lines, whatever the checkpoint."""
    many = {f"layer.{n}.weight": np.zeros((2, 3), np.float32) for n in range(500)}
    server.hub("org/many", sharded_bytes(many, 3))
    with BlockingClient(endpoint=server.url, cache_dir=tmp_path, token=False, policy=CALM) as client:
        state_dict = client.load("org/many")
        shown = {
            "state dict": repr(state_dict),
            "snapshot": repr(client.download("org/many")),
            "inspection": repr(client.inspect("org/many")),
            "checkpoint": repr(client.open("org/many")),
            "report": repr(client.load_into(dict.fromkeys(many), "org/many")),
        }
    assert isinstance(state_dict, dict)
    assert type(state_dict.copy()) is dict
    assert {name: len(text) for name, text in shown.items() if len(text) > 500} == {}
    assert "500" in shown["state dict"]
    assert "float32" in shown["state dict"]
    assert "500" in shown["report"]
