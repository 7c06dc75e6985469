"""A state dict into a torch module. torch is not imported here: a module that is passed in proves that it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from .device import Movers
from .fit import (
    Array,
    Filler,
    LoadReport,
    StateDict,
    Terms,
    Verdict,
    choose_among_ties,
    find_supply,
    same_bytes,
    tied_names,
    unshare,
)
from .places import Place, attributes_on_meta, has_own_loading_code, obstacle, places_of
from .rehearsal import rehearse
from .torch_tensors import hollow_tensor, to_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping


__all__ = ["judge_module", "load_module", "shapes_of_module"]


@dataclass(frozen=True, slots=True)
class _ModuleFit:
    """How a state dict fills a module: `supply` says from which of its names, `losers` which differ from it.

    `tensors` are under the names of both. `skipped` are names of the module that keep what they hold.
    """

    places: dict[str, Place]
    slots: dict[str, Hashable]
    supply: dict[str, str]
    losers: dict[str, str]
    tensors: dict[str, Any]
    skipped: tuple[str, ...]
    verdict: Verdict

    def report(self, module: Any, present: Collection[str]) -> LoadReport:
        tied = tied_names(self.supply, present, self.losers)
        return LoadReport(
            loaded=tuple(name for name in self.places if name in self.verdict.filled and name not in tied),
            missing=tuple(self.verdict.missing),
            unexpected=tuple(self.verdict.unexpected),
            tied=tied,
            on_meta=tuple(name for name, place in places_of(module).items() if place.tensor.is_meta),
            skipped=self.skipped,
        )


def shapes_of_module(module: Any) -> dict[str, tuple[int, ...] | None]:
    """The shape of each parameter and persistent buffer, None where it has none yet."""
    named = places_of(module).items()
    return {name: _shape_or_none(place.tensor) for name, place in named if place.persistent}


def _shape_or_none(tensor: Any) -> tuple[int, ...] | None:
    try:
        return tuple(tensor.shape)
    except RuntimeError:  # a lazy one
        return None


def load_module(torch: Any, module: Any, state_dict: StateDict, terms: Terms) -> LoadReport:
    """`load_state_dict_into` for a `torch.nn.Module`; `torch` is the imported package."""
    fit = _fit_module(torch, module, state_dict, terms)
    fit.verdict.enforce(fit.losers, terms.strict)
    if terms.assign:
        unshare(fit.tensors, fit.slots, lambda t: t.data_ptr() if t.numel() else 0, lambda t: t.clone())
    _fill(torch, module, fit, terms)
    return fit.report(module, state_dict.keys())


def judge_module(torch: Any, module: Any, expected: StateDict, terms: Terms) -> Filler | None:
    """Judge a state dict that is still to come by its dtypes and shapes: raise as `load_module` would.

    Returns what copies its tensors one by one, or None where the whole state dict must be seen: with
    `assign`, with loading code that is not torch's own, and where one tensor of the module
    has several names in the state dict, whose values must be equal. What such code has no part in is
    judged all the same.
    """
    own_code = has_own_loading_code(torch)
    fit = _fit_module(torch, module, expected, terms, hollow=True)
    fit.verdict.enforce({}, terms.strict)
    whole = any(own_code(owner) or owner._load_state_dict_post_hooks for owner in module.modules())
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    return None if terms.assign or fit.losers or whole or swaps else _ModuleFiller(torch, module, fit, expected)


class _ModuleFiller:
    def __init__(self, torch: Any, module: Any, fit: _ModuleFit, expected: StateDict) -> None:
        self._torch, self._module, self._fit, self._expected = torch, module, fit, expected
        self._movers = Movers()
        self._targets: dict[str, dict[Hashable, Any]] = {}
        for name, source in fit.supply.items():
            self._targets.setdefault(source, {})[fit.slots[name]] = fit.places[name].tensor

    def put(self, name: str, array: Array) -> None:
        with self._torch.no_grad():
            for own in self._targets.get(name, {}).values():
                given = to_torch(array)
                _copy(own, given if own.device.type == "cpu" else self._movers.put(given, own.device).take())

    def report(self) -> LoadReport:
        self._movers.wait()
        return self._fit.report(self._module, self._expected.keys())

    def close(self) -> None:
        self._movers.close()


def _copy(own: Any, given: Any) -> None:
    own.copy_(_reshaped(own, given))


def _reshaped(own: Any, given: Any) -> Any:
    """As torch does it: a tensor without dimensions may be saved with one."""
    return given[0] if own.dim() == 0 and tuple(given.shape) == (1,) else given


def _fit_module(torch: Any, module: Any, state_dict: StateDict, terms: Terms, *, hollow: bool = False) -> _ModuleFit:
    """Hold a module against a state dict; with `hollow`, whose arrays have no memory, no values are read.

    Modules with loading code of their own are then not judged, nor what is below them.
    """
    places = places_of(module)
    for name, place in places.items():
        if torch.nn.parameter.is_lazy(place.tensor) or isinstance(place.owner, torch.jit.ScriptModule):
            raise SourceError(
                f"{name} has no shape yet, or belongs to a TorchScript module.",
                hint="Call a lazy model once with an input before loading; load before scripting.",
            )
    present = {name: array for name, array in state_dict.items() if not terms.skip(name)}
    slots = {name: place.identity(torch) for name, place in places.items()}
    supply = find_supply(slots, present.keys(), terms.aliases)
    losers = choose_among_ties(slots, supply, present, (lambda _a, _b: False) if hollow else same_bytes)
    tensors, refused = _tensors(present, supply, partial(hollow_tensor, torch) if hollow else to_torch)

    own_code = has_own_loading_code(torch)
    stop = own_code if hollow else lambda _: False
    verdict = Verdict()
    with torch.no_grad():
        rehearse(torch, module, dict(tensors), "", verdict, stop)
    _judge_temporary(places, tensors, supply, verdict)
    used = set(supply) | set(supply.values()) | losers.keys()
    verdict.missing = [name for name in dict.fromkeys(verdict.missing) if not terms.skip(name)]
    verdict.unexpected = [name for name in dict.fromkeys(verdict.unexpected + refused) if name not in used]
    verdict.fits_nothing = not verdict.filled and len(verdict.unexpected) == len(present) and bool(places or present)
    filled = [name for name in places if name in supply or name in verdict.filled]
    if _all_plain(torch, places, filled, verdict):
        for name in filled:
            if terms.assign:
                _judge_dtype(name, places[name].tensor.dtype, terms, verdict)
            else:
                _judge_copy(torch, name, places[name].tensor, tensors.get(name), verdict)
    _judge_device(places, terms, verdict)
    _judge_bare(module, places, _below(module, own_code) if hollow else frozenset(), verdict)
    skipped = tuple(name for name in places if terms.skip(name) and name not in verdict.filled)
    return _ModuleFit(places, slots, supply, losers, tensors, skipped, verdict)


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


def _below(module: Any, own_code: Callable[[Any], bool]) -> frozenset[str]:
    """The prefixes of all modules that have loading code of their own, or stand below one that has."""
    found: set[str] = set()
    for prefix, owner in module.named_modules(remove_duplicate=False):  # a module comes before what is in it
        if own_code(owner) or (prefix and prefix.rpartition(".")[0] in found):
            found.add(prefix)
    return frozenset(found)


def _judge_temporary(
    places: Mapping[str, Place], tensors: Mapping[str, Any], supply: dict[str, str], verdict: Verdict
) -> None:
    """Buffers that are no part of a state dict of today, and that a checkpoint may hold nevertheless.

    torch leaves them alone and calls their names unexpected. Where they have no values they are filled
    like any other; where they have, only with what is of the same shape and dtype: what the module
    computed is otherwise the better.
    """
    left = set(verdict.unexpected)
    for name in [name for name in supply if not places[name].persistent]:
        own, given = places[name].tensor, _reshaped(places[name].tensor, tensors[name])
        same = own.shape == given.shape
        if name not in left or not (own.is_meta or (same and own.dtype == given.dtype)):
            del supply[name]  # its module's own code took it, or it does not fit
        elif same:
            verdict.filled[name] = given.dtype
        else:
            verdict.shapes[name] = (tuple(own.shape), tuple(given.shape))


def _all_plain(torch: Any, places: Mapping[str, Place], filled: Collection[str], verdict: Verdict) -> bool:
    """Whether all that is filled may be filled with plain values."""
    obstacles = [obstacle(torch, name, places[name]) for name in filled]
    found = [reason for reason in obstacles if reason is not None]
    if found:
        verdict.reasons.extend(found)
        verdict.hints.append(
            "Load before the model is sharded, quantised or offloaded (fully_shard, distribute_tensor, quantize_); "
            "for the rows of one rank there is open_async() and its shard_of()."
        )
    return not found


def _judge_dtype(name: str, own: Any, terms: Terms, verdict: Verdict) -> None:
    """Whether what takes the place of a tensor has its dtype, or may have another."""
    given = verdict.filled.get(name)
    if given not in (None, own) and not terms.allow(own.is_floating_point, given.is_floating_point):
        verdict.dtypes[name] = (_name_of(own), _name_of(given))


def _name_of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _judge_bare(module: Any, places: Mapping[str, Place], unknown: Collection[str], verdict: Verdict) -> None:
    """What would have no values after the load. Of modules that are `unknown` their own code may see to that."""
    known = {id(place.tensor) for place in places.values()}
    names = [name for name, place in places.items() if place.tensor.is_meta and name not in verdict.filled]
    names = [name for name in names if name not in verdict.shapes] + list(attributes_on_meta(module, known))
    verdict.bare = [name for name in names if name.rpartition(".")[0] not in unknown]
    verdict.bare_parameters = any(name in places and places[name].is_parameter for name in verdict.bare)


def _judge_device(places: Mapping[str, Place], terms: Terms, verdict: Verdict) -> None:
    """Whether all that has values may be, or come to be, on the device that was asked for."""
    if terms.device is None:
        return
    if not terms.assign:
        raise SourceError("device= is for what has no memory yet.", hint="Leave assign=False or device= out.")
    elsewhere = [
        (name, place.tensor.device)
        for name, place in places.items()
        if place.is_parameter and not place.tensor.is_meta and place.tensor.device != terms.device
    ]
    if elsewhere:
        name, own = elsewhere[0]
        verdict.reasons.append(f"{name} is on {own} already, not on {terms.device}")
        verdict.hints.append(f'device= is for a model on meta: move this one with model.to("{terms.device}").')


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


def _fill(torch: Any, module: Any, fit: _ModuleFit, terms: Terms) -> None:
    places, tensors, assign = fit.places, fit.tensors, terms.assign
    beside: list[tuple[Place, Any]] = []
    if assign:
        beside = _moved(fit, terms.device)
        for name in [name for name in places if name in tensors]:
            dtype = tensors[name].dtype
            if places[name].tensor.requires_grad and (dtype.itemsize < 2 or not _differentiable(dtype)):
                places[name].tensor.requires_grad_(False)  # torch carries the flag over, and refuses integers with it
    with torch.no_grad():
        module.load_state_dict(tensors, strict=False, assign=assign)
        for name in [name for name in fit.supply if not places[name].persistent]:
            place, given = places[name], _reshaped(places[name].tensor, tensors[name])
            if assign:
                place.table[place.leaf] = given
            else:
                place.tensor.copy_(given)
    if not assign:
        return
    groups: dict[int, list[Place]] = {}
    for place in places.values():
        groups.setdefault(id(place.tensor), []).append(place)
    for group in groups.values():
        kept = next((p.table[p.leaf] for p in group if p.table[p.leaf] is not p.tensor), None)
        for place in group if kept is not None else ():
            place.table[place.leaf] = kept
    for place, moved in beside:
        place.table[place.leaf] = moved


def _moved(fit: _ModuleFit, device: Any) -> list[tuple[Place, Any]]:
    """Have what takes the place of a tensor where that is; of one on meta on `device`, if there is one.

    Returns the buffers that keep their values and have to follow, and what they become there.
    """
    movers, there = Movers(), dict[tuple[int, Any], Any]()

    def moved(tensor: Any, target: Any) -> Any:
        if (id(tensor), target) not in there:
            there[id(tensor), target] = movers.put(tensor, target).take()
        return there[id(tensor), target]

    try:
        unused = set(fit.verdict.unexpected)
        for name in fit.supply if device is None else [name for name in fit.tensors if name not in unused]:
            target = fit.places[name].tensor.device if device is None else device
            if target.type not in ("cpu", "meta"):
                fit.tensors[name] = moved(fit.tensors[name], target)
        left = [place for name, place in fit.places.items() if device is not None and name not in fit.tensors]
        left = [place for place in left if not place.tensor.is_meta and place.tensor.device != device]
        beside = [(place, moved(place.tensor, device)) for place in left]
        movers.wait()
    finally:
        movers.close()
    return beside


def _differentiable(dtype: Any) -> bool:
    return bool(dtype.is_floating_point or dtype.is_complex)
