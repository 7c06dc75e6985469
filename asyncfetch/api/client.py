"""A client: connections, threads and limits that many calls share, from one event loop or from many threads.

What a call needs is imported when the first one begins, in a thread: this file imports nothing that is slow.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

import anyio
from anyio.lowlevel import RunVar

from ..errors import AsyncfetchError, SourceError
from ..tasks import off_loop, plain_errors, run_as_task
from .blocking import Handle, Portal, blocking_method, blocking_opener
from .blocks import Opening, Streaming
from .options import (
    Access,
    AsNumpy,
    AsTorch,
    DeviceLike,
    DTypeLike,
    Fetched,
    Files,
    Foreseen,
    Framework,
    Loaded,
    Opened,
    Planned,
    Read,
    Sought,
    Source,
    Storage,
    Streamed,
    Wanted,
    spelled_out,
)  # fmt: skip
from .public import imported, public, refuse_misfits, shortened, within
from .showing import watching

if TYPE_CHECKING:
    from ..events import Resolved
    from ..format.dtypes import Array
    from ..models.into import Rename, Skip, Strict
    from .call import Call, Environment, LoadReport, Transport
    from .opened import Checkpoint
    from .options import Tensor
    from .results import Inspection, Snapshot, StateDict, VerifiedFile
    from .streaming import Tensors

__all__ = ["BlockingClient", "Client"]

T = TypeVar("T")


_loop: RunVar[object] = RunVar("asyncfetch_loop")  # another object in each event loop


def _this_loop() -> object:
    try:
        return _loop.get()
    except LookupError:
        _loop.set(found := object())
        return found


class Client:
    """Connections, threads, rate gates, a bandwidth limit and a bound on connections, shared by all its calls.

        async with asyncfetch.Client(cache_dir="/models") as client:
            state_dict = await client.load("org/model")
            async with client.stream("org/other") as tensors:
                ...

    Any task of the event loop in which it was first used may call it, several at a time. `policy`'s
    `connections` and `bandwidth_limit` hold for all of them together; connections live on from call to
    call. Its methods are the functions of the package without what is fixed here; they raise the
    same errors. The environment is read once, when the first call begins.

    Args:
        **options

    Raises SourceError for an option that makes no sense.
    """

    @spelled_out(Access)
    def __init__(self, **access: Unpack[Access]) -> None:
        refuse_misfits("Client", _CLIENT, (self,), access)
        self._access = access
        self._opening = anyio.Lock()
        self._environment: Environment | None = None
        self._transport: Transport | None = None
        self._holds = AsyncExitStack()
        self._home: object = None
        self._running: set[object] = set()
        self._idle = anyio.Event()
        self._handles: dict[object, Callable[[], Awaitable[None]]] = {}
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what was opened, wait for the calls that run, and close the connections. Twice is once."""
        self._closed = True
        try:
            for close in list(self._handles.values()):
                await close()
            while self._running:
                self._idle = anyio.Event()
                await self._idle.wait()
        finally:
            with anyio.CancelScope(shield=True):
                await self._holds.aclose()

    # -- calls -----------------------------------------------------------------------------------

    @overload
    async def load(self, source: Source, *, framework: AsNumpy = ..., **options: Unpack[Loaded]) -> StateDict: ...
    @overload
    async def load(self, source: Source, *, framework: AsTorch, **options: Unpack[Loaded]) -> StateDict[Tensor]: ...
    @public(Read)
    async def load(
        self,
        source: Source,
        *,
        dtype: DTypeLike | None = None,
        framework: Framework = "numpy",
        device: DeviceLike | None = None,
        rename: Rename = None,
        storage: Storage = "disk",
        **wanted: Unpack[Read],
    ) -> StateDict[Any]:
        """As `asyncfetch.load_async`."""
        async with self._call("load", source, wanted, storage) as call:
            return await call.load(dtype=dtype, framework=framework, device=device, rename=rename)

    @public(Fetched)
    async def download(self, source: Source, **wanted: Unpack[Fetched]) -> Snapshot:
        """As `asyncfetch.download_async`."""
        async with self._call("download", source, wanted, files=wanted) as call:
            return await call.download()

    @public(Foreseen)
    async def dry_run(self, source: Source, **wanted: Unpack[Foreseen]) -> Resolved:
        """As `asyncfetch.dry_run_async`."""
        async with self._call("dry_run", source, wanted, files=wanted) as call:
            return await call.dry_run()

    @public(Sought)
    async def inspect(self, source: Source, **wanted: Unpack[Sought]) -> Inspection:
        """As `asyncfetch.inspect_async`."""
        async with self._call("inspect", source, wanted) as call:
            return await call.inspect()

    @public(Planned)
    async def verify(self, source: Source, **wanted: Unpack[Planned]) -> tuple[VerifiedFile, ...]:
        """As `asyncfetch.verify_async`."""
        async with self._call("verify", source, wanted, files={}, offline=True) as call:
            return await call.verify()

    @public(Read)
    async def load_into(
        self,
        model: object,
        source: Source | Mapping[str, Array],
        *,
        strict: Strict = True,
        assign: bool = True,
        dtype: DTypeLike | None = None,
        rename: Rename = None,
        skip: Skip = (),
        device: DeviceLike | None = None,
        storage: Storage = "disk",
        memory_limit: int | None = None,
        **wanted: Unpack[Read],
    ) -> LoadReport:
        """As `asyncfetch.load_into_async`."""
        if isinstance(source, Mapping):
            raise SourceError("A state dict needs no client.", hint="Call asyncfetch.load_into_async with it.")
        async with self._call("load_into", source, wanted, storage) as call:
            wishes = {"strict": strict, "assign": assign, "dtype": dtype, "rename": rename, "skip": skip}
            return await call.load_into(model, memory_limit=memory_limit, device=device, **wishes)

    @public(Read)
    async def convert(
        self,
        source: Source,
        folder: Source,
        *,
        dtype: DTypeLike | None = None,
        rename: Rename = None,
        max_shard_size: int | str | None = "5GB",
        metadata: Mapping[str, str] | None = None,
        filename_pattern: str = "model{suffix}.safetensors",
        weights_only: bool = False,
        **wanted: Unpack[Read],
    ) -> Snapshot:
        """As `asyncfetch.convert_async`."""
        files: Files = {"weights_only": True} if weights_only else {}
        async with self._call("convert", source, wanted, files=files) as call:
            form = {"dtype": dtype, "rename": rename, "metadata": metadata, "pattern": filename_pattern}
            return await call.convert(folder, max_shard_size=max_shard_size, **form)

    @overload
    def open(self, source: Source, *, framework: AsNumpy = ..., **options: Unpack[Opened]) -> Opening[Checkpoint]: ...
    @overload
    def open(self, source: Source, *, framework: AsTorch, **options: Unpack[Opened]) -> Opening[Checkpoint[Tensor]]: ...
    @spelled_out(Read)
    def open(
        self,
        source: Source,
        *,
        dtype: DTypeLike | None = None,
        framework: Framework = "numpy",
        device: DeviceLike | None = None,
        **wanted: Unpack[Read],
    ) -> Opening[Checkpoint[Any]]:
        """As `asyncfetch.open_async`."""
        form = {"dtype": dtype, "framework": framework, "device": device}
        refuse_misfits("Client.open", _OPEN, (self, source), {**form, **wanted})
        return Opening(lambda: self._opened(source, wanted, AsyncExitStack(), **form))

    @overload
    def stream(self, source: Source, *, framework: AsNumpy = ..., **options: Unpack[Streamed]) -> Streaming: ...
    @overload
    def stream(self, source: Source, *, framework: AsTorch, **options: Unpack[Streamed]) -> Streaming[Tensor]: ...
    @spelled_out(Read)
    def stream(
        self,
        source: Source,
        *,
        dtype: DTypeLike | None = None,
        framework: Framework = "numpy",
        device: DeviceLike | None = None,
        rename: Rename = None,
        storage: Storage = "disk",
        early: bool = False,
        memory_limit: int | None = None,
        **wanted: Unpack[Read],
    ) -> Streaming[Any]:
        """As `asyncfetch.stream_async`."""
        form: dict[str, Any] = {"dtype": dtype, "framework": framework, "device": device, "rename": rename}
        form |= {"early": early, "memory_limit": memory_limit}
        refuse_misfits("Client.stream", _STREAM, (self, source), {**form, "storage": storage, **wanted})
        return Streaming(lambda holds: self._streamed(source, wanted, storage, holds, **form))

    # -- what they share -------------------------------------------------------------------------

    async def _ready(self) -> tuple[Any, Environment, Transport]:
        """The code of a call, the environment, the connections: made by the first call."""
        if self._closed:
            raise SourceError("The client is closed.", hint="Make another one.")
        self._home = self._home or _this_loop()
        if self._home is not _this_loop():
            raise SourceError(
                "The client belongs to the event loop in which it was first used.",
                hint="Make one for each loop; BlockingClient serves all threads.",
            )
        code = await imported("api.call")
        async with self._opening:
            if self._transport is None:
                environment = await off_loop(lambda: code.Environment.read(self._access))
                transport = code.Transport(environment.policy, client=self._access.get("client"))
                self._transport = await self._holds.enter_async_context(transport)
                self._environment = environment
        assert self._environment is not None  # noqa: S101
        assert self._transport is not None  # noqa: S101
        return code, self._environment, self._transport

    @asynccontextmanager
    async def _call(
        self,
        operation: str,
        source: Source,
        wanted: Read | Wanted | Planned | Sought,
        storage: Storage = "disk",
        *,
        files: Files | None = None,
        offline: bool = False,
        token: object = None,
    ) -> AsyncIterator[Call]:
        """One call, which runs until the block ends or `_ended(token)`. An error in it comes out plain, in no group.

        `operation`: what it is called where it is watched.
        `files`: it brings more, or other files than a load needs.
        """
        token = token or object()
        self._running.add(token)
        try:
            with plain_errors():
                code, environment, transport = await self._ready()
                if offline:
                    environment = environment.offline()
                async with watching(operation, source, wanted) as watchers:
                    yield code.Call(await code.begin(environment, transport, source, wanted, storage, files, watchers))
        finally:
            self._ended(token)

    def _ended(self, token: object) -> None:
        self._running.discard(token)
        if not self._running:
            self._idle.set()

    async def _opened(self, source: Source, wanted: Read, holds: AsyncExitStack, **form: Any) -> Checkpoint[Any]:
        """Open a checkpoint, which holds what is in `holds` from then on."""
        timeout = wanted.get("timeout")
        try:
            async with holds:
                call = await holds.enter_async_context(self._call("open", source, wanted))
                checkpoint = await within(timeout, lambda: run_as_task(lambda: call.open(timeout, **form)))
                self._handles[checkpoint] = checkpoint.aclose
                holds.callback(self._handles.pop, checkpoint, None)
                checkpoint.keep_until_closed(holds.pop_all())
                return checkpoint
        except AsyncfetchError as error:
            raise shortened(error) from error.__cause__

    async def _streamed(
        self, source: Source, wanted: Read, storage: Storage, holds: AsyncExitStack, **form: Any
    ) -> Tensors[Any]:
        """Begin to stream a checkpoint; the download ends with `holds`."""
        timeout, token = wanted.get("timeout"), object()
        try:
            call = await holds.enter_async_context(self._call("stream", source, wanted, storage, token=token))
            block = await within(timeout, lambda: run_as_task(lambda: call.stream(timeout=timeout, **form)))
            tensors: Tensors[Any] = await holds.enter_async_context(block)
        except AsyncfetchError as error:
            raise shortened(error) from error.__cause__

        async def stop() -> None:  # its block, in which this may happen, ends when it likes
            await tensors.stop()
            self._ended(token)

        self._handles[tensors] = stop
        holds.callback(self._handles.pop, tensors, None)
        return tensors


_CLIENT = inspect.signature(Client.__init__)
_OPEN = inspect.signature(Client.open)
_STREAM = inspect.signature(Client.stream)


class BlockingClient:
    """A `Client` for blocking code: in a `with` block, or until `close()`. All threads may share it.

        with asyncfetch.BlockingClient(cache_dir="/models") as client:
            state_dict = client.load("org/model")

    It has an event loop in a thread of its own until it is closed. A process that is forked
    meanwhile may not use it (SourceError): it makes its own.

    Args:
        **options

    Raises SourceError for an option that makes no sense.
    """

    @spelled_out(Access)
    def __init__(self, **access: Unpack[Access]) -> None:
        refuse_misfits("BlockingClient", _CLIENT, (self,), access)
        self._handle = Handle(Client(**access), Portal(), own=True)

    def _run(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        return self._handle.run(lambda: work(self._handle.value))

    load = blocking_method(Client.load)
    download = blocking_method(Client.download)
    dry_run = blocking_method(Client.dry_run)
    inspect = blocking_method(Client.inspect)
    verify = blocking_method(Client.verify)
    convert = blocking_method(Client.convert)
    load_into = blocking_method(Client.load_into)
    open = blocking_opener(Client.open)
    stream = blocking_opener(Client.stream)

    def close(self) -> None:
        """Close what was opened, wait for the calls that run, and close the connections. Twice is once."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
