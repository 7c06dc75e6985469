"""What the caller of load_pretrained asks for, and what of it cannot be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import SourceError
from ..format.dtypes import dtype_of
from ..format.hostile import short_repr
from ..models.fit import Strict

__all__ = ["Asked", "is_installed", "torch_dtype"]

# Arguments of from_pretrained that are keywords here, and those that have no meaning here.
_KEYWORDS = {"torch_dtype": "dtype", "proxies": "client", "local_files_only": "offline"} | {
    name: name
    for name in (
        "cache_dir", "device_map", "dtype", "revision", "storage", "strict", "subfolder", "token",
        "trust_remote_code", "variant",
    )
}  # fmt: skip
_MEANINGLESS = {
    "state_dict": "the state dict is that of the source",
    "force_download": "each file is held against its hash, and one that is wrong is fetched again",
    "use_safetensors": "nothing but safetensors is read",
    "weights_only": "nothing but safetensors is read",
    "gguf_file": "nothing but safetensors is read",
    "disable_mmap": 'storage="memory" does without a map',
    "output_loading_info": "what does not fit is an error, or told as a warning",
    "adapter_kwargs": "no adapter is loaded",
    "code_revision": "code comes from the commit of the weights",
}


def is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it was put out of the way
        return False


def torch_dtype(dtype: object) -> Any:
    """A dtype of torch in which a model can be made, from one of its own or from what `dtype=` takes elsewhere.

    Raises SourceError.
    """
    import torch

    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, name := dtype_of(dtype).name, None)
    if not isinstance(found, torch.dtype):
        raise SourceError(f"torch {torch.__version__} has no dtype {name}.")
    if not found.is_floating_point or found.itemsize < 2:  # torch has no other default dtype
        raise SourceError(
            f"dtype={short_repr(dtype)} is none that a model is made in.", hint="Give one such as bfloat16 or float32."
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The arguments of `load_pretrained` that say what becomes of the checkpoint."""

    cls: type | None
    dtype: object
    device_map: object
    strict: Strict
    trust_remote_code: bool
    model_kwargs: Mapping[str, Any]
    storage: str

    def check(self) -> None:
        """Raises SourceError for arguments of the library that make no sense here."""
        for name in self.model_kwargs:
            if name in _KEYWORDS:
                raise SourceError(f"{name!r} does not go into model_kwargs=.", hint=f"Pass {_KEYWORDS[name]}= itself.")
            if name in _MEANINGLESS:
                raise SourceError(f"model_kwargs= takes no {name!r}: {_MEANINGLESS[name]}.")
