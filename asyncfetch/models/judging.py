"""What a torch module may get: each a judgement of one kind, which goes into a Verdict."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import SourceError
from ..format.arrays import PackedArray
from .fit import StateDict, Terms, Verdict, kind_of
from .places import Place, attributes_on_meta, is_expanded, obstacle
from .sharded import is_sharded

__all__ = [
    "judge_bare",
    "judge_copy",
    "judge_device",
    "judge_dtype",
    "judge_kinds",
    "judge_loader",
    "judge_packed",
    "judge_temporary",
    "reshaped",
]


def judge_loader(module: Any, terms: Terms) -> None:
    """Whether the module's own load_state_dict takes what it is to be called with. Raises SourceError.

    One that was written before torch had `assign` takes no such argument, and what it does besides may be needed.
    """
    takes = inspect.signature(module.load_state_dict)
    name = f"{kind_of(module)}.load_state_dict()"
    if not _binds(takes, {"strict": False}):
        raise SourceError(f"{name} takes no strict=.", hint=f"Have it do so. {_GOES_ON}")
    if terms.assign and not _binds(takes, {"strict": False, "assign": True}):
        meta = any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        copy = "" if meta else "Use assign=False, which copies into the tensors that are there; or have it do so. "
        raise SourceError(
            f"{name} takes no assign=, so the module cannot take over arrays.",
            hint=f"{copy or 'Have it do so. '}{_GOES_ON}",
        )


_GOES_ON = "What it takes goes on to super().load_state_dict()."


def _binds(takes: inspect.Signature, keywords: Mapping[str, object]) -> bool:
    try:
        takes.bind({}, **keywords)
    except TypeError:
        return False
    return True


def judge_temporary(
    places: Mapping[str, Place], tensors: Mapping[str, Any], supply: dict[str, str], verdict: Verdict
) -> None:
    """Buffers that are no part of a state dict of today, and that a checkpoint may hold nevertheless.

    torch leaves them alone and calls their names unexpected. Where they have no values they are filled
    like any other; where they have, only with what is of the same shape and dtype: what the module
    computed is otherwise the better.
    """
    left = set(verdict.unexpected)
    for name in [name for name in supply if not places[name].persistent]:
        own, given = places[name].tensor, reshaped(places[name].tensor, tensors[name])
        same = own.shape == given.shape
        if name not in left or not (own.is_meta or (same and own.dtype == given.dtype)):
            del supply[name]  # its module's own code took it, or it does not fit
        elif same:
            verdict.filled[name] = given.dtype
        else:
            verdict.shapes[name] = (tuple(own.shape), tuple(given.shape))


def reshaped(own: Any, given: Any) -> Any:
    """As torch does it: a tensor without dimensions may be saved with one."""
    return given[0] if own.dim() == 0 and tuple(given.shape) == (1,) else given


def judge_kinds(torch: Any, places: Mapping[str, Place], filled: Collection[str], verdict: Verdict) -> bool:
    """Whether all that is filled may be filled with plain values."""
    obstacles = [obstacle(torch, name, places[name]) for name in filled]
    found = [reason for reason in obstacles if reason is not None]
    if found:
        verdict.reasons.extend(found)
        verdict.hints.append(
            "Load before the model is quantised, offloaded, or sharded otherwise than by Shard and Replicate "
            "(quantize_, cpu_offload, Partial); for the rows of one rank there is open_async() and its shard_of()."
        )
    return not found


def judge_packed(places: Mapping[str, Place], supply: Mapping[str, str], given: StateDict, verdict: Verdict) -> None:
    """Several elements of a byte may belong to several ranks."""
    for name, source in supply.items():
        array = given[source]
        if is_sharded(places[name].tensor) and isinstance(array, PackedArray):
            verdict.reasons.append(f"{name} is a DTensor, and {array.safetensors_dtype} of the checkpoint is packed")


def judge_dtype(name: str, own: Any, terms: Terms, verdict: Verdict) -> None:
    """Whether what takes the place of a tensor has its dtype, or may have another."""
    given = verdict.filled.get(name)
    if given not in (None, own) and not terms.allow(own.is_floating_point, given.is_floating_point):
        verdict.dtypes[name] = (_name_of(own), _name_of(given))


def _name_of(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def judge_bare(module: Any, places: Mapping[str, Place], unknown: Collection[str], verdict: Verdict) -> None:
    """What would have no values after the load. Of modules that are `unknown` their own code may see to that."""
    known = {id(place.tensor) for place in places.values()}
    names = [name for name, place in places.items() if place.tensor.is_meta and name not in verdict.filled]
    names = [name for name in names if name not in verdict.shapes] + list(attributes_on_meta(module, known))
    verdict.bare = [name for name in names if name.rpartition(".")[0] not in unknown]
    verdict.bare_parameters = any(name in places and places[name].is_parameter for name in verdict.bare)


def judge_device(places: Mapping[str, Place], terms: Terms, verdict: Verdict) -> None:
    """Whether all that has values may be, or come to be, on the device that was asked for."""
    if terms.device is None:
        return
    if not terms.assign:
        raise SourceError("device= is for what has no memory yet.", hint="Leave assign=False or device= out.")
    elsewhere = [
        (name, place.tensor.device)
        for name, place in places.items()
        if place.is_parameter and not _may_be_on(terms.device, place.tensor)
    ]
    if elsewhere:
        name, own = elsewhere[0]
        verdict.reasons.append(f"{name} is on {own} already, not on {terms.device}")
        verdict.hints.append(f'device= is for a model on meta: move this one with model.to("{terms.device}").')


def _may_be_on(device: Any, tensor: Any) -> bool:
    if is_sharded(tensor):
        return bool(tensor.device_mesh.device_type == device.type)
    return bool(tensor.is_meta or tensor.device == device)


def judge_copy(torch: Any, name: str, own: Any, given: Any, verdict: Verdict) -> None:
    """Whether copying `given`, None if a hook makes it, into `own` can work and keeps its meaning."""
    if own.is_meta:
        raise SourceError(f"{name} is on the meta device, so nothing can be copied into it.", hint="Use assign=True.")
    if is_expanded(own):
        raise SourceError(f"{name} is expanded: it has no memory for each value.", hint="Use assign=True.")
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
