"""A load by a library that is only rehearsed: tensors without values, and nothing of it is left behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from ..format.dtypes import Array
from ..models.torch_tensors import hollow_tensor

__all__ = ["forgotten", "hollow_tensors"]


def hollow_tensors(arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Tensors of these dtypes and shapes that have no values, and stay so when they are to go to a device."""
    import torch

    kind = _hollow_class()
    made = {name: hollow_tensor(torch, array) for name, array in arrays.items()}
    return {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta").as_subclass(kind) for name, one in made.items()
    }


@cache
def _hollow_class() -> Any:
    import torch

    class Hollow(torch.Tensor):  # type: ignore[misc]
        """A tensor on the meta device, which pretends to be on any."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.Tensor.to:
                kwargs.pop("device", None)
            return super().__torch_function__(func, types, args, kwargs)

    return Hollow


@contextmanager
def forgotten(library: str) -> Iterator[None]:
    """What the library logs, shows and draws at random in the block, by this thread, is as if it had not been."""
    import torch
    from transformers.utils import logging as shown

    handlers, thread = list(logging.getLogger(library).handlers), threading.get_ident()

    def silent(record: logging.LogRecord) -> bool:
        return record.thread != thread

    def bar(factory: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            return factory(*args, **{**kwargs, "disable": True})
        return factory(*args, **kwargs) if others is None else others(factory, args, kwargs)

    for handler in handlers:
        handler.addFilter(silent)
    hook = getattr(shown, "set_tqdm_hook", lambda _: None)  # not every version has one
    others = hook(bar)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        hook(others)
        for handler in handlers:
            handler.removeFilter(silent)
