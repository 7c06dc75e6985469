"""One call of the API: its settings read from the environment, its transport, its steps."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import from_thread, to_thread

from ..engine.bookkeeping import file_states
from ..engine.consumer import Consumer
from ..engine.transfer import Transfer
from ..errors import ChecksumMismatchError, SourceError, storage_errors
from ..events import FileVerified, Finished, Notifier, Reporter, Resolved, Warned
from ..format.index import Selector, selector
from ..network.transport import Transport
from ..policy import Policy
from ..sources.located import Landed, Located, SourceFile
from ..sources.request import LocalSource, Request, parse_source
from ..sources.resolve import resolve
from ..sources.settings import Settings
from ..storage.cache import cache_root
from ..storage.checksums import Checksum, checksum_of_etag, parse_checksum, verify_file
from ..tasks import plain_errors

__all__ = ["Session", "open_session"]


@dataclass(eq=False, slots=True)
class Session:
    """The steps of a load: `locate` writes nothing, `fetch` locates and downloads."""

    request: Request
    transport: Transport
    notify: Notifier
    storage: str
    verify: str
    began: float

    async def locate(self, *, headers: bool = True) -> Located:
        """Resolve the source and tell the reporter all files and sizes."""
        located = await self._resolve(headers)
        files = await to_thread.run_sync(file_states, located, self.storage)
        index = located.index.file if located.index else None
        self.notify(Resolved(located.source, located.commit, index, files))
        for warning in located.warnings:
            self.notify(Warned(warning))
        return located

    async def locate_verified(self) -> Located:
        """As `locate`, and with the files on disk hashed as far as `verify` and their names ask for it."""
        located = await self.locate()
        if await self._verify_present(located):
            located = await self._resolve(headers=True)
        return located

    async def fetch(self) -> tuple[Located, dict[str, Landed]]:
        """Download what is missing. Returns what was found, and where each file is, by name."""
        located = await self.locate_verified()
        return located, await self.download(located)

    async def download(self, located: Located, consumer: Consumer | None = None) -> dict[str, Landed]:
        """Download what is missing of `located`, and hand it to `consumer` as it comes. Returns where each file is."""
        transfer = Transfer(located, self.transport, self.request.policy, self.notify, self.storage, consumer)
        landed = await transfer.run()
        nbytes = sum(file.size for file in located.files)
        seconds = time.monotonic() - self.began
        self.notify(Finished(len(located.files), nbytes, transfer.downloaded, seconds))
        return landed

    async def _resolve(self, headers: bool) -> Located:
        return await resolve(self.request, self.transport, headers=headers)

    async def _verify_present(self, located: Located) -> bool:
        """Hash what was on disk before. A wrong file of the cache is put aside: whether there was one."""
        wrong = False
        for file, path, checksum in await to_thread.run_sync(self._in_doubt, located):
            try:
                await to_thread.run_sync(
                    lambda: verify_file(path, checksum, file=file.name, check=from_thread.check_cancelled)  # noqa: B023
                )
            except ChecksumMismatchError as error:
                if located.cache is None or self.request.settings.offline:
                    error.hint = f"{path} is not what it should be: it is damaged, or another file."
                    raise
                self.notify(Warned(f"{error.message} The cached file is put aside and fetched again.", file.name))
                await to_thread.run_sync(located.cache.quarantine, path)
                wrong = True
            else:
                self.notify(FileVerified(file.name, file.size, str(checksum)))
        return wrong

    def _in_doubt(self, located: Located) -> list[tuple[SourceFile, Path, Checksum]]:
        """What is to be hashed: all on disk by verify="always", else that for which no blob's name vouches."""
        always = self.verify == "always" or isinstance(self.request.source, LocalSource)
        found = []
        for file in located.files:
            if file.path is not None and file.checksum is not None:
                with storage_errors(file.path):
                    blob = os.readlink(file.path) if file.path.is_symlink() else file.path
                if always or checksum_of_etag(os.path.basename(blob)) != file.checksum:
                    found.append((file, file.path, file.checksum))
        return found


@asynccontextmanager
async def open_session(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    select: Selector = None,
    storage: str = "disk",
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    checksums: Mapping[str, str] | None = None,
    verify: str = "download",
    policy: Policy | None = None,
    client: Any = None,
    report: Reporter | None = None,
) -> AsyncIterator[Session]:
    """Check the options, read the environment, open the transport. Raises SourceError.

    What fails in the block comes out as one plain exception, never as an ExceptionGroup.
    """
    if storage not in ("disk", "memory"):
        raise SourceError(f'storage={storage!r} is neither "disk" nor "memory".')
    if verify not in ("download", "always"):
        raise SourceError(f'verify={verify!r} is neither "download" nor "always".')
    began = time.monotonic()

    def prepare() -> Request:
        environ = os.environ
        settings = Settings.from_env(environ, endpoint=endpoint, token=token, offline=offline)
        return Request(
            parse_source(source, revision=revision, subfolder=subfolder, endpoint=settings.endpoint, kind_of=_kind_of),
            settings,
            cache_root(environ, cache_dir),
            policy or Policy.from_env(environ),
            variant,
            None if select is None else selector(select),
            {file: parse_checksum(text, file=file) for file, text in (checksums or {}).items()},
        )

    request = await to_thread.run_sync(prepare)  # looks at the disk
    with plain_errors():
        notify = Notifier(report)
        async with Transport(request.policy, client=client, notify=notify) as transport:
            yield Session(request, transport, notify, storage, verify, began)


def _kind_of(path: str) -> str | None:
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return "folder"
    return "file" if os.path.isfile(expanded) else None
