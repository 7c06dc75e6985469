"""Names: renamed as the caller says, recognised by their prefixes, and the three kinds of strict."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.models import load_state_dict_into
from asyncfetch.models.names import proposal, renamed

from ..kit.files import sharded

SHAPES: dict[str, Any] = {
    f"layers.{n}.{leaf}": (n + 2, width) for n in range(3) for leaf, width in (("q.weight", 2), ("k.weight", 3))
}


def tree_of(shapes: dict[str, Any]) -> dict[str, Any]:
    """A flat tree, whose keys may have dots."""
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def state_of(shapes: dict[str, Any]) -> dict[str, Any]:
    return {name: np.full(shape, n, np.float32) for n, (name, shape) in enumerate(shapes.items(), 1)}


def advised(error: ModelMismatchError, **names: Any) -> Any:
    """What the hint says to pass as rename=, as Python reads it."""
    found = re.search(r"with rename=(.*) the checkpoint has", error.hint)
    assert found, error.hint
    return eval(found[1], names)


# -- rename --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "result"),
    [
        (None, {"a.w": "a.w", "b.a.w": "b.a.w", "c": "c"}),
        ({"c": "d", "gone": "x"}, {"a.w": "a.w", "b.a.w": "b.a.w", "c": "d"}),
        ({"c": None}, {"a.w": "a.w", "b.a.w": "b.a.w"}),
        (("a.", "z."), {"a.w": "z.w", "b.a.w": "b.a.w", "c": "c"}),
        (["a.", "z."], {"a.w": "z.w", "b.a.w": "b.a.w", "c": "c"}),
        (("", "m."), {"a.w": "m.a.w", "b.a.w": "m.b.a.w", "c": "m.c"}),
        (("b.", None), {"a.w": "a.w", "c": "c"}),
        ([("b.", "y."), ("", "m."), ("a.", "never.")], {"a.w": "m.a.w", "b.a.w": "y.a.w", "c": "m.c"}),
        ([], {"a.w": "a.w", "b.a.w": "b.a.w", "c": "c"}),
        (str.upper, {"a.w": "A.W", "b.a.w": "B.A.W", "c": "C"}),
        (lambda name: None if name == "c" else name, {"a.w": "a.w", "b.a.w": "b.a.w"}),
    ],
)
def test_forms_of_rename(rename: Any, result: dict[str, str]) -> None:
    """Names, a pair of prefixes, several of which the first counts, a function; None leaves a tensor out."""
    assert renamed(["a.w", "b.a.w", "c"], rename) == result


@pytest.mark.parametrize("rename", [3, "ab", b"ab", ("a", 1), [("a", "b", "c")], [("a", "b"), "c"], {"a": 5}, len])
def test_other_forms_are_refused(rename: Any) -> None:
    """With the forms that there are."""
    with pytest.raises(SourceError, match="rename=") as caught:
        renamed(["a"], rename)
    assert '("old.", "new.")' in caught.value.hint


@pytest.mark.parametrize("rename", [{"a": "b"}, ("a", "b"), lambda _: "b"])
def test_two_tensors_of_one_name_are_refused(rename: Any) -> None:
    """Which of them would win is nobody's guess; both are named, and nothing changes."""
    tree = tree_of({"b": (2,)})
    with pytest.raises(SourceError, match=r"'(a|b)' and '(a|b)' one name, 'b'"):
        load_state_dict_into(tree, state_of({"a": (2,), "b": (2,)}), rename=rename)
    assert not tree["b"].any()


@pytest.mark.parametrize("assign", [True, False])
def test_rename_in_a_load(tmp_path: Any, assign: bool) -> None:
    """From shards as from a state dict: the report has the model's names, and what is left out is not unexpected."""
    saved = state_of({f"module.{name}": shape for name, shape in SHAPES.items()} | {"step": (1,)})
    sharded(tmp_path, saved, shards=3)
    for source in (tmp_path, saved):
        tree = tree_of(SHAPES)
        report = asyncfetch.load_into(tree, source, rename=[("module.", ""), ("step", None)], assign=assign)
        assert report.loaded == tuple(SHAPES)
        assert (report.missing, report.unexpected) == ((), ())
        assert all(np.array_equal(tree[name], saved[f"module.{name}"]) for name in SHAPES)


def test_rename_concerns_aliases_too() -> None:
    """The name that was dropped and the one that was kept are both names of the checkpoint."""
    tree = tree_of({"emb": (2,), "head": (2,)})
    report = load_state_dict_into(tree, state_of({"m.emb": (2,)}), rename=("m.", ""), aliases={"m.head": "m.emb"})
    assert dict(report.tied) == {"head": "emb"}


# -- strict and skip -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strict", "missing_is_an_error", "extra_is_an_error"),
    [(True, True, True), ("missing", True, False), (False, False, False)],
)
def test_kinds_of_strict(strict: Any, missing_is_an_error: bool, extra_is_an_error: bool) -> None:
    """Each half for itself; what is no error is in the report."""
    lacking, extra = {"a": (2,), "b": (3,)}, {"a": (2,), "c": (5,)}
    for model, saved, wrong in ((lacking, {"a": (2,)}, missing_is_an_error), ({"a": (2,)}, extra, extra_is_an_error)):
        tree = tree_of(model)
        if wrong:
            with pytest.raises(ModelMismatchError) as caught:
                load_state_dict_into(tree, state_of(saved), strict=strict)
            assert (caught.value.missing, caught.value.unexpected) in ((("b",), ()), ((), ("c",)))
        else:
            report = load_state_dict_into(tree, state_of(saved), strict=strict)
            assert (report.missing, report.unexpected) in ((("b",), ()), ((), ("c",)))
            assert tree["a"].all()


@pytest.mark.parametrize("strict", ["unexpected", None, 1, "Missing"])
def test_other_kinds_of_strict_are_refused(strict: Any) -> None:
    """Before anything is looked at."""
    with pytest.raises(SourceError, match='strict= takes True, False or "missing"'):
        asyncfetch.load_into({}, "org/model", strict=strict)


@pytest.mark.parametrize("skip", ["head.*", ["head.weight", "head.bias"], lambda name: name.startswith("head")])
@pytest.mark.parametrize("assign", [True, False])
def test_skip(tmp_path: Any, skip: Any, assign: bool) -> None:
    """A head of another size stays as it is; the rest is judged as strictly as ever."""
    saved = state_of({"body.weight": (4, 2), "head.weight": (9, 4), "other": (1,)})
    sharded(tmp_path, saved, shards=3)
    tree = tree_of({"body.weight": (4, 2), "head.weight": (3, 4), "head.bias": (3,)})
    with pytest.raises(ModelMismatchError, match=r"head\.weight is \(3, 4\) in the model and \(9, 4\)"):
        asyncfetch.load_into(tree, tmp_path, strict=False, assign=assign)
    with pytest.raises(ModelMismatchError, match=r"1 unexpected \(other\)"):
        asyncfetch.load_into(tree, tmp_path, skip=skip, assign=assign)
    report = asyncfetch.load_into(tree, tmp_path, skip=skip, strict="missing", assign=assign)
    assert (report.loaded, report.skipped) == (("body.weight",), ("head.weight", "head.bias"))
    assert (report.missing, report.unexpected) == ((), ("other",))
    assert tree["body.weight"].all()
    assert not tree["head.weight"].any()


def test_a_few_other_shapes_can_be_skipped_and_many_cannot() -> None:
    """The hint names them where most of the model fits; a model of another size is no case for it."""
    model = {f"a{n}": (2,) for n in range(8)}
    for count, hinted in ((2, True), (8, False)):
        saved = {name: (3,) if n < count else shape for n, (name, shape) in enumerate(model.items())}
        with pytest.raises(ModelMismatchError) as caught:
            load_state_dict_into(tree_of(model), state_of(saved))
        assert len(caught.value.shapes) == count
        assert ('skip=["a0", "a1"]' in caught.value.hint) is hinted
        if hinted:
            report = load_state_dict_into(tree_of(model), state_of(saved), skip=["a0", "a1"])
            assert report.skipped == ("a0", "a1")


# -- hints ------------------------------------------------------------------------------------------


def test_no_hint_leads_to_random_parameters() -> None:
    """What is missing is never waved through; extras are, but not where they tell what a tensor means."""
    hints = {}
    for case, (model, saved) in {
        "missing": ({"a.w": (2,), "b.w": (3,)}, {"a.w": (2,)}),
        "both": ({"a.w": (2,), "b.w": (3,)}, {"a.w": (2,), "c.w": (5,)}),
        "extra": ({"a.w": (2,)}, {"a.w": (2,), "c.w": (5,)}),
        "scale": ({"a.w": (2,)}, {"a.w": (2,), "a.w_scale_inv": (1,)}),
        "bias": ({"a.w": (2,)}, {"a.w": (2,), "a.b": (2,)}),
        "nothing": ({"a.w": (2,)}, {"z": (9,)}),
    }.items():
        with pytest.raises(ModelMismatchError) as caught:
            load_state_dict_into(tree_of(model), state_of(saved))
        hints[case] = caught.value.hint
        assert "strict=False" not in caught.value.hint
    assert "random numbers" in hints["missing"]
    assert "random numbers" in hints["both"]
    assert 'strict="missing"' in hints["extra"]
    assert "a.w_scale_inv" in hints["scale"]
    assert "strict" not in hints["scale"] + hints["bias"]


@pytest.mark.parametrize(
    ("in_model", "in_checkpoint", "advice"),
    [
        ("", "module.", ("module.", "")),
        ("", "_orig_mod.", ("_orig_mod.", "")),
        ("", "module._orig_mod.", ("module._orig_mod.", "")),
        ("", "base_model.model.", ("base_model.model.", "")),
        ("", "bert.", ("bert.", "")),
        ("model.", "", ("", "model.")),
        ("module.", "", ("", "module.")),
        ("model.", "transformer.", ("transformer.", "model.")),
        ("a.b.", "a.", ("a.", "a.b.")),
    ],
)
@pytest.mark.parametrize("strict", [True, False, "missing"])
def test_a_prefix_is_recognised(in_model: str, in_checkpoint: str, advice: Any, strict: Any) -> None:
    """On either side, in every mode; what the hint says to pass makes the load right."""
    tree = tree_of({in_model + name: shape for name, shape in SHAPES.items()})
    saved = state_of({in_checkpoint + name: shape for name, shape in SHAPES.items()})
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(tree, saved, strict=strict)
    assert "all 6 tensors of the model" in caught.value.hint
    assert advised(caught.value) == advice
    report = load_state_dict_into(tree, saved, rename=advised(caught.value), strict=strict)
    assert len(report.loaded) == 6
    assert all(np.array_equal(tree[in_model + name], saved[in_checkpoint + name]) for name in SHAPES)


def test_a_wrapper_in_the_middle_is_recognised() -> None:
    """Layers that were compiled, sharded or adapted one by one, beside a prefix; without strict it is an error too."""
    saved = {f"base_model.model.{name.replace('.q.', '.q.base_layer.')}": shape for name, shape in SHAPES.items()}
    saved |= {"base_model.model.layers.0.q.lora_A.weight": (1, 1)}
    for strict in (True, False):
        tree = tree_of(SHAPES)
        with pytest.raises(ModelMismatchError) as caught:
            load_state_dict_into(tree, state_of(saved), strict=strict)
        rename = advised(caught.value)
        report = load_state_dict_into(tree, state_of(saved), strict="missing", rename=rename)
        assert report.loaded == tuple(SHAPES)
    some = {name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."): shape for name, shape in SHAPES.items()}
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(tree_of(SHAPES), state_of(some), strict=False)
    assert load_state_dict_into(tree_of(SHAPES), state_of(some), rename=advised(caught.value)).loaded == tuple(SHAPES)


@pytest.mark.parametrize(
    ("model", "saved"),
    [
        ({"head.weight": (3, 2), "a": (2,)}, {"score.weight": (3, 2), "a": (2,)}),  # another head of the same size
        (SHAPES, {f"m.{name}": (*shape, 1) for name, shape in SHAPES.items()}),  # no shape is the same
        (SHAPES, {"lora_A": (2, 2), "lora_B": (2, 2)}),
        (SHAPES, dict(SHAPES)),
        (SHAPES, {}),
        ({}, SHAPES),
        ({"w": (2,), "m.q": (3,), "m.k": (4,)}, {"w": (2,), "q": (3,), "k": (4,)}),  # to rename all would lose w
        (SHAPES, {**{f"m.{name}": shape for name, shape in SHAPES.items()}, "m.layers.0.q": (1,), **SHAPES}),
    ],
)
def test_nothing_is_proposed_that_was_not_seen_to_fit(model: dict[str, Any], saved: dict[str, Any]) -> None:
    """Equal shapes alone are no reason, and no tensor that fits is given up."""
    assert proposal(model, saved, module=True) == ""


def test_a_proposal_counts_what_has_the_same_shape() -> None:
    """A prefix is a prefix, though a head is of another size; what is said to be there is there."""
    saved = {f"m.{name}": shape for name, shape in SHAPES.items()} | {"m.layers.2.k.weight": (7, 7)}
    assert 'rename=("m.", "") the checkpoint has 5 of the 6 tensors' in proposal(SHAPES, saved, module=True)


def test_a_proposal_after_a_rename_replaces_it() -> None:
    """What is to be passed is told for the names of the checkpoint, not for what rename= made of them."""
    saved = state_of({f"module.bert.{name}": shape for name, shape in SHAPES.items()})
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(tree_of(SHAPES), saved, rename=("module.", ""), strict=False)
    assert advised(caught.value) == ("module.bert.", "")


# -- real wrappers ------------------------------------------------------------------------------


def arrays(module: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["compiled", "layers compiled", "data parallel", "peft"])
def test_wrapped_modules(kind: str) -> None:
    """The module is wrapped, or its state dict was saved wrapped: the rename that is named is right both ways."""
    torch = pytest.importorskip("torch")

    def net() -> Any:
        return torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(2, n), torch.nn.Linear(n, 2)) for n in (3, 4)))

    plain, wrapped = net(), net()
    if kind == "compiled":
        wrapped = torch.compile(wrapped)
    elif kind == "layers compiled":
        wrapped[1] = torch.compile(wrapped[1])
    elif kind == "data parallel":
        wrapped = torch.nn.DataParallel(wrapped)
    else:
        peft = pytest.importorskip("peft")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(wrapped, peft.LoraConfig(target_modules=["0.0"], r=1))
    for model, other in ((plain, wrapped), (wrapped, plain)):
        saved = {name: array + 1 for name, array in arrays(other).items()}
        for strict in (True, False):
            with pytest.raises(ModelMismatchError) as caught:
                load_state_dict_into(model, saved, strict=strict)
        rename, adapters = advised(caught.value, model=model), "*lora*"
        report = load_state_dict_into(model, saved, rename=rename, skip=adapters)
        assert len(report.loaded) == 8
        loaded = [array.tolist() for name, array in arrays(model).items() if "lora" not in name]
        assert loaded == [array.tolist() for name, array in saved.items() if "lora" not in name]
