"""One call of the API: what is asked for, and its steps from there to files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anyio import from_thread

from ..engine.bookkeeping import file_states
from ..engine.consumer import Consumer
from ..engine.transfer import Transfer
from ..errors import (
    AsyncfetchError,
    ChecksumMismatchError,
    NetworkError,
    RateLimitedError,
    SourceError,
    StorageError,
)
from ..events import FileVerified, Finished, Notifier, Resolved, Warned
from ..format.index import selector
from ..network.transport import Transport
from ..policy import Policy
from ..sources.finder import distrust
from ..sources.listing import Chosen
from ..sources.located import Landed, Located, SourceFile
from ..sources.request import LocalSource, Request, parse_source
from ..sources.resolve import resolve
from ..sources.settings import Settings
from ..storage.cache import cache_root
from ..storage.checksums import Checksum, parse_checksum, verify_file
from ..storage.files import vanished
from ..tasks import off_loop, plain_errors
from ..tensors.scaling import Scaling, refuse_plain_cast, scaling_of
from .hearing import listener
from .options import Access, Files, Read, Source, Storage, Verify

__all__ = ["Environment", "Session", "begin"]

_MOST_LOOKS = 4  # where the cache is pruned under a download, time and again


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
        files = await off_loop(lambda: file_states(located, self.storage))
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
            return located, await off_loop(lambda: scaling_of(located), slow=True)
        if dtype is not None:
            await off_loop(lambda: refuse_plain_cast(located, dtype), slow=True)
        return located, None

    async def fetch(
        self,
        dtype: np.dtype[Any] | None = None,
        *,
        named: bool = False,
        judge: Callable[[Located, Scaling | None], object] = lambda _located, _scaling: None,
    ) -> tuple[Located, Scaling | None, dict[str, Landed]]:
        """Download what is missing. Returns what `locate_values` found, and where each file is, by name.

        What is removed meanwhile, by who prunes the cache or moves it away, is looked for anew and fetched again.
        `named` is that of `download`. `judge` sees what was located, and may refuse it, before anything is downloaded.
        """
        looks = 0
        while True:
            looks += 1
            try:
                located, scaling = await self.locate_values(dtype)
                await off_loop(partial(judge, located, scaling), slow=True)
                landed = await self.download(located, named=named)
                gone = await off_loop(lambda: _removed(located, landed, named))  # noqa: B023
                if gone is None:
                    return located, scaling, landed
                hint = (
                    "Let nothing prune the cache meanwhile, or choose another folder with cache_dir= or HF_HUB_CACHE."
                )
                error = StorageError(gone, "it was removed each time that it had been downloaded", hint=hint)
            except StorageError as raised:
                if not vanished(raised) or isinstance(self.request.source, LocalSource):
                    raise
                error = raised
            if looks == _MOST_LOOKS:
                raise error
            self.notify(Warned(f"{error.path} was removed meanwhile: what is missing is fetched again"))

    async def download(
        self, located: Located, consumer: Consumer | None = None, *, named: bool = False
    ) -> dict[str, Landed]:
        """Download what is missing of `located`, and hand it to `consumer` as it comes. Returns where each file is.

        `named`: files are wanted by their names in the snapshot, not for their tensors alone.
        """
        policy = self.request.policy
        transfer = Transfer(located, self.transport, policy, self.notify, self.storage, consumer, named=named)
        try:
            with plain_errors():
                landed = await transfer.run()
        except (NetworkError, RateLimitedError) as error:
            if self.storage == "disk":
                await off_loop(partial(_tell_what_is_kept, error, located, transfer.landed))
            raise
        nbytes = sum(file.size for file in located.files)
        seconds = time.monotonic() - self.began
        self.notify(Finished(len(located.files), nbytes, transfer.downloaded, seconds))
        return landed

    async def _resolve(self, headers: bool) -> Located:
        return await resolve(self.request, self.transport, headers=headers)

    async def _verify_present(self, located: Located) -> bool:
        """Hash what was on disk before. A wrong file of the cache is used no more: whether there was one."""
        wrong = False
        for file, path, checksum in await off_loop(lambda: self._in_doubt(located)):
            try:
                await off_loop(
                    partial(verify_file, path, checksum, file=file.name, check=from_thread.check_cancelled), slow=True
                )
            except ChecksumMismatchError as error:
                offline = self.request.settings.offline
                await distrust(error, file.name, path, located.cache, self.transport, offline=offline)
                wrong = True
            else:
                self.notify(FileVerified(file.name, file.size, str(checksum)))
        return wrong

    def _in_doubt(self, located: Located) -> list[tuple[SourceFile, Path, Checksum]]:
        """What is to be hashed: all on disk by verify="always", else that for which no blob's name vouches.

        Where the source gives no hash, that name is what is known of it.
        """
        always = self.verify == "always" or isinstance(self.request.source, LocalSource)
        found = []
        for file in located.files:
            if file.path is not None:
                named = located.cache.checksum_of(file.path) if located.cache else None
                checksum = file.checksum or named
                if checksum is not None and (always or named != checksum):
                    found.append((file, file.path, checksum))
        return found


def _removed(located: Located, landed: Mapping[str, Landed], named: bool) -> str | None:
    """A file that is needed and was removed since it landed."""
    paths = [one.path for one in landed.values() if one.path is not None and one.pages is None]
    if named and located.index_path is not None:
        paths.append(located.index_path)
    return next((str(path) for path in paths if not path.exists()), None)


@dataclass(frozen=True, slots=True)
class Environment:
    """What a client has read, once, from its options and from the environment."""

    settings: Settings
    cache_root: Path | SourceError  # the latter is for those who need it
    policy: Policy

    @classmethod
    def read(cls, access: Access) -> Environment:
        """Look at variables and at the file of the token. Raises SourceError. Blocks."""
        settings = Settings.from_env(
            os.environ, endpoint=access.get("endpoint"), token=access.get("token"), offline=access.get("offline")
        )
        policy = access.get("policy") or Policy.from_env(os.environ)
        root: Path | SourceError
        try:
            root = cache_root(os.environ, access.get("cache_dir"))
        except SourceError as error:
            root = error
        return cls(settings, root, policy)

    def offline(self) -> Environment:
        """The same, for a call that sends nothing."""
        return replace(self, settings=replace(self.settings, offline=True, token=None))

    def request(self, source: Source, wanted: Read, files: Files | None = None) -> Request:
        """What one call asks for; `files`: more or other files than a load needs.

        Looks at the disk: a path that exists is a local source. Raises SourceError.
        """
        select, root = wanted.get("select"), self.cache_root
        parsed = parse_source(
            source,
            revision=wanted.get("revision"),
            subfolder=wanted.get("subfolder"),
            endpoint=self.settings.endpoint,
            kind_of=_kind_of,
        )
        if isinstance(root, SourceError):
            if not isinstance(parsed, LocalSource):
                raise root
            root = Path(os.devnull)  # never asked for
        return Request(
            parsed,
            self.settings,
            root,
            self.policy,
            wanted.get("variant"),
            None if select is None else selector(select),
            {file: parse_checksum(text, file=file) for file, text in (wanted.get("checksums") or {}).items()},
            bool(wanted.get("dequantize")),
            None if files is None else _chosen(files),
        )


def _chosen(files: Files) -> Chosen | None:
    """Which files are wanted. Raises SourceError for options that contradict each other."""
    names, include, exclude = (_texts(name, files.get(name)) for name in ("files", "include", "exclude"))
    if files.get("weights_only"):
        if names or include or exclude:
            raise SourceError("weights_only= goes with none of files=, include= and exclude=.")
        return None
    return Chosen(bool(names or include), names, include, exclude)


def _texts(option: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(text, str) and text for text in texts):
        raise SourceError(f"{option}= takes names or globs, not {value!r:.80}.")
    return texts


async def begin(
    environment: Environment,
    transport: Transport,
    source: Source,
    wanted: Read,
    storage: Storage = "disk",
    files: Files | None = None,
) -> Session:
    """The session of one call over a transport that others may share."""
    began = time.monotonic()
    request = await off_loop(lambda: environment.request(source, wanted, files))
    notify = Notifier(listener(wanted.get("report")))
    return Session(request, transport.for_call(notify), notify, storage, wanted.get("verify", "download"), began)


def _tell_what_is_kept(error: AsyncfetchError, located: Located, landed: Collection[str]) -> None:
    """The last word of a download that the network ended: how to go on, and how much of it is here."""
    try:
        states = file_states(located, "disk")
    except StorageError:  # what failed first is what is told
        return
    kept = sum(state.size if state.file in landed else state.present for state in states)
    size = sum(state.size for state in states)
    error.hint = f"{error.hint} Call it again to go on: {kept / 1e6:,.1f} of {size / 1e6:,.1f} MB are kept.".lstrip()


def _kind_of(path: str) -> str | None:
    expanded = os.path.expanduser(path)
    if os.path.isdir(expanded):
        return "folder"
    return "file" if os.path.isfile(expanded) else None
