"""A state dict into a model: torch modules, and nested trees of numpy arrays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from ..errors import SourceError
from .fit import Array, Filler, LoadReport, StateDict, kind_of
from .torch_module import judge_module, load_module
from .torch_tensors import to_torch
from .tree import flatten, judge_tree, load_tree, unflatten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

__all__ = ["LoadReport", "Loading", "StateDict", "flatten", "load_state_dict_into", "to_torch", "unflatten"]


def load_state_dict_into(
    model: object,
    state_dict: StateDict,
    *,
    strict: bool = True,
    assign: bool = True,
    aliases: Mapping[str, str] | None = None,
) -> LoadReport:
    """Put the arrays of `state_dict` into `model`, or change nothing and raise.

    `model` is a `torch.nn.Module`, or dicts and lists of arrays nested to any depth; the names of a
    tree are its keys joined by dots (`{"encoder": [{"w": a}]}` has `encoder.0.w`). A leaf is a
    numpy array or scalar, None, or anything with a shape and a dtype (such as
    `jax.ShapeDtypeStruct`); with None any shape fits.

    `strict`: a missing or an unexpected name is an error. A wrong shape always is.

    `assign=True`: the model takes over the memory of the arrays, without a copy and in the dtype of
    the checkpoint, so meta parameters become real. A read-only array is copied for torch, which
    would write to it regardless. The parameters are then in host memory: move the module to its
    device, and create the optimizer, afterwards. `requires_grad` stays as it was, but is False for
    integers and for floats of 8 bits and less. `assign=False`: the values are copied into the
    existing tensors, which keep dtype and device; float to integer is refused.

    Tied tensors (one object, or one memory, under several names) need one of the names and stay
    tied. If the state dict holds several of them with different values, the model is not the one
    that was saved: an error if `strict`, else the first wins and the others are `unexpected`.
    `aliases` maps a name that was dropped on saving to the one that was kept (safetensors'
    `save_model` writes this to the metadata): it fills a name that is absent. Slots that are not
    tied never share memory.

    The load hooks, the `_load_from_state_dict` and the extra state of torch modules are honoured.
    Hooks that run after the load cannot forgive a missing name: that is judged before it.
    Non-persistent buffers are in no checkpoint; those on the meta device stay there, with a
    UserWarning that names them.

    Raises ModelMismatchError (missing, unexpected, shapes, dtypes) and SourceError (a model of
    another kind, a leaf that cannot be filled, a meta parameter without `assign`, a dtype that
    torch lacks). The model is then as it was.
    """
    for name, array in state_dict.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise SourceError(f"A state dict maps names to numpy arrays, but {name!r} is {kind_of(array)}.")
    torch = _torch_of(model)
    if torch is not None:
        return load_module(torch, model, state_dict, strict, assign, aliases or {})
    return load_tree(model, state_dict, strict, assign, aliases or {})


def _torch_of(model: object) -> ModuleType | None:
    """torch for one of its modules, None for a tree. Raises SourceError for a model of another kind."""
    torch = sys.modules.get("torch")
    module_type = getattr(getattr(torch, "nn", None), "Module", None)
    if module_type is not None and isinstance(model, module_type):
        return torch
    if isinstance(model, dict | list | tuple):
        return None
    raise SourceError(
        f"Cannot load into {kind_of(model)}: only into a torch.nn.Module or nested dicts and lists of arrays.",
        hint="For JAX and Flax take unflatten(state_dict); for MLX call "
        "model.load_weights([(name, mx.array(array)) for name, array in state_dict.items()]).",
    )


class Loading:
    """A load whose arrays are still to come, judged by their dtypes and shapes: raises as `load_state_dict_into`.

    `expected` is the state dict in its order; its values are not read. `copies`: what is put is
    copied into the model at once, and need not be kept. Otherwise the model stays as it is until
    `finish`, which may still find in the values, or with the help of the model's own loading code,
    that they do not fit.
    """

    def __init__(
        self, model: object, expected: StateDict, *, strict: bool, assign: bool, aliases: Mapping[str, str]
    ) -> None:
        self._model, self._order = model, list(expected)
        self._strict, self._assign, self._aliases = strict, assign, aliases
        self._held: dict[str, Array] = {}
        torch = _torch_of(model)
        self._filler: Filler | None
        if torch is not None:
            self._filler = judge_module(torch, model, expected, strict, assign, aliases)
        else:
            self._filler = judge_tree(model, expected, strict, assign, aliases)

    @property
    def copies(self) -> bool:
        return self._filler is not None

    def put(self, name: str, array: Array) -> None:
        if self._filler is not None:
            self._filler.put(name, array)
        else:
            self._held[name] = array

    def finish(self) -> LoadReport:
        """All arrays were put: what became of each name."""
        if self._filler is not None:
            return self._filler.report()
        held = {name: self._held[name] for name in self._order}
        return load_state_dict_into(self._model, held, strict=self._strict, assign=self._assign, aliases=self._aliases)
