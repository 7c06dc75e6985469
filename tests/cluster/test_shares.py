"""What ranks hold of a shard, how that is fetched, and who has which ranks, without a cluster."""

from __future__ import annotations

import math
from typing import Any

import pytest

from asyncfetch.cluster.plan import Plan
from asyncfetch.cluster.shares import Shares, Unit, dealt
from asyncfetch.cluster.spreading import Spreading
from asyncfetch.errors import SourceError
from asyncfetch.events import Event
from asyncfetch.format.dtypes import DTYPES
from asyncfetch.format.header import Header, TensorInfo
from asyncfetch.format.index import Index
from asyncfetch.policy import Policy
from asyncfetch.sources.located import Located, SourceFile

MiB = 1 << 20
SHAPES = {"alike": (5,), "rows": (1024, 1024), "columns": (1024, 1024), "wide": (4, 4 * MiB), "small": (64, 1024)}
TP_PLAN = {"rows": 0, "columns": 1, "wide": 1, "small": 0}


def plan_for(names: Any = SHAPES, dtype: str = "U8", **asked: Any) -> Plan:
    """A shard of bytes, or of what is packed, of which `names` are selected."""
    tensors, end = {}, 0
    for name, shape in SHAPES.items():
        nbytes = math.prod(shape) * DTYPES[dtype].bits // 8
        tensors[name] = TensorInfo(dtype, shape, end, end + nbytes)
        end += nbytes
    file = SourceFile("m", 1000 + end, None, header=Header(tensors, {}, 1000, 1000 + end))
    located = Located("org/model", "c", None, "", None, Index("i", dict.fromkeys(names, "m")), [file])
    shares = Shares.of(located, asked.get("world_size"), asked.get("tp_plan"), asked.get("ranks"))
    return Plan(located, "models--org--model", None, Policy(), 1 << 40, shares)


@pytest.mark.parametrize(
    ("ranks", "by_range"),
    [
        (None, []),  # all that is split is needed: no byte twice, though columns lie among those of others
        ([2], ["rows", "wide"]),
        ([0, 1, 2], ["rows", "wide"]),
        ([0, 1, 2, 3], []),
    ],
)
def test_what_is_fetched_for_ranks(ranks: Any, by_range: list[str]) -> None:
    """Parts come by range where that saves more than a request costs. Only what came whole is told to be verified."""
    plan, told = plan_for(world_size=4, tp_plan=TP_PLAN, ranks=ranks), list[Event]()
    assert plan.shares is not None
    fetched = plan.shares.fetched(plan.files["m"], plan.wanted("m"))
    assert [name for name, whole in fetched.items() if not whole] == by_range
    for keep in ("memory", "both"):  # of which the latter has the whole file on a disk
        told.clear()
        spreading = Spreading(plan, None, keep, None, None, told.append)  # type: ignore[arg-type]
        spreading._verified(plan.files["m"])
        assert bool(told) == (keep == "both" or not by_range)
    assert not plan_for(["rows", "wide"], world_size=4, tp_plan={"rows": 0, "wide": 1}).verified("m")


def test_what_ranks_hold() -> None:
    """What is not split they have alike; nothing is held of what is not selected, and no object for nothing."""
    plan = plan_for(["alike", "rows", "columns"], world_size=3, tp_plan={"rows": 0, "columns": 1}, ranks=[2, 0])
    assert plan.units("m") == [Unit("m"), Unit("m", 0), Unit("m", 2)]
    held = [{name: info.shape for name, info in plan.held(unit).items()} for unit in plan.units("m")]
    assert held == [
        {"alike": (5,)},
        {"rows": (342, 1024), "columns": (1024, 342)},
        {"rows": (340, 1024), "columns": (1024, 340)},
    ]
    assert plan.held_bytes("m", [2]) == MiB // 8 + 2 * 340 * 1024
    assert plan_for(world_size=3, tp_plan={}).units("m") == [Unit("m")]
    assert plan_for(["rows"], world_size=2, tp_plan={"rows": 0}).units("m") == [Unit("m", 0), Unit("m", 1)]
    assert plan_for().units("m") == [Unit("m")]
    for lacking in ({"ranks": [0]}, {"world_size": 2}, {"tp_plan": {"rows": 0}}):
        with pytest.raises(SourceError, match="both are needed"):
            plan_for(**lacking)
    with pytest.raises(SourceError, match="'columns' is packed"):  # at the driver, before anything begins
        plan_for(dtype="F4", world_size=1024, tp_plan={"columns": 1})


def test_ranks_are_dealt() -> None:
    """Neighbours to the same node; who had some keeps them; what a lost node had goes to who has least."""
    assert dealt(range(8), ["a", "b", "c"], {}) == {"a": (0, 1, 2), "b": (3, 4, 5), "c": (6, 7)}
    assert dealt([1, 5], ["a", "b", "c"], {}) == {"a": (1,), "b": (5,), "c": ()}
    assert dealt(range(4), ["a", "new", "c"], {"a": (3,), "c": (0, 1)}) == {"a": (3,), "new": (2,), "c": (0, 1)}
    assert dealt(range(4), ["c"], {"a": (0, 1), "c": (3,)}) == {"c": (0, 1, 2, 3)}
    assert dealt(range(4), [], {}) == {}
