"""A checkpoint as a model of diffusers, by the library's own from_pretrained, which reads the verified files.

It takes no state dict (https://huggingface.co/docs/diffusers/api/models/overview), so the files must be on the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from posixpath import basename
from typing import Any

from ..api.beside import Beside
from ..errors import SourceError
from ..format.hostile import short_repr
from .asked import Asked, torch_dtype
from .checks import check_arguments, check_device_map, refuse_scaled, says
from .outcome import Outcome
from .rehearsal import hollow_tensors

__all__ = ["DiffusersModel", "judged"]

# Arguments of from_pretrained itself: all others are for the config.
_OWN = frozenset({
    "ignore_mismatched_sizes", "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict",
    "parallel_config", "quantization_config",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class DiffusersModel:
    """The class of a model whose weights are still to come."""

    asked: Asked
    beside: Beside
    kind: Any

    @classmethod
    def judged(cls, asked: Asked, beside: Beside, raw: Mapping[str, Any]) -> DiffusersModel:
        """The model that the config names, or that the caller does. Raises SourceError for what cannot be loaded."""
        import diffusers

        if asked.storage == "memory":
            raise SourceError("diffusers reads its weights from the disk.", hint='Leave storage="memory" out.')
        if not basename(beside.file).startswith("diffusion_pytorch_model."):
            raise SourceError(f"diffusers reads no {beside.file}: its weights are in diffusion_pytorch_model files.")
        name = raw.get("_class_name")
        kind = asked.cls if asked.cls not in (None, diffusers.AutoModel) else getattr(diffusers, str(name), None)
        if asked.cls is not None and not issubclass(asked.cls, (diffusers.AutoModel, diffusers.ModelMixin)):
            raise SourceError(f"cls={asked.cls.__name__} is no model class of diffusers.")
        if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
            hint = "Another version may have it; or pass a class as cls=."
            raise SourceError(f"diffusers {diffusers.__version__} has no model class {short_repr(name)}.", hint=hint)
        if isinstance(asked.dtype, str) and asked.dtype == "auto":
            raise SourceError('diffusers has no dtype="auto".', hint="Name a dtype, or leave it out.")
        if asked.dtype is not None:
            torch_dtype(asked.dtype)
        check_device_map(asked.device_map)
        check_arguments(kind, {name: value for name, value in asked.model_kwargs.items() if name not in _OWN})
        if not raw.get("quantization_config"):
            refuse_scaled(beside)
        return cls(asked, beside, kind)

    def rehearse(self) -> Outcome | None:
        """What a load would give, by names and shapes alone. None where that cannot be known."""
        import torch

        changed = {name: value for name, value in self.asked.model_kwargs.items() if name not in _OWN}
        config = self.kind.load_config(str(self.beside.folder), local_files_only=True)
        if config.get("quantization_config") or "quantization_config" in self.asked.model_kwargs:
            return None
        with says(self.beside.name, "diffusers"), torch.device("meta"):
            model = self.kind.from_config({**config, **changed})
        own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        given = hollow_tensors(self.beside.hollow())
        if self.beside.located.index is None:  # as the library does it
            model._fix_state_dict_keys_on_load(given)
        there = {name: tuple(tensor.shape) for name, tensor in given.items()}
        return Outcome(
            model=self.kind.__name__,
            missing=own.keys() - there.keys(),
            unexpected=self._expected(there.keys() - own.keys()),
            shapes={name: (own[name], there[name]) for name in own.keys() & there.keys() if own[name] != there[name]},
            nothing=not own.keys() & there.keys(),
        )

    def load(self, _: object) -> tuple[Any, Outcome]:
        """The model, of the files in its folder."""
        options = dict(self.asked.model_kwargs)
        if self.asked.dtype is not None:
            options["torch_dtype"] = torch_dtype(self.asked.dtype)
        if self.asked.device_map is not None:
            options["device_map"] = self.asked.device_map
        with says(self.beside.name, "diffusers"):
            model, said = self.kind.from_pretrained(
                str(self.beside.folder),
                variant=self.beside.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
        model.register_to_config(_name_or_path=self.beside.name)
        shapes = {name: (tuple(own), tuple(given)) for name, given, own in said["mismatched_keys"]}
        found = Outcome(
            model=self.kind.__name__,
            missing=set(said["missing_keys"]) - shapes.keys(),
            unexpected=said["unexpected_keys"],
            shapes=shapes,
        )
        return model, found

    def _expected(self, names: set[str]) -> list[str]:
        """Without those of which the class says that a checkpoint may have them."""
        patterns = self.kind._keys_to_ignore_on_load_unexpected or ()
        return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


judged = DiffusersModel.judged
