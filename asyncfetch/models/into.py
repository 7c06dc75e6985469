"""A state dict into a model: torch modules, and nested trees of numpy arrays."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ModelMismatchError, SourceError
from ..format.arrays import PackedArray
from ..format.dtypes import cast, dtype_or_none
from ..format.index import selector
from ..format.ranks import Cut
from .device import device_of
from .fit import Array, Filler, LoadReport, Skip, StateDict, Strict, Terms, kind_of
from .meta import parameters_on_meta
from .names import Rename, proposal, renamed, renaming
from .places import has_own_loading_code
from .torch_module import judge_module, load_module, shapes_of_module
from .torch_tensors import to_torch
from .tree import flatten, is_tree, judge_tree, load_tree, shapes_of_tree, unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType


__all__ = [
    "LoadReport",
    "Loading",
    "Rename",
    "Skip",
    "StateDict",
    "Strict",
    "cast_target",
    "flatten",
    "load_state_dict_into",
    "parameters_on_meta",
    "to_torch",
    "unflatten",
]


def load_state_dict_into(
    model: object,
    state_dict: StateDict,
    *,
    strict: Strict = True,
    assign: bool = True,
    dtype: object = None,
    rename: Rename = None,
    skip: Skip = (),
    device: object = None,
    aliases: Mapping[str, str] | None = None,
) -> LoadReport:
    """Put the arrays of `state_dict` into `model`, or change nothing and raise.

    `model` is a `torch.nn.Module`, or dicts and lists of arrays nested to any depth; the names of a tree are its keys
    joined by dots (`{"encoder": [{"w": a}]}` has `encoder.0.w`). A leaf is a numpy array or scalar, None (any
    fits), or what has a shape and a dtype (`jax.ShapeDtypeStruct`).

    `strict`: a missing or an unexpected name is an error; `"missing"`: a missing one alone; False: neither. A wrong
    shape always is one, as is a state dict of which nothing fits.

    `rename`: {name: name in the model}; a pair of prefixes of which the second takes the place of the first, such
    as `("module.", "")`, or several, of which the first that matches counts; or a function. A new name of None
    leaves the tensor out. `skip`: tensors of the model that keep what they hold, whatever there is for them: a
    glob, several, or a predicate over names.

    `assign=True`: the model takes over the memory of the arrays, without a copy, so meta parameters become real; on
    another device than the CPU it gets a copy there. A read-only array is copied for torch, which would write to it
    regardless. Create the optimizer afterwards. `requires_grad` stays as it was, but is False for integers and for
    floats of 8 bits and less. `assign=False`: the values are copied into the existing tensors, which keep dtype and
    device; float to integer is refused.

    `dtype`: with `assign=True` arrays of another dtype than the model's are refused, on meta too, unless it is
    given: a floating dtype, to which floats are cast, or `"auto"`, which takes each as it is.

    `device`: where a torch module on meta comes to be, such as `"cuda"`; buffers that have values follow. Parameters
    that have values must be there already. Without it what is on meta gets memory of the CPU.

    Tied tensors (one object, or one memory, under several names) need one of the names and stay tied. Several of
    them with different values are an error if `strict`: the model is not the one that was saved. Else the first
    wins and the others are `unexpected`. `aliases` maps a name that was dropped on saving to the one that was kept
    (safetensors' `save_model` writes this to the metadata): it fills a name that is absent. Slots that are not tied
    never share memory. Other views of one memory (a transposed tie, parts of a flat buffer) are filled in place, in
    their dtype: where they overlap, values that differ are an error, and on meta they are refused.

    The load hooks, the `_load_from_state_dict` and the extra state of torch modules are honoured; hooks that run
    after the load cannot forgive a missing name. A model's own `load_state_dict` without `assign` needs `assign=False`.
    Non-persistent buffers are filled where the state dict has them, as they are. Refused is what would be on the meta
    device afterwards, for which there is `parameters_on_meta`, and what is no plain tensor (quantised weights of
    torchao and bitsandbytes, FSDP1). Of a DTensor (FSDP2, `distribute_tensor`) each rank takes its part.

    Raises ModelMismatchError, and SourceError (a model of another kind, a leaf that cannot be filled, a meta
    parameter without `assign`, a dtype that torch lacks). The model is then as it was.
    """
    _check_arrays(state_dict)
    torch = _torch_of(model)
    terms = _terms(torch, strict, assign, dtype, skip, aliases or {}, rename, device)
    given = {new: _cast(state_dict[old], cast_target(dtype)) for old, new in renamed(state_dict, rename).items()}
    with _names_explained(torch, model, state_dict, given, terms):
        return _load(torch, model, given, terms)


def cast_target(dtype: object) -> np.dtype[Any] | None:
    """The dtype that floating arrays are cast to; None where each is taken as it is, or must be the model's."""
    return None if isinstance(dtype, str) and dtype == "auto" else dtype_or_none(dtype)


def _check_arrays(state_dict: Mapping[Any, object]) -> None:
    for name, array in state_dict.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            hint = "Tensors of torch are what model.load_state_dict() takes." if "torch" in kind_of(array) else ""
            raise SourceError(f"A state dict maps names to numpy arrays, but {name!r} is {kind_of(array)}.", hint=hint)


def _cast(array: Array, target: np.dtype[Any] | None) -> Array:
    return array if target is None else cast(array, target)


def _load(torch: ModuleType | None, model: object, state_dict: StateDict, terms: Terms) -> LoadReport:
    if torch is not None:
        return load_module(torch, model, state_dict, terms)
    return load_tree(model, state_dict, terms)


def _terms(
    torch: ModuleType | None,
    strict: Strict,
    assign: bool,
    dtype: object,
    skip: Skip,
    aliases: Mapping[str, str],
    rename: Rename,
    device: object,
) -> Terms:
    if device is not None and torch is None:
        raise SourceError("device= is for a torch.nn.Module.", hint="Arrays are of the CPU: leave it out.")
    new = renaming(rename)
    pairs = {new(dropped): new(kept) for dropped, kept in aliases.items()}
    return Terms(
        strict=strict,
        assign=assign,
        dtypes="kept" if dtype is None else "stored" if cast_target(dtype) is None else "cast",
        skip=selector(skip or ()),
        aliases={dropped: kept for dropped, kept in pairs.items() if dropped is not None and kept is not None},
        device=None if device is None else device_of(device),
    )


def _torch_of(model: object) -> ModuleType | None:
    """torch for one of its modules, None for a tree. Raises SourceError for a model of another kind."""
    torch = sys.modules.get("torch")
    module_type = getattr(getattr(torch, "nn", None), "Module", None)
    if module_type is not None and isinstance(model, module_type):
        return torch
    if is_tree(model):
        return None
    raise SourceError(
        f"Cannot load into {kind_of(model)}: only into a torch.nn.Module or nested dicts and lists of arrays.",
        hint="For JAX and Flax take unflatten(state_dict); for MLX call "
        "model.load_weights([(name, mx.array(array)) for name, array in state_dict.items()]).",
    )


@contextmanager
def _names_explained(
    torch: ModuleType | None, model: object, state_dict: StateDict, given: StateDict, terms: Terms
) -> Iterator[None]:
    """Where names do not fit, look whether others would, and say so instead of all else about names.

    `state_dict` has the names of the checkpoint, `given` what rename= made of them. Without `strict` too: what a
    checkpoint has under another name is not what the caller wanted to do without.
    """
    own = shapes_of_module(model) if torch is not None else shapes_of_tree(model)
    own = {name: shape for name, shape in own.items() if not terms.skip(name)}
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]

    def hint(saved: StateDict) -> str:
        return proposal(own, {name: _shape_of(array) for name, array in saved.items()}, module=torch is not None)

    own_code = torch is not None and any(map(has_own_loading_code(torch), model.modules()))  # type: ignore[attr-defined]
    if terms.strict is False and missing and unexpected and not own_code and hint(given):
        raise ModelMismatchError(missing=missing, unexpected=unexpected, hint=hint(state_dict))
    try:
        yield
    except ModelMismatchError as error:
        if error.missing:
            error.hint = hint(state_dict) or error.hint
        error.hint = f"{error.hint} {_by_its_library(model)}".strip()
        raise


def _by_its_library(model: object) -> str:
    """What to do about a model of a library that renames and merges what it loads."""
    for root in type(model).__mro__:
        library = root.__module__.partition(".")[0]
        if library in ("transformers", "diffusers"):
            return f"{library} renames and merges what it loads: asyncfetch.load_pretrained(source) has it do so."
    return ""


def _shape_of(array: Array) -> tuple[int, ...]:
    packed = array.logical_shape if isinstance(array, PackedArray) else None
    return tuple(array.shape) if packed is None else packed


class Loading:
    """A load whose arrays are still to come, judged by their dtypes and shapes: raises as `load_state_dict_into`.

    `expected` is the state dict in its order, cast already; its values are not read. `copies`: what is
    put is copied into the model at once, and need not be kept. Otherwise the model stays as it is until
    `finish`, which may still find in the values, or with the help of the model's own loading code,
    that they do not fit.
    """

    def __init__(
        self,
        model: object,
        expected: StateDict,
        *,
        strict: Strict,
        assign: bool,
        aliases: Mapping[str, str],
        dtype: object = None,
        rename: Rename = None,
        skip: Skip = (),
        device: object = None,
    ) -> None:
        self._torch, self._model, self._expected = _torch_of(model), model, expected
        self._terms = _terms(self._torch, strict, assign, dtype, skip, aliases, rename, device)
        self._names = renamed(expected, rename)
        self._held: dict[str, Array] = {}
        given = {new: expected[old] for old, new in self._names.items()}
        with _names_explained(self._torch, model, expected, given, self._terms):
            self._filler: Filler | None
            self._parts: dict[str, Cut] = {}
            if self._torch is not None:
                self._filler, self._parts = judge_module(self._torch, model, given, self._terms)
            else:
                self._filler = judge_tree(model, given, self._terms)

    @property
    def copies(self) -> bool:
        return self._filler is not None

    @property
    def parts(self) -> dict[str, Cut | None] | None:
        """What is wanted of each tensor, None for all of it; None where all are wanted whole, from all ranks alike."""
        if not self._parts:
            return None
        kept = {old: new for old, new in self._names.items() if not self._terms.skip(new)}
        return {old: self._parts.get(new) for old, new in kept.items()}

    def put(self, name: str, array: Array) -> None:
        """Take a tensor, or the part of it that is wanted."""
        new = self._names.get(name)
        if new is None or self._terms.skip(new):
            return
        if self._filler is not None:
            self._filler.put(new, array)
        else:
            self._held[new] = array

    def finish(self) -> LoadReport:
        """All arrays were put: what became of each name."""
        if self._filler is not None:
            return self._filler.report()
        held = {new: self._held[new] for new in self._names.values() if new in self._held}
        with _names_explained(self._torch, self._model, self._expected, held, self._terms):
            return _load(self._torch, self._model, held, self._terms)

    def close(self) -> None:
        """End what is still on its way to a device, within seconds."""
        if self._filler is not None:
            self._filler.close()
