"""What `open` and `stream` give before anything is opened: to be awaited, or entered as a block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from ..errors import SourceError
from .hearing import hearing
from .results import T

if TYPE_CHECKING:
    from .streaming import Tensors

__all__ = ["Opening", "Streaming"]


class _Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class Opening(Generic[C]):
    """What is opened by `await`, or for as long as an `async with` block."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, C]]) -> None:
        self._make = make
        self._opened: C | None = None

    def __await__(self) -> Generator[Any, None, C]:
        return self._open().__await__()

    async def __aenter__(self) -> C:
        self._opened = await self._open()
        return self._opened

    async def _open(self) -> C:
        """What is opened. It is closed where a warning about it is an error."""
        opened: C | None = None
        try:
            with hearing():
                opened = await self._make()
        except BaseException:
            if opened is not None:
                await opened.aclose()
            raise
        return opened

    async def __aexit__(self, *_: object) -> None:
        if self._opened is not None:
            await self._opened.aclose()


class Streaming(AbstractAsyncContextManager["Tensors[T]"], Generic[T]):
    """A stream of tensors, whose download runs beside an `async with` block."""

    def __init__(self, enter: Callable[[AsyncExitStack], Awaitable[Tensors[T]]]) -> None:
        self._enter = enter
        self._holds = AsyncExitStack()

    async def __aenter__(self) -> Tensors[T]:
        async with AsyncExitStack() as holds:
            with hearing():
                tensors = await self._enter(holds)
            self._holds = holds.pop_all()
        return tensors

    async def __aexit__(self, *_: object) -> None:
        # Nothing of what is raised in the block is told to the download: it passes through unchanged.
        await self._holds.aclose()

    def __aiter__(self) -> NoReturn:
        raise SourceError(
            "The tensors of stream_async() are read in its block.",
            hint="Write `async with ... as tensors`, and in it `async for name, array in tensors`.",
        )
