"""All files on their way from the source into the cache, each once.

A file whose SHA-256 is known is fetched once, in however many repositories it is: who asks for it in another one takes
part in its fill, and it gets its name there when it is here.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import from_thread

from ...events import Notifier
from ...tasks import off_loop
from ..keeping.borrowing import Lender, is_same_everywhere
from .filling import AHEAD, Fill

if TYPE_CHECKING:
    from pathlib import Path

    from ...errors import AsyncfetchError
    from ...network.transport import Transport
    from ...policy import Policy
    from ..background import Background
    from ..counts import Counts
    from ..keeping.kept import Kept
    from .distrust import Distrust
    from .wanted import WantedFile

__all__ = ["Failure", "Fill", "Fills", "most_at_once"]

AT_ONCE = 256  # files, large or small ones; the others wait for their turn, and who reads them is passed on
_DESCRIPTORS = 16  # for each of these: its own and those of its readers
_FAILURES = 20  # that are remembered


class Failure(NamedTuple):
    """A file that could not be fetched. `at` is in seconds since 1970, `repository` as in addresses."""

    at: float
    repository: str
    file: str
    error: AsyncfetchError


def most_at_once(soft: int | None = None) -> int:
    """How many files, large or small ones, may be on their way together. `soft`: open files of a process, as it is."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if soft is None else soft
    return AT_ONCE if soft == resource.RLIM_INFINITY else max(min(AT_ONCE, soft // _DESCRIPTORS), 1)


class Fills:
    """All files on their way, each once. `tasks` is where they run, so that they outlast their readers.

    `transport` is for fills. `strict` is that of each fill; `kept` says whether there is room. `failures` are the last
    files that could not be fetched, and not since.
    """

    def __init__(
        self,
        transport: Transport,
        policy: Policy,
        distrust: Distrust,
        tasks: Background,
        counts: Counts,
        kept: Kept,
        *,
        strict: bool = False,
    ) -> None:
        self.transport, self.policy, self.strict, self._kept = transport, policy, strict, kept
        self._distrust, self._tasks, self._counts = distrust, tasks, counts
        self._lender = Lender()
        self._running: dict[tuple[Path | None, str, int], Fill] = {}
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        # As many as descriptors allow, since readers give up when nothing comes; memory goes by connections, which are
        # shared. Small files never wait for large ones.
        self._large, self._small = (anyio.CapacityLimiter(most_at_once()) for _ in range(2))

    def apart(self) -> Transport:
        """A transport for bytes that are handed on to one reader and not kept: a call of its own."""
        return self.transport.for_call(self.transport.notify, self._counts.meter("passed"))

    @property
    def running(self) -> list[Fill]:
        """Those that are on their way, or wait for their turn; the first to begin first."""
        return list(self._running.values())

    def of(self, wanted: WantedFile) -> Fill:
        """The fill that brings a file into the cache; it is begun if there is none."""
        file = wanted.file
        key = (None if is_same_everywhere(file.key) else wanted.cache.folder, file.key, file.size)
        fill = self._running.get(key)
        if fill is not None and not (fill.ended or fill.stops):
            self._counts.add("joined")
            fill.join(wanted)
            return fill
        self._counts.add("misses")
        fill = self._running[key] = Fill(wanted, self._distrust, self._counts, strict=self.strict)
        self._tasks.start_soon(self._run, key, fill)
        return fill

    async def _run(self, key: tuple[Path | None, str, int], fill: Fill) -> None:
        partial = fill.wanted.cache.partial(fill.file.key)
        try:
            with fill.scope, self._counts.running("fills"):
                turns = self._large if fill.file.size > AHEAD else self._small
                fill.queue(waits=turns.available_tokens <= 0)
                async with turns:
                    fill.queue(waits=False)
                    if await self._borrowed(fill.wanted) or await self._kept.admit(partial, fill.file.size):
                        await fill.run(self.transport.for_call(Notifier(fill.hear)), self.policy)
                        await self._learn(fill)
                    else:
                        fill.refuse()
        finally:
            self._kept.left(partial)
            fill.end()
            self._note(fill)
            if self._running.get(key) is fill:
                del self._running[key]
        for wanted in fill.others if fill.complete else ():
            await self._name(wanted)

    async def _name(self, wanted: WantedFile) -> None:
        """Give a file that was just fetched another name. Nothing is fetched for it."""
        cache, file = wanted.cache, wanted.file
        here = await self._borrowed(wanted)
        if here or await off_loop(lambda: cache.whole_blob(file.key, file.size) is not None):
            await Fill(wanted, self._distrust, self._counts).run(self.transport, self.policy)

    async def _borrowed(self, wanted: WantedFile) -> bool:
        """Whether another repository lent the file: then it takes no room."""
        cache, file, check = wanted.cache, wanted.file, from_thread.check_cancelled
        lent = await off_loop(lambda: self._lender.borrow(cache, file.key, file.size, check), slow=True)
        self._counts.add("shared", lent)
        return lent

    async def _learn(self, fill: Fill) -> None:
        """What was held against its hash as it came is lent without another look."""
        if fill.complete and fill.brought and is_same_everywhere(fill.file.key):
            await off_loop(lambda: self._lender.learn(fill.wanted.cache.blob(fill.file.key)))

    def _note(self, fill: Fill) -> None:
        before = [one for one in self.failures if (one.repository, one.file) == (fill.repository, fill.file.name)]
        for failure in before:
            self.failures.remove(failure)
        if fill.error is not None:
            self.failures.append(Failure(time.time(), fill.repository, fill.file.name, fill.error))
