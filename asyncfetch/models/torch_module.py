"""A state dict into a torch module. torch is not imported here: a module that is passed in proves that it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from .fit import (
    Array,
    Filler,
    LoadReport,
    StateDict,
    Verdict,
    choose_among_ties,
    find_supply,
    same_bytes,
    tied_names,
    unshare,
)
from .rehearsal import rehearse
from .torch_tensors import hollow_tensor, to_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping


__all__ = ["judge_module", "load_module"]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module holds a parameter or a buffer."""

    owner: Any
    leaf: str
    tensor: Any
    persistent: bool

    @property
    def table(self) -> dict[str, Any]:
        found: dict[str, Any] = self.owner._parameters if self.leaf in self.owner._parameters else self.owner._buffers
        return found

    def identity(self, torch: Any) -> Hashable:
        """Equal for the same tensor and for tensors on the same memory (what save_model drops)."""
        tensor = self.tensor
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # others need not have an address
        if plain and not tensor.is_meta and tensor.numel():
            return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        return id(tensor)


def _places(module: Any) -> dict[str, _Place]:
    """Each parameter and buffer by name; a tied one under each of its names."""
    found = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                found[name] = _Place(owner, leaf, tensor, leaf not in owner._non_persistent_buffers_set)
    return found


@dataclass(frozen=True, slots=True)
class _ModuleFit:
    """How a state dict fills a module: `supply` says from which of its names, `losers` which differ from it.

    `tensors` are under the names of both.
    """

    places: dict[str, _Place]
    slots: dict[str, Hashable]
    supply: dict[str, str]
    losers: dict[str, str]
    tensors: dict[str, Any]
    verdict: Verdict

    def report(self, module: Any, present: Collection[str]) -> LoadReport:
        tied = tied_names(self.supply, present, self.losers)
        return LoadReport(
            loaded=tuple(name for name in self.places if name in self.verdict.filled and name not in tied),
            missing=tuple(self.verdict.missing),
            unexpected=tuple(self.verdict.unexpected),
            tied=tied,
            on_meta=_still_on_meta(module),
        )


def load_module(
    torch: Any, module: Any, state_dict: StateDict, strict: bool, assign: bool, aliases: Mapping[str, str]
) -> LoadReport:
    """`load_state_dict_into` for a `torch.nn.Module`; `torch` is the imported package."""
    fit = _fit_module(torch, module, state_dict, assign, aliases)
    fit.verdict.enforce(fit.losers, strict=strict)
    if assign:
        unshare(fit.tensors, fit.slots, lambda t: t.data_ptr() if t.numel() else 0, lambda t: t.clone())
    _fill(torch, module, fit.places, fit.tensors, assign)
    return fit.report(module, state_dict.keys())


def judge_module(
    torch: Any, module: Any, expected: StateDict, strict: bool, assign: bool, aliases: Mapping[str, str]
) -> Filler | None:
    """Judge a state dict that is still to come by its dtypes and shapes: raise as `load_module` would.

    Returns what copies its tensors one by one, or None where the whole state dict must be seen:
    with `assign`, with loading code that is not torch's own, and where one tensor of the module
    has several names in the state dict, whose values must be equal.
    """
    if not _ordinary(torch, module):
        return None
    fit = _fit_module(torch, module, expected, assign, aliases, hollow=True)
    fit.verdict.enforce({}, strict=strict)
    return None if assign or fit.losers else _ModuleFiller(torch, module, fit, expected)


class _ModuleFiller:
    def __init__(self, torch: Any, module: Any, fit: _ModuleFit, expected: StateDict) -> None:
        self._torch, self._module, self._fit, self._expected = torch, module, fit, expected
        self._targets: dict[str, dict[Hashable, Any]] = {}
        for name, source in fit.supply.items():
            self._targets.setdefault(source, {})[fit.slots[name]] = fit.places[name].tensor

    def put(self, name: str, array: Array) -> None:
        with self._torch.no_grad():
            for own in self._targets.get(name, {}).values():
                given = to_torch(array)
                # As torch does it: a tensor without dimensions may be saved with one.
                own.copy_(given[0] if own.dim() == 0 and given.dim() == 1 else given)

    def report(self) -> LoadReport:
        return self._fit.report(self._module, self._expected.keys())


def _ordinary(torch: Any, module: Any) -> bool:
    """Whether only torch's own code takes part in loading, so that tensors may come one by one."""
    base = torch.nn.Module
    if torch.__future__.get_swap_module_params_on_conversion():
        return False
    for owner in module.modules():
        kind = type(owner)
        loader = kind._load_from_state_dict
        if (
            (loader is not base._load_from_state_dict and loader.__module__ != "torch.nn.modules.batchnorm")
            or kind.load_state_dict is not base.load_state_dict
            or kind.set_extra_state is not base.set_extra_state
            or {"_load_from_state_dict", "load_state_dict"} & owner.__dict__.keys()
            or owner._load_state_dict_pre_hooks
            or owner._load_state_dict_post_hooks
        ):
            return False
    plain = (torch.Tensor, torch.nn.Parameter)
    return all(type(place.tensor) in plain for place in _places(module).values())


def _fit_module(
    torch: Any, module: Any, state_dict: StateDict, assign: bool, aliases: Mapping[str, str], *, hollow: bool = False
) -> _ModuleFit:
    """Hold a module against a state dict; with `hollow`, whose arrays have no memory, no values are read."""
    places = {name: place for name, place in _places(module).items() if place.persistent}
    for name, place in places.items():
        if torch.nn.parameter.is_lazy(place.tensor) or isinstance(place.owner, torch.jit.ScriptModule):
            raise SourceError(
                f"{name} has no shape yet, or belongs to a TorchScript module.",
                hint="Call a lazy model once with an input before loading; load before scripting.",
            )
    slots = {name: place.identity(torch) for name, place in places.items()}
    supply = find_supply(slots, state_dict.keys(), aliases)
    losers = choose_among_ties(slots, supply, state_dict, (lambda _a, _b: False) if hollow else same_bytes)
    tensors, refused = _tensors(state_dict, supply, partial(hollow_tensor, torch) if hollow else to_torch)

    verdict = Verdict()
    with torch.no_grad():
        rehearse(torch, module, dict(tensors), "", verdict)
    used = set(supply) | set(supply.values()) | losers.keys()
    verdict.missing = list(dict.fromkeys(verdict.missing))
    verdict.unexpected = [name for name in dict.fromkeys(verdict.unexpected + refused) if name not in used]
    for name in verdict.filled if not assign else ():
        _judge_copy(torch, name, places[name].tensor, tensors.get(name), verdict)
    return _ModuleFit(places, slots, supply, losers, tensors, verdict)


def _tensors(
    state_dict: StateDict, supply: Mapping[str, str], convert: Callable[[Array], Any]
) -> tuple[dict[str, Any], list[str]]:
    """What torch gets to see, and the names that it cannot and need not represent."""
    converted: dict[str, Any] = {}
    refused: list[str] = []
    needed = set(supply.values())
    for name, array in state_dict.items():
        try:
            converted[name] = convert(array)
        except SourceError as error:
            if name in needed:
                raise SourceError(f"{name}: {error.message}", hint=error.hint) from error
            refused.append(name)
    return converted | {name: converted[source] for name, source in supply.items()}, refused


def _judge_copy(torch: Any, name: str, own: Any, given: Any, verdict: Verdict) -> None:
    """Whether copying `given`, None if a hook makes it, into `own` can work and keeps its meaning."""
    if own.is_meta:
        raise SourceError(f"{name} is on the meta device, so nothing can be copied into it.", hint="Use assign=True.")
    if given is None:
        return
    try:
        fits = torch.can_cast(given.dtype, own.dtype)
        if fits:  # what is allowed by its kind may still have no conversion
            torch.empty(1, dtype=own.dtype).copy_(torch.empty(1, dtype=given.dtype))
    except (RuntimeError, NotImplementedError):
        fits = False
    if not fits:
        verdict.reasons.append(f"{name} is {own.dtype} in the model and {given.dtype} in the checkpoint")


def _fill(torch: Any, module: Any, places: Mapping[str, _Place], tensors: dict[str, Any], assign: bool) -> None:
    if assign:
        for name in [name for name in places if name in tensors]:
            dtype = tensors[name].dtype
            if places[name].tensor.requires_grad and (dtype.itemsize < 2 or not _differentiable(dtype)):
                places[name].tensor.requires_grad_(False)  # torch carries the flag over, and refuses integers with it
    with torch.no_grad():
        module.load_state_dict(tensors, strict=False, assign=assign)
    if not assign:
        return
    groups: dict[int, list[_Place]] = {}
    for place in places.values():
        groups.setdefault(id(place.tensor), []).append(place)
    for group in groups.values():
        kept = next((p.table[p.leaf] for p in group if p.table[p.leaf] is not p.tensor), None)
        for place in group if kept is not None else ():
            place.table[place.leaf] = kept


def _differentiable(dtype: Any) -> bool:
    return bool(dtype.is_floating_point or dtype.is_complex)


def _still_on_meta(module: Any) -> tuple[str, ...]:
    places = {name: place for name, place in _places(module).items() if place.tensor.is_meta}
    temporary = [name for name, place in places.items() if not place.persistent]
    if temporary:
        warnings.warn(
            f"These buffers are no part of the state dict and have no values: they are on the meta device. "
            f"Compute them before the first forward pass, which is wrong without them: {', '.join(temporary)}.",
            UserWarning,
            stacklevel=5,
        )
    return tuple(places)
