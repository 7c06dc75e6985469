"""How many steps a piece of work takes: what grows with what can be counted, where time would be chance."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["steps_of"]


def steps_of(work: Callable[[], object]) -> int:
    """Lines of Python that `work` runs in this thread, and calls, those of C functions included."""
    steps = 0

    def count(_frame: object, _event: str, _argument: object) -> object:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace(), sys.getprofile()
    sys.settrace(count)
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    return steps
