"""load_pretrained: a checkpoint as a model of the library that it was made for."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from anyio import from_thread

from ..api.blocking import blocking
from ..api.client import Client
from ..api.options import DTypeLike, Options, Source, Storage, split
from ..api.public import imported, public
from ..errors import SourceError
from ..events import Warned
from ..tasks import off_loop
from .asked import Asked, is_installed
from .configs import library_of, read_config

if TYPE_CHECKING:
    from ..api.beside import Beside
    from ..api.call import Call
    from ..models.into import Strict
    from .diffusers_models import DiffusersModel
    from .outcome import Outcome
    from .transformers_models import TransformersModel

__all__ = ["load_pretrained", "load_pretrained_async"]

T = TypeVar("T")


@public(Options)
async def load_pretrained_async(
    source: Source,
    *,
    cls: type | None = None,
    dtype: DTypeLike | None = None,
    device_map: Any = None,
    strict: Strict = "missing",
    trust_remote_code: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    storage: Storage = "disk",
    **options: Unpack[Options],
) -> Any:
    """Download a checkpoint and return it as a model of transformers or diffusers, in evaluation mode.

    It is the model that the library's own `from_pretrained` makes of the same files, with its renames and
    merges, its generation config and its tied weights; but each byte is verified, and all of one commit. The
    config and what else lies beside the weights come first, and what cannot be loaded is refused before the
    weights are downloaded: missing names and other shapes too, where names and headers tell.
    The parameters of a transformers model are on the memory of the checkpoint, which is never written to,
    unless dtype or device change. diffusers reads the verified files. One model is made at a time in a
    process, in a thread: the libraries change torch's default dtype meanwhile.

    Args:
        source: as in `load_async`. A pipeline of diffusers is several models: name one with `subfolder`.
        cls: the class, or one that stands for several, such as `AutoModelForCausalLM`. None: the one that the
            config names.
        dtype: as `from_pretrained` has it: transformers takes the config's where it is None or `"auto"`.
        device_map: as `from_pretrained` has it.
        strict: `"missing"`: what the checkpoint lacks, and the library would initialise anew, is an error; True: what
            the model does not use is one too; False: neither is, and both are told as warnings.
        trust_remote_code: run the code that the repository brings for its class. It is of the same commit.
        model_kwargs: further arguments of `from_pretrained`, also those that change the config.
        storage: as in `load_async`. Config and tokenizer are on the disk in any case.
        **options

    Raises:
        ModelMismatchError: names or shapes do not fit.
        SourceError: what this is no model for, a class, a package or a device that is not there, an adapter, quantised
            weights that the library cannot make here; and whatever else the library refuses, in its words.
        AsyncfetchError: one of the errors of `load_async`.
    """
    asked = Asked(
        cls=cls,
        dtype=dtype,
        device_map=device_map,
        strict=strict,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs or {},
        storage=storage,
    )
    asked.check()
    _need("torch", "transformers")
    access, wanted = split(options)
    async with Client(**access) as client, client._call("load_pretrained", source, wanted, storage, files={}) as call:
        return await _loaded(call, asked)


load_pretrained = blocking(load_pretrained_async)


def _need(package: str, extra: str) -> None:
    """Raises SourceError where a package of an extra is not installed."""
    if not is_installed(package):
        raise SourceError(f"{package} is not installed.", hint=f"pip install 'asyncfetch[{extra}]'.")


async def _loaded(call: Call, asked: Asked) -> Any:
    models: list[TransformersModel | DiffusersModel] = []

    async def judge(beside: Beside) -> None:
        raw = await off_loop(lambda: read_config(beside.folder, beside.name))
        library = _library(asked, library_of(raw, beside.name))
        _need(library, library)
        code = await imported(f"adapters.{library}_models")
        model = await _alone(lambda: code.judged(asked, beside, raw))
        models.append(model)
        if (found := await _alone(model.rehearse)) is not None:
            _enforce(found, asked)

    beside, landed = await call.fetch_model(judge)
    made, found = await _alone(partial(models[-1].load, lambda: call.merged(beside.located, landed)))
    _enforce(found, asked)
    for warning in found.warnings():
        call.session.notify(Warned(warning))
    return made


def _library(asked: Asked, named: str) -> str:
    """The library of the class that the caller gave, or that the config names."""
    if asked.cls is None:
        return named
    roots = {root.__module__.partition(".")[0] for root in asked.cls.__mro__}
    found = next((name for name in ("transformers", "diffusers") if name in roots), None)
    if found is None or not hasattr(asked.cls, "from_pretrained"):
        raise SourceError(
            f"cls={asked.cls.__name__} is no model class of transformers or diffusers.",
            hint="load_into() fills any torch module.",
        )
    return found


def _enforce(found: Outcome, asked: Asked) -> None:
    found.enforce(asked.strict, other_shapes=bool(asked.model_kwargs.get("ignore_mismatched_sizes")))


# The libraries change what is global to the process: torch's default dtype, and how parameters are initialised.
_one_at_a_time = threading.Lock()


async def _alone(work: Callable[[], T]) -> T:
    """What `work` returns, run in a thread while no other of its kind runs.

    Who does not wait for it any more is let go at once: what it made is dropped when it ends.
    """

    def run() -> T:
        with _turn():
            return work()

    return await off_loop(run, slow=True, abandon=True)


@contextmanager
def _turn() -> Iterator[None]:
    turn = _one_at_a_time
    while not turn.acquire(timeout=0.05):
        from_thread.check_cancelled()
    try:
        yield
    finally:
        turn.release()


def _nobody_runs() -> None:
    """In a forked child, which has no threads of its parent."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()


os.register_at_fork(after_in_child=_nobody_runs)
