"""How a file begins: what another run or call has brought is used, what one left is gone on with.

Who downloads a file has its lock, and the others wait; when they get it they look again for what came meanwhile.
"""

from __future__ import annotations

import os
import time

from ..events import Waiting
from ..format.header import PREFIX_BYTES
from ..sources.located import Landed, SourceFile
from ..storage.cache import RepoCache
from ..storage.identities import same_blob
from ..storage.locks import lock_blob, unlock
from ..storage.maps import pages_of
from ..storage.partial import FilePartial, MemoryPartial, Partial, StoredPartial
from ..storage.sequential import SequentialPartial
from ..storage.small import SMALL
from ..tasks import off_loop
from .job import Job
from .receiving import Receiving, tell_landed

__all__ = ["begin", "stored_partial"]


async def begin(job: Job, file: SourceFile) -> Receiving | None:
    """Make the partial of `file`, or go on with the one that is there. None if the whole file is: then it has landed.

    Waits while another process downloads it. Raises StorageError, DiskFullError.
    """
    if job.storage == "memory":
        return Receiving(job, file, await off_loop(lambda: _memory_partial(job, file)), None)
    if (small := await _small_form(job, file)) is not None:
        return Receiving(job, file, small, None)

    def waits(holder: int | None) -> None:
        ours = "another call in this process" if holder == os.getpid() else f"process {holder}"
        who = "another process" if holder is None else ours
        job.notify(Waiting(file.name, f"{who} is downloading this file", None))

    lock, landed = await lock_blob(
        job.cache, file.key, job.policy.lock_patience, lambda: _already_there(job, file), on_wait=waits
    )
    try:
        if landed is not None:
            unlock(lock)
            tell_landed(job, file, landed)
            return None
        if file.target is None:  # known by a listing alone: its first bytes come with the answer
            await job.links.target(file, None)
        partial = await off_loop(lambda: stored_partial(job.cache, file))
    except BaseException:
        unlock(lock)
        raise
    return Receiving(job, file, partial, lock)


async def _small_form(job: Job, file: SourceFile) -> MemoryPartial | None:
    """The form of a small file that is not here: in memory, and without a lock, since two may fetch it. Else None."""
    followed = job.consumer is not None and job.consumer.reads_partials
    if followed or file.in_blobs or not (file.sized and file.size <= SMALL):
        return None
    if file.target is None:
        await job.links.target(file, None)
    if file.size > SMALL:  # a listing told another size
        return None
    return MemoryPartial(file.size, file.algorithm, data_start=0)


def stored_partial(cache: RepoCache, file: SourceFile) -> StoredPartial:
    """The partial of a file in the cache, as its file system allows it; what an earlier run left is in it."""
    path = cache.partial(file.key)
    if not cache.any_order():
        return SequentialPartial(path, file.size, file.algorithm)
    identity = file.journal_identity if file.resumable else f"{file.identity}:{time.time_ns()}"
    return FilePartial(path, file.size, file.algorithm, identity=identity)


def _memory_partial(job: Job, file: SourceFile) -> Partial:
    if job.consumer is not None:
        return job.consumer.partial(file)
    return MemoryPartial(file.size, file.algorithm, data_start=len(file.raw_header) or PREFIX_BYTES)


def _already_there(job: Job, file: SourceFile) -> Landed | None:
    """Another run, or another commit, may have brought the same file: then only link it. Blocks."""
    path, cache = None, job.cache
    blob = file.path.name if file.path else file.blob or (file.checksum.hex if file.checksum else "")
    if not blob and file.resumable:  # no hash names it: its size and its validator do, of which snapshots are made
        path = cache.find(job.commit, file.name)
        blob = "" if path is not None else same_blob(cache, file.name, file.key)
    if blob and cache.whole_blob(blob, file.size) is not None:
        path = cache.link(blob, job.commit, file.name, named=job.named)
    return None if path is None else Landed(path=path, pages=None if job.named else pages_of(path, file.size))
