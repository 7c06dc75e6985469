"""Tensors of which each rank holds a part (DTensor, and so FSDP2): which part that is, and one made of it.

https://docs.pytorch.org/docs/stable/distributed.tensor.html. torch is not imported here: a tensor that is one proves
that it is.
"""

from __future__ import annotations

import sys
from typing import Any

from ..errors import SourceError
from ..format.dtypes import Array
from ..format.ranks import Cut

__all__ = ["flaw_of", "from_part", "is_sharded", "offloaded_of", "part_of", "refuse_flat", "reshard"]


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor."""
    kinds: Any = sys.modules.get("torch.distributed.tensor")
    return kinds is not None and isinstance(tensor, kinds.DTensor)


def flaw_of(torch: Any, tensor: Any) -> str | None:
    """Why the part of this rank cannot be told or filled, if so."""
    kinds: Any = sys.modules["torch.distributed.tensor"]
    odd = [str(one) for one in tensor.placements if type(one) not in (kinds.Shard, kinds.Replicate)]
    if odd:
        return f"placed as {odd[0]}"
    if tensor.device_mesh.get_coordinate() is None:
        return "on a mesh that this rank is not in"
    local = _local(torch, tensor)
    if type(local) not in (torch.Tensor, torch.nn.Parameter) or local.layout is not torch.strided:
        return f"made of {type(local).__module__}.{type(local).__qualname__}"
    held = tuple(stop - start for start, stop in _bounds(tensor))
    if held != tuple(local.shape):
        return f"cut in another way than torch.chunk does: {tuple(local.shape)} instead of {held} on this rank"
    return None


def part_of(tensor: Any) -> Cut | None:
    """What this rank holds of a tensor that has no flaw; None where that is all."""
    bounds = _bounds(tensor)
    if bounds == [(0, size) for size in tensor.shape]:
        return None
    return Cut(tuple(tensor.shape), (tuple(slice(start, stop) for start, stop in bounds),))


def _bounds(tensor: Any) -> list[tuple[int, int]]:
    """From where to where it reaches in each dimension: the blocks of torch.chunk, for each dimension of the mesh."""
    bounds = [(0, size) for size in tensor.shape]
    mesh = tensor.device_mesh
    for dimension, (placement, rank) in enumerate(zip(tensor.placements, mesh.get_coordinate(), strict=True)):
        if placement.is_shard():
            start, stop = bounds[placement.dim]
            block = -(-(stop - start) // mesh.size(dimension))
            bounds[placement.dim] = min(start + rank * block, stop), min(start + (rank + 1) * block, stop)
    return bounds


def from_part(torch: Any, tensor: Any, array: Array, convert: Any, *, offloaded: bool = False) -> Any:
    """A DTensor placed as `tensor`, of this rank's part, or of the whole, of which the part is taken.

    It is where the part of `tensor` is; where that is nowhere yet, on the device of the mesh, or if `offloaded` on the
    CPU. torch's from_local knows the device of the mesh alone.
    """
    part, local = part_of(tensor), _local(torch, tensor)
    if part is not None and array.shape != tuple(local.shape):
        array = part.of(array)
    mesh, given = tensor.device_mesh, convert(array)
    home = local.device if not local.is_meta else torch.device("cpu") if offloaded else None
    if home is None or home.type == mesh.device_type:
        sizes = {"shape": tensor.shape, "stride": tensor.stride()}
        return type(tensor).from_local(given, mesh, tensor.placements, run_check=False, **sizes)
    with torch.no_grad():
        made = torch.empty_like(tensor, dtype=given.dtype, device=home, requires_grad=False)
        made.to_local().copy_(given)
    return made


def offloaded_of(module: Any) -> set[int]:
    """The ids of the parameters that FSDP2 wants on the CPU: torch tells nobody where they are to be, once on meta."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    found: set[int] = set()
    for owner in module.modules() if hasattr(fsdp, "FSDPModule") else ():
        if isinstance(owner, fsdp.FSDPModule):
            state = owner._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
            held = [one for group in groups for one in getattr(group, "fsdp_params", ())]
            found |= {id(one.sharded_param) for one in held if getattr(one, "offload_to_cpu", False)}
    return found


def reshard(module: Any) -> None:
    """Have FSDP2 give back what it has gathered for a forward pass, so that parameters are what they are saved as."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for owner in module.modules() if hasattr(fsdp, "FSDPModule") else ():
        if isinstance(owner, fsdp.FSDPModule):
            owner.reshard()


def refuse_flat(module: Any) -> None:
    """Raises SourceError for FSDP1, which cuts one flat parameter of many, wherever one of them ends."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for name, owner in module.named_modules() if hasattr(fsdp, "FullyShardedDataParallel") else ():
        if isinstance(owner, fsdp.FullyShardedDataParallel):
            raise SourceError(
                f"{name or 'The model'} is a FullyShardedDataParallel, whose ranks hold parts of a flat parameter.",
                hint="Load before the model is wrapped, or shard it with fully_shard().",
            )


def _local(torch: Any, tensor: Any) -> Any:
    with torch.no_grad():
        return tensor.to_local()
