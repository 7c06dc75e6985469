"""From blocking code into an event loop that runs in a thread for as long as a block does."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, NoReturn, ParamSpec, TypeVar

from anyio import from_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ..errors import SourceError

__all__ = ["Portal", "blocking", "blocking_block"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Portal:
    """The way into the loop. A child that is forked in the block has the portal and not the thread: it is told so."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._owner = os.getpid()

    @property
    def inherited(self) -> bool:
        return os.getpid() != self._owner

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `work` returns. An interrupt while it is waited for cancels it."""
        if self.inherited:
            raise SourceError("It was opened in another process, before a fork.", hint="Open it in this one.")
        future = self._portal.start_task_soon(work)
        try:
            result: T = future.result()
        except BaseException:
            future.cancel()
            raise
        return result

    def forget(self) -> None:
        """In a forked child: let go without waiting for the thread that is not here."""
        vars(self._portal)["call"] = _ended  # what anyio calls when a portal that is dropped half-way is closed


def _ended(*_: object) -> NoReturn:
    raise RuntimeError("This portal is not running")  # as anyio itself says it, and expects it


def blocking_block(
    function: Callable[P, AbstractAsyncContextManager[T]], wrap: Callable[[T, Portal], R], *, name: str, summary: str
) -> Callable[P, AbstractContextManager[R]]:
    """The blocking twin `name` of an async context manager function: an event loop in a thread, as long as the block.

    `wrap` makes of what it gives, and of the way into the loop, what the twin gives. `summary` begins its docstring.
    """

    @contextmanager
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        with _entered(function(*args, **kwargs)) as (value, portal):
            yield wrap(value, portal)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{summary}\n\n    {function.__doc__}"
    return call


@contextmanager
def _entered(manager: AbstractAsyncContextManager[T]) -> Iterator[tuple[T, Portal]]:
    """Enter `manager` in an event loop in a thread. In a forked child, leaving the block does nothing."""
    with ExitStack() as stack:
        loop = stack.enter_context(start_blocking_portal())
        value = stack.enter_context(loop.wrap_async_context_manager(manager))
        portal = Portal(loop)
        try:
            yield value, portal
        finally:
            if portal.inherited:
                portal.forget()
                stack.pop_all()


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The blocking twin of a coroutine function: same signature, same result, same errors."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with from_thread.start_blocking_portal() as portal:
            result: T = portal.call(partial(function, *args, **kwargs))
            return result

    call.__name__ = call.__qualname__ = function.__name__.removesuffix("_async")
    call.__doc__ = f"The blocking twin of `{function.__name__}`.\n\n    {function.__doc__}"
    return call
