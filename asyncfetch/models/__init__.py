"""A state dict into a model: torch modules, and nested trees of numpy arrays."""

from .into import LoadReport, StateDict, flatten, load_state_dict_into, to_torch, unflatten

__all__ = ["LoadReport", "StateDict", "flatten", "load_state_dict_into", "to_torch", "unflatten"]
