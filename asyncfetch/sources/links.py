"""Where files are served by now, asked of the source once for all who read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import anyio

from ..errors import ProtocolError
from ..network.ranges import Target
from .located import Origin, SourceFile

__all__ = ["Links"]


class Links:
    """The targets of files. A link that has expired is renewed by one of many readers, the others use its answer.

    `renewed` is told the file before the new link is used.
    """

    def __init__(self, origin: Origin | None, renewed: Callable[[SourceFile], object] = lambda _file: None) -> None:
        self._origin = origin
        self._renewed = renewed
        self._locks: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def target(self, file: SourceFile, refused: Target | None) -> Target:
        """Where `file` is served; asked for anew if that is still where `refused` was.

        Raises ProtocolError if nothing serves it, ChangedError if it is another file by now, and the network's errors.
        """
        if self._origin is None:
            raise ProtocolError("nothing serves this file", url=file.name)
        async with self._locks[file.name]:
            renew = refused is not None and file.target is not None and file.target.url == refused.url
            target = await self._origin.target(file, renew=renew)
            if renew:
                self._renewed(file)
        return target
