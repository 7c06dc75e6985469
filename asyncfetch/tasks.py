"""Work that asyncio's own cancellation does not cut in two, nor a fork.

`Task.cancel`, and so asyncio's time-outs, strike wherever the task waits: through shielded clean-up, and
while a worker thread writes, which then goes on alone. A task group hands a cancellation down as one of
anyio's, which waits for threads and spares what is shielded. So what touches disk, connections or
the caller's model runs in a task of its own.

A fork strikes wherever other threads are. The child has their locks and not them, so it would wait for ever.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  see below: what it and logging lock for a fork is locked after ours
import gc
import logging  # noqa: F401
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio import to_thread
from anyio.lowlevel import RunVar

from .errors import AsyncfetchError, SourceError

__all__ = ["collapse", "each", "forks_wait", "off_loop", "plain_errors", "run_as_task", "without_collections"]

_MOST_THREADS = 8
_FORK_PATIENCE = 30.0  # seconds
# Of each event loop.
_threads: RunVar[anyio.CapacityLimiter] = RunVar("asyncfetch_threads")
_slow_threads: RunVar[anyio.CapacityLimiter] = RunVar("asyncfetch_slow_threads")

T = TypeVar("T")


async def run_as_task(work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns or raises. When the caller is cancelled, `work` has ended before control is back."""
    results: list[T] = []
    failures: list[BaseException] = []

    async def run() -> None:
        try:
            results.append(await work())
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(run)
    if failures:
        raise failures.pop()
    if not results:  # someone cancelled the task itself, or raised its cancellation: so be it
        raise anyio.get_cancelled_exc_class()
    return results.pop()


async def off_loop(work: Callable[[], T], *, abandon: bool = False, slow: bool = False) -> T:
    """Run what touches the disk, or takes a while, in one of a few threads that are ours.

    anyio's own may all be taken, by the application, for as long as it likes. `slow` is for what may take more
    than a moment, such as hashing a whole file, which asks `from_thread.check_cancelled` now and then: it
    has threads of its own, so that a lock is given back and a partial suspended however many files are
    being hashed. `abandon` leaves the thread to itself when the wait for it is cancelled: what it does must
    then end well without us.
    """
    var = _slow_threads if slow else _threads
    limiter = var.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_MOST_THREADS)
        var.set(limiter)
    return await to_thread.run_sync(work, limiter=limiter, abandon_on_cancel=abandon)


# Held by who forks; else for moments, by who begins or ends what a fork must not cut in two.
_door = threading.Condition()
_inside: list[_Block] = []  # the blocks of `forks_wait` that are under way
_cut = False  # whether this process was forked under one of another thread
_pauses, _collects = 0, False  # blocks that are under way, and whether garbage was collected before the first


@dataclass(eq=False, slots=True)
class _Block:
    thread: int
    waited_for: bool


@contextmanager
def forks_wait(*, long: bool = True) -> Iterator[None]:
    """In the block no other thread forks this process: for who imports, or holds a lock that all calls share.

    This thread may fork. So may another after half a minute, in case that this one waits for something of it; and
    at once where it is not for `long`, which is for what waits itself for forks to end.
    Raises SourceError in a child that was forked under such a block after all.
    """
    if _cut:
        raise SourceError(
            "This process was forked while another thread of its parent imported what is needed here.",
            hint="Fork before the first call or after it, or start processes by `spawn`.",
        )
    block = _Block(threading.get_ident(), long)
    with _door:
        _inside.append(block)
    try:
        yield
    finally:
        with _door:
            _inside.remove(block)
            _door.notify_all()


@contextmanager
def without_collections() -> Iterator[None]:
    """In the block this process collects no garbage: for who makes many objects that stay, and no cycles.

    Else each collection visits all objects made so far, and holds up the event loop too. A forked child collects.
    """
    global _pauses, _collects
    process = os.getpid()
    with _door:
        _pauses += 1
        if _pauses == 1:
            _collects = gc.isenabled()
            gc.disable()
    try:
        yield
    finally:
        with _door:
            if os.getpid() == process:
                _pauses -= 1
                if not _pauses and _collects:
                    gc.enable()


def _before_fork() -> None:
    _door.acquire()
    begun = [block for block in _inside if not block.waited_for]
    if not any(block.thread == threading.get_ident() for block in _inside):
        _door.wait_for(lambda: all(block in begun for block in _inside), _FORK_PATIENCE)


def _after_fork() -> None:
    _door.release()


def _after_fork_in_child() -> None:
    """Of all threads this one is left: what the others were in the middle of is over."""
    global _cut, _pauses
    here = [block for block in _inside if block.thread == threading.get_ident()]
    _cut = _cut or len(here) < len(_inside)
    _inside[:] = here
    if _pauses and _collects:
        gc.enable()
    _pauses = 0
    _door.release()


# Those that were registered before are called after it: they lock what an import may wait for.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


async def each(items: Iterable[T], work: Callable[[T], Awaitable[None]], at_once: int) -> None:
    """Run `work` on each item, at most `at_once` at a time; the first failure cancels the others."""
    limiter = anyio.CapacityLimiter(at_once)

    async def bounded(item: T) -> None:
        async with limiter:
            await work(item)

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(bounded, item)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Let one exception out of a group: the others hang on it as notes.

    The group is not its context: IPython shows no error that has one there as it shows others.
    """
    chosen: BaseException | None = None
    try:
        yield
    except BaseExceptionGroup as group:
        chosen = collapse(group)
    if chosen is not None:
        context = chosen.__context__
        try:
            raise chosen from chosen.__cause__
        finally:
            chosen.__context__ = context


def collapse(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception of a task group that the caller should see.

    An interrupt wins over an error of ours, that over anything else; the others hang on it
    as notes. A cancellation comes out only where there is nothing else.
    """
    leaves: list[BaseException] = []
    stack: list[BaseException] = [group]
    while stack:
        error = stack.pop()
        if isinstance(error, BaseExceptionGroup):
            stack.extend(reversed(error.exceptions))
        else:
            leaves.append(error)

    def rank(error: BaseException) -> int:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return 0
        if isinstance(error, Exception):
            return 1 if isinstance(error, AsyncfetchError) else 2
        return 3  # a cancellation: the echo of the first failure

    first = min(leaves, key=rank)  # min keeps the first of equals
    for other in leaves:
        if other is not first and isinstance(other, Exception):
            first.add_note(f"Also failed: {type(other).__name__}: {other}")
    return first
