"""The knobs of a load as one frozen value."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

from .errors import SourceError
from .spans import MiB

__all__ = ["Policy", "__version__"]

__version__ = "0.1.0"  # read by pyproject.toml too


_MAY_BE_ZERO = frozenset(
    {"patience", "backoff", "max_backoff", "max_wait", "stall_bytes", "max_redirects", "lock_patience"}
)
_MAY_BE_ENDLESS = frozenset(
    {"patience", "max_wait", "connect_timeout", "read_timeout", "stall_window", "lock_patience"}
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a load behaves. Times are seconds, sizes are bytes, rates are bytes a second.

    Of the connections, and so of a client with all its calls: `connections` at a time, of which a load opens
    as many as bring more (16, which aria2 too does not exceed for one server, is what servers are used to), and
    `bandwidth_limit` for all together (None is none); `connect_timeout` and `read_timeout` for each
    wait; `stall_bytes` in `stall_window` is the floor below which a connection is dropped and resumed
    elsewhere; `max_redirects`; `burst`, what is received at once.

    Of each call: `patience` is how long one piece of work (a look-up, or a span of a file) goes on without
    real progress while a server is away that gave a good answer before: refused, reset, unreachable,
    silent, or with a passing 5xx. `attempts` bounds its failures in a row where patience does not hold: a
    server that was never reached, one that breaks the rules, and one that limits the rate, which gets twice
    as many, since its quota comes back by itself. The first try counts, and fewer failures than `attempts`
    never end it. Each `progress_unit` bytes that arrive refill both; a patience of 0 leaves attempts alone.
    Between two of them lies `backoff`, doubled each time up to `max_backoff`, or what the
    server asks for, at most `max_wait`. `min_split` is the least that a connection takes over from
    another; less where connections are slow, down to 256 KiB. `max_index_bytes` is the largest index: JSON grows
    up to twentyfold in memory, and 250,000 names take some 30 MB.
    `lock_patience` is how long another process may hold a file and not go on with it.

    `math.inf` is a wait without an end. Numbers of numpy will do too.
    Raises SourceError for what is no number, or makes no sense.
    """

    connections: int = 16
    attempts: int = 5
    patience: float = 300.0
    backoff: float = 0.5
    max_backoff: float = 20.0
    max_wait: float = 300.0
    progress_unit: int = MiB
    connect_timeout: float = 10.0
    read_timeout: float = 20.0
    stall_bytes: int = 4096
    stall_window: float = 30.0
    bandwidth_limit: float | None = None
    min_split: int = 16 * MiB
    burst: int = MiB
    max_redirects: int = 10
    max_index_bytes: int = 40 * MiB
    lock_patience: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, _checked(field.name, value, whole=field.type == "int"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Policy:
        """The defaults, changed by the environment as it is now.

        `HF_HUB_ETAG_TIMEOUT` sets `connect_timeout`, `HF_HUB_DOWNLOAD_TIMEOUT` sets `read_timeout`
        (both as in huggingface_hub); `ASYNCFETCH_CONNECTIONS`, `ASYNCFETCH_ATTEMPTS` and
        `ASYNCFETCH_PATIENCE` (seconds) and `ASYNCFETCH_MAX_INDEX_BYTES` are ours.
        Raises SourceError on a value that is not a number.
        """
        environ = os.environ if environ is None else environ
        policy = cls()
        for variable, field, kind in (
            ("HF_HUB_ETAG_TIMEOUT", "connect_timeout", float),
            ("HF_HUB_DOWNLOAD_TIMEOUT", "read_timeout", float),
            ("ASYNCFETCH_CONNECTIONS", "connections", int),
            ("ASYNCFETCH_ATTEMPTS", "attempts", int),
            ("ASYNCFETCH_PATIENCE", "patience", float),
            ("ASYNCFETCH_MAX_INDEX_BYTES", "max_index_bytes", int),
        ):
            text = environ.get(variable, "").strip()
            if text:
                try:
                    value: Any = kind(text)
                    policy = replace(policy, **{field: value})
                except ValueError:
                    hint = "Set it to a number, or remove it."
                    raise SourceError(f"{variable} is {text!r}, which is not a number.", hint=hint) from None
        return policy


def _checked(name: str, value: object, *, whole: bool) -> float:
    """`value` as a plain number. Raises SourceError where a knob can have no such value; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise SourceError(f"Policy.{name} must be a {'whole number' if whole else 'number'}, not {value!r:.80}.")
    number: float = operator.index(value) if isinstance(value, Integral) else float(value)
    if name in _MAY_BE_ZERO and not number >= 0:  # so that NaN is refused too
        raise SourceError(f"Policy.{name} must not be negative, not {number!r}.")
    if name not in _MAY_BE_ZERO and not number > 0:
        words = "positive or None" if name == "bandwidth_limit" else "positive"
        raise SourceError(f"Policy.{name} must be {words}, not {number!r}.")
    if number > sys.maxsize and not (number == math.inf and name in _MAY_BE_ENDLESS):
        raise SourceError(f"Policy.{name} must be at most {sys.maxsize}.")
    return number
