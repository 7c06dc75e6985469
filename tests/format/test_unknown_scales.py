"""Scales in layouts that are not known here: told by their names from scales of other things."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from asyncfetch.errors import SourceError
from asyncfetch.format.scaled import ScaledWeight, refuse_foreign
from asyncfetch.format.unknown_scales import NamedScales, unknown_scale

from .test_scaled import E8M0, Tensors, bits, f8, info_of, recognised, scales

I8 = np.ones((4, 6), np.int8)


def found_in(stored: Tensors) -> Iterator[ScaledWeight]:
    """The tensors of which one is said to be scaled in a way that is not known."""
    infos = {name: info_of(array) for name, array in stored.items()}
    for name, info in infos.items():
        found = unknown_scale(name, info, [NamedScales(infos)], infos, infos.get)
        if found is not None and recognised(stored, name) is None:
            yield found


@pytest.mark.parametrize(
    "stored",
    [
        {"l._weight_qdata": f8(4, 6), "l._weight_scale": scales(4, 1)},
        {"l._weight_qdata": I8, "l._weight_scale": scales(4, 1)},
        {"e._gate_up_proj_qdata": f8(2, 4, 6), "e._gate_up_proj_scale": scales(2, 4, 1)},
        {"a.weight:qdata": f8(4, 6), "a.weight:scale": scales(4, 1)},
        {"a.weight._data": bits(4, 6), "a.weight._scale": scales(4, 1), "a.input_scale": scales(1)},
        {"a.weight": f8(4, 6), "a.weights_scaling_factor": scales(1), "a.activation_scaling_factor": scales(1)},
        {"a.weight": I8, "a.weights_scaling_factor_2": scales(1)},
        {"a.weight": f8(4, 6), "a.weight.scale": scales()},
        {"a.weight": f8(4, 6), "a.weight_quantizer_per_channel_scale": scales(4)},
        {"a.weight": f8(4, 6), "a.fp8_scale": scales(1), "a.bias": scales(4)},
        {"a.weight": f8(4, 6), "a.weightScale": bits(1)},
        {"a.kernel": f8(4, 6), "a.weight_scale": scales(1)},
        {"a.kernel": f8(4, 6), "a.block_scales": np.ones(1, np.uint8).view(E8M0)},
        {"a.qweight": f8(4, 6), "a.w_scaler": scales(4)},
        {"w": f8(4, 6), "quant_scale": scales(4)},
    ],
    ids=lambda stored: next(iter(stored)),
)
def test_scaled_in_a_way_that_is_not_known(stored: Tensors) -> None:
    """Whatever the library calls the two, the first tensor is no plain number, and no other is meant."""
    (found,) = found_in(stored)
    assert found.weight == next(iter(stored))
    assert found.scale in stored
    assert found.flaw == f"how {found.scale!r} scales it is not known"
    assert not found.understood


@pytest.mark.parametrize(
    "stored",
    [
        {"weight": f8(4, 6), "logit_scale": scales(), "rope_scaling": scales(1)},
        {"b.weight": f8(4, 6), "b.layer_scale_1": scales(4), "b.layer_scale.gamma": scales(4), "b.ls1.gamma": f8(4)},
        {"a.weight": f8(4, 6), "a.input_scale": scales(1), "a.k_scale": scales(1), "a.v_scale": scales(1)},
        {"a.weight": f8(4, 6), "a.activation_scaling_factor": scales(1), "a.pre_quant_scale": scales(6)},
        {"t.scale_shift_table": f8(6, 4), "t.scale": f8(4), "t.norm.scale": f8(4)},
        {"scaled_fp8": f8(2), "weight": f8(4, 6), "embed": f8(4, 6)},
        {"a.weight": f8(4, 6), "b.weights_scaling_factor": scales(1), "a.b.weight.scale": scales(1)},
        {"a.weight": scales(4, 6), "a.weights_scaling_factor": scales(1)},
        {"a.weight": f8(4, 6), "a.weight.scale": np.ones(2, np.int64)},
        {"a.weight": f8(4, 6), "a.weight_scale": scales(1), "a.bias": f8(4)},  # the weight's, and no other's
        {"a.mask": bits(4), "a.index": I8, "a.scale": scales(1), "a.weight_scale": scales(1)},
        {"a.weight_scale": f8(4, 6), "a.weight_scale_2": scales(1)},
    ],
    ids=lambda stored: " ".join(stored),
)
def test_scales_of_something_else(stored: Tensors) -> None:
    """Of inputs, of logits, of layers, of a neighbour: beside these a tensor is one as others are."""
    assert not list(found_in(stored))


@pytest.mark.parametrize(
    "names",
    [
        ["l._weight_qdata", "l._weight_scale", "l._weight_zero_point"],
        ["l.weight:qdata", "l.weight:scale"],
        ["l.weight._data", "l.weight._scale", "l.weight._shift"],
    ],
)
def test_packed_in_a_way_that_is_not_known(names: list[str]) -> None:
    """Whatever their dtype: eight numbers in 32 bits are integers for everyone else."""
    with pytest.raises(SourceError, match="does not know how 'l"):
        refuse_foreign(names, {})
    refuse_foreign(["l.weight._data", "l.qdata_of", "l.weight"], {})
