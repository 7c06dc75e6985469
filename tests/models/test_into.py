"""What a state dict can be loaded into, decided without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from asyncfetch.errors import SourceError
from asyncfetch.models import load_state_dict_into, parameters_on_meta, to_torch


class Transformer:
    """A model of no kind that is known."""


@pytest.mark.parametrize(
    ("model", "kind"),
    [(Transformer(), "Transformer"), ("org/model", "str"), (None, "NoneType"), (np.ones(1), "ndarray")],
)
def test_another_kind_of_model_is_refused_with_advice(model: object, kind: str) -> None:
    """The error names the type, and what to do for JAX and MLX."""
    with pytest.raises(SourceError, match=kind) as caught:
        load_state_dict_into(model, {"a": np.zeros(1)})
    assert "unflatten" in caught.value.hint
    assert "load_weights" in caught.value.hint


@pytest.mark.parametrize("state", [{"a": [1.0]}, {"a": None}, {3: np.zeros(1)}, {"a": np.float32(1)}])
def test_a_state_dict_of_something_else_is_refused(state: Any) -> None:
    """Names are strings and values are numpy arrays; the error names the first that is not."""
    with pytest.raises(SourceError, match=f"{next(iter(state))!r} is "):
        load_state_dict_into({"a": None}, state)


def test_a_tree_is_loaded_without_importing_torch() -> None:
    """torch takes seconds to import and need not be there."""
    program = (
        "import sys, numpy as np\n"
        "from asyncfetch.models import load_state_dict_into\n"
        "load_state_dict_into({'a': None}, {'a': np.zeros(1)})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)


def test_a_missing_torch_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hint says what to install."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SourceError, match=r"asyncfetch\[torch\]"):
        to_torch(np.zeros(1))
    with pytest.raises(SourceError, match=r"asyncfetch\[torch\]"), parameters_on_meta():
        pass
    with pytest.raises(SourceError, match="Cannot load into"):
        load_state_dict_into(Transformer(), {})
