"""An index of shards, `{"metadata": {…}, "weight_map": {tensor: shard}}`, read as hostile input.

There is no specification of it; the form is what
https://huggingface.co/docs/safetensors/metadata_parsing describes and what the writers of
huggingface_hub, transformers and mlx-lm produce. `weight_map` is an allow-list of pairs (tensor,
shard). All else in the file is a hint at best.

Decided here, as nothing else decides it:

- A tensor listed twice counts once if both name the same shard, and is refused otherwise.
- Shards that a case-insensitive or normalizing file system takes for one file are refused.
- `..` is refused even where it stays inside the folder: a client may fold it, a server may not.
- `__metadata__` is no tensor. One UTF-8 byte-order mark in front is skipped.
"""

from __future__ import annotations

import fnmatch
import math
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..errors import InvalidIndexError, MissingTensorError, SelectionError, SourceError
from .header import Header
from .hostile import parse_json, recognize, short_repr

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = [
    "Index",
    "Selector",
    "aliases_in",
    "check_index",
    "check_shard_name",
    "check_tensors",
    "parse_index",
    "select_tensors",
    "selector",
]

SUFFIX = ".safetensors"
Selector = str | Iterable[str] | Callable[[str], bool] | None


@dataclass(frozen=True, slots=True)
class Index:
    """A checked index: `weight_map` maps each tensor to its shard, a path relative to the folder of `file`.

    `metadata` is what the file says about itself, {} where it says nothing usable.
    """

    file: str
    weight_map: dict[str, str]
    metadata: dict[str, Any] = field(default_factory=dict)
    _by_shard: dict[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_shard: dict[str, list[str]] = {}
        for tensor, shard in self.weight_map.items():
            by_shard.setdefault(shard, []).append(tensor)
        object.__setattr__(self, "_by_shard", by_shard)

    @property
    def shards(self) -> tuple[str, ...]:
        """The distinct shards, in the order in which `weight_map` first names them."""
        return tuple(self._by_shard)

    @property
    def total_size(self) -> int | None:
        """Bytes of all tensors, as claimed: a hint that is often stale, never to be relied on. None if unusable."""
        claim = self.metadata.get("total_size")
        if type(claim) is float and math.isfinite(claim):  # some writers give 55562855904.0
            claim = int(claim)
        return claim if type(claim) is int and claim >= 0 else None

    def tensors_of(self, shard: str) -> list[str]:
        """The tensors that `weight_map` places in `shard`, in its order; none for a shard it does not name."""
        return list(self._by_shard.get(shard, ()))


def parse_index(raw: bytes, *, file: str, max_bytes: int, max_shards: int = 10_000) -> Index:
    """The index whose bytes are `raw`. Raises InvalidIndexError, with the tensor where one is at fault.

    `max_bytes` is checked before anything is parsed: JSON grows more than twentyfold in memory.
    """

    def fail(reason: str, tensor: str | None = None) -> NoReturn:
        raise InvalidIndexError(file, reason, tensor=tensor)

    if len(raw) > max_bytes:
        raise index_too_large(file, max_bytes)
    top = _parse(raw, file)
    maps = [value for key, value in top if key == "weight_map"]
    if len(maps) != 1:
        fail("it has no weight_map" if not maps else "it has more than one weight_map")
    if type(maps[0]) is not tuple:
        fail(f"its weight_map is not an object: {short_repr(maps[0])}")
    weight_map = _weight_map(maps[0], file, max_shards)
    if not weight_map:
        fail("its weight_map names no tensors")
    _check_collisions(weight_map, file)
    metadata = [value for key, value in top if key == "metadata"]
    return Index(file, weight_map, _metadata(metadata[-1]) if metadata else {})


def index_too_large(file: str, limit: int) -> InvalidIndexError:
    """The error for an index that is not even parsed, and of which no more than `limit` bytes were read."""
    error = InvalidIndexError(file, f"it has more bytes than the {limit:,} that Policy.max_index_bytes allows")
    error.hint = "If you trust its source, give Policy.max_index_bytes a larger number of bytes."
    return error


def _parse(raw: bytes, file: str) -> tuple[tuple[str, Any], ...]:
    """The members of the top-level object; objects inside are tuples of pairs too, so that no duplicate is lost."""
    text = raw.removeprefix(b"\xef\xbb\xbf")
    if not text.strip():
        raise InvalidIndexError(file, "it is empty")
    try:
        top = parse_json(text, tuple)
    except ValueError as error:
        reason = f"it {error}"
    else:
        if type(top) is tuple:
            return top
        raise InvalidIndexError(file, f"it is not a JSON object: {short_repr(top)}")
    invalid = InvalidIndexError(file, reason)
    if not text.lstrip().startswith(b"{"):
        invalid.hint = recognize(text[:512])
    raise invalid


def _weight_map(pairs: tuple[tuple[str, Any], ...], file: str, max_shards: int) -> dict[str, str]:
    weight_map: dict[str, str] = {}
    checked: set[str] = set()
    for tensor, shard in pairs:
        if type(shard) is not str or shard not in checked:
            checked.add(check_shard_name(shard, file=file, tensor=tensor))
            if len(checked) > max_shards:
                raise InvalidIndexError(file, f"it names more than {max_shards:,} shards")
        if weight_map.setdefault(tensor, shard) != shard:
            shards = f"{short_repr(weight_map[tensor])} and {short_repr(shard)}"
            reason = f"it places {short_repr(tensor)} in two shards, {shards}"
            raise InvalidIndexError(file, reason, tensor=tensor)
    if "__metadata__" in weight_map:
        reason = "it lists __metadata__ as a tensor, a name that the format reserves"
        raise InvalidIndexError(file, reason, tensor="__metadata__")
    return weight_map


def _check_collisions(weight_map: dict[str, str], file: str) -> None:
    """No two shards are one file, and none is the folder of another, on any file system."""
    first: dict[str, str] = {}
    for tensor, shard in weight_map.items():
        first.setdefault(shard, tensor)
    seen: dict[str, tuple[str, str]] = {}
    for shard, tensor in first.items():
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", shard).casefold())
        other, _ = seen.setdefault(folded, (shard, tensor))
        if other != shard:
            reason = f"its shards {short_repr(other)} and {short_repr(shard)} are one file where case does not count"
            raise InvalidIndexError(file, reason, tensor=tensor)
    for folded, (shard, tensor) in seen.items():
        while "/" in folded:
            folded = folded.rpartition("/")[0]
            if folded in seen:
                reason = f"its shard {short_repr(seen[folded][0])} is also the folder of {short_repr(shard)}"
                raise InvalidIndexError(file, reason, tensor=tensor)


def _metadata(value: object) -> dict[str, Any]:
    if type(value) is not tuple:
        return {}
    try:
        return {key: _plain(inner) for key, inner in value}
    except RecursionError:
        return {}


def _plain(value: Any) -> Any:
    """`value` with dicts for the tuples of pairs."""
    if type(value) is tuple:
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if type(value) is list else value


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file#naming-conventions
_RESERVED = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
_MAX_SEGMENT_BYTES = 255
_MAX_PATH_BYTES = 1024


def check_shard_name(name: object, *, file: str, tensor: str) -> str:
    """`name`, if it is a relative path that means the same to every file system and URL parser.

    Sub-folders are fine, as is anything that percent-encoding can carry. Raises InvalidIndexError.
    """
    reason = f"is not a string: {short_repr(name)}" if type(name) is not str else _flaw(name)
    if reason is None:
        return str(name)
    raise InvalidIndexError(file, f"the shard of {short_repr(tensor)} {reason}", tensor=tensor)


def _flaw(name: str) -> str | None:
    """What is wrong with a shard name, to follow "the shard of x …"; None if nothing is."""
    shown = short_repr(name)
    if not name:
        return "is empty"
    if any(unicodedata.category(character) in _UNPRINTABLE for character in name):
        return f"has a control, format or surrogate character: {shown}"
    if "\\" in name or ":" in name:  # a drive, a UNC path, a scheme, an NTFS stream
        return f"has a backslash or a colon, so it is no relative path: {shown}"
    if name.startswith("/"):
        return f"is an absolute path: {shown}"
    if len(name.encode()) > _MAX_PATH_BYTES:
        return f"is longer than {_MAX_PATH_BYTES:,} bytes: {shown}"
    for segment in name.split("/"):
        if segment in ("", ".", ".."):
            return f"has the segment {segment!r}, so it is no plain relative path: {shown}"
        if len(segment.encode()) > _MAX_SEGMENT_BYTES:
            return f"has a segment longer than {_MAX_SEGMENT_BYTES} bytes: {shown}"
        if segment.endswith((".", " ")):
            return f"has a segment that ends in a dot or a space, which Windows drops: {shown}"
        if _RESERVED.fullmatch(segment):
            return f"has the segment {segment!r}, which names a device on Windows: {shown}"
    if name.lower().endswith(_PICKLES):
        return f"is {shown}, a pickle, which can run code when it is loaded: only safetensors files are read"
    if not name.endswith(SUFFIX):
        return f"is {shown}, which does not end in {SUFFIX}"
    return None


def selector(select: Selector) -> Callable[[str], bool]:
    """A predicate over tensor names: of a glob (as fnmatch.fnmatchcase), of several, of which any, or `select` itself.

    None selects all. A pattern also selects the tensor that is named exactly so, brackets and all.
    Raises SourceError on anything else.
    """
    if select is None:
        return lambda _: True
    if callable(select):
        return select
    patterns = (select,) if isinstance(select, str) else select
    if isinstance(patterns, (bytes, bytearray)) or not isinstance(patterns, Iterable):
        raise SourceError(f"select must be a glob, several globs or a predicate, not {short_repr(select)}.")
    names = frozenset(_globs(patterns))
    globs = [fnmatch.translate(name) for name in sorted(names) if any(sign in name for sign in "*?[")]
    matches = re.compile("|".join(globs)).match if globs else lambda _: None
    return lambda name: name in names or matches(name) is not None


def _globs(patterns: Iterable[object]) -> Iterable[str]:
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise SourceError(f"select must hold globs, which are strings, not {short_repr(pattern)}.")
        yield pattern


def aliases_in(sources: Iterable[Mapping[str, Any]], names: Container[str]) -> dict[str, str]:
    """Names that writers dropped because they were tied: {dropped name: name of `names` that was kept}.

    safetensors' `save_model` records them in `__metadata__`
    (https://huggingface.co/docs/safetensors/torch_shared_tensors), huggingface_hub's sharded writer in the
    index's metadata. Other metadata is told apart by its value, which is no tensor's name. A dropped name may
    stand for another one.
    """
    said = {name: kept for metadata in sources for name, kept in metadata.items() if isinstance(kept, str)}
    aliases: dict[str, str] = {}
    for dropped in said:
        kept, seen = dropped, {dropped}
        while kept not in names and kept in said and said[kept] not in seen:
            kept = said[kept]
            seen.add(kept)
        if kept != dropped and kept in names:
            aliases[dropped] = kept
    return aliases


def select_tensors(index: Index, select: Selector, aliases: Mapping[str, str] | None = None) -> Index:
    """`index` narrowed to the tensors that `select` picks, by their names or their `aliases`.

    Raises SelectionError if it picks none.
    """
    if select is None:
        return index
    wanted = selector(select)
    tied = {kept for dropped, kept in (aliases or {}).items() if wanted(dropped)}
    weight_map = {tensor: shard for tensor, shard in index.weight_map.items() if tensor in tied or wanted(tensor)}
    if not weight_map:
        some = ", ".join(short_repr(tensor) for tensor in list(index.weight_map)[:3])
        message = f"select matches none of the {len(index.weight_map):,} tensors of {index.file}."
        raise SelectionError(message, hint=f"The first are {some}.")
    return replace(index, weight_map=weight_map)


def check_tensors(names: Iterable[str], header: Header, *, shard: str, index_file: str) -> None:
    """Raises MissingTensorError if a shard lacks one of `names`."""
    missing = [name for name in names if name not in header.tensors]
    if missing:
        raise MissingTensorError(shard, index_file, missing)


def check_index(index: Index, headers: Mapping[str, Header]) -> list[str]:
    """Hold the index against the headers of its shards: tensors and shards that it does not list, as notes.

    `headers` maps shard names, as in the index, to headers. The index is an allow-list: what it
    does not list is skipped. Raises MissingTensorError for what it lists and a shard lacks.
    """
    notes = []
    for shard, header in headers.items():
        listed = index.tensors_of(shard)
        check_tensors(listed, header, shard=shard, index_file=index.file)
        extra = len(header.tensors) - len(listed)
        if extra:
            wanted = set(listed)
            example = next(name for name in header.tensors if name not in wanted)
            notes.append(f"{shard} has {extra} tensor(s) that {index.file} does not list, such as {example!r}: skipped")
    return notes + _omitted(index)


def _omitted(index: Index) -> list[str]:
    """A note of shards that are counted in the names of the others, and that no tensor of the index lies in."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for shard in index.shards:
        if found := _NUMBERED.fullmatch(shard):
            numbers.setdefault((found[1], found[3]), set()).add(int(found[2]))
    omitted, example = 0, ""
    for (stem, total), known in numbers.items():
        first = 0 if 0 in known else 1
        absent = next(number for number in range(first, first + len(known) + 1) if number not in known)
        if len(known) < int(total):
            omitted += int(total) - len(known)
            example = example or f"{stem}-{absent:05}-of-{total}.safetensors"
    return [f"{index.file} lists nothing of {omitted:,} shard(s), such as {example}: skipped"] if omitted else []


_NUMBERED = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors", re.DOTALL)
