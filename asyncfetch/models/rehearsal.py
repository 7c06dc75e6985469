"""A load that is only rehearsed: what a torch module's own code would say of a state dict, without touching either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .fit import Verdict

__all__ = ["rehearse"]


def rehearse(
    torch: Any, module: Any, state: dict[str, Any], prefix: str, verdict: Verdict, stop: Callable[[Any], bool]
) -> None:
    """Load into stand-ins without memory, as Module.load_state_dict walks, to hear what torch says.

    Only this knows what the module's own hooks rename, accept and default. The tensors are real,
    since some hooks read values; nothing is copied and nothing reaches the module. Where `stop` says
    so of a module, nothing is said of it and what is below it.
    """
    if stop(module):
        return
    stand_in = _stand_in(torch, module)
    errors: list[str] = []
    local = {"assign_to_params_buffers": True}
    stand_in._load_from_state_dict(state, prefix, local, True, verdict.missing, verdict.unexpected, errors)
    shapes = {}
    for leaf, tensor in _persistent(module):
        name, given = prefix + leaf, state.get(prefix + leaf)
        held = stand_in._parameters.get(leaf, stand_in._buffers.get(leaf))
        if held is None or not held.is_meta:
            verdict.filled[name] = None if held is None else held.dtype
        elif errors and isinstance(given, torch.Tensor) and given.shape != tensor.shape:
            shapes[name] = (tuple(tensor.shape), tuple(given.shape))
        elif tensor.is_meta and given is None:
            verdict.missing.append(name)
    verdict.shapes.update(shapes)
    verdict.reasons.extend(() if shapes else errors)
    parts = _by_child(state, prefix)
    for leaf, child in stand_in._modules.items():  # a loader may have replaced some
        if child is not None:
            rehearse(torch, child, parts.get(leaf, {}), f"{prefix}{leaf}.", verdict, stop)


def _persistent(module: Any) -> list[tuple[str, Any]]:
    """The module's own parameters and buffers that a checkpoint may hold."""
    own, left_out = (*module._parameters.items(), *module._buffers.items()), module._non_persistent_buffers_set
    return [(leaf, tensor) for leaf, tensor in own if tensor is not None and leaf not in left_out]


def _by_child(state: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    """The entries below `prefix`, for each child module its own: so the walk does not look at all for each."""
    parts: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        leaf, dot, _ = name[len(prefix) :].partition(".")
        if dot and name.startswith(prefix):
            parts.setdefault(leaf, {})[name] = tensor
    return parts


def _stand_in(torch: Any, module: Any) -> Any:
    """A stand-in for one module: its attributes and hooks, with meta tensors in place of its own."""

    def bare(tensor: Any) -> Any:
        return None if tensor is None else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    def parameter(tensor: Any) -> Any:
        return None if tensor is None else torch.nn.Parameter(bare(tensor), requires_grad=False)

    stand_in = object.__new__(type(module))
    stand_in.__dict__.update(module.__dict__)
    stand_in.__dict__.update(
        _parameters={leaf: parameter(tensor) for leaf, tensor in module._parameters.items()},
        _buffers={leaf: bare(tensor) for leaf, tensor in module._buffers.items()},
        _modules=dict(module._modules),
        _non_persistent_buffers_set=set(module._non_persistent_buffers_set),
        set_extra_state=lambda _: None,  # it may reach what stand_in and module share
    )
    return stand_in
