"""A state dict into a model: torch modules, and nested trees of numpy arrays."""

from .into import LoadReport, Rename, StateDict, Strict, flatten, load_state_dict_into, to_torch, unflatten
from .meta import parameters_on_meta

__all__ = [
    "LoadReport",
    "Rename",
    "StateDict",
    "Strict",
    "flatten",
    "load_state_dict_into",
    "parameters_on_meta",
    "to_torch",
    "unflatten",
]
