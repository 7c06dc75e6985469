"""State dicts into real torch modules: memory, dtypes, ties, hooks, and that a refusal changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from asyncfetch.errors import ModelMismatchError, SourceError
from asyncfetch.format.arrays import PackedArray
from asyncfetch.format.header import TensorInfo
from asyncfetch.models import load_state_dict_into, to_torch

from ..kit.torch_or_not import needs_torch, nn, torch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = needs_torch


class Net(nn.Module):
    """Embedding, norm with buffers, head: the parts that load differently."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.lm_head = nn.Linear(4, 10, bias=False)
        if tied:
            self.lm_head.weight = self.emb.weight

    def forward(self, ids: Any) -> Any:
        return self.lm_head(self.norm(self.emb(ids)))


IDS = [1, 2, 3, 4]


def trained(*, tied: bool = False) -> Net:
    """A net whose parameters and buffers all differ from a new one's."""
    torch.manual_seed(7)
    net = Net(tied=tied)
    for _ in range(3):
        net(torch.tensor(IDS))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net.eval()


def arrays(module: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def content(module: Any) -> dict[str, tuple[int, bytes, Any, bool]]:
    """Identity, bytes, dtype and flag of everything in a module: equal before and after a refusal."""
    return {
        name: (id(tensor), tensor.detach().cpu().numpy().tobytes(), tensor.dtype, tensor.requires_grad)
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def on_meta(*, tied: bool = False) -> Net:
    with torch.device("meta"):
        return Net(tied=tied).eval()


def address(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


@pytest.fixture
def swap_tensors() -> Iterator[None]:
    """torch's other way to load, in which a parameter object takes over the new tensor."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


NATIVE = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
NATIVE += ["float16", "float32", "float64", "complex64"]
NARROW = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("shape", [(3, 2), (), (0, 3), (1,)])
@pytest.mark.parametrize("name", NATIVE + NARROW)
def test_to_torch_keeps_memory_dtype_and_shape(name: str, shape: tuple[int, ...]) -> None:
    """Each dtype of safetensors that torch has, also 0-d and empty, without a copy."""
    dtype = np.dtype(getattr(ml_dtypes, name)) if name in NARROW else np.dtype(name)
    array = (2 ** np.arange(np.prod(shape, dtype=int))).astype(dtype).reshape(shape)
    tensor = to_torch(array)
    assert tensor.dtype is getattr(torch, name)
    assert tuple(tensor.shape) == shape
    assert tensor.numel() == 0 or tensor.data_ptr() == address(array)
    assert tensor.to(torch.complex64).tolist() == array.astype(np.complex64).tolist()


def test_to_torch_halves_the_last_dimension_of_f4() -> None:
    """Two values in a byte, on the same memory; an odd last dimension cannot be held."""
    raw = np.arange(6, dtype=np.uint8)
    tensor = to_torch(PackedArray.of(raw, TensorInfo("F4", (3, 4), 0, 6)))
    assert tensor.dtype is torch.float4_e2m1fn_x2
    assert tuple(tensor.shape) == (3, 2)
    assert tensor.data_ptr() == address(raw)
    assert tensor.view(torch.uint8).flatten().tolist() == raw.tolist()
    with pytest.raises(SourceError, match=r"\(4, 3\) must be even"):
        to_torch(PackedArray.of(raw, TensorInfo("F4", (4, 3), 0, 6)))


def test_a_slice_of_a_packed_array_is_bytes() -> None:
    """It has no logical shape any more, so it is what it looks like."""
    part = PackedArray.of(np.arange(6, dtype=np.uint8), TensorInfo("F4", (3, 4), 0, 6))[2:4]
    assert to_torch(part).tolist() == [2, 3]


def test_to_torch_refuses_what_torch_lacks() -> None:
    """F6, and the types of numpy and ml_dtypes without a counterpart, with the dtype in the message."""
    for kind in ("F6_E2M3", "F6_E3M2"):
        with pytest.raises(SourceError, match=f"no dtype for {kind}"):
            to_torch(PackedArray.of(np.zeros(3, np.uint8), TensorInfo(kind, (4,), 0, 3)))
    for dtype in (ml_dtypes.float4_e2m1fn, np.longdouble, np.dtype("U3")):
        with pytest.raises(SourceError, match=f"numpy's {np.dtype(dtype).name}"):
            to_torch(np.zeros(2, dtype))


def test_a_dtype_that_this_torch_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older torch has no float8_e8m0fnu."""
    monkeypatch.delattr(torch, "float8_e8m0fnu")
    with pytest.raises(SourceError, match="no dtype float8_e8m0fnu"):
        to_torch(np.zeros(1, ml_dtypes.float8_e8m0fnu))


@pytest.mark.parametrize("kind", ["read-only", "negative stride", "misaligned", "big-endian", "odd stride"])
def test_to_torch_copies_what_torch_cannot_hold(kind: str) -> None:
    """The tensor is writable and has the values; the array never changes through it."""
    raw = np.zeros(64, np.uint8)
    array = raw[:32].view(np.float32)
    if kind == "negative stride":
        array = array[::-1]
    elif kind == "misaligned":
        array = np.frombuffer(raw, np.float32, 8, 1)
    elif kind == "big-endian":
        array = array.view(">f4")
    elif kind == "odd stride":
        array = np.zeros(8, [("a", "c8"), ("b", "f4")])["a"]
    array[:] = np.arange(8)
    array.flags.writeable = kind != "read-only"
    tensor = to_torch(array)
    tensor += 1
    assert tensor.tolist() == list(range(1, 9))
    assert array.tolist() == list(range(8))


@pytest.mark.parametrize("assign", [True, False])
def test_the_loaded_module_computes_the_same(assign: bool) -> None:
    """Parameters, running statistics and the 0-d int64 counter all arrive."""
    original, net = trained(), Net().eval()
    state = arrays(original)
    assert state["norm.num_batches_tracked"].shape == ()
    report = load_state_dict_into(net, state, assign=assign)
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
    assert net.norm.num_batches_tracked.item() == 3
    assert net.norm.num_batches_tracked.dtype is torch.int64
    assert sorted(report.loaded) == sorted(state)
    assert (report.missing, report.unexpected, dict(report.tied), report.on_meta) == ((), (), {}, ())


def test_assign_takes_the_memory_and_the_dtype_of_the_checkpoint() -> None:
    """BF16 and FP8 land without a copy; what cannot be trained loses requires_grad, the rest keeps it."""
    state = arrays(trained())
    state["emb.weight"] = state["emb.weight"].astype(ml_dtypes.bfloat16)
    state["lm_head.weight"] = state["lm_head.weight"].astype(ml_dtypes.float8_e4m3fn)
    state["norm.weight"] = state["norm.weight"].astype(np.int32)
    net = Net()
    net.norm.bias.requires_grad_(False)
    load_state_dict_into(net, state, dtype="auto")
    for name, tensor in net.state_dict().items():
        assert tensor.data_ptr() == address(state[name]), name
    assert net.emb.weight.dtype is torch.bfloat16
    assert net.lm_head.weight.dtype is torch.float8_e4m3fn
    flags = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    assert flags == {"emb.weight": True, "norm.weight": False, "norm.bias": False, "lm_head.weight": False}
    assert all(isinstance(parameter, nn.Parameter) for parameter in net.parameters())


def test_a_training_step_works_on_assigned_memory() -> None:
    """The step writes through to the arrays, and read-only arrays are left alone without a crash."""
    state = arrays(trained())
    state["lm_head.weight"].flags.writeable = False
    before = {name: array.copy() for name, array in state.items()}
    net = on_meta()
    load_state_dict_into(net, state)
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net(torch.tensor(IDS)).square().sum().backward()
    optimizer.step()
    assert net.emb.weight.data_ptr() == address(state["emb.weight"])
    assert not np.array_equal(state["emb.weight"], before["emb.weight"])
    assert not np.array_equal(net.lm_head.weight.detach().numpy(), before["lm_head.weight"])
    assert np.array_equal(state["lm_head.weight"], before["lm_head.weight"])


def test_copying_keeps_tensors_and_their_dtype() -> None:
    """assign=False casts into the same parameter objects, so an optimizer stays valid."""
    original, net = trained(), Net().eval()
    state = {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        for name, array in arrays(original).items()
    }
    before = content(net)
    load_state_dict_into(net, state, assign=False)
    for name, tensor in net.state_dict(keep_vars=True).items():
        assert (id(tensor), tensor.dtype, tensor.requires_grad) == (before[name][0], *before[name][2:])
        assert np.array_equal(tensor.detach().numpy(), state[name].astype(state[name].dtype))
    net.emb.weight.data.zero_()
    assert state["emb.weight"].astype(np.float32).any()


@pytest.mark.parametrize("given", [("emb",), ("lm_head",), ("emb", "lm_head")])
@pytest.mark.parametrize("where", ["cpu", "meta", "copied", "swapped"])
def test_tied_weights_stay_tied(where: str, given: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    """One object before, one after: with either name or both, on meta, assigned, copied or swapped."""
    if where == "swapped":
        request.getfixturevalue("swap_tensors")
    original = trained(tied=True)
    state = arrays(original)
    for name in {"emb", "lm_head"} - set(given):
        del state[f"{name}.weight"]
    net = on_meta(tied=True) if where == "meta" else Net(tied=True).eval()
    report = load_state_dict_into(net, state, assign=where != "copied")
    assert net.emb.weight is net.lm_head.weight
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
    assert len(list(net.parameters())) == 3
    absent = {"emb.weight", "lm_head.weight"} - set(state)
    assert dict(report.tied) == dict.fromkeys(absent, f"{given[0]}.weight")
    assert report.on_meta == ()
    if where != "copied":
        assert net.emb.weight.data_ptr() == address(state[f"{given[0]}.weight"])


def test_tied_weights_with_no_name_at_all_are_missing() -> None:
    """A group is filled from one of its names, not from nothing."""
    state = arrays(trained(tied=True))
    del state["emb.weight"], state["lm_head.weight"]
    net = on_meta(tied=True)
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(net, state)
    assert set(caught.value.missing) == {"emb.weight", "lm_head.weight"}
    with pytest.raises(ModelMismatchError, match=r"2 would have no values.*emb\.weight, lm_head\.weight"):
        load_state_dict_into(net, state, strict=False)
    net = Net(tied=True)
    report = load_state_dict_into(net, state, strict=False)
    assert set(report.missing) == {"emb.weight", "lm_head.weight"}
    assert net.emb.weight is net.lm_head.weight


def test_tied_weights_with_two_values_are_an_error() -> None:
    """The checkpoint of an untied model does not silently lose one of its tensors in a tied one."""
    state = arrays(trained())
    net = Net(tied=True)
    before = content(net)
    with pytest.raises(ModelMismatchError, match=r"emb\.weight and lm_head\.weight are one tensor in the model") as e:
        load_state_dict_into(net, state)
    assert "strict=False" in e.value.hint
    assert content(net) == before
    report = load_state_dict_into(net, state, strict=False)
    assert net.emb.weight is net.lm_head.weight
    assert net.emb.weight.data_ptr() == address(state["emb.weight"])
    assert report.unexpected == ("lm_head.weight",)
    assert dict(report.tied) == {"lm_head.weight": "emb.weight"}
    assert "lm_head.weight" not in report.loaded


def test_tensors_on_one_memory_count_as_tied() -> None:
    """safetensors' save_model drops names by memory, not by object; sharing survives the load."""
    original, net = trained(), Net().eval()
    for each in (original, net):
        each.lm_head.weight = nn.Parameter(each.emb.weight.detach())
    state = arrays(original)
    del state["lm_head.weight"]
    load_state_dict_into(net, state)
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
    assert net.lm_head.weight.data_ptr() == net.emb.weight.data_ptr() == address(state["emb.weight"])


@pytest.mark.parametrize("meta", [True, False])
def test_an_alias_fills_a_dropped_name(meta: bool) -> None:
    """On meta nothing shows that two tensors were one: the metadata of the checkpoint does."""
    original = trained(tied=True)
    state = arrays(original)
    del state["lm_head.weight"]
    net = on_meta() if meta else Net().eval()
    with pytest.raises(ModelMismatchError, match=r"1 missing \(lm_head\.weight\)"):
        load_state_dict_into(net, state)
    report = load_state_dict_into(net, state, aliases={"lm_head.weight": "emb.weight", "format": "pt"})
    assert dict(report.tied) == {"lm_head.weight": "emb.weight"}
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
    # Two parameters on one memory would be trained twice.
    assert net.lm_head.weight.data_ptr() != net.emb.weight.data_ptr()


@pytest.mark.parametrize("assign", [True, False])
def test_a_mismatch_changes_nothing_and_says_all(assign: bool) -> None:
    """Missing, unexpected and both shapes come in one error; not a byte or flag of the module moved."""
    state = arrays(trained())
    del state["norm.running_mean"]
    state["emb.bias"] = np.zeros(3, np.float32)
    state["lm_head.weight"] = state["lm_head.weight"].T.copy()
    state["norm.weight"] = state["norm.weight"].astype(np.int8 if assign else np.float32)
    net = Net()
    before = content(net)
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(net, state, assign=assign)
    assert caught.value.missing == ("norm.running_mean",)
    assert caught.value.unexpected == ("emb.bias",)
    assert caught.value.shapes == {"lm_head.weight": ((10, 4), (4, 10))}
    assert "lm_head.weight is (10, 4) in the model and (4, 10) in the checkpoint" in str(caught.value)
    assert content(net) == before
    with pytest.raises(ModelMismatchError, match=r"\(10, 4\) in the model") as caught:
        load_state_dict_into(net, state, assign=assign, strict=False)
    assert caught.value.missing == ()
    assert content(net) == before


def test_without_strict_what_fits_is_loaded() -> None:
    """The rest is reported and keeps its values, even where torch has no dtype for the extra tensor."""
    state = arrays(trained())
    del state["norm.running_mean"]
    state["extra.scale"] = PackedArray.of(np.zeros(3, np.uint8), TensorInfo("F6_E2M3", (4,), 0, 3))
    net = Net()
    net.norm.running_mean.fill_(42)
    report = load_state_dict_into(net, state, strict=False)
    assert report.missing == ("norm.running_mean",)
    assert report.unexpected == ("extra.scale",)
    assert "norm.running_mean" not in report.loaded
    assert net.norm.running_mean.tolist() == [42] * 4
    assert net.emb.weight.data_ptr() == address(state["emb.weight"])


def test_a_needed_tensor_that_torch_lacks_is_named() -> None:
    """The error says which tensor, and the module is as before."""
    state = arrays(trained())
    state["emb.weight"] = PackedArray.of(np.zeros(30, np.uint8), TensorInfo("F6_E2M3", (10, 4), 0, 30))
    net = Net()
    before = content(net)
    with pytest.raises(SourceError, match=r"^emb\.weight: torch has no dtype for F6_E2M3"):
        load_state_dict_into(net, state)
    assert content(net) == before


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("norm.num_batches_tracked", np.array(1.5, np.float32), "torch.int64 in the model and torch.float32"),
        ("emb.weight", np.ones((10, 4), np.complex64), "torch.float32 in the model and torch.complex64"),
        (
            "emb.weight",
            PackedArray.of(np.zeros(40, np.uint8), TensorInfo("F4", (10, 8), 0, 40)),
            "torch.float32 in the model and torch.float4_e2m1fn_x2",
        ),
    ],
)
def test_copying_refuses_what_would_lose_meaning(name: str, value: np.ndarray[Any, Any], said: str) -> None:
    """float to integer, complex to float, and what torch cannot convert: an error before any change."""
    state = arrays(trained())
    state[name] = value
    net = Net()
    before = content(net)
    with pytest.raises(ModelMismatchError, match=f"{name} is {said}"):
        load_state_dict_into(net, state, assign=False, strict=False)
    assert content(net) == before


def test_a_meta_module_becomes_real() -> None:
    """Nothing stays on meta after a strict load, and the memory is the checkpoint's."""
    original, net = trained(), on_meta()
    state = arrays(original)
    report = load_state_dict_into(net, state)
    assert not any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers()))
    assert net.norm.running_var.data_ptr() == address(state["norm.running_var"])
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
    assert report.on_meta == ()


def test_a_meta_parameter_cannot_be_copied_into() -> None:
    """torch would do nothing and report success."""
    net = on_meta()
    with pytest.raises(SourceError, match=r"emb\.weight is on the meta device.*assign=True"):
        load_state_dict_into(net, arrays(trained()), assign=False)


class Rotary(nn.Module):
    """A buffer that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("inv_freq", torch.ones(2), persistent=False)


@pytest.mark.parametrize("strict", [True, "missing", False])
def test_a_buffer_that_would_stay_on_meta_is_refused(strict: Any) -> None:
    """It cannot come from the checkpoint, and without it the forward pass is wrong or fails: nothing changes."""
    with torch.device("meta"):
        net = Rotary()
    with pytest.raises(ModelMismatchError, match=r"1 would have no values.*\(inv_freq\)") as caught:
        load_state_dict_into(net, arrays(Rotary()), strict=strict)
    assert "parameters_on_meta()" in caught.value.hint
    assert net.linear.weight.is_meta
    assert load_state_dict_into(Rotary(), arrays(Rotary()), strict=strict).on_meta == ()


@pytest.mark.parametrize("form", ["real", "meta", "copied"])
def test_a_non_persistent_buffer_is_filled_where_the_checkpoint_holds_it(form: str) -> None:
    """As older checkpoints do (position_ids of BERT); torch alone would call it unexpected."""
    with torch.device("meta" if form == "meta" else "cpu"):
        net = Rotary()
    state = {**arrays(Rotary()), "inv_freq": np.array([3, 4], np.float32)}
    report = load_state_dict_into(net, state, assign=form != "copied")
    assert net.inv_freq.tolist() == [3, 4]
    assert set(report.loaded) == set(state)
    assert (report.missing, report.unexpected, report.on_meta) == ((), (), ())
    assert "inv_freq" not in net.state_dict(), "it stays out of what is saved"
    assert (net.inv_freq.data_ptr() == address(state["inv_freq"])) is (form != "copied")


@pytest.mark.parametrize("value", [np.ones(3, np.float32), np.ones(2, np.float16)])
def test_a_computed_buffer_is_not_replaced_by_another_kind(value: np.ndarray[Any, Any]) -> None:
    """What the module computed is better than a rounded one, or one of another length; on meta there is none."""
    state = {**arrays(Rotary()), "inv_freq": value}
    with pytest.raises(ModelMismatchError, match=r"1 unexpected \(inv_freq\)"):
        load_state_dict_into(Rotary(), state)
    net = Rotary()
    report = load_state_dict_into(net, state, strict="missing")
    assert report.unexpected == ("inv_freq",)
    assert net.inv_freq.tolist() == [1, 1]
    with torch.device("meta"):
        net = Rotary()
    with pytest.raises(ModelMismatchError, match="inv_freq is"):
        load_state_dict_into(net, state, strict="missing")


class Renamed(nn.Module):
    """A module that reads checkpoints of its older self, reading a value on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.calls = 0
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state: dict[str, Any], prefix: str, *_: object) -> None:
        scale = state.pop(f"{prefix}scale", None)
        if f"{prefix}old" in state:
            state[f"{prefix}weight"] = state.pop(f"{prefix}old") * float(scale.item())


@pytest.mark.parametrize("meta", [True, False])
def test_load_hooks_rename_and_compute(meta: bool) -> None:
    """What a hook accepts is neither missing nor unexpected, and it is applied once."""
    with torch.device("meta" if meta else "cpu"):
        net = nn.Sequential(Renamed(), nn.Linear(2, 2))
    state = {"0.old": np.ones(3, np.float32), "0.scale": np.array(2, np.float32)}
    state |= {f"1.{name}": array for name, array in arrays(nn.Linear(2, 2)).items()}
    report = load_state_dict_into(net, state)
    assert net[0].weight.tolist() == [2, 2, 2]
    assert (report.missing, report.unexpected) == ((), ())
    state["0.old"] = np.ones(4, np.float32)
    before = content(net)
    with pytest.raises(ModelMismatchError) as caught:
        load_state_dict_into(net, state)
    assert caught.value.shapes == {"0.weight": ((3,), (4,))}
    assert content(net) == before
    if meta:
        with torch.device("meta"):
            net = nn.Sequential(Renamed())
        with pytest.raises(SourceError, match=r"0\.weight is on the meta device"):
            load_state_dict_into(net, {"0.old": np.ones(3, np.float32), "0.scale": np.array(2.0)}, assign=False)


def test_a_hook_of_the_root_is_applied_once() -> None:
    """Judging works on a copy of the state dict, so a hook's edits do not reach the load."""
    net = nn.Linear(2, 2, bias=False)

    def double(state: dict[str, Any], *_: object) -> None:
        state["weight"] = state["weight"] * 2

    net._register_load_state_dict_pre_hook(double)
    load_state_dict_into(net, {"weight": np.ones((2, 2), np.float32)})
    assert net.weight.tolist() == [[2, 2], [2, 2]]


def test_weight_norm_reads_the_names_of_older_checkpoints() -> None:
    """A hook of torch itself: weight_g and weight_v become parametrizations."""
    net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    g, v = np.full((2, 1), 5, np.float32), np.eye(2, 3, dtype=np.float32)
    load_state_dict_into(net, {"bias": np.zeros(2, np.float32), "weight_g": g, "weight_v": v})
    assert net.weight.tolist() == (5 * v).tolist()


class Stateful(nn.Module):
    """A module with a state beyond tensors, and its own idea of loading."""

    def __init__(self, *, skip: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.extra: list[Any] = []
        self.skip = skip

    def get_extra_state(self) -> Any:
        return torch.tensor([1])

    def set_extra_state(self, state: Any) -> None:
        self.extra.append(state.tolist())

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.skip:
            with torch.no_grad():
                self.weight.copy_(state[f"{prefix}weight"])
        else:
            super()._load_from_state_dict(state, prefix, *rest)
            if (state[f"{prefix}weight"] < 0).any():
                rest[4].append("negative weights")


def test_extra_state_is_set_once_and_only_after_all_fits() -> None:
    """A refused load leaves it alone; its absence is a missing name."""
    net = Stateful()
    state = {"weight": np.ones(2, np.float32), "_extra_state": np.array([1, 2], np.uint8)}
    with pytest.raises(ModelMismatchError):
        load_state_dict_into(net, {**state, "more": np.ones(1)})
    assert net.extra == []
    load_state_dict_into(net, state)
    assert net.extra == [[1, 2]]
    with pytest.raises(ModelMismatchError, match=r"1 missing \(_extra_state\)"):
        load_state_dict_into(net, {"weight": state["weight"]})
    with pytest.raises(ModelMismatchError, match=r"1 unexpected \(_extra_state\)"):
        load_state_dict_into(nn.Linear(1, 1), {**arrays(nn.Linear(1, 1)), "_extra_state": state["_extra_state"]})


def test_what_a_module_itself_refuses_is_an_error_before_any_change() -> None:
    """Its words are in the message, without an advice that would not help."""
    net = nn.Sequential(nn.Linear(1, 1), Stateful())
    state = {f"0.{name}": array for name, array in arrays(nn.Linear(1, 1)).items()}
    state |= {"1.weight": np.array([1, -1], np.float32), "1._extra_state": np.zeros(1, np.uint8)}
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(ModelMismatchError, match="does not fit the model: negative weights") as caught:
        load_state_dict_into(net, state, strict=False)
    assert caught.value.hint == ""
    assert all(map(torch.equal, before, net.parameters()))


def test_a_module_that_would_stay_on_meta_is_refused() -> None:
    """Its own loading code copies, which does nothing on meta, and reports success."""
    with torch.device("meta"):
        net = Stateful(skip=True)
    with pytest.raises(ModelMismatchError, match=r"1 would have no values, being on the meta device \(weight\)"):
        load_state_dict_into(net, {"weight": np.ones(2, np.float32)}, strict=False)
    with pytest.raises(SourceError, match="no shape yet"):
        load_state_dict_into(nn.LazyLinear(2), {"weight": np.ones((2, 2), np.float32)})


def test_a_shared_submodule_needs_one_of_its_names() -> None:
    """One module under two names is tied as a whole, in every parameter and buffer."""
    block = nn.BatchNorm1d(2)
    net = nn.ModuleDict({"a": block, "b": block})
    state = {f"b.{name}": array for name, array in arrays(nn.BatchNorm1d(2)).items()}
    state["b.weight"][:] = 3
    state["b.running_mean"][:] = 4
    report = load_state_dict_into(net, state)
    assert net["a"] is net["b"]
    assert net["a"].weight.tolist() == [3, 3]
    assert net["a"].running_mean.tolist() == [4, 4]
    assert report.tied["a.weight"] == "b.weight"
    assert (report.missing, report.unexpected) == ((), ())


def test_one_array_under_two_names_is_not_shared_by_untied_parameters() -> None:
    """A state dict may hold one array twice; the model decides what is tied."""
    net = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    one = np.ones((2, 2), np.float32)
    load_state_dict_into(net, {"0.weight": one, "1.weight": one})
    net[1].weight.data.zero_()
    assert net[0].weight.tolist() == [[1, 1], [1, 1]]
    assert net[0].weight.data_ptr() == address(one)


def test_empty_parameters_are_not_tied() -> None:
    """They have no memory to share, though all report the same address."""
    net = nn.ParameterList([nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(0, 3))])
    with pytest.raises(ModelMismatchError, match=r"1 missing \(1\)"):
        load_state_dict_into(net, {"0": np.zeros((0, 3), np.float32)})


def test_the_source_of_an_alias_is_not_unexpected() -> None:
    """A model may want only the name that was dropped."""
    net = nn.ModuleDict({"lm_head": nn.Linear(2, 2, bias=False)})
    emb = np.ones((2, 2), np.float32)
    report = load_state_dict_into(net, {"emb.weight": emb}, aliases={"lm_head.weight": "emb.weight"})
    assert report.unexpected == ()
    assert net["lm_head"].weight.data_ptr() == address(emb)


class Growing(nn.Module):
    """A module that makes its child as large as the checkpoint's."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(1, 1, bias=False)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        rows, columns = state[f"{prefix}child.weight"].shape
        self.child = nn.Linear(columns, rows, bias=False)
        super()._load_from_state_dict(state, prefix, *rest)


def test_a_loader_that_replaces_a_child_does_so_only_when_all_fits() -> None:
    """Its new child is what the checkpoint is judged by, and a refused load leaves the old one."""
    net = Growing()
    child, weight = net.child, np.ones((3, 2), np.float32)
    with pytest.raises(ModelMismatchError, match=r"1 unexpected \(more\)"):
        load_state_dict_into(net, {"child.weight": weight, "more": weight})
    assert net.child is child
    load_state_dict_into(net, {"child.weight": weight})
    assert net.child.weight.data_ptr() == address(weight)


def test_tensors_of_torch_in_a_tree_are_refused() -> None:
    """A module's state_dict() is no tree of arrays: the hint says to pass the module."""
    with pytest.raises(SourceError, match="pass the module itself"):
        load_state_dict_into(nn.Linear(1, 1).state_dict(), arrays(nn.Linear(1, 1)))


def test_swapped_parameters_keep_their_identity(swap_tensors: None) -> None:
    """In torch's swap mode the objects stay, their memory becomes the checkpoint's."""
    net, original = Net().eval(), trained()
    before = {name: id(parameter) for name, parameter in net.named_parameters()}
    state = arrays(original)
    load_state_dict_into(net, state)
    assert {name: id(parameter) for name, parameter in net.named_parameters()} == before
    assert net.emb.weight.data_ptr() == address(state["emb.weight"])
    assert torch.equal(net(torch.tensor(IDS)), original(torch.tensor(IDS)))
