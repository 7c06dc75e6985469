"""How a public function is called: arguments that fit, a deadline, a task of its own, a short traceback."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import anyio

from ..errors import AsyncfetchError, SourceError, TimedOutError
from ..policy import Policy
from ..tasks import forks_wait, off_loop, run_as_task, without_collections
from .hearing import hearing
from .options import spelled_out

__all__ = ["imported", "public", "refuse_misfits", "shortened", "within"]

P = ParamSpec("P")
T = TypeVar("T")


def public(kind: type) -> Callable[[Callable[P, Coroutine[Any, Any, T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Make a coroutine function with `**options: Unpack[kind]` one that users call.

    What does not fit is refused before it begins. It runs in a task of its own, within its `timeout`,
    and an error of ours comes out with the caller's frames alone.
    """

    def decorate(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        signature = inspect.signature(spelled_out(kind)(function))

        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            refuse_misfits(function.__qualname__, signature, args, kwargs)
            timeout: Any = kwargs.pop("timeout", None)
            try:
                with hearing():
                    return await within(timeout, lambda: run_as_task(lambda: function(*args, **kwargs)))
            except AsyncfetchError as error:
                raise shortened(error) from error.__cause__

        return call

    return decorate


def refuse_misfits(
    name: str, signature: inspect.Signature, args: tuple[object, ...], kwargs: Mapping[str, Any]
) -> None:
    """Refuse a call of `name` before anything is done.

    Raises TypeError for arguments that the function does not have, with the option that was probably
    meant; SourceError for a value that makes no sense.
    """
    for given in kwargs:
        if given not in signature.parameters:
            near = difflib.get_close_matches(given, signature.parameters, 1)
            raise TypeError(f"{name}() has no option {given!r}" + (f"; is it {near[0]!r}?" if near else ""))
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}() {error}") from None
    for option, value in bound.arguments.items():
        if option in _ALLOWED and value is not signature.parameters[option].default:
            fits, words = _ALLOWED[option]
            if not fits(value):
                raise SourceError(f"{option}= takes {words}, not {_shown(option, value)}.")


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike) and "\0" not in (text := str(os.fspath(value))) and bool(text)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_async_client(value: object) -> bool:
    """Whether it may be one: `send` of a wrapper need be no coroutine function, but a blocking client is told so."""
    send, build = getattr(value, "send", None), getattr(value, "build_request", None)
    if inspect.isclass(value) or not (callable(send) and callable(build)) or _is_closed(value):
        return False
    return inspect.iscoroutinefunction(inspect.unwrap(send)) or not hasattr(value, "__enter__")


def _is_closed(value: object) -> bool:
    return getattr(value, "is_closed", None) is True


def _names_nodes(value: object) -> bool:
    if isinstance(value, int):
        return _is_positive(value)
    texts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
    return isinstance(texts, Collection) and bool(texts) and all(isinstance(text, str) and text for text in texts)


def _are_ranks(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


# What is not here is looked at where it is used: dtypes, globs and the text of a source.
_ALLOWED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "source": (lambda value: isinstance(value, str | os.PathLike | Mapping), "a repository, a URL, a bucket or a path"),
    "cache_dir": (_is_path, "a path"),
    "folder": (_is_path, "a path"),
    "local_dir": (_is_path, "a path"),
    "overwrite": (_is_flag, "True or False"),
    "repo_type": (lambda value: value in ("model", "dataset"), '"model" or "dataset"'),
    "endpoint": (_is_text, "a URL"),
    "policy": (lambda value: isinstance(value, Policy), "a Policy"),
    "token": (lambda value: isinstance(value, str | bool), "a token, True, False or None"),
    "offline": (_is_flag, "True, False or None"),
    "client": (_is_async_client, "an open httpx.AsyncClient"),
    "revision": (_is_text, "a branch, a tag or a commit"),
    "subfolder": (_is_text, "a folder of the source"),
    "variant": (_is_text, "a variant such as 'fp16'"),
    "timeout": (_is_positive, "a positive number of seconds, or None"),
    "report": (callable, "a callable of one event"),
    "progress": (_is_flag, "True, False or None"),
    "checksums": (lambda value: isinstance(value, Mapping), "a mapping of files to checksums"),
    "state_dict": (lambda value: isinstance(value, Mapping), "a mapping of names to arrays or tensors"),
    "metadata": (lambda value: isinstance(value, Mapping), "a mapping of text to text"),
    "filename_pattern": (_is_text, 'a name such as "model{suffix}.safetensors"'),
    "weights_only": (_is_flag, "True or False"),
    "verify": (lambda value: value in ("download", "always"), '"download" or "always"'),
    "storage": (lambda value: value in ("disk", "memory"), '"disk" or "memory"'),
    "framework": (lambda value: value in ("numpy", "torch"), '"numpy" or "torch"'),
    "strict": (lambda value: _is_flag(value) or value == "missing", 'True, False or "missing"'),
    "assign": (_is_flag, "True or False"),
    "skip": (lambda value: isinstance(value, Iterable) or callable(value), "a glob, several globs or a predicate"),
    "cls": (inspect.isclass, "a model class of transformers or diffusers"),
    "trust_remote_code": (_is_flag, "True or False"),
    "model_kwargs": (lambda value: isinstance(value, Mapping), "a mapping of arguments to values"),
    "early": (_is_flag, "True or False"),
    "dequantize": (_is_flag, "True or False"),
    "nodes": (_names_nodes, '"all", a positive number, labels, or ids of nodes'),
    "keep": (lambda value: value in ("memory", "disk", "both"), '"memory", "disk" or "both"'),
    "companions": (_is_flag, "True or False"),
    "hold": (lambda value: _is_text(value) and value != "", "a name"),
    "tp_plan": (lambda value: isinstance(value, Mapping), "a mapping of globs to axes"),
    "ranks": (_are_ranks, "several ranks"),
    "memory_limit": (lambda value: type(value) is int and value > 0, "a positive number of bytes, or None"),
}
_SECRET = frozenset({"token", "endpoint", "source"})  # whose values may have a password in them


def _shown(option: str, value: object) -> str:
    if option not in _SECRET and isinstance(value, str | int | float | None):
        return repr(value)[:80]
    if option == "client" and _is_closed(value):
        return "one that is closed"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


async def imported(module: str) -> Any:
    """A module of this package, imported in a thread: what stands behind some takes a quarter of a second."""
    return await off_loop(lambda: _import_quietly(f"asyncfetch.{module}"), slow=True)


def _import_quietly(name: str) -> Any:
    with nullcontext() if name in sys.modules else without_collections():
        # Alone of all it has something to do before each fork and after it, so what is half of it waits for forks.
        with forks_wait(long=False):
            import_module("filelock")
        with forks_wait():
            return import_module(name)


async def within(seconds: float | None, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns; TimedOutError where it takes longer than `seconds`, and is cancelled."""
    if seconds is None:
        return await work()
    with anyio.move_on_after(seconds):
        return await work()
    raise TimedOutError(seconds)


def shortened(error: AsyncfetchError) -> AsyncfetchError:
    """`error` without the frames of the machinery, and so its causes. With ASYNCFETCH_DEBUG=1 all stay."""
    if os.environ.get("ASYNCFETCH_DEBUG", "") in ("", "0"):
        cause: BaseException | None = error
        for _ in range(20):
            if cause is None:
                break
            cause.__traceback__ = None
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return error
