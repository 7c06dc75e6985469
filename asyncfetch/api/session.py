"""One call of the API: what is asked for, and its steps from there to files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from anyio import from_thread, to_thread

from ..engine.bookkeeping import file_states
from ..engine.consumer import Consumer
from ..engine.transfer import Transfer
from ..errors import ChecksumMismatchError, storage_errors
from ..events import FileVerified, Finished, Notifier, Resolved, Warned
from ..format.index import selector
from ..network.transport import Transport
from ..policy import Policy
from ..sources.located import Landed, Located, SourceFile
from ..sources.request import LocalSource, Request, parse_source
from ..sources.resolve import resolve
from ..sources.settings import Settings
from ..storage.cache import cache_root
from ..storage.checksums import Checksum, checksum_of_etag, parse_checksum, verify_file
from ..tensors.scaling import Scaling, refuse_plain_cast, scaling_of
from .options import Access, Read, Source, Storage, Verify

__all__ = ["Environment", "Session", "begin"]


@dataclass(eq=False, slots=True)
class Session:
    """The steps of a load: `locate` writes nothing, `fetch` locates and downloads."""

    request: Request
    transport: Transport
    notify: Notifier
    storage: Storage
    verify: Verify
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

    async def locate_values(self, dtype: np.dtype[Any] | None) -> tuple[Located, Scaling | None]:
        """As `locate_verified`, and what `dequantize` does to the tensors, which are to be cast to `dtype`.

        Raises SourceError for scaled weights that would be cast without their scales.
        """
        located = await self.locate_verified()
        if self.request.dequantize:
            return located, await to_thread.run_sync(scaling_of, located)
        if dtype is not None:
            await to_thread.run_sync(refuse_plain_cast, located, dtype)
        return located, None

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


@dataclass(frozen=True, slots=True)
class Environment:
    """What a client has read, once, from its options and from the environment."""

    settings: Settings
    cache_root: Path
    policy: Policy

    @classmethod
    def read(cls, access: Access) -> Environment:
        """Look at variables and at the file of the token. Raises SourceError. Blocks."""
        settings = Settings.from_env(
            os.environ, endpoint=access.get("endpoint"), token=access.get("token"), offline=access.get("offline")
        )
        policy = access.get("policy") or Policy.from_env(os.environ)
        return cls(settings, cache_root(os.environ, access.get("cache_dir")), policy)

    def offline(self) -> Environment:
        """The same, for a call that sends nothing."""
        return replace(self, settings=replace(self.settings, offline=True, token=None))

    def request(self, source: Source, wanted: Read) -> Request:
        """What one call asks for. Looks at the disk: a path that exists is a local source. Raises SourceError."""
        select = wanted.get("select")
        return Request(
            parse_source(
                source,
                revision=wanted.get("revision"),
                subfolder=wanted.get("subfolder"),
                endpoint=self.settings.endpoint,
                kind_of=_kind_of,
            ),
            self.settings,
            self.cache_root,
            self.policy,
            wanted.get("variant"),
            None if select is None else selector(select),
            {file: parse_checksum(text, file=file) for file, text in (wanted.get("checksums") or {}).items()},
            bool(wanted.get("dequantize")),
        )


async def begin(
    environment: Environment, transport: Transport, source: Source, wanted: Read, storage: Storage = "disk"
) -> Session:
    """The session of one call over a transport that others may share."""
    began = time.monotonic()
    request = await to_thread.run_sync(environment.request, source, wanted)
    notify = Notifier(wanted.get("report"))
    return Session(request, transport.for_call(notify), notify, storage, wanted.get("verify", "download"), began)


def _kind_of(path: str) -> str | None:
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return "folder"
    return "file" if os.path.isfile(expanded) else None
