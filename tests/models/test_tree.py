"""State dicts and nested trees of arrays: names, loading in both ways, and everything that is refused."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.format.arrays import PackedArray
from asyncfetch.format.header import TensorInfo
from asyncfetch.models import flatten, load_state_dict_into, unflatten


def floats(*shape: int, start: float = 0.0) -> np.ndarray[Any, Any]:
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def packed(kind: str, shape: tuple[int, ...], nbytes: int) -> PackedArray:
    return PackedArray.of(np.arange(nbytes, dtype=np.uint8), TensorInfo(kind, shape, 0, nbytes))


class Pair(NamedTuple):
    first: Any
    second: Any


def test_assign_puts_the_very_arrays_into_nested_dicts_and_lists() -> None:
    """Names are keys joined by dots, integers included, and no array is copied."""
    state = {"encoder.0.w": floats(2, 2), "encoder.1.w": floats(2, 2, start=9), "7": floats(3)}
    tree: dict[Any, Any] = {"encoder": [{"w": floats(2, 2)}, {"w": None}], 7: 1 + floats(3)}
    report = load_state_dict_into(tree, state)
    assert tree["encoder"][0]["w"] is state["encoder.0.w"]
    assert tree["encoder"][1]["w"] is state["encoder.1.w"]
    assert tree[7] is state["7"]
    assert report.loaded == ("encoder.0.w", "encoder.1.w", "7")
    assert (report.missing, report.unexpected, dict(report.tied)) == ((), (), {})


def test_copying_fills_the_existing_arrays_and_casts() -> None:
    """assign=False keeps the arrays and their dtype, also in tuples and across ml_dtypes."""
    own = [np.zeros(4, np.float32), np.zeros(4, ml_dtypes.bfloat16), np.zeros(4, np.int64), np.zeros((), np.float64)]
    tree = {"pair": Pair(own[0], own[1]), "rest": [own[2], (own[3],)]}
    state = {
        "pair.0": floats(4).astype(ml_dtypes.bfloat16),
        "pair.1": floats(4),
        "rest.0": np.arange(4, dtype=np.int8),
        "rest.1.0": np.array(2.5, np.float16),
    }
    load_state_dict_into(tree, state, assign=False)
    assert tree["pair"][0] is own[0]
    for array in own[:3]:
        np.testing.assert_array_equal(array.astype(np.float32), floats(4))
    assert own[3] == 2.5
    assert [array.dtype.name for array in own] == ["float32", "bfloat16", "int64", "float64"]


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (np.int64, np.float32),
        (np.int64, ml_dtypes.bfloat16),
        (np.uint8, ml_dtypes.float8_e5m2),
        (np.uint8, np.int8),
        (ml_dtypes.int4, np.float32),
        (np.bool_, np.uint8),
        (ml_dtypes.bfloat16, np.complex64),
    ],
)
def test_copying_refuses_to_narrow_the_kind(own: Any, given: Any) -> None:
    """A cast that would drop fractions, signs or imaginary parts raises and names both dtypes."""
    tree = {"a": np.ones(2, own), "b": np.ones(2, np.float32)}
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(tree, {"b": floats(2), "a": np.zeros(2, given)}, assign=False)
    assert f"a is {np.dtype(own).name} in the model and {np.dtype(given).name} in the checkpoint" in str(caught.value)
    assert tree["b"].tolist() == [1, 1]


@pytest.mark.parametrize("assign", [True, False])
def test_a_mismatch_changes_nothing_and_says_all(assign: bool) -> None:
    """Missing, unexpected and both shapes come in one error, before the first change."""
    tree = {"fits": np.ones(3, np.float32), "shape": np.ones((2, 3), np.float32), "gone": np.ones(1, np.float32)}
    before = {name: (array, array.tobytes()) for name, array in tree.items()}
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(tree, {"fits": floats(3), "shape": floats(3, 2), "new": floats(1)}, assign=assign)
    assert caught.value.missing == ("gone",)
    assert caught.value.unexpected == ("new",)
    assert caught.value.shapes == {"shape": ((2, 3), (3, 2))}
    for name, (array, content) in before.items():
        assert tree[name] is array
        assert array.tobytes() == content


def test_a_wrong_shape_raises_without_strict_too() -> None:
    """strict=False forgives names, never shapes; a 1-element array is no scalar."""
    tree = {"a": np.ones(()), "b": np.ones(1)}
    with pytest.raises(ModelMismatchError, match=r"a is \(\) in the model and \(1,\) in the checkpoint"):
        load_state_dict_into(tree, {"a": np.zeros(1)}, strict=False)
    report = load_state_dict_into(tree, {"a": np.zeros(()), "c": np.zeros(1)}, strict=False)
    assert (report.loaded, report.missing, report.unexpected) == (("a",), ("b",), ("c",))
    assert tree["a"] == 0
    assert tree["b"].tolist() == [1]


def test_placeholders_take_any_array_of_their_shape() -> None:
    """None takes any shape; an object with shape and dtype, such as a jax.ShapeDtypeStruct, its own."""

    class Spec:
        shape, dtype = (2,), np.dtype(np.float32)

    spec = Spec()
    tree: dict[str, Any] = {"a": spec, "b": None, "c": spec, "d": np.float64(1)}
    state = {"a": floats(2), "b": floats(3, 3), "c": floats(2, start=5), "d": np.array(2.0)}
    load_state_dict_into(tree, state)
    assert all(tree[name] is state[name] for name in state)
    with pytest.raises(ModelMismatchError, match=r"a is \(2,\) in the model and \(3,\)"):
        load_state_dict_into({"a": spec}, {"a": floats(3)})


@pytest.mark.parametrize("given", [("emb",), ("head",), ("emb", "head")])
@pytest.mark.parametrize("assign", [True, False])
def test_one_array_under_two_names_stays_one(given: tuple[str, ...], assign: bool) -> None:
    """A tied leaf needs one of its names and stays tied."""
    one = np.zeros((2, 2), np.float32)
    tree = {"emb": one, "blocks": [{"head": one}]}
    names = {"emb": "emb", "head": "blocks.0.head"}
    report = load_state_dict_into(tree, {names[name]: floats(2, 2) for name in given}, assign=assign)
    assert tree["emb"] is tree["blocks"][0]["head"]
    np.testing.assert_array_equal(tree["emb"], floats(2, 2))
    absent = {"emb", "blocks.0.head"} - {names[name] for name in given}
    assert set(report.tied) == absent


def test_tied_leaves_with_two_values_are_an_error() -> None:
    """The checkpoint of an untied model does not silently lose one of its tensors."""
    one = np.zeros(2, np.float32)
    tree = {"emb": one, "head": one}
    state = {"emb": floats(2), "head": floats(2, start=5)}
    with pytest.raises(ModelMismatchError, match="emb and head are one tensor in the model and differ"):
        load_state_dict_into(tree, state)
    assert tree == {"emb": one, "head": one}
    for other in (np.zeros((2, 1), np.float32), np.zeros(2, np.int32)):  # the same bytes
        with pytest.raises(ModelMismatchError, match="emb and head are one tensor"):
            load_state_dict_into(tree, {"emb": np.zeros(2, np.float32), "head": other})
    report = load_state_dict_into(tree, state, strict=False)
    assert tree["emb"] is tree["head"] is state["emb"]
    assert (report.loaded, report.unexpected, dict(report.tied)) == (("emb",), ("head",), {"head": "emb"})


def test_an_alias_fills_an_absent_name_with_memory_of_its_own() -> None:
    """Slots that are not tied never share memory, so that writing to one leaves the other alone."""
    tree = {"emb": None, "head": None, "third": None, "loop": None}
    aliases = {"head": "emb", "third": "head", "format": "pt", "loop": "pool", "pool": "loop"}
    report = load_state_dict_into(tree, {"emb": floats(2)}, aliases=aliases, strict=False)
    assert report.missing == ("loop",)
    assert dict(report.tied) == {"head": "emb", "third": "emb"}
    assert not np.shares_memory(tree["emb"], tree["head"])
    np.testing.assert_array_equal(tree["third"], floats(2))


def test_an_alias_never_replaces_a_name_that_is_there() -> None:
    """The alias is for absent names only; an alias of a name outside the model is not unexpected."""
    tree = {"head": None}
    load_state_dict_into(tree, {"head": floats(2)}, aliases={"head": "emb"})
    report = load_state_dict_into(tree, {"emb": floats(2, start=3)}, aliases={"head": "emb"})
    assert tree["head"].tolist() == [3, 4]
    assert report.unexpected == ()


def test_packed_arrays_have_their_logical_shape() -> None:
    """F4 and F6 go in as they are, judged by the shape in elements; they are never cast."""
    given = packed("F4", (2, 4), 4)
    tree: dict[str, Any] = {"a": np.zeros((2, 4), np.float32)}
    with pytest.raises(ModelMismatchError, match="a is float32 in the model and F4 in the checkpoint"):
        load_state_dict_into(tree, {"a": given}, assign=False)
    with pytest.raises(ModelMismatchError, match="a is float32 in the model and F4 in the checkpoint"):
        load_state_dict_into(tree, {"a": given}, dtype="bfloat16")
    load_state_dict_into(tree, {"a": given}, dtype="auto")
    assert tree["a"] is given
    own = packed("F4", (2, 4), 4)
    own[:] = 0
    load_state_dict_into({"a": own}, {"a": given}, assign=False)
    assert own.tobytes() == given.tobytes()
    with pytest.raises(ModelMismatchError, match=r"a is \(2, 4\) in the model and \(8,\) in the checkpoint"):
        load_state_dict_into(tree, {"a": packed("F4", (8,), 4)})


@pytest.mark.parametrize(
    ("tree", "assign", "said"),
    [
        ({"a": "text"}, True, r"'a' is str, not an array"),
        ({"x": [{"y": 3}]}, True, r"'x\.0\.y' is int"),
        ({"a": (np.zeros(1),)}, True, r"a\.0 is in a tuple"),
        ({"a": None}, False, "a is NoneType, so nothing"),
        ({"a": np.float32(1)}, False, "a is numpy.float32, so nothing"),
        ({(1, 2): np.zeros(1)}, True, "neither a string nor an integer"),
        ({"a.b": np.zeros(1), "a": {"b": np.zeros(1)}}, True, r"have the name 'a\.b'"),
    ],
)
def test_a_leaf_that_cannot_be_filled_is_named(tree: Any, assign: bool, said: str) -> None:
    """Each refusal names the path."""
    state = {name: np.zeros(1) for name in ("a", "a.0", "a.b", "x.0.y")}
    with pytest.raises(SourceError, match=said):
        load_state_dict_into(tree, state, assign=assign, strict=False)


def test_a_read_only_array_cannot_be_copied_into() -> None:
    """It is refused before another array of the tree changes."""
    locked = np.zeros(2, np.float32)
    locked.flags.writeable = False
    tree = {"a": np.zeros(2, np.float32), "b": locked}
    with pytest.raises(SourceError, match="b is read-only"):
        load_state_dict_into(tree, {"a": floats(2), "b": floats(2)}, assign=False)
    assert tree["a"].tolist() == [0, 0]


def test_a_tree_that_contains_itself_is_refused() -> None:
    """No recursion without end."""
    tree: dict[str, Any] = {"a": np.zeros(1)}
    tree["again"] = [tree]
    with pytest.raises(SourceError, match="contains itself"):
        load_state_dict_into(tree, {"a": np.zeros(1)})


def test_unflatten_nests_and_flatten_undoes_it() -> None:
    """The arrays are the same objects, the names and their order too."""
    state = {"encoder.0.w": floats(2), "encoder.0.b": floats(1), "head": floats(3)}
    tree = unflatten(state)
    assert tree == {"encoder": {"0": {"w": state["encoder.0.w"], "b": state["encoder.0.b"]}}, "head": state["head"]}
    assert list(flatten(tree)) == list(state)
    assert all(flatten(tree)[name] is array for name, array in state.items())
    assert list(flatten({"a": [np.float32(1), (np.zeros(2),)]})) == ["a.0", "a.1.0"]


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a.b", "a.b.c.d")])
def test_unflatten_refuses_a_name_that_is_leaf_and_prefix(names: tuple[str, str]) -> None:
    """In either order, the error names the second one."""
    with pytest.raises(SourceError, match=f"'{names[1]}'"):
        unflatten({name: np.zeros(1) for name in names})


@pytest.mark.parametrize("leaf", ["text", None, 3])
def test_flatten_refuses_what_is_no_array(leaf: object) -> None:
    """A placeholder has no array to give."""
    with pytest.raises(SourceError, match=r"'?a\.0'? is (str|NoneType|int), not an array"):
        flatten({"a": [leaf]})


@given(st.sets(st.text(alphabet="ab.", max_size=6), max_size=8))
def test_any_names_round_trip_or_are_refused(names: set[str]) -> None:
    """unflatten either refuses a set of names or loses nothing of it, empty parts included."""
    state = {name: np.zeros(1) for name in names}
    clash = any(other.startswith(f"{name}.") for name in names for other in names)
    if clash:
        with pytest.raises(SourceError):
            unflatten(state)
    else:
        assert flatten(unflatten(state)) == state


def test_a_tree_keeps_its_dtypes() -> None:
    """None takes any; an array or a stand-in has one."""
    tree = {"a": np.zeros(2, np.float32), "b": None}
    given = {"a": np.ones(2, ml_dtypes.bfloat16), "b": np.ones(1, ml_dtypes.bfloat16)}
    with pytest.raises(ModelMismatchError, match="a is float32 in the model and bfloat16 in the checkpoint"):
        load_state_dict_into(tree, given)
    load_state_dict_into(tree, given, dtype="float32")
    assert {array.dtype.name for array in tree.values() if array is not None} == {"float32"}
    load_state_dict_into(tree := {"a": np.zeros(2, np.float32)}, given, dtype="auto", strict="missing")
    assert tree["a"] is given["a"]


# -- modules of other frameworks that are dicts ---------------------------------------------------


class Framework(dict[str, Any]):
    """A module that keeps its parameters as a dict, as mlx.nn.Module does."""

    def __init__(self) -> None:
        super().__init__(weight=np.zeros((3, 2), np.float32))

    def parameters(self) -> dict[str, Any]:
        return dict(self)


class Layers(list[Any]):
    """A list that can be called."""

    def __call__(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    "model", [Framework(), Layers([np.zeros((3, 2))]), {"a": Framework()}, [Framework()], ({"a": [Layers()]},)]
)
def test_a_module_that_is_a_dict_is_no_tree(model: Any) -> None:
    """It would have numpy arrays where it needs its own: refused, also inside of a tree."""
    with pytest.raises(SourceError, match=r"Framework|Layers"):
        load_state_dict_into(model, {"weight": floats(3, 2)}, strict=False)


@pytest.mark.filterwarnings("default")
def test_mlx() -> None:
    """The real one: its forward pass still works afterwards."""
    layers = pytest.importorskip("mlx.nn")
    core = pytest.importorskip("mlx.core")
    linear = layers.Linear(3, 2)
    for model in (linear, layers.Sequential(linear), {"a": linear}, [linear]):
        with pytest.raises(SourceError, match=r"mlx\.nn"):
            load_state_dict_into(model, {"weight": floats(2, 3), "bias": floats(2)}, strict=False)
    assert linear(core.ones((1, 3))).shape == (1, 2)


def test_dicts_of_all_kinds_are_trees() -> None:
    """What holds arrays and does no more: a subclass for order or defaults, a named tuple with any field."""

    class State(NamedTuple):
        parameters: Any
        step: Any

    for make in (OrderedDict, lambda pairs: defaultdict(dict, pairs), dict):
        tree = make({"a": State({"w": None}, {"n": None})})
        given = {"a.0.w": np.ones(2), "a.1.n": np.ones(1)}
        load_state_dict_into(tree, given)
        assert tree["a"].parameters["w"] is given["a.0.w"]
