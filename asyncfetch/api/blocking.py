"""The one way from blocking code into async code: an event loop in a thread of its own.

What is entered or called there is cancelled by an interrupt of the thread that waits. The thread is a
daemon, so that a handle that was never closed keeps no program from its end, and it is asked to end
before the interpreter does. A child that is forked meanwhile has the handle and not the thread.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from ..errors import AsyncfetchError, SourceError, storage_errors
from ..tasks import forks_wait
from .hearing import hearing
from .public import refuse_misfits, shortened

__all__ = ["Handle", "Portal", "blocking", "blocking_block", "blocking_method", "blocking_opener"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")
C = TypeVar("C", covariant=True)

# The thread of the loop in which this runs, or from which it was given to another thread.
_home: ContextVar[threading.Thread | None] = ContextVar("asyncfetch_home", default=None)
_PATIENCE = 15.0  # seconds for what runs in the loop to end, once it is told to


class Portal:
    """The way into the loop, from any thread of this process."""

    def __init__(self) -> None:
        started: Future[tuple[BlockingPortal, Callable[[], object]]] = Future()
        self._owner = os.getpid()
        self._thread = threading.Thread(target=_run_loop, args=(started,), name="asyncfetch portal", daemon=True)
        self._thread.start()
        with _greenlets_told(), storage_errors("the event loop"):  # which has descriptors, and there may be none left
            self._portal, end = started.result()
        self._at_exit = weakref.finalize(self, _stop, end, self._thread, self._owner)

    @property
    def inherited(self) -> bool:
        """Whether this process is a fork of the one that has the loop."""
        return os.getpid() != self._owner

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns. An interrupt while it is waited for cancels it."""
        if self.inherited:
            raise SourceError("It was opened in another process, before a fork.", hint="Open it in this one.")
        with _greenlets_told():
            future = self._portal.start_task_soon(self._at_home, work)
        try:
            result: T = future.result()
        except BaseException:
            future.cancel()
            raise
        return result

    async def _at_home(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        _home.set(self._thread)
        return await work()

    def enter(self, block: AbstractAsyncContextManager[T]) -> tuple[T, Callable[[], None]]:
        """Enter `block` in the loop. Returns what it gives, and what leaves it. An interrupt cancels the entering."""
        entered: Future[tuple[T, anyio.Event]] = Future()
        home = self._thread  # and not all of this, which nobody may have by then

        async def hold() -> None:
            _home.set(home)
            try:
                async with block as value:
                    leave = anyio.Event()
                    entered.set_result((value, leave))
                    await leave.wait()
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        with _greenlets_told():
            ended = self._portal.start_task_soon(hold)
        try:
            value, leave = entered.result()
        except BaseException:
            ended.cancel()
            raise

        def go() -> None:
            try:
                self._portal.call(leave.set)
            except RuntimeError:  # the loop has ended, and the block with it
                return
            with suppress(CancelledError):
                ended.result()

        return value, go

    def stop(self) -> None:
        """Cancel what runs, and wait for the thread. Does nothing in a forked child."""
        self._at_exit()


@contextmanager
def _greenlets_told() -> Iterator[None]:
    """Say why no thread is to be had where gevent has made greenlets of them all, which share one event loop."""
    try:
        yield
    except RuntimeError as error:
        gevent: Any = sys.modules.get("gevent.monkey")
        if gevent is None or not gevent.is_module_patched("threading"):
            raise
        raise SourceError(
            "gevent has replaced the threads of this process, and in this one an event loop runs already.",
            hint="Patch before asyncfetch is imported, and make one call at a time; or load in a process of its own.",
        ) from error


class _LooseExecutor(ThreadPoolExecutor):
    """The executor of our loop, for what a library runs there: above all the look-up of a proxy's name.

    The loop waits for the threads of its executor when it ends, and so does the interpreter. Nobody waits for these.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, name="asyncfetch executor", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        return


def _run_loop(started: Future[tuple[BlockingPortal, Callable[[], object]]]) -> None:
    async def main() -> None:
        importing.close()
        loop, end = asyncio.get_running_loop(), anyio.Event()
        loop.set_default_executor(_LooseExecutor())
        async with BlockingPortal() as portal:
            started.set_result((portal, partial(loop.call_soon_threadsafe, end.set)))
            await end.wait()
            await portal.stop(cancel_remaining=True)

    importing = ExitStack()  # the first loop of a process imports what anyio has for it
    try:
        with importing:
            importing.enter_context(forks_wait())
            anyio.run(main)
    except BaseException as error:  # an interrupt that struck in the loop has reached who waits, by its own way
        if not started.done():
            started.set_exception(error)


def _stop(end: Callable[[], object], thread: threading.Thread, owner: int) -> None:
    """Garbage is collected in any thread: also in that of the loop, and in those that it waits for when it ends."""
    if os.getpid() == owner:
        patience = 1.0
        with suppress(RuntimeError):  # it has ended
            end()
            patience = _PATIENCE
        if thread not in (threading.current_thread(), _home.get()):
            thread.join(patience)


class Handle(Generic[T]):
    """What an async block gave, kept open in a loop until `close`. `own`: the loop ends with it."""

    def __init__(self, block: AbstractAsyncContextManager[T], portal: Portal, *, own: bool) -> None:
        self.portal = portal
        self._own = own
        try:
            self.value, self._leave = portal.enter(block)
        except BaseException:
            if own:
                portal.stop()
            raise
        self._open = True

    def run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """What `work` returns, run in the loop; errors of ours without the frames of the machinery.

        Raises SourceError where it is closed, also by another thread while the work runs.
        """
        closed = SourceError("It is closed.", hint="Use it inside its `with` block, or before close().")
        if not self._open:
            raise closed
        try:
            return self.portal.run(work)
        except AsyncfetchError as error:
            raise shortened(error) from error.__cause__
        except (CancelledError, RuntimeError):
            if self._open:
                raise
            raise closed from None  # its loop ended under the work, or before that began

    def close(self) -> None:
        """Leave the block, once. In a forked child nothing is left."""
        if self._open and not self.portal.inherited:
            self._open = False
            try:
                self._leave()
            finally:
                if self._own:
                    self.portal.stop()


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The blocking twin of a coroutine function: same signature, same result, same errors."""
    name, signature = function.__name__.removesuffix("_async"), inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse_misfits(name, signature, args, kwargs)
        _name_device(kwargs)
        with hearing():
            portal = Portal()
            try:
                return portal.run(partial(function, *args, **kwargs))
            except AsyncfetchError as error:
                raise shortened(error) from error.__cause__
            finally:
                portal.stop()

    return _named(call, name, function)


class _Twofold(Protocol[C]):
    """What an async block gives, and its blocking form."""

    def blocking(self, handle: Any) -> C: ...


def _entered(block: AbstractAsyncContextManager[_Twofold[R]], portal: Portal, *, own: bool) -> R:
    """The blocking form of what a block gives. It is closed where a warning about it is an error."""
    handle: Handle[_Twofold[R]] | None = None
    try:
        with hearing():
            handle = Handle(block, portal, own=own)
    except BaseException:
        if handle is not None:
            handle.close()
        raise
    return handle.value.blocking(handle)


def blocking_block(function: Callable[P, AbstractAsyncContextManager[_Twofold[R]]]) -> Callable[P, R]:
    """The blocking twin of a function that gives an async block: the blocking form of what that gives."""
    name, signature = function.__name__.removesuffix("_async"), inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_misfits(name, signature, args, kwargs)
        _name_device(kwargs)
        try:
            return _entered(function(*args, **kwargs), Portal(), own=True)
        except AsyncfetchError as error:
            raise shortened(error) from error.__cause__

    return _named(call, name, function)


def _name_device(options: dict[str, Any]) -> None:
    """Say in `options` which CUDA device is meant: this thread's current one, of which the loop's knows nothing."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and str(options.get("device")) == "cuda" and torch.cuda.is_available():
        options["device"] = f"cuda:{torch.cuda.current_device()}"


class _Face(Protocol):
    """A blocking object over an async one."""

    def _run(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T: ...


def blocking_method(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """The blocking form of a method of the object that `_run` hands to it. An interrupt cancels what runs."""

    signature = inspect.signature(method)

    @wraps(method)
    def call(self: _Face, /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_misfits(f"{type(self).__name__}.{method.__name__}", signature, (self, *args), kwargs)
        _name_device(kwargs)
        with hearing():
            return self._run(lambda inner: method(inner, *args, **kwargs))

    return call


class _Housed(Protocol):
    """A blocking object over an async one, with whose loop it shares what it opens."""

    _handle: Handle[Any]


def blocking_opener(
    method: Callable[Concatenate[S, P], AbstractAsyncContextManager[_Twofold[R]]],
) -> Callable[Concatenate[Any, P], R]:
    """The blocking form of a method that gives an async block, as `blocking_block` is that of a function."""

    signature = inspect.signature(method)

    @wraps(method)
    def call(self: _Housed, /, *args: P.args, **kwargs: P.kwargs) -> R:
        refuse_misfits(f"{type(self).__name__}.{method.__name__}", signature, (self, *args), kwargs)
        _name_device(kwargs)
        return _entered(method(self._handle.value, *args, **kwargs), self._handle.portal, own=False)

    return call


def _named(call: Callable[P, R], name: str, function: Callable[..., object]) -> Callable[P, R]:
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"The blocking twin of `{function.__name__}`.\n\n    {function.__doc__}"
    return call
