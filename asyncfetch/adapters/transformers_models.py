"""A checkpoint as a model of transformers, by the library's own from_pretrained, which renames and merges what it must.

https://huggingface.co/docs/transformers/main_classes/model has the arguments. The library is imported late.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from posixpath import basename
from typing import Any

from ..api.beside import Beside
from ..errors import SourceError
from ..format.dtypes import Array
from ..format.hostile import short_repr
from ..models.torch_tensors import to_torch
from .asked import Asked, torch_dtype
from .checks import (
    check_arguments,
    check_device_map,
    check_quantisation,
    merged_quantisation,
    refuse_scaled,
    says,
)
from .configs import code_of
from .outcome import Outcome
from .rehearsal import forgotten, hollow_tensors

__all__ = ["TransformersModel", "judged"]

# Arguments of from_pretrained itself: all others are for the config, or else for the class.
_OWN = frozenset({
    "allow_all_kernels", "attn_implementation", "device_mesh", "distributed_config", "experts_implementation",
    "fusion_config", "generation_config", "ignore_mismatched_sizes", "kernel_config", "key_mapping", "max_memory",
    "offload_buffers", "offload_folder", "quantization_config", "tp_plan", "tp_size", "use_kernels",
})  # fmt: skip
# What spreads a model over devices, packs its values or changes its code needs real values, or is done once.
_UNREHEARSED = frozenset({
    "device_mesh", "distributed_config", "fusion_config", "kernel_config", "quantization_config", "tp_plan", "tp_size",
})  # fmt: skip
_ELSEWHERE = frozenset({"max_memory", "offload_buffers", "offload_folder", "generation_config"})


@dataclass(frozen=True, slots=True)
class TransformersModel:
    """The class and the config of a model whose weights are still to come.

    `own` and `extra` are arguments of from_pretrained: its own, and those for the class. `overrides` are in the config.
    """

    asked: Asked
    beside: Beside
    kind: Any
    config: Any
    own: dict[str, Any]
    extra: dict[str, Any]
    overrides: dict[str, Any]

    @classmethod
    def judged(cls, asked: Asked, beside: Beside, raw: Mapping[str, Any]) -> TransformersModel:
        """The model that the config names, or that the caller does. Raises SourceError for what cannot be loaded."""
        _dtype(asked.dtype)
        check_device_map(asked.device_map)
        kind = _class_in_code(asked, beside, raw) or _own_class(asked.cls) or _named_class(beside, raw)
        own = {name: value for name, value in asked.model_kwargs.items() if name in _OWN}
        rest = {name: value for name, value in asked.model_kwargs.items() if name not in _OWN}
        config, extra, kind = _config(asked, beside, raw, kind, rest)
        overrides = {name: value for name, value in rest.items() if name not in extra and name != "config"}
        check_arguments(kind, extra)
        if not check_quantisation(config, own.get("quantization_config"), asked.device_map, beside.name):
            refuse_scaled(beside)
        return cls(asked, beside, kind, config, own, extra, overrides)

    def rehearse(self) -> Outcome | None:
        """What a load would give, by names, dtypes and shapes alone. None where that cannot be known, or soon is.

        Raises SourceError where the class makes no model of its config and arguments, with or without weights.
        """
        if self.beside.is_here:
            return None
        with forgotten("transformers"):
            if self._quantised or _UNREHEARSED & self.own.keys():
                self._construct()
                return None
            own = {name: value for name, value in self.own.items() if name not in _ELSEWHERE}
            try:
                return self._called(hollow_tensors(self.beside.hollow()), own)[1]
            except Exception:  # of what reads values nothing can be said before they are here
                self._construct()
                return None

    @property
    def _quantised(self) -> bool:
        return getattr(self.config, "quantization_config", None) is not None

    def _construct(self) -> None:
        """Make the model without values, as from_pretrained does before it reads any. Raises SourceError."""
        config, dtype = self._config_of_all()
        surroundings = {"dtype": dtype, "is_quantized": self._quantised, "_is_ds_init_called": False}
        takes = inspect.signature(self.kind.get_init_context).parameters
        if "allow_all_kernels" in takes:  # not in every version
            surroundings["allow_all_kernels"] = self.own.get("allow_all_kernels", False)
        if takes.keys() != surroundings.keys():
            return
        with says(self.beside.name), ExitStack() as stack:
            for name in ("attn_implementation", "experts_implementation"):
                if name in self.own:
                    setattr(config, f"_{name}", self.own[name])
            for context in self.kind.get_init_context(**surroundings):
                stack.enter_context(context)
            self.kind(config, **self.extra)

    def _config_of_all(self) -> tuple[Any, Any]:
        """The config with what the library knows of dtype and quantisation when it makes a model, and the dtype."""
        import torch

        config, dtype = copy.deepcopy(self.config), _dtype(self.asked.dtype)
        if not isinstance(dtype, torch.dtype):
            dtype = getattr(config, "dtype", None) or torch.get_default_dtype()
        for one in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            if one is not None:
                one.dtype = dtype
        asked = self.own.get("quantization_config")
        if self._quantised or asked is not None:
            config.quantization_config = merged_quantisation(getattr(config, "quantization_config", None), asked)
        return config, dtype

    def load(self, arrays: Callable[[], Mapping[str, Array]]) -> tuple[Any, Outcome]:
        """The model. Its parameters are on the memory of `arrays` where neither dtype nor device changes."""
        own = dict(self.own)
        if self.asked.device_map is not None:
            own["device_map"] = self.asked.device_map
        model, outcome = self._called({name: to_torch(array) for name, array in self._in_order(arrays())}, own)
        model.name_or_path = model.config.name_or_path = self.beside.name
        if model.can_generate() and hasattr(model, "adjust_generation_fn"):
            self._add_generation(model)
        return model, outcome

    def _called(self, tensors: dict[str, Any], own: Mapping[str, Any]) -> tuple[Any, Outcome]:
        with says(self.beside.name):
            model, said = self.kind.from_pretrained(
                None,
                config=copy.deepcopy(self.config),
                state_dict=tensors,
                dtype=_dtype(self.asked.dtype),
                output_loading_info=True,
                **{**own, "ignore_mismatched_sizes": True, **self.extra},
            )
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        missing = set(said["missing_keys"])
        left = [name for name in model.state_dict() if name not in missing and name not in tied]
        shapes = {name: (tuple(own), tuple(given)) for name, given, own in said["mismatched_keys"]}
        return model, Outcome(
            model=self.kind.__name__,
            missing=missing - shapes.keys(),
            unexpected=said["unexpected_keys"],
            shapes=shapes,
            nothing=bool(missing) and not left,
        )

    def _in_order(self, arrays: Mapping[str, Array]) -> list[tuple[str, Array]]:
        """In the order of files and names: where no config tells a dtype, the library takes that of the first float."""
        shards = self.beside.located.wanted.weight_map
        return sorted(arrays.items(), key=lambda item: (shards[item[0]], item[0]))

    def _add_generation(self, model: Any) -> None:
        """What from_pretrained does for a model that it reads from a folder."""
        model.adjust_generation_fn(
            self.own.get("generation_config"),
            None,
            None,
            str(self.beside.folder),
            cache_dir=None,
            force_download=False,
            proxies=None,
            local_files_only=True,
            token=None,
            revision=None,
            subfolder="",
            trust_remote_code=self.asked.trust_remote_code,
            **self.overrides,
        )


judged = TransformersModel.judged


def _dtype(dtype: object) -> Any:
    """As from_pretrained takes it: one dtype, or one for each part of a model."""
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return "auto"
    return {part: _dtype(one) for part, one in dtype.items()} if isinstance(dtype, Mapping) else torch_dtype(dtype)


def _named_class(beside: Beside, raw: Mapping[str, Any]) -> Any:
    """The class of the library that the config names. Raises SourceError."""
    import transformers

    name = _architecture(raw)
    if name is None:
        raise SourceError(f"The config of {beside.name} names no class.", hint="Pass one as cls=.")
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    if code_of(raw, name, beside.name) is not None:
        raise SourceError(
            f"{beside.name} brings the code of its class {short_repr(name)}, which would be run.",
            hint="Read it, then pass trust_remote_code=True.",
        )
    raise SourceError(
        f"transformers {transformers.__version__} has no model class {short_repr(name)}, which {beside.name} names.",
        hint="Another version may have it; or pass a class as cls=.",
    )


def _own_class(given: Any) -> Any:
    """The class that the caller gave, if any. Raises SourceError for one of the library that is no model's."""
    import transformers

    if given is None or _is_auto(given) or issubclass(given, transformers.PreTrainedModel):
        return given
    raise SourceError(f"cls={given.__name__} is no model class of transformers.")


def _architecture(raw: Mapping[str, Any]) -> str | None:
    named = raw.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) else None


def _class_in_code(asked: Asked, beside: Beside, raw: Mapping[str, Any]) -> Any:
    """The class in the repository's own code, where there is one and the caller trusts it."""
    name = asked.cls.__name__ if asked.cls is not None else _architecture(raw)
    if not asked.trust_remote_code or name is None or (asked.cls is not None and not _is_auto(asked.cls)):
        return None
    code = code_of(raw, name, beside.name)
    if code is None:
        return None
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

    with says(beside.name):
        kind = get_class_from_dynamic_module(code, str(beside.folder), local_files_only=True)
        return add_generation_mixin_to_remote_model(kind)


def _is_auto(kind: Any) -> bool:
    """Whether it is one of the library's classes that stand for others, such as AutoModelForCausalLM."""
    return getattr(kind, "_model_mapping", None) is not None


def _config(
    asked: Asked, beside: Beside, raw: Mapping[str, Any], kind: Any, rest: Mapping[str, Any]
) -> tuple[Any, dict[str, Any], Any]:
    """The config, the arguments that are none of its own, and the class that an AutoClass stands for."""
    import transformers

    given, arguments = rest.get("config"), {name: value for name, value in rest.items() if name != "config"}
    if isinstance(given, transformers.PreTrainedConfig):
        config, extra = given, arguments
    elif given is not None:
        raise SourceError("config= in model_kwargs= takes a config of transformers.")
    else:
        config, extra = _read_config(asked, beside, raw, kind, arguments)
    named = getattr(config, "transformers_weights", None)
    if named and named != basename(beside.file):
        raise SourceError(
            f"The config of {beside.name} names the file of its weights, {short_repr(named)}, not {beside.file}.",
            hint="Give the URL or the path of that file as the source.",
        )
    if others := getattr(type(config), "extra_files", ()):
        raise SourceError(f"{kind.__name__} has weights in {', '.join(others)} too.", hint=_BY_PATH)
    return (config, extra, kind) if not _is_auto(kind) else (*_resolved(config, extra, kind, beside),)


_BY_PATH = 'asyncfetch.download(source, include="*") brings all files: give its path to from_pretrained.'


def _read_config(
    asked: Asked, beside: Beside, raw: Mapping[str, Any], kind: Any, arguments: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    import transformers

    unknown = raw.get("model_type") not in transformers.CONFIG_MAPPING
    own_config = None if _is_auto(kind) else getattr(kind, "config_class", None)
    if own_config is None and unknown and not asked.trust_remote_code and code_of(raw, "AutoConfig", beside.name):
        raise SourceError(
            f"{beside.name} brings the code of its config, which would be run.",
            hint="Read it, then pass trust_remote_code=True.",
        )
    trust = {} if own_config is not None else {"trust_remote_code": asked.trust_remote_code}
    with says(beside.name):
        config, extra = (own_config or transformers.AutoConfig).from_pretrained(
            str(beside.folder), return_unused_kwargs=True, local_files_only=True, **trust, **arguments
        )
    extra.pop("trust_remote_code", None)
    return config, extra


def _resolved(config: Any, extra: dict[str, Any], auto: Any, beside: Beside) -> tuple[Any, dict[str, Any], Any]:
    """The class that an AutoClass has for a config, and the part of the config that is for it."""
    from transformers.models.auto.auto_factory import _get_model_class

    if type(config) not in auto._model_mapping:
        raise SourceError(f"{auto.__name__} has no class for the {type(config).__name__} of {beside.name}.")
    kind, part = _get_model_class(config, auto._model_mapping), config.sub_configs.get("text_config")
    if part is not None and getattr(kind, "config_class", None) == part:
        quantised = getattr(config, "quantization_config", None)
        config = config.get_text_config()
        if quantised is not None:
            config.quantization_config = quantised
    return config, extra, kind
