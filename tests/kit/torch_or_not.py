"""torch where it is installed. Without it a file of tests is still collected, and its tests are skipped by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

__all__ = ["needs_torch", "nn", "torch"]

torch: Any
nn: Any
try:
    import torch
except ImportError:
    nn = SimpleNamespace(Module=object, Parameter=object)  # what classes are derived from
    torch = SimpleNamespace(Tensor=object, nn=nn)
else:
    nn = torch.nn

needs_torch = pytest.mark.skipif(
    nn.Module is object, reason="NOT TESTED: torch modules. Install the extra: pip install 'asyncfetch[torch]'"
)
