"""vLLM with `--load-format asyncfetch`: verified tensors, streamed into its models while the rest downloads.

https://docs.vllm.ai/en/latest/design/plugin_system.html: vLLM calls the entry point in each of its processes, so this
file imports little. What decides which weights a rank needs, and whether all were loaded, is vLLM's own loader.
"""

from __future__ import annotations

import difflib
import inspect
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from typing import TYPE_CHECKING, Any

from ..api.blocking import Handle, Portal
from ..api.client import Client
from ..api.functions import download, stream_async
from ..api.public import imported, refuse_misfits
from ..errors import SourceError
from ..policy import Policy

if TYPE_CHECKING:
    from ..api.streaming import Tensors
    from ..sources.located import Located

__all__ = ["Options", "Wanted", "register"]

LOAD_FORMAT = "asyncfetch"

# What --model-loader-extra-config takes beside what vLLM's own loader does: options of stream(), and of a Policy.
_STREAMED = frozenset({"checksums", "early", "endpoint", "memory_limit", "offline", "storage", "timeout", "verify"})
_POLICY = frozenset({"attempts", "bandwidth_limit", "connections", "patience"})
_VLLMS = frozenset({"enable_weights_track"})
_STREAM = inspect.signature(stream_async)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a load: those of `stream`, how to reach the source, and what vLLM's own loader is to get."""

    streamed: Mapping[str, Any]
    policy: Policy | None
    vllms: Mapping[str, Any]
    cache_dir: str | None
    ignored: Sequence[str]

    @classmethod
    def of(cls, load_config: Any) -> Options:
        """Raises SourceError for an option that there is not, that makes no sense, or that has no meaning here."""
        extra = load_config.model_loader_extra_config
        if not isinstance(extra, dict):
            raise SourceError(f"model_loader_extra_config is a {type(extra).__name__} and no dict.")
        known = _STREAMED | _POLICY | _VLLMS
        for name in extra:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"Is it {near[0]!r}?" if near else f"There are {', '.join(sorted(known))}."
                raise SourceError(f"model_loader_extra_config has no option {str(name)[:80]!r}.", hint=hint)
        for name, default in _MEANINGLESS.items():
            if (value := getattr(load_config, name, default)) not in (default, None, "lazy"):
                raise SourceError(f"--load-format {LOAD_FORMAT} has no use for {name}={value!r:.80}.")
        streamed = {name: value for name, value in extra.items() if name in _STREAMED}
        refuse_misfits("model_loader_extra_config", _STREAM, ("org/model",), streamed)
        policy = {name: value for name, value in extra.items() if name in _POLICY}
        ignored = load_config.ignore_patterns
        return cls(
            streamed,
            replace(Policy.from_env(os.environ), **policy) if policy else None,
            {name: value for name, value in extra.items() if name in _VLLMS},
            load_config.download_dir,
            [ignored] if isinstance(ignored, str) else list(ignored),
        )

    @property
    def access(self) -> dict[str, Any]:
        """What belongs to a client."""
        own = {name: self.streamed[name] for name in ("endpoint", "offline") if name in self.streamed}
        return {"cache_dir": self.cache_dir, "policy": self.policy, **own}


# Fields of a LoadConfig that are for files which vLLM reads itself, and what they are where nobody sets them.
_MEANINGLESS = {"safetensors_load_strategy": None, "pt_load_map_location": "cpu"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One source of a model's weights, as vLLM names it, and which of its tensors are needed."""

    source: str
    revision: str | None
    subfolder: str | None
    prefix: str
    only: Sequence[str] | None
    keep: Callable[[str], bool]

    @classmethod
    def of(cls, source: Any, skip: Callable[[str], bool]) -> Wanted:
        """`source` is a DefaultModelLoader.Source; `skip` says of a tensor whether this rank does without it."""
        unused = source.is_unused_weight or (lambda _: False)
        return cls(
            source=str(source.model_or_path),
            revision=plain(source.revision),
            subfolder=source.subfolder,
            prefix=source.prefix,
            only=source.allow_patterns_overrides,
            keep=lambda name: not unused(name) and not skip(name),
        )

    def check(self, located: Located, ignored: Sequence[str]) -> None:
        """Raises SourceError where vLLM's patterns leave out a file of the checkpoint, or want other files."""
        for file in located.files:
            if any(fnmatchcase(file.name, pattern) for pattern in ignored):
                raise SourceError(f"ignore_patterns leaves out {file.name}, which the checkpoint needs.", hint=_BY_AUTO)
            if self.only is not None and not any(fnmatchcase(file.name, pattern) for pattern in self.only):
                raise SourceError(
                    f"The model wants the files {', '.join(self.only)} alone, not {file.name}.", hint=_BY_AUTO
                )


_BY_AUTO = "Load it with --load-format auto."


def plain(revision: str | None) -> str | None:
    """A revision as text alone: vLLM may pass one of huggingface_hub's, which is a subclass of str and says more."""
    return None if revision is None else "".join(revision)


@asynccontextmanager
async def _streaming(wanted: Wanted, options: Options) -> AsyncIterator[Tensors]:
    own = dict(options.streamed)
    storage, timeout = own.get("storage", "disk"), own.get("timeout")
    call_options: Any = {
        "revision": wanted.revision,
        "subfolder": wanted.subfolder,
        "select": wanted.keep,
        **{name: own[name] for name in ("checksums", "verify", "timeout") if name in own},
    }
    async with (
        Client(**options.access) as client,
        client._call("stream", wanted.source, call_options, storage) as call,
    ):
        block = await call.stream(
            early=own.get("early", False),
            memory_limit=own.get("memory_limit"),
            timeout=timeout,
            judge=lambda located: wanted.check(located, options.ignored),
        )
        async with block as tensors:
            yield tensors


def tensors_of(wanted: Wanted, options: Options) -> Iterator[tuple[str, Any]]:
    """The torch tensors that are wanted, as they land, under vLLM's names."""
    handle = Handle(_streaming(wanted, options), Portal(), own=True)
    try:
        to_torch = handle.run(lambda: imported("models.torch_tensors")).to_torch
        for name, array in handle.value.blocking(handle):
            yield wanted.prefix + name, to_torch(array)
    finally:
        handle.close()


@cache
def register() -> None:
    """Make the load format known to vLLM, which calls this in each of its processes. A second time it does nothing."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    register_model_loader(LOAD_FORMAT)(loader_class(DefaultModelLoader))


def loader_class(base: Any) -> Any:
    """vLLM's loader, but for where its tensors come from. `base` is its DefaultModelLoader."""
    if not hasattr(base, "_get_weights_iterator"):
        raise SourceError("This vLLM has another loader than asyncfetch knows.", hint="Another version may work.")

    class AsyncfetchModelLoader(base):  # type: ignore[misc]
        """Streams verified tensors; see `asyncfetch.adapters.vllm`."""

        def __init__(self, load_config: Any) -> None:
            if os.environ.get("VLLM_USE_MODELSCOPE", "0").lower() in ("1", "true"):
                raise SourceError(f"--load-format {LOAD_FORMAT} does not load from ModelScope.", hint=_BY_AUTO)
            self.options = Options.of(load_config)
            super().__init__(replace(load_config, model_loader_extra_config=dict(self.options.vllms)))

        def download_model(self, model_config: Any) -> None:
            if self.options.streamed.get("storage", "disk") != "disk":
                return  # nothing is to be on the disk
            wanted = {
                name: self.options.streamed[name] for name in ("checksums", "verify") if name in self.options.streamed
            }
            download(
                model_config.model,
                revision=plain(model_config.revision),
                weights_only=True,
                **self.options.access,
                **wanted,
            )

        def load_weights(self, model: Any, model_config: Any) -> None:
            if model_config.quantization == "torchao":
                raise SourceError("Weights of torchao are read from their files alone.", hint=_BY_AUTO)
            super().load_weights(model, model_config)

        def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Any]]:
            from vllm.model_executor.model_loader.ep_weight_filter import should_skip_weight

            if not self.counter_before_loading_weights:
                self.counter_before_loading_weights: float = time.perf_counter()
            wanted = Wanted.of(source, lambda name: should_skip_weight(name, self.local_expert_ids))
            return tensors_of(wanted, self.options)

    return AsyncfetchModelLoader
