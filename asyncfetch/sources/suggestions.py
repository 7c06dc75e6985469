"""What was probably meant by a repository or a revision that is not there: asked of the Hub once, and not for long."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from urllib.parse import urlencode

import anyio

from ..errors import AsyncfetchError, RepositoryNotFoundError, RevisionNotFoundError
from ..format.near import near_names
from ..network.transport import Transport
from ..tasks import each, plain_errors
from ..words import counted, fit_to_show
from .hub import Hub
from .request import HubSource, Request, is_repo_id

__all__ = ["suggest"]

_SECONDS = 2.0
_SHOWN = 3  # names in a hint
_FOUND = 100  # names in an answer of the search


async def suggest(
    error: RepositoryNotFoundError | RevisionNotFoundError, request: Request, transport: Transport
) -> None:
    """Add to the hint of `error` what is called nearly so, if the Hub tells within two seconds. It never fails."""
    source = request.source
    if not isinstance(source, HubSource):
        return
    hub, told = Hub(transport, request.settings, source.name), ""
    try:
        with anyio.move_on_after(_SECONDS), transport.hurry(brief=0.0), plain_errors():
            if isinstance(error, RevisionNotFoundError):
                told = revisions_hint(source.revision, _refs_in(await hub.told(f"{hub.api}/refs")))
            else:
                told = await _repositories_hint(hub, source)
    except AsyncfetchError:
        pass  # only advice
    error.hint = f"{told} {error.hint}".strip()


async def _repositories_hint(hub: Hub, source: HubSource) -> str:
    """By what the search finds of the same name, and what the same owner has."""
    owner, _, name = source.repo_id.rpartition("/")
    queries = [("models", {"search": name}), ("datasets", {"search": name})]
    queries.append((f"{source.repo_type}s", {"author": owner} if owner else {"search": name.split("-")[0]}))
    found: dict[str, set[str]] = {"models": set(), "datasets": set()}

    async def ask(query: tuple[str, dict[str, str]]) -> None:
        kind, fields = query
        found[kind] |= _ids_in(await hub.told(f"{kind}?{urlencode({**fields, 'limit': _FOUND})}"))

    with plain_errors():
        await each(queries, ask, len(queries))
    return repositories_hint(source, models=found["models"], datasets=found["datasets"])


def repositories_hint(source: HubSource, *, models: Collection[str], datasets: Collection[str]) -> str:
    """Which of these repositories was probably meant; "" for none."""
    own, other = (models, datasets) if source.repo_type == "model" else (datasets, models)
    if source.repo_id in other:
        kind = "a dataset" if source.repo_type == "model" else "a model"
        name = f"datasets/{source.repo_id}" if source.repo_type == "model" else source.repo_id
        return f"There is {kind} of that name: {name}."
    near = near_names(source.repo_id, sorted(one for one in own if one != source.repo_id), _SHOWN)
    prefix = "datasets/" if source.repo_type == "dataset" else ""
    return f"Is it {' or '.join(prefix + one for one in near)}?" if near else ""


def revisions_hint(revision: str, refs: Collection[str]) -> str:
    """Which of these branches and tags was probably meant, or which there are; "" for none."""
    if not refs:
        return ""
    near = near_names(revision, refs, _SHOWN)
    if near:
        return f"Is it {' or '.join(near)}?"
    return f"It has {counted([*refs][:_SHOWN], len(refs))}."


def _ids_in(answer: object) -> set[str]:
    """The repositories in an answer of the search, as far as it is one."""
    entries = answer[:_FOUND] if isinstance(answer, list) else []
    ids = (entry.get("id") for entry in entries if isinstance(entry, dict))
    return {one for one in ids if isinstance(one, str) and is_repo_id(one)}


def _refs_in(answer: object) -> list[str]:
    """The branches and tags in an answer, as far as it is one, fit to be shown."""
    groups: Iterable[object] = [answer.get(kind) for kind in ("branches", "tags")] if isinstance(answer, dict) else []
    entries = [entry for group in groups if isinstance(group, list) for entry in group[:_FOUND]]
    names = (entry.get("name") for entry in entries if isinstance(entry, dict))
    return [fit_to_show(one, 80) for one in names if isinstance(one, str) and one.isprintable()]
