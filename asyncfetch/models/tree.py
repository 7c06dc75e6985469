"""A state dict into nested dicts and lists of numpy arrays, and the two forms into each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ..errors import SourceError
from ..format.arrays import PackedArray
from .fit import (
    Array,
    Filler,
    LoadReport,
    StateDict,
    Terms,
    Verdict,
    choose_among_ties,
    find_supply,
    kind_of,
    same_bytes,
    tied_names,
    unshare,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterator

__all__ = ["flatten", "is_tree", "judge_tree", "load_tree", "shapes_of_tree", "unflatten"]


def flatten(tree: object) -> dict[str, Array]:
    """The arrays of nested dicts, lists and tuples by dotted name, in order; nothing is copied.

    `{"encoder": [{"w": a}]}` becomes `{"encoder.0.w": a}`. The inverse of `unflatten` for dicts.
    Raises SourceError on a leaf that is no numpy array or scalar, and on a name that occurs twice.
    """
    found = {}
    for name, leaf in _leaves(tree).items():
        if not isinstance(leaf.value, np.ndarray | np.generic):
            raise SourceError(f"{name} is {kind_of(leaf.value)}, not an array.")
        found[name] = leaf.value if isinstance(leaf.value, np.ndarray) else np.asarray(leaf.value)
    return found


def unflatten(state_dict: StateDict) -> dict[str, Any]:
    """Nested dicts whose keys are the parts between the dots: what JAX and Flax call a pytree.

    `{"encoder.0.w": a}` becomes `{"encoder": {"0": {"w": a}}}`; nothing is copied. Raises
    SourceError if a name is also the beginning of another (`"a"` and `"a.b"`).
    """
    root: dict[str, Any] = {}
    for name, array in state_dict.items():
        *branches, last = name.split(".")
        node = root
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise SourceError(f"{name!r} cannot be nested: it or a part of it names both an array and a group.")
        node[last] = array
    return root


@dataclass(frozen=True, slots=True)
class _Leaf:
    container: Any
    key: Any
    value: Any

    def identity(self) -> Hashable:
        """Equal for one array under several names. One placeholder for many arrays ties nothing."""
        return id(self.value) if isinstance(self.value, np.ndarray) else (id(self.container), self.key)

    def shape(self) -> tuple[int, ...] | None:
        return None if self.value is None else _shape(self.value)


def is_tree(node: object) -> bool:
    """Whether `node` is a dict, a list or a tuple, and no more than that.

    A module of another framework may be a dict too (mlx.nn.Module): what can be called, or has
    parameters to give or a way to load them, is no container of arrays.
    """
    kind = type(node)
    modular = callable(node) or any(callable(getattr(kind, name, None)) for name in _OF_MODULES)
    return isinstance(node, dict | list | tuple) and not modular


_OF_MODULES = ("parameters", "load_weights", "load_state_dict", "state_dict")


def shapes_of_tree(tree: object) -> dict[str, tuple[int, ...] | None]:
    """The shape of each leaf, None where any will do."""
    return {name: leaf.shape() for name, leaf in _leaves(tree).items()}


def _leaves(tree: object) -> dict[str, _Leaf]:
    found: dict[str, _Leaf] = {}
    for name, leaf in _walk(tree, "", ()):
        if name in found:
            raise SourceError(f"Two leaves of the tree have the name {name!r}.")
        found[name] = leaf
    return found


def _walk(node: Any, prefix: str, parents: tuple[int, ...]) -> Iterator[tuple[str, _Leaf]]:
    if not is_tree(node):
        raise SourceError(f"A tree is made of dicts, lists and tuples, not of {kind_of(node)}.")
    if id(node) in parents:
        raise SourceError(f"The tree contains itself at {prefix!r}.")
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if not isinstance(key, str | int):
            raise SourceError(f"The key {key!r} at {prefix!r} is neither a string nor an integer.")
        name = f"{prefix}{key}"
        if is_tree(value):
            yield from _walk(value, f"{name}.", (*parents, id(node)))
        elif value is None or (
            hasattr(value, "shape") and hasattr(value, "dtype") and not type(value).__module__.startswith("torch")
        ):
            yield name, _Leaf(node, key, value)
        else:
            raise SourceError(
                f"The leaf {name!r} is {kind_of(value)}, not an array.",
                hint="Use None for an array that does not exist yet; for torch pass the module itself, "
                "for MLX and the like load with the module's own functions.",
            )


@dataclass(frozen=True, slots=True)
class _TreeFit:
    """How a state dict fills a tree: `supply` says from which of its names, `losers` which differ from it."""

    leaves: dict[str, _Leaf]
    slots: dict[str, Hashable]
    supply: dict[str, str]
    losers: dict[str, str]
    skipped: tuple[str, ...]
    verdict: Verdict

    def report(self, present: Collection[str]) -> LoadReport:
        tied = tied_names(self.supply, present, self.losers)
        return LoadReport(
            loaded=tuple(name for name in self.supply if name not in tied),
            missing=tuple(self.verdict.missing),
            unexpected=tuple(self.verdict.unexpected),
            tied=tied,
            skipped=self.skipped,
        )


def load_tree(tree: object, state_dict: StateDict, terms: Terms) -> LoadReport:
    """`load_state_dict_into` for nested dicts, lists and tuples."""
    fit = _fit_tree(tree, state_dict, terms, same_bytes)
    fit.verdict.enforce(fit.losers, terms.strict)
    arrays = {name: state_dict[source] for name, source in fit.supply.items()}
    if terms.assign:
        unshare(arrays, fit.slots, lambda array: array.ctypes.data if array.size else 0, lambda array: array.copy())
    for name, array in arrays.items():
        if terms.assign:
            fit.leaves[name].container[fit.leaves[name].key] = array
        else:
            _copy(array, fit.leaves[name])
    return fit.report(state_dict.keys())


def judge_tree(tree: object, expected: StateDict, terms: Terms) -> Filler | None:
    """Judge a state dict that is still to come by its dtypes and shapes: raise as `load_tree` would.

    Returns what copies its arrays one by one, or None where the whole state dict must be seen: with
    `assign`, and where one array of the tree has several names in the state dict.
    """
    fit = _fit_tree(tree, expected, terms, lambda _a, _b: False)
    fit.verdict.enforce({}, terms.strict)
    return None if terms.assign or fit.losers else _TreeFiller(fit, expected)


class _TreeFiller:
    def __init__(self, fit: _TreeFit, expected: StateDict) -> None:
        self._fit, self._expected = fit, expected
        self._targets: dict[str, list[_Leaf]] = {}
        for name, source in fit.supply.items():
            self._targets.setdefault(source, []).append(fit.leaves[name])

    def put(self, name: str, array: Array) -> None:
        for leaf in self._targets.get(name, ()):
            _copy(array, leaf)

    def report(self) -> LoadReport:
        return self._fit.report(self._expected.keys())

    def close(self) -> None:
        return


def _copy(array: Array, leaf: _Leaf) -> None:
    np.copyto(leaf.value, array.astype(leaf.value.dtype, copy=False))


def _fit_tree(tree: object, state_dict: StateDict, terms: Terms, same: Callable[[Array, Array], bool]) -> _TreeFit:
    """Hold a tree against a state dict; of the values only `same` sees anything."""
    leaves = _leaves(tree)
    present = {name: array for name, array in state_dict.items() if not terms.skip(name)}
    slots = {name: leaf.identity() for name, leaf in leaves.items()}
    supply = find_supply(slots, present.keys(), terms.aliases)
    losers = choose_among_ties(slots, supply, present, same)
    used = set(supply.values()) | set(supply) | losers.keys()
    bare = [name for name in leaves if name not in supply]
    skipped = tuple(filter(terms.skip, bare))
    verdict = Verdict(
        missing=[name for name in bare if not terms.skip(name)],
        unexpected=[name for name in present if name not in used],
        filled=dict.fromkeys(supply),
        fits_nothing=not supply and bool(leaves or present),
    )
    for name, source in supply.items():
        shape, array = leaves[name].shape(), present[source]
        if shape is not None and shape != _shape(array):
            verdict.shapes[name] = (shape, _shape(array))
        _judge_leaf(name, leaves[name], array, terms, verdict)
    return _TreeFit(leaves, slots, supply, losers, skipped, verdict)


def _judge_leaf(name: str, leaf: _Leaf, array: Array, terms: Terms, verdict: Verdict) -> None:
    own = leaf.value
    if terms.assign:
        if isinstance(leaf.container, tuple):
            raise SourceError(
                f"{name} is in a tuple, which cannot take another array.", hint="Use a list, or assign=False."
            )
        ours, theirs = ("", "") if own is None else (_dtype_name(own), _dtype_name(array))
        if ours != theirs and not terms.allow(_is_float(ours), _is_float(theirs)):
            verdict.dtypes[name] = (ours, theirs)
    elif not isinstance(own, np.ndarray) or not own.flags.writeable:
        raise SourceError(
            f"{name} is {'read-only' if isinstance(own, np.ndarray) else kind_of(own)}, "
            "so nothing can be copied into it.",
            hint="Use assign=True.",
        )
    else:
        ours, theirs = _dtype_name(own), _dtype_name(array)
        packed = {ours, theirs} - {own.dtype.name, array.dtype.name}
        if ours != theirs and (packed or _breadth(array.dtype) > _breadth(own.dtype)):
            verdict.reasons.append(f"{name} is {ours} in the model and {theirs} in the checkpoint")


def _shape(array: Any) -> tuple[int, ...]:
    packed = array.logical_shape if isinstance(array, PackedArray) else None
    return tuple(array.shape) if packed is None else packed


def _dtype_name(value: Any) -> str:
    """As numpy calls it; for a leaf of another library, the last part of what that calls it."""
    if isinstance(value, PackedArray) and value.safetensors_dtype is not None:
        return value.safetensors_dtype
    try:
        return str(np.dtype(value.dtype).name)
    except TypeError:
        return str(value.dtype).rpartition(".")[2]


def _is_float(name: str) -> bool:
    return name.startswith(("float", "bfloat"))


def _breadth(dtype: np.dtype[Any]) -> int:
    """The rank of numpy's "same_kind" rule: bool, unsigned, signed, float, complex.

    numpy's own can_cast is wrong about ml_dtypes, whose kind is mostly "V".
    """
    if dtype.kind in "buifc":
        return "buifc".index(dtype.kind)
    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return 2
    return 3
