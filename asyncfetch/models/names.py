"""The names of a state dict and those of a model: renamed as the caller says, or told apart by their prefixes.

Pure decisions about names and shapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ..errors import SourceError
from .fit import kind_of

__all__ = ["Rename", "Shapes", "proposal", "renamed", "renaming"]

Rename = (
    Mapping[str, str | None]
    | tuple[str, str | None]
    | Sequence[tuple[str, str | None]]
    | Callable[[str], str | None]
    | None
)
Shapes = Mapping[str, tuple[int, ...] | None]
Pair = tuple[str, str]


def renaming(rename: Rename) -> Callable[[str], str | None]:
    """What becomes of a name, None where its tensor is left out.

    `rename` is {name: new name}; a pair of prefixes, of which the second takes the place of the first
    (`("module.", "")`; `("", "bert.")` adds one); several pairs, of which the first that matches counts; or
    a function of a name. What they say nothing about stays. Raises SourceError for anything else.
    """
    if rename is None:
        return lambda name: name
    if isinstance(rename, Mapping):
        table = rename
        return lambda name: _checked(name, table.get(name, name))
    if isinstance(rename, Sequence) and not isinstance(rename, str | bytes):
        pairs: Sequence[object] = [rename] if rename and isinstance(rename[0], str) else rename
        prefixes = [_prefixes(pair) for pair in pairs]
        return lambda name: _with_prefix(name, prefixes)
    if callable(rename):
        function = rename
        return lambda name: _checked(name, function(name))
    raise SourceError(f"rename= takes names, prefixes or a function, not {kind_of(rename)}.", hint=_FORMS)


_FORMS = (
    'Give {"old": "new"}, ("old.", "new."), a list of such pairs, or a function; None as the new name leaves it out.'
)


def _prefixes(pair: object) -> tuple[str, str | None]:
    match pair:
        case [str() as old, (str() | None) as new]:
            return old, new
    raise SourceError(f"rename= takes pairs of prefixes, and {pair!r} is none.", hint=_FORMS)


def _with_prefix(name: str, prefixes: Iterable[tuple[str, str | None]]) -> str | None:
    for old, new in prefixes:
        if name.startswith(old):
            return None if new is None else new + name[len(old) :]
    return name


def _checked(name: str, new: object) -> str | None:
    if new is None or isinstance(new, str):
        return new
    raise SourceError(f"rename= makes {name!r} {kind_of(new)}, which is no name.", hint=_FORMS)


def renamed(names: Iterable[str], rename: Rename) -> dict[str, str]:
    """The new name of each of `names` that is not left out. Raises SourceError where two get one name."""
    function, found, origin = renaming(rename), dict[str, str](), dict[str, str]()
    for name in names:
        new = function(name)
        if new is None:
            continue
        if new in origin:
            raise SourceError(
                f"rename= makes {origin[new]!r} and {name!r} one name, {new!r}.",
                hint="Leave one of them out: its new name is None.",
            )
        found[name], origin[new] = new, name
    return found


# -- what would have fitted ----------------------------------------------------------------------

# Names that a wrapper puts before or between those of what it wraps: DataParallel and DDP, torch.compile, FSDP,
# activation checkpointing, Lightning and DeepSpeed, PEFT.
_WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
)
_SAMPLE = 200  # of the names, in which common endings are looked for
_NEIGHBOURS = 4
_CANDIDATES = 6


@dataclass(frozen=True, slots=True)
class _Way:
    """A renaming, as a reader writes it, and how many names of the model it fills."""

    text: str
    filled: int


def proposal(model: Shapes, saved: Shapes, *, module: bool) -> str:
    """The rename= that would make the names fit, or "" where none is found.

    It is what has been tried: with it so many tensors of the model are found, of the same shape, and no name is
    lost that was found before. `module`: the model has a state_dict() to write names with.
    """
    before = sum(name in saved for name in model)
    best: _Way | None = None
    for look in (_by_prefixes, _unwrapped, *((_wrapped,) if module else ())):
        way = look(model, saved)
        if way is not None and way.filled > max(before, best.filled if best else 0):
            best = way
        if best is not None and best.filled == len(model):
            break
    if best is None:
        return ""
    whole = f"all {len(model):,}" if best.filled == len(model) else f"{best.filled:,} of the {len(model):,}"
    return f"The names differ by a prefix: with rename={best.text} the checkpoint has {whole} tensors of the model."


def _by_prefixes(model: Shapes, saved: Shapes) -> _Way | None:
    pair = _common_pair(model, saved)
    if pair is None:
        return None
    filled = _count(model, saved, lambda name: _with_prefix(name, [pair]))
    return None if filled is None else _Way(f"({_quoted(pair[0])}, {_quoted(pair[1])})", filled)


def _unwrapped(model: Shapes, saved: Shapes) -> _Way | None:
    """The checkpoint was saved with wrappers between the parts of names."""
    wrappers = _wrappers_in(saved)
    plain = {_without(name, wrappers): shape for name, shape in saved.items()}
    if not wrappers or len(plain) < len(saved):
        return None
    pair = _common_pair(model, plain)

    def new(name: str) -> str | None:
        return _with_prefix(_without(name, wrappers), [pair] if pair else [])

    filled = _count(model, saved, new)
    code = "name" + "".join(f'.replace("{one}.", "")' for one in wrappers)
    if pair and pair[0]:
        code += f".removeprefix({_quoted(pair[0])})"
    code = f"{_quoted(pair[1])} + {code}" if pair and pair[1] else code
    exact = pair is None or not (pair[0] and pair[1])  # else removing one prefix and adding another would not do
    return None if filled is None or not exact else _Way(f"lambda name: {code}", filled)


def _wrapped(model: Shapes, saved: Shapes) -> _Way | None:
    """The model has wrappers between the parts of its names."""
    wrappers = _wrappers_in(model)
    plain = {_without(name, wrappers): name for name in model}
    if not wrappers or len(plain) < len(model):
        return None
    pair = _common_pair({short: model[name] for short, name in plain.items()}, saved)
    if pair and (pair[0] or not pair[1]):
        return None

    def new(name: str) -> str | None:
        return plain.get(pair[1] + name if pair else name, name)

    filled = _count(model, saved, new)
    code = "name" + "".join(f'.replace("{one}.", "")' for one in wrappers)
    code += f".removeprefix({_quoted(pair[1])})" if pair else ""
    text = f"{{{code}: name for name in model.state_dict()}}"
    return None if filled is None else _Way(text, filled)


def _wrappers_in(names: Iterable[str]) -> list[str]:
    parts = {part for name in names for part in name.split(".")}
    return [one for one in _WRAPPERS if one in parts]


def _without(name: str, wrappers: Iterable[str]) -> str:
    for one in wrappers:
        name = name.replace(f"{one}.", "")
    return name


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _count(model: Shapes, saved: Shapes, new: Callable[[str], str | None]) -> int | None:
    """How many names of the model a renaming fills, with tensors of the same shape; None if it must not be used.

    That is: two tensors get one name, or a name that was found is lost.
    """
    found: dict[str, bool] = {}
    for name, shape in saved.items():
        to = new(name)
        if to is None or to not in model:
            if name in model:
                return None
            continue
        if to in found:
            return None
        found[to] = model[to] in (None, shape)
    return sum(found.values())


def _common_pair(model: Shapes, saved: Shapes) -> Pair | None:
    """The prefixes in which most names of the checkpoint differ from most of the model.

    Found by the longest endings that names on both sides have in common. A pair of which neither is empty could
    as well be two parts that look alike, such as two heads, so it must explain several names and nearly all.
    """
    lacking = [name for name in model if name not in saved]
    extra = [name for name in saved if name not in model]
    if not lacking or not extra:
        return None
    backwards = sorted(_backwards(name) for name in extra)
    votes: Counter[Pair] = Counter()
    for name in lacking[:: max(1, len(lacking) // _SAMPLE)]:
        at = bisect_left(backwards, _backwards(name))  # on both sides of it are the names that end most like it
        for other in map(_forwards, backwards[max(0, at - _NEIGHBOURS) : at + _NEIGHBOURS]):
            if ending := _common_ending(name, other) if model[name] in (None, saved[other]) else "":
                votes[other.removesuffix(ending), name.removesuffix(ending)] += 1
    best: tuple[int, Pair] | None = None
    wanted = set(lacking)
    for old, new in [pair for pair, _ in votes.most_common(_CANDIDATES)]:
        moved = [name for name in extra if name.startswith(old) and new + name[len(old) :] in wanted]
        least = min(len(lacking), len(extra))
        enough = max(4, 0.9 * least) if old and new else 0.5 * least
        if len(moved) >= enough and (best is None or len(moved) > best[0]):
            best = len(moved), (old, new)
    return None if best is None else best[1]


def _backwards(name: str) -> str:
    return f".{name}"[::-1]


def _forwards(backwards: str) -> str:
    return backwards[::-1].removeprefix(".")


def _common_ending(one: str, other: str) -> str:
    """The longest ending of both that is a whole number of parts between dots."""
    parts = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return ".".join([mine for mine, _ in takewhile(lambda pair: pair[0] == pair[1], parts)][::-1])
