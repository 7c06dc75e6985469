"""Where files are served by now, asked of the source once for all who read them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace

import anyio

from ..errors import ProtocolError
from ..network.ranges import Target
from .located import Origin, SourceFile

__all__ = ["Links"]


class Links:
    """The targets of files. Who of many readers finds one refused or away asks the source, the others use the answer.

    They do so if it is the same link again, too. `renewed` is told the file before the new link is used.
    """

    def __init__(self, origin: Origin | None, renewed: Callable[[SourceFile], object] = lambda _file: None) -> None:
        self._origin = origin
        self._renewed = renewed
        self._asked: Counter[str] = Counter()  # how often a file was asked for anew
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def target(self, file: SourceFile, refused: Target | None) -> Target:
        """Where `file` is served; asked for anew if that is still where `refused` was.

        Raises ProtocolError if nothing serves it, ChangedError if it is another file by now, and the network's errors.
        """
        if self._origin is None:
            raise ProtocolError("nothing serves this file", url=file.name)
        async with self._locks[file.name]:
            asked = self._asked[file.name]
            renew = refused is not None and _is_still(file.target, refused) and refused.asked in (None, asked)
            target = await self._origin.target(file, renew=renew)
            if renew:
                self._asked[file.name] = asked = asked + 1
                self._renewed(file)
        return replace(target, asked=asked)


def _is_still(target: Target | None, refused: Target) -> bool:
    return target is not None and target.url == refused.url
