"""Where a torch module holds its tensors, and which of them cannot be filled by an array."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .fit import kind_of
from .sharded import flaw_of, is_sharded

__all__ = [
    "Place",
    "attributes_on_meta",
    "has_address",
    "has_own_loading_code",
    "is_expanded",
    "memory_of",
    "obstacle",
    "places_of",
]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module holds a parameter or a buffer."""

    owner: Any
    leaf: str
    tensor: Any
    persistent: bool

    @property
    def is_parameter(self) -> bool:
        return self.leaf in self.owner._parameters

    @property
    def table(self) -> dict[str, Any]:
        found: dict[str, Any] = self.owner._parameters if self.is_parameter else self.owner._buffers
        return found

    def identity(self, torch: Any) -> Hashable:
        """Equal for the same tensor and for tensors on the same memory (what save_model drops)."""
        tensor = self.tensor
        if not has_address(torch, tensor):
            return id(tensor)
        where = (memory_of(tensor), tensor.storage_offset()) if tensor.is_meta else (tensor.device, tensor.data_ptr())
        return (*where, tuple(tensor.shape), tensor.stride(), tensor.dtype)


def has_address(torch: Any, tensor: Any) -> bool:
    """Whether it is elements at some place of a memory. Other kinds of tensors need not have an address."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return bool(plain and tensor.layout is torch.strided and tensor.numel() and (tensor.is_meta or tensor.data_ptr()))


def memory_of(tensor: Any) -> Hashable:
    """Equal for tensors in one memory. What is on meta has none, but is told apart in the same way."""
    storage = tensor.untyped_storage()
    return tensor.device, storage._cdata if tensor.is_meta else storage.data_ptr()


def is_expanded(tensor: Any) -> bool:
    """Whether several of its values are one element in memory."""
    return any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def places_of(module: Any) -> dict[str, Place]:
    """Each parameter and buffer by name; a tied one under each of its names."""
    found = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                name = f"{prefix}.{leaf}" if prefix else leaf
                found[name] = Place(owner, leaf, tensor, leaf not in owner._non_persistent_buffers_set)
    return found


def obstacle(torch: Any, name: str, place: Place) -> str | None:
    """Why a tensor cannot be filled with the values of an array, if so.

    Only a plain dense tensor is its values, and of a DTensor each rank holds a part that can be told. Another
    subclass (quantised weights of torchao and bitsandbytes) may hold something else that they are computed
    from, so an array in its place, or copied into it, is another model. What accelerate has offloaded is replaced from
    its own store before each forward pass.
    """
    tensor = place.tensor
    if is_sharded(tensor):
        flaw = flaw_of(torch, tensor)
        return None if flaw is None else f"{name} is a {kind_of(tensor)} {flaw}"
    plain = (torch.Tensor, torch.nn.Parameter)
    inner = tensor.data if type(tensor) in plain else tensor
    if type(inner) not in plain:
        return f"{name} is a {kind_of(inner)}, not a plain tensor"
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        form = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        return f"{name} is a {kind_of(tensor)} that is {form}, not dense"
    if tensor.is_meta and getattr(place.owner, "_hf_hook", None) is not None:
        return f"{name} is a {kind_of(tensor)} that accelerate has offloaded"
    return None


def attributes_on_meta(module: Any, known: Collection[int]) -> Iterator[str]:
    """Tensors without memory that are neither parameters nor buffers: no state dict fills them.

    `known` are the ids of those that are. What a hook computes before each forward pass (the older
    weight_norm and spectral_norm of torch, whose hooks have its name) needs no values yet.
    """
    for prefix, owner in module.named_modules():
        computed = {getattr(hook, "name", None) for hook in owner._forward_pre_hooks.values()}
        for leaf, value in vars(owner).items():
            if leaf in _TABLES or leaf in computed:
                continue
            some: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
            for one in value.values() if isinstance(value, dict) else some:
                if getattr(one, "is_meta", False) is True and id(one) not in known:
                    yield f"{prefix}.{leaf}" if prefix else leaf
                    break


_TABLES = frozenset({"_parameters", "_buffers", "_modules"})


def has_own_loading_code(torch: Any) -> Callable[[Any], bool]:
    """Whether a module takes part in loading with code that is not torch's own, so that only values can tell."""
    base = torch.nn.Module

    def decide(owner: Any) -> bool:
        kind = type(owner)
        loader = kind._load_from_state_dict
        return bool(
            (loader is not base._load_from_state_dict and loader.__module__ != "torch.nn.modules.batchnorm")
            or kind.load_state_dict is not base.load_state_dict
            or kind.set_extra_state is not base.set_extra_state
            or {"_load_from_state_dict", "load_state_dict"} & owner.__dict__.keys()
            or owner._load_state_dict_pre_hooks
        )

    return decide
