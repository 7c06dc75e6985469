"""One call of the API: what is asked for, and its steps from there to files."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
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
    CorruptError,
    NetworkError,
    ProtocolError,
    RateLimitedError,
    SourceError,
    StorageError,
)
from ..events import FileVerified, Finished, Notifier, Reporter, Resolved, Warned
from ..format.index import selector
from ..network.transport import Transport
from ..policy import Policy
from ..sources.finder import distrust
from ..sources.headers import read_landed
from ..sources.late import hold_against_index
from ..sources.listing import Chosen
from ..sources.located import Landed, Located, SourceFile, path_in
from ..sources.request import BucketSource, HubSource, LocalSource, Request, parse_source
from ..sources.request import Source as ParsedSource
from ..sources.resolve import resolve, select_in_file
from ..sources.settings import Settings
from ..sources.store_env import endpoint_of
from ..storage.checksums import Checksum, parse_checksum, verify_file
from ..storage.files import vanished
from ..storage.folders import LocalFolder
from ..storage.roots import cache_root, expanded
from ..tasks import off_loop, plain_errors, without_collections
from ..tensors.scaled import doubts_in
from ..tensors.scaling import Scaling, refuse_plain_cast, scaling_of
from .hearing import listener
from .options import Access, Files, Read, Source, Storage, Verify
from .placing import Placing

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
    placing: Placing | None = None  # the folder that it fills

    def late(self, *, nameless: bool = True) -> Session:
        """The same where headers may come with the bytes, because nothing depends on them before.

        `nameless`: nor on which tensors there are.
        """
        select, chosen = self.request.select, self.request.chosen
        nameless = nameless and select is None and not (chosen is not None and chosen.exact)
        return replace(self, request=replace(self.request, late=True, nameless=nameless))

    async def locate(self, *, headers: bool = True) -> Located:
        """Resolve the source and tell the reporter all files and sizes."""
        located = await self._resolve(headers)
        if self.placing is not None:
            await self.placing.look(located)
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
            if self.placing is not None:
                await self.placing.look(located)
        return located

    async def locate_values(self, dtype: np.dtype[Any] | None) -> tuple[Located, Scaling | None]:
        """As `locate_verified`, and what `dequantize` does to the tensors, which are to be cast to `dtype`.

        Raises SourceError for scaled weights that would be cast without their scales.
        """
        located = await self.locate_verified()
        scaling: Scaling | None = None
        if self.request.dequantize:
            scaling = await off_loop(lambda: scaling_of(located), slow=True)
        elif dtype is not None:
            await off_loop(lambda: refuse_plain_cast(located, dtype), slow=True)
        if self.request.dequantize or dtype is not None:
            for doubt in await off_loop(
                lambda: doubts_in(located, () if scaling is None else scaling.weights), slow=True
            ):
                self.notify(Warned(doubt))
        return located, scaling

    async def fetch(
        self,
        dtype: np.dtype[Any] | None = None,
        *,
        named: bool = False,
        before: Callable[[Located, Scaling | None], Awaitable[Located]] | None = None,
    ) -> tuple[Located, Scaling | None, dict[str, Landed]]:
        """Download what is missing. Returns what `locate_values` found, and where each file is, by name.

        What is removed meanwhile, by who prunes the cache or moves it away, is looked for anew and fetched again.
        `named` is that of `download`. `before` sees what was located, may refuse it, and says what of it is to be
        downloaded.
        """
        looks, told = 0, False  # whether hashes and sizes are what the Hub tells of the files, without a look at them
        while True:
            looks += 1
            try:
                located, scaling = await self.locate_values(dtype)
                unseen = located.listing is not None or any(file.late for file in located.files)
                told = unseen and isinstance(self.request.source, HubSource)
                if before is not None:
                    located = await before(located, scaling)
                landed = await self.download(located, named=named)
                gone = await off_loop(lambda: _removed(located, landed, named))  # noqa: B023
                if gone is None:
                    await self._read_late(located, landed)
                    return located, scaling, landed
                hint = (
                    "Let nothing prune the cache meanwhile, or choose another folder with cache_dir= or HF_HUB_CACHE."
                )
                error = StorageError(gone, "it was removed each time that it had been downloaded", hint=hint)
            except StorageError as raised:
                if not vanished(raised) or isinstance(self.request.source, LocalSource):
                    raise
                error = raised
            except (CorruptError, ProtocolError) as wrong:
                if not (told and self.request.believed) or isinstance(wrong, ChecksumMismatchError):
                    raise
                self.notify(Warned(f"{wrong.message} The source is asked for each file", None))
                self.request = replace(self.request, believed=False)
                continue
            if looks == _MOST_LOOKS:
                raise error
            self.notify(Warned(f"{error.path} was removed meanwhile: what is missing is fetched again"))

    async def download(
        self, located: Located, consumer: Consumer | None = None, *, named: bool = False, last: bool = True
    ) -> dict[str, Landed]:
        """Download what is missing of `located`, and hand it to `consumer` as it comes. Returns where each file is.

        `named`: files are wanted by their names in the snapshot, not for their tensors alone. `last`: the call
        downloads no more, which the reporter is told.
        """
        policy = self.request.policy
        if self.placing is not None:
            await self.placing.make_room(located)
        transfer = Transfer(located, self.transport, policy, self.notify, self.storage, consumer, named=named)
        try:
            with plain_errors():
                landed = await transfer.run()
        except (NetworkError, RateLimitedError) as error:
            if self.storage == "disk":
                await off_loop(partial(_tell_what_is_kept, error, located, transfer.landed))
            raise
        if not last:
            return landed
        nbytes = sum(file.size for file in located.files)
        seconds = time.monotonic() - self.began
        self.notify(Finished(len(located.files), nbytes, transfer.downloaded, seconds))
        return landed

    async def _read_late(self, located: Located, landed: Mapping[str, Landed]) -> None:
        """Read the headers that came with the files, and hold them against the index. Raises CorruptError."""
        late = [file for file in located.files if file.late]

        def read() -> list[str]:
            with without_collections():
                for file in late:
                    one = landed[file.name]
                    if file.header is None and one.path is not None:
                        read_landed(file, one.path, one.pages)
                if located.index is None:
                    select_in_file(located, self.request)
                return hold_against_index(located, late)

        if late:
            for note in await off_loop(read, slow=True):
                self.notify(Warned(note))

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

        Where the source gives no hash, that name is what is known of it; of a file in a user's folder, its record.
        What the caller says of a local file is always held against it.
        """
        always, local = self.verify == "always", isinstance(self.request.source, LocalSource)
        found = []
        for file in located.files:
            if file.path is not None:
                named = file.vouched or (located.cache.checksum_of(file.path) if located.cache else None)
                checksum = file.checksum or named
                given = local and file.checksum is not None
                if checksum is not None and (always or given or named != checksum):
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
            repo_type=None if files is None else files.get("repo_type"),
            endpoint=self.settings.endpoint,
            kind_of=_kind_of,
            names_in=_names_in,
        )
        if isinstance(parsed, BucketSource):
            parsed = replace(parsed, endpoint=endpoint_of(parsed, os.environ))
        folder = None if files is None else _folder_of(files)
        if folder is not None and isinstance(parsed, LocalSource):
            raise SourceError(f"{parsed} is here already, so there is nothing to download.", hint="Copy it.")
        if isinstance(root, SourceError):
            if not isinstance(parsed, LocalSource) and folder is None:
                raise root
            root = Path(os.devnull) if folder is None else folder.own_cache  # the former is never asked for
        return Request(
            parsed,
            self.settings,
            root,
            self.policy,
            wanted.get("variant"),
            None if select is None else selector(select),
            {file: parse_checksum(text, file=file) for file, text in (wanted.get("checksums") or {}).items()},
            bool(wanted.get("dequantize")),
            None if files is None else _chosen(files, parsed),
        )


def _chosen(files: Files, source: ParsedSource) -> Chosen | None:
    """Which files are wanted: of a dataset all. Raises SourceError for options that contradict each other."""
    names, include, exclude = (_texts(name, files.get(name)) for name in ("files", "include", "exclude"))
    if files.get("weights_only"):
        if names or include or exclude:
            raise SourceError("weights_only= goes with none of files=, include= and exclude=.")
        return None
    exact = bool(names or include)
    if not exact and isinstance(source, HubSource) and source.repo_type == "dataset":
        exact, names = True, (path_in(source.subfolder, source.file),) if source.file else ()
    return Chosen(exact, names, include, exclude)


def _folder_of(files: Files) -> LocalFolder | None:
    """The folder that is to be filled. Raises SourceError for one in a home folder that is not known."""
    given = files.get("local_dir")
    path = None if given is None else expanded(os.fspath(given), variables=False)
    if given is not None and path is None:
        raise SourceError(f"{os.fspath(given)!r} is in a home folder that is not known.", hint="Give its path.")
    if path is None and files.get("overwrite"):
        raise SourceError("overwrite= goes with local_dir=.")
    return None if path is None else LocalFolder(path)


def _placing(files: Files) -> Placing | None:
    folder = _folder_of(files)
    return None if folder is None else Placing(folder, bool(files.get("overwrite")))


def _texts(option: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(text, str) and text for text in texts):
        raise SourceError(f"{option}= takes names or globs, not {value!r:.80}.")
    if not texts and option != "exclude":  # not the whole checkpoint, which may be large
        raise SourceError(f"{option}= is empty: it names no file.", hint="Leave it out to download the checkpoint.")
    return texts


async def begin(
    environment: Environment,
    transport: Transport,
    source: Source,
    wanted: Read,
    storage: Storage = "disk",
    files: Files | None = None,
    watching: Sequence[Reporter] = (),
) -> Session:
    """The session of one call over a transport that others may share. `watching` hear of it beside the caller."""
    began = time.monotonic()
    request = await off_loop(lambda: environment.request(source, wanted, files))
    notify = Notifier(listener(wanted.get("report")), *watching)
    verify, placing = wanted.get("verify", "download"), None if files is None else _placing(files)
    return Session(request, transport.for_call(notify), notify, storage, verify, began, placing)


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


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(os.path.expanduser(folder))
    except OSError:
        return []
