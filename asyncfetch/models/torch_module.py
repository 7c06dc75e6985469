"""A state dict into a torch module. torch is not imported here: a module that is passed in proves that it is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import SourceError
from ..format.ranks import Cut
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
from .judging import (
    judge_bare,
    judge_copy,
    judge_device,
    judge_dtype,
    judge_kinds,
    judge_loader,
    judge_packed,
    judge_temporary,
    reshaped,
)
from .places import Place, has_own_loading_code, places_of
from .rehearsal import rehearse
from .sharded import flaw_of, from_part, is_sharded, offloaded_of, part_of, refuse_flat, reshard
from .shared import filled_twice, judge_memories, judge_values, memories_of, overlaid
from .torch_tensors import hollow_tensor, to_torch, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping


__all__ = ["judge_module", "load_module", "shapes_of_module"]


@dataclass(frozen=True, slots=True)
class _ModuleFit:
    """How a state dict fills a module: `supply` says from which of its names, `losers` which differ from it.

    `tensors` are under the names of both. `skipped` are names of the module that keep what they hold. `overlaid`:
    {name: the name that fills it too, being of the same elements}. `in_place`: what stays in its memory with `assign`.
    `values_count`: it takes them to tell whether all fits.
    """

    places: dict[str, Place]
    slots: dict[str, Hashable]
    supply: dict[str, str]
    losers: dict[str, str]
    tensors: dict[str, Any]
    skipped: tuple[str, ...]
    overlaid: dict[str, str]
    in_place: list[str]
    values_count: bool
    verdict: Verdict

    def report(self, module: Any, present: Collection[str]) -> LoadReport:
        tied = tied_names(self.supply, present, self.losers) | self.overlaid
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
        unshare(fit.tensors, fit.slots, _address, lambda t: t.clone())
    _fill(torch, module, fit, terms)
    return fit.report(module, state_dict.keys())


def _address(tensor: Any) -> int:
    own = tensor.to_local() if is_sharded(tensor) else tensor
    return int(own.data_ptr()) if own.numel() else 0


def judge_module(torch: Any, module: Any, expected: StateDict, terms: Terms) -> tuple[Filler | None, dict[str, Cut]]:
    """Judge a state dict that is still to come by its dtypes and shapes: raise as `load_module` would.

    Returns the parts that are wanted of tensors of which this rank holds no more, and what
    copies its tensors one by one, or None where the whole state dict must be seen: with
    `assign`, with loading code that is not torch's own, and where one tensor of the module
    (or a part of one) has several names in the state dict, whose values must be equal. What such code has no part in is
    judged all the same.
    """
    own_code = has_own_loading_code(torch)
    fit = _fit_module(torch, module, expected, terms, hollow=True)
    fit.verdict.enforce({}, terms.strict)
    whole = any(own_code(owner) or owner._load_state_dict_post_hooks for owner in module.modules())
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    filler = None if terms.assign or fit.values_count or whole or swaps else _ModuleFiller(torch, module, fit, expected)
    return filler, _parts(fit)


def _parts(fit: _ModuleFit) -> dict[str, Cut]:
    """What this rank wants of each tensor that it does not want whole, or in two ways; and of what is tied to it."""
    found: dict[str, Cut] = {}
    whole: set[str] = set()
    for name, source in fit.supply.items():
        tensor = fit.places[name].tensor
        part = part_of(tensor) if is_sharded(tensor) else None
        if part is None or found.setdefault(source, part) != part:
            whole.add(source)
    parts = {source: part for source, part in found.items() if source not in whole}
    return parts | {loser: parts[winner] for loser, winner in fit.losers.items() if winner in parts}


class _ModuleFiller:
    def __init__(self, torch: Any, module: Any, fit: _ModuleFit, expected: StateDict) -> None:
        self._torch, self._module, self._fit, self._expected = torch, module, fit, expected
        self._movers = Movers()
        self._targets: dict[str, dict[Hashable, Any]] = {}
        for name, source in fit.supply.items():
            self._targets.setdefault(source, {})[fit.slots[name]] = fit.places[name].tensor

    def put(self, name: str, array: Array) -> None:
        for own in self._targets.get(name, {}).values():
            with writing(self._torch, [own]):
                if is_sharded(own):
                    own.copy_(from_part(self._torch, own, array, to_torch))
                    continue
                given = to_torch(array)
                _copy(own, given if own.device.type == "cpu" else self._movers.put(given, own.device).take())

    def report(self) -> LoadReport:
        self._movers.wait()
        return self._fit.report(self._module, self._expected.keys())

    def close(self) -> None:
        self._movers.close()


def _copy(own: Any, given: Any) -> None:
    own.copy_(reshaped(own, given))


def _fit_module(torch: Any, module: Any, state_dict: StateDict, terms: Terms, *, hollow: bool = False) -> _ModuleFit:
    """Hold a module against a state dict; with `hollow`, whose arrays have no memory, no values are read.

    Modules with loading code of their own are then not judged, nor what is below them.
    """
    refuse_flat(module)
    judge_loader(module, terms)
    reshard(module)
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
    memories = memories_of(torch, places, slots)
    over = overlaid(memories, supply)
    losers = choose_among_ties(slots, supply, present, (lambda _a, _b: False) if hollow else same_bytes)
    tensors, refused = _tensors(present, supply, partial(hollow_tensor, torch) if hollow else to_torch)

    own_code = has_own_loading_code(torch)
    stop = own_code if hollow else lambda _: False
    verdict = Verdict()
    if not hollow:
        _share_out(torch, places, supply, present, tensors, offloaded_of(module))
    with torch.no_grad():
        rehearse(torch, module, dict(tensors), "", verdict, stop)
    judge_temporary(places, tensors, supply, verdict)
    used = set(supply) | set(supply.values()) | losers.keys()
    verdict.filled |= {name: None for name in over if name not in verdict.filled}
    verdict.missing = [name for name in dict.fromkeys(verdict.missing) if not terms.skip(name) and name not in over]
    verdict.unexpected = [name for name in dict.fromkeys(verdict.unexpected + refused) if name not in used]
    verdict.fits_nothing = not verdict.filled and len(verdict.unexpected) == len(present) and bool(places or present)
    filled = [name for name in places if name in supply or name in verdict.filled]
    judge_packed(places, supply, present, verdict)
    if judge_kinds(torch, places, filled, verdict):
        for name in filled:
            if terms.assign:
                judge_dtype(name, places[name].tensor.dtype, terms, verdict)
            else:
                judge_copy(torch, name, places[name].tensor, tensors.get(name), verdict)
    in_place = judge_memories(memories, places, terms.device, verdict) if terms.assign else []
    if not hollow:
        judge_values(memories, supply, present, verdict)
    judge_device(places, terms, verdict)
    judge_bare(module, places, _below(module, own_code) if hollow else frozenset(), verdict)
    skipped = tuple(name for name in places if terms.skip(name) and name not in verdict.filled)
    values_count = bool(losers) or filled_twice(memories, supply)
    return _ModuleFit(places, slots, supply, losers, tensors, skipped, over, in_place, values_count, verdict)


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


def _share_out(
    torch: Any,
    places: Mapping[str, Place],
    supply: Mapping[str, str],
    given: StateDict,
    tensors: dict[str, Any],
    offloaded: Collection[int],
) -> None:
    """Have what goes into a DTensor be one, of the part that this rank holds. `offloaded`: ids of those on the CPU."""
    made: dict[tuple[int, str], Any] = {}
    for name, source in supply.items():
        own = places[name].tensor
        if is_sharded(own) and flaw_of(torch, own) is None and _fits(own, given[source]):
            key = (id(own), source)
            if key not in made:
                made[key] = from_part(torch, own, given[source], to_torch, offloaded=id(own) in offloaded)
            tensors[name] = made[key]


def _fits(own: Any, array: Array) -> bool:
    """Whether it is the whole, or the part of this rank; else torch tells how the shapes differ."""
    return bool(array.shape in (tuple(own.shape), tuple(own.to_local().shape)))


def _below(module: Any, own_code: Callable[[Any], bool]) -> frozenset[str]:
    """The prefixes of all modules that have loading code of their own, or stand below one that has."""
    found: set[str] = set()
    for prefix, owner in module.named_modules(remove_duplicate=False):  # a module comes before what is in it
        if own_code(owner) or (prefix and prefix.rpartition(".")[0] in found):
            found.add(prefix)
    return frozenset(found)


def _fill(torch: Any, module: Any, fit: _ModuleFit, terms: Terms) -> None:
    places, tensors, assign = fit.places, fit.tensors, terms.assign
    beside: list[tuple[Place, Any]] = []
    if assign:
        beside = _moved(fit, terms.device)
        for name in [name for name in places if name in tensors]:
            dtype = tensors[name].dtype
            if places[name].tensor.requires_grad and (dtype.itemsize < 2 or not _differentiable(dtype)):
                places[name].tensor.requires_grad_(False)  # torch carries the flag over, and refuses integers with it
    held = {name: places[name].tensor.detach() for name in fit.in_place}
    with writing(torch, () if assign else [place.tensor for place in places.values()]):
        module.load_state_dict(tensors, strict=False, **({"assign": True} if assign else {}))
        for name in [name for name in fit.supply if not places[name].persistent]:
            place, given = places[name], reshaped(places[name].tensor, tensors[name])
            if assign:
                place.table[place.leaf] = given
            else:
                place.tensor.copy_(given)
    if not assign:
        return
    _put_back(torch, places, held)
    groups: dict[int, list[Place]] = {}
    for place in places.values():
        groups.setdefault(id(place.tensor), []).append(place)
    for group in groups.values():
        kept = next((p.table[p.leaf] for p in group if p.table[p.leaf] is not p.tensor), None)
        for place in group if kept is not None else ():
            place.table[place.leaf] = kept
    for place, moved in beside:
        place.table[place.leaf] = moved


def _put_back(torch: Any, places: Mapping[str, Place], held: Mapping[str, Any]) -> None:
    """Have tensors in the memory that they had, which others share, with the values that they were given."""
    for name, memory in held.items():
        place = places[name]
        given = place.table[place.leaf]
        if given.shape != memory.shape:  # the module's own code has made another one of it
            continue
        with writing(torch, [memory]):
            memory.copy_(given)
        if given is place.tensor:  # it was left alone, or torch has swapped what is in it
            given.data = memory
        else:
            setattr(place.owner, place.leaf, place.tensor)  # an LSTM keeps a list of its weights in step


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
            if is_sharded(fit.tensors[name]):  # it is there
                continue
            if target.type not in ("cpu", "meta"):
                fit.tensors[name] = moved(fit.tensors[name], target)
        left = [place for name, place in fit.places.items() if device is not None and name not in fit.tensors]
        left = [place for place in left if not (place.tensor.is_meta or is_sharded(place.tensor))]
        left = [place for place in left if place.tensor.device != device]
        beside = [(place, moved(place.tensor, device)) for place in left]
        movers.wait()
    finally:
        movers.close()
    return beside


def _differentiable(dtype: Any) -> bool:
    return bool(dtype.is_floating_point or dtype.is_complex)
