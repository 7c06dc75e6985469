"""A checkpoint that becomes another one: downloaded as far as it is not here, then written anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from anyio import from_thread

from ..events import Warned
from ..format.dtypes import dtype_or_none
from ..format.sharding import check_metadata, names_like, parse_size
from ..models.names import Rename
from ..saving.conversion import Conversion, Wishes, planned
from ..saving.converting import check_output, convert
from ..saving.folder import named_folder
from ..sources.candidates import is_index_name
from ..sources.located import Landed, Located
from ..sources.request import LocalSource
from ..tasks import off_loop
from ..tensors.scaling import Scaling
from .options import DTypeLike, Source
from .results import Snapshot
from .session import Session
from .telling import Telling

__all__ = ["converted"]


async def converted(
    session: Session,
    folder: Source,
    *,
    dtype: DTypeLike | None,
    rename: Rename,
    max_shard_size: int | str | None,
    metadata: Mapping[str, str] | None,
    pattern: str,
) -> Snapshot:
    """Bring what is missing of the session's checkpoint, and write it into a folder as another one."""
    names_like(pattern)
    wishes = Wishes(
        dtype=dtype_or_none(dtype),
        rename=rename,
        limit=parse_size(max_shard_size),
        said=check_metadata(metadata),
        pattern=pattern,
    )
    source = session.request.source
    alone = source.file is not None and not is_index_name(source.file)  # what lies beside need not belong to it
    if alone:
        session = replace(session, request=replace(session.request, chosen=None))
    here = None
    if isinstance(source, LocalSource):
        here = Path(source.folder, (source.file or "") if alone else "")
    target = named_folder(folder)
    plans: list[Conversion] = []

    def plan(located: Located, scaling: Scaling | None) -> None:
        plans.append(planned(located, scaling, wishes))
        check_output(plans[-1], target, here)

    async def before(located: Located, scaling: Scaling | None) -> Located:
        await off_loop(partial(plan, located, scaling), slow=True)
        return located

    _, _, landed = await session.fetch(wishes.dtype, named=True, before=before)
    files = await off_loop(partial(_written, session, plans[-1], landed, target), slow=True)
    return Snapshot(target, None, files)


def _written(session: Session, plan: Conversion, landed: Mapping[str, Landed], target: Path) -> dict[str, Path]:
    def told(sizes: Mapping[str, int], done: frozenset[str]) -> Telling:
        return Telling(session.notify, str(target), sizes, done)

    def warn(message: str) -> None:
        from_thread.run_sync(session.notify, Warned(message))

    return convert(plan, landed, target, told, warn)
