"""What a load must not do to a model: replace what is no plain tensor, change a dtype, fit nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

import asyncfetch
from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.models import load_state_dict_into
from asyncfetch.models.into import Loading
from asyncfetch.server import Server

from ..kit.files import sharded
from ..kit.torch_or_not import needs_torch, nn, torch

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs_torch
FORMS = pytest.mark.parametrize("options", [{}, {"assign": False}, {"strict": False}, {"strict": "missing"}], ids=str)


def state(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    return {name.replace("_", "."): np.ones(shape, np.float32) for name, shape in shapes.items()}


# -- tensors that are more than their values ----------------------------------------------------


class Halved(torch.Tensor):
    """A wrapper of a tensor that holds half of what it stands for, as quantised and sharded ones do."""

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, requires_grad=False)

    def __init__(self, inner: Any) -> None:
        self.inner = inner / 2

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Halved(args[0].inner * 2)
        plain = [one.inner * 2 if isinstance(one, Halved) else one for one in args]
        return func(*plain, **(kwargs or {}))


class Tagged(torch.Tensor):
    """A subclass that changes nothing but its name."""


class Packed(nn.Parameter):
    """A parameter of another kind, as bitsandbytes' Params4bit."""


def tagged() -> Any:
    return torch.ones(3, 2).as_subclass(Tagged)


def with_buffer() -> Any:
    net = nn.Module()
    net.register_buffer("weight", tagged())
    return net


def with_parameter(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        net = nn.Module()
        net._parameters["weight"] = make()
        return net

    return made


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "wrapper": (with_parameter(lambda: nn.Parameter(Halved(torch.ones(3, 2)), requires_grad=False)), "Halved"),
    "subclass": (with_parameter(lambda: nn.Parameter(tagged())), "Tagged"),
    "parameter": (with_parameter(lambda: Packed(torch.ones(3, 2))), "Packed"),
    "buffer": (with_buffer, "Tagged"),
    "sparse": (with_parameter(lambda: nn.Parameter(torch.ones(3, 2).to_sparse())), "torch.sparse_coo, not dense"),
}


@FORMS
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_tensor_is_refused(kind: str, options: dict[str, Any]) -> None:
    """An array in its place, or copied into it, is another model: parameter, class and a way out are named."""
    make, named = KINDS[kind]
    net = nn.Sequential(make(), nn.Linear(2, 2, bias=False))
    held = net.state_dict(keep_vars=True)
    with pytest.raises(ModelMismatchError, match=rf"0\.weight is a .*{named}") as caught:
        load_state_dict_into(net, state(**{"0_weight": (3, 2), "1_weight": (2, 2)}), **options)
    assert "Load before the model is quantised" in caught.value.hint
    assert all(tensor is held[name] for name, tensor in net.state_dict(keep_vars=True).items())
    assert not torch.equal(net[1].weight, torch.ones(2, 2)), "nothing is changed by half"


def test_what_is_no_plain_tensor_may_stay_as_it_is() -> None:
    """Where it is skipped, or there is nothing for it, it is nobody's business."""
    net = nn.Sequential(KINDS["wrapper"][0](), nn.Linear(2, 2, bias=False))
    given = state(**{"0_weight": (3, 2), "1_weight": (2, 2)})
    report = load_state_dict_into(net, given, skip="0.*")
    assert (report.loaded, report.skipped, report.missing) == (("1.weight",), ("0.weight",), ())
    assert type(net[0].weight) is Halved
    del given["0.weight"]
    assert load_state_dict_into(net, given, strict=False).missing == ("0.weight",)


@pytest.mark.filterwarnings("default")
@FORMS
def test_torchao(options: dict[str, Any]) -> None:
    """Weights that torchao has quantised."""
    quantization = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
    held = net[0].weight
    with pytest.raises(ModelMismatchError, match=r"0\.weight is a torchao\..*Tensor"):
        load_state_dict_into(net, state(**{"0_weight": (64, 64)}), **options)
    assert net[0].weight is held


@pytest.mark.filterwarnings("default")
@FORMS
@pytest.mark.parametrize("layer", ["Linear4bit", "Linear8bitLt"])
def test_bitsandbytes(layer: str, options: dict[str, Any]) -> None:
    """Layers of bitsandbytes, which have loading code of their own."""
    library = pytest.importorskip("bitsandbytes")
    net = nn.Sequential(getattr(library.nn, layer)(64, 64, bias=False))
    held = net[0].weight
    with pytest.raises(ModelMismatchError, match=r"0\.weight is a bitsandbytes\."):
        load_state_dict_into(net, state(**{"0_weight": (64, 64)}), **options)
    assert net[0].weight is held


@pytest.mark.filterwarnings("default")
def test_what_accelerate_has_offloaded_is_refused() -> None:
    """Its parameters are on meta between passes, and before each it puts its own values there."""
    accelerate = pytest.importorskip("accelerate")
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    before = net(torch.ones(1, 2))
    accelerate.cpu_offload(net, execution_device="cpu")
    with pytest.raises(ModelMismatchError, match=r"0\.weight is a .*Parameter that accelerate has offloaded"):
        load_state_dict_into(net, state(**{"0_weight": (2, 2)}))
    assert torch.equal(net(torch.ones(1, 2)), before)


def test_loading_code_of_its_own_does_not_put_the_refusal_off() -> None:
    """What such code has no part in is known from dtypes and shapes alone, before any value is here."""

    class Own(nn.Linear):
        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)

    hollow = {
        name: np.broadcast_to(np.zeros((), np.float32), shape)
        for name, shape in (("own.weight", (2, 2)), ("own.bias", (2,)), ("odd.weight", (3, 2)), ("fits.weight", (2, 2)))
    }
    wishes: dict[str, Any] = {"strict": True, "assign": True, "aliases": {}}

    def net(odd: Any) -> Any:
        return nn.ModuleDict({"own": Own(2, 2), "odd": odd, "fits": nn.Linear(2, 2, bias=False)})

    with pytest.raises(ModelMismatchError, match=r"odd\.weight is a .*Tagged"):
        Loading(net(KINDS["subclass"][0]()), hollow, **wishes)
    with pytest.raises(ModelMismatchError, match=r"odd\.weight is \(5, 2\) in the model"):
        Loading(net(nn.Linear(2, 5, bias=False)), hollow, **wishes)
    with torch.device("meta"):
        bare = nn.Module()
        bare.register_buffer("table", torch.ones(2), persistent=False)
        bare.weight = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(ModelMismatchError, match=r"no values.*\(odd\.table\)"):
        Loading(net(bare), hollow, **wishes)
    assert not Loading(net(nn.Linear(2, 3, bias=False)), hollow, **wishes).copies


# -- modules and tensors that do not take everything ------------------------------------------------


class BeforeAssign(nn.Module):
    """A module whose loading code was written before torch had `assign`."""

    def __init__(self, rows: int = 3, device: str = "cpu") -> None:
        super().__init__()
        self.inner = nn.Linear(2, rows, device=device)
        self.calls = 0

    def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
        self.calls += 1
        return super().load_state_dict(state_dict, strict)


def test_a_loader_of_its_own_that_takes_no_assign(tmp_path: Path) -> None:
    """With assign=False it is called with what it takes; else it is refused while nothing is downloaded."""
    tensors = {"inner.weight": np.full((300, 2), 7, np.float32), "inner.bias": np.arange(300, dtype=np.float32)}
    sharded(tmp_path / "models" / "org" / "net", tensors, shards=2)
    net, cache = BeforeAssign(300), tmp_path / "cache"
    with Server(tmp_path / "models") as server:
        for model, ways in ((net, "Use assign=False, .*"), (BeforeAssign(300, "meta"), "Have it do so")):
            with pytest.raises(SourceError, match=rf"BeforeAssign\.load_state_dict\(\) takes no assign=.* {ways}"):
                asyncfetch.load_into(model, "org/net", endpoint=server.url, cache_dir=cache)
        assert not cache.exists()
        assert net.calls == 0
        asyncfetch.load_into(net, "org/net", assign=False, endpoint=server.url, cache_dir=cache)
    assert net.calls == 1
    assert net.inner.bias.tolist() == list(range(300))


@pytest.mark.parametrize("assign", [True, False])
def test_a_loader_of_its_own_is_asked_what_it_takes(assign: bool) -> None:
    """Whatever passes all keywords on will do; one that takes no strict= cannot be called."""

    class Passing(BeforeAssign):
        def load_state_dict(self, *args: Any, **options: Any) -> Any:
            self.calls += 1
            return nn.Module.load_state_dict(self, *args, **options)

    given = state(inner_weight=(3, 2), inner_bias=(3,))
    load_state_dict_into(net := Passing(), given, assign=assign)
    assert (net.calls, net.inner.bias.tolist()) == (1, [1, 1, 1])
    net = BeforeAssign()
    net.load_state_dict = lambda state: BeforeAssign.load_state_dict(net, state)
    with pytest.raises(SourceError, match=r"takes no strict=.*super\(\)\.load_state_dict"):
        load_state_dict_into(net, given, assign=assign)
    assert net.calls == 0


def test_parameters_of_inference_mode_are_copied_into() -> None:
    """They are written to as torch wants it, also where loading code of the module's own does it."""

    class Doubling(nn.Linear):
        def load_state_dict(self, state_dict: Any, strict: bool = True) -> Any:
            return super().load_state_dict({name: one * 2 for name, one in state_dict.items()}, strict)

    given = state(weight=(3, 2), bias=(3,))
    with torch.inference_mode():
        nets = nn.Linear(2, 3), Doubling(2, 3)
    for net, value in zip(nets, (1.0, 2.0), strict=True):
        before = net.weight
        load_state_dict_into(net, given, assign=False)
        assert net.weight is before
        assert net.weight.tolist() == [[value] * 2] * 3
    streamed = Loading(nets[0], given, strict=True, assign=False, aliases={})
    assert streamed.copies
    streamed.put("weight", given["weight"] * 5)
    streamed.put("bias", given["bias"])
    streamed.finish()
    assert nets[0].weight.tolist() == [[5.0] * 2] * 3
    load_state_dict_into(nets[0], given)
    assert not nets[0].weight.is_inference()


def test_an_expanded_tensor_is_not_copied_into() -> None:
    """It has one element for many values; with assign=True it becomes the array."""
    net = nn.Module()
    net.register_buffer("scale", torch.ones(1).expand(3))
    given = {"scale": np.arange(3, dtype=np.float32)}
    with pytest.raises(SourceError, match=r"scale is expanded.* Use assign=True"):
        load_state_dict_into(net, given, assign=False)
    load_state_dict_into(net, given)
    assert net.scale.tolist() == [0, 1, 2]


# -- dtypes ------------------------------------------------------------------------------------------


def linear(dtype: Any, device: str = "cpu") -> Any:
    return nn.Linear(2, 2, bias=False, dtype=dtype, device=device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("own", "given"),
    [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "bfloat16"), ("float64", "float32")],
)
def test_a_module_keeps_its_dtype(device: str, own: str, given: str) -> None:
    """Another one is refused with three ways out, each of which does what it says."""
    values = np.array([[1, 2], [3, 4.5]], np.float32).astype(np.dtype(getattr(ml_dtypes, given, given)))
    net = linear(getattr(torch, own), device)
    with pytest.raises(ModelMismatchError, match=rf"weight is {own} in the model and {given} in the") as caught:
        load_state_dict_into(net, {"weight": values}, strict=False)
    assert caught.value.dtypes == {"weight": (own, given)}
    assert net.weight.dtype is getattr(torch, own)
    for option in (f'dtype="{own}"', 'dtype="auto"', "assign=False"):
        assert option in caught.value.hint
    load_state_dict_into(net, {"weight": values}, dtype=own)
    assert net.weight.dtype is getattr(torch, own)
    assert net.weight.tolist() == [[1, 2], [3, 4.5]]
    load_state_dict_into(net := linear(getattr(torch, own), device), {"weight": values}, dtype="auto")
    assert net.weight.dtype is getattr(torch, given)
    load_state_dict_into(net := linear(getattr(torch, own)), {"weight": values}, assign=False)
    assert net.weight.dtype is getattr(torch, own)
    assert net.weight.tolist() == [[1, 2], [3, 4.5]]


def test_no_cast_is_advised_for_floats_of_eight_bits_and_integers() -> None:
    """They may be worth nothing without a scale."""
    for given in (ml_dtypes.float8_e4m3fn, np.int8):
        with pytest.raises(ModelMismatchError, match="in the checkpoint") as caught:
            load_state_dict_into(linear(torch.bfloat16), {"weight": np.ones((2, 2), given)})
        assert caught.value.hint == 'dtype="auto" takes the dtypes of the checkpoint.'


def test_dtype_casts_floats_alone() -> None:
    """Integers that differ are refused even where a dtype is asked for; nothing casts them."""
    net = nn.BatchNorm1d(2)
    given = {name: tensor.numpy() for name, tensor in nn.BatchNorm1d(2).state_dict().items()}
    load_state_dict_into(net, given, dtype="bfloat16")
    assert net.running_mean.dtype is torch.bfloat16
    given["num_batches_tracked"] = np.array(1, np.int32)
    with pytest.raises(ModelMismatchError, match="num_batches_tracked is int64 in the model and int32"):
        load_state_dict_into(net, given, dtype="bfloat16")


# -- nothing fits, and before the download -------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False, "missing"])
@pytest.mark.parametrize("kind", ["module", "tree", "bare"])
def test_a_load_that_fits_nothing_is_an_error(kind: str, strict: Any) -> None:
    """In every mode, with names of both sides; so is one into a model without a tensor."""
    model: Any = {"module": lambda: nn.Linear(3, 2), "tree": lambda: {"weight": None}, "bare": nn.ReLU}[kind]()
    with pytest.raises(ModelMismatchError, match="no name is in both") as caught:
        load_state_dict_into(model, state(other_scale=(7,)), strict=strict)
    assert "other.scale" in str(caught.value)
    assert ("weight" in str(caught.value)) is (kind != "bare")
    assert "strict=False" not in caught.value.hint
    assert load_state_dict_into(nn.ReLU(), {}, strict=strict).loaded == ()


@pytest.mark.parametrize("storage", ["disk", "memory"])
def test_what_cannot_be_right_is_refused_before_the_download(tmp_path: Path, storage: Any) -> None:
    """A subclass, a dtype, a bare buffer, names: by the headers, with no shard asked for and nothing written."""
    tensors = {f"{n}.weight": np.ones((300, 300), np.float32) for n in range(3)}
    sharded(tmp_path / "models" / "org" / "net", tensors, shards=2)

    def net(last: Any) -> Any:
        return nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(2)), last)

    odd = nn.Linear(300, 300, bias=False)
    odd.weight = nn.Parameter(odd.weight.detach().as_subclass(Tagged))
    bare = nn.Linear(300, 300, bias=False)
    bare.register_buffer("table", torch.ones(2, device="meta"), persistent=False)
    half = nn.Linear(300, 300, bias=False, dtype=torch.bfloat16)
    prefixed = nn.ModuleDict({"a": net(nn.Linear(300, 300, bias=False))})
    with Server(tmp_path / "models") as server:
        for model in (net(odd), net(bare), net(half), prefixed):
            for strict in (True, False, "missing"):
                with pytest.raises(ModelMismatchError):
                    asyncfetch.load_into(
                        model, "org/net", strict=strict, storage=storage, endpoint=server.url, cache_dir=tmp_path / "c"
                    )
        assert not (tmp_path / "c").exists()
        assert {record.range for record in server.requests if record.status == 206} <= {"bytes=0-65535"}
