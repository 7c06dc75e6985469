"""Parameters without memory beside buffers that are real."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from asyncfetch.errors import ModelMismatchError
from asyncfetch.models import load_state_dict_into, parameters_on_meta

from ..kit.torch_or_not import needs_torch, nn, torch

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = needs_torch


class Net(nn.Module):
    """Tied, frozen, marked and shared parameters; buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.emb.weight
        shared = nn.Parameter(torch.full((4,), 3.0), requires_grad=False)
        shared.no_decay = True
        self.scale, self.again = shared, shared
        self.several = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2)])
        self.register_buffer("positions", torch.arange(5), persistent=False)
        self.table = self.positions * 2  # neither a parameter nor a buffer

    def forward(self, ids: Any) -> Any:
        x = self.norm(self.emb(ids) * self.scale * self.again) + self.several[0].sum()
        return self.head(x) + self.table.sum() + self.positions.sum()


def arrays(module: Any) -> dict[str, Any]:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def made_on_meta() -> Any:
    with parameters_on_meta():
        return Net()


def test_parameters_have_no_memory_and_buffers_are_real() -> None:
    """Ties, flags and marks are kept; the load fills it, and the outputs are equal."""
    original, net = Net().eval(), made_on_meta().eval()
    assert {name for name, parameter in net.named_parameters() if not parameter.is_meta} == set()
    assert not any(buffer.is_meta for buffer in net.buffers())
    assert net.positions.tolist() == [0, 1, 2, 3, 4]
    assert net.head.weight is net.emb.weight
    assert net.scale is net.again
    assert net.scale.no_decay
    flags = {name: parameter.requires_grad for name, parameter in original.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    report = load_state_dict_into(net, arrays(original))
    assert (report.missing, report.unexpected, report.on_meta) == ((), (), ())
    assert net.head.weight is net.emb.weight
    assert net.scale is net.again
    assert {name: parameter.requires_grad for name, parameter in net.named_parameters()} == flags
    ids = torch.arange(6)
    assert torch.equal(net(ids), original(ids))


def test_what_the_checkpoint_lacks_is_an_error() -> None:
    """Nothing may be without memory afterwards, whatever is forgiven."""
    state = arrays(Net())
    del state["several.1"]
    options: dict[str, Any]
    for options in ({"strict": False}, {"skip": "several.1"}):
        net = made_on_meta()
        with pytest.raises(ModelMismatchError, match=r"1 would have no values.*\(several\.1\)") as caught:
            load_state_dict_into(net, state, **options)
        assert "real device" in caught.value.hint
        assert "parameters_on_meta" not in caught.value.hint, "that is where it comes from"
        assert net.emb.weight.is_meta


def test_it_ends_with_the_block_and_with_its_error() -> None:
    """Also where one stands in another; nothing of torch is replaced."""
    before = nn.Module.register_parameter
    made = []

    def fail() -> None:
        with parameters_on_meta():
            made.append(nn.Linear(1, 1))
            with pytest.raises(KeyError), parameters_on_meta():
                {}["gone"]
            made.append(nn.Linear(1, 1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [linear.weight.is_meta for linear in made] == [True, True]
    assert not nn.Linear(1, 1).weight.is_meta
    assert nn.Module.register_parameter is before


def test_other_threads_make_real_modules() -> None:
    """And those within a block of their own do not end this one."""
    inside, found = threading.Barrier(2, timeout=60), []

    def thread(make: Callable[[], Any]) -> None:
        inside.wait()
        found.append(make().emb.weight.is_meta)
        inside.wait()

    for make, expected in ((Net, False), (made_on_meta, True)):
        other = threading.Thread(target=thread, args=(make,))
        other.start()
        with parameters_on_meta():
            inside.wait()
            inside.wait()
            assert nn.Linear(1, 1).weight.is_meta
        other.join()
        assert found.pop() is expected
    assert not nn.Linear(1, 1).weight.is_meta


@pytest.mark.anyio
async def test_other_tasks_make_real_modules() -> None:
    """A block may be held across an await."""
    inside, seen = anyio.Event(), anyio.Event()

    async def other() -> None:
        await inside.wait()
        assert not nn.Linear(1, 1).weight.is_meta
        seen.set()

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        await anyio.lowlevel.checkpoint()
        with parameters_on_meta():
            inside.set()
            await seen.wait()
            assert nn.Linear(1, 1).weight.is_meta


def test_what_is_no_plain_parameter_is_left_alone() -> None:
    """A subclass knows more than its values, and a lazy one has no shape yet."""

    class Packed(nn.Parameter):
        pass

    net = nn.Module()
    with parameters_on_meta():
        net.packed = Packed(torch.ones(2))
        net.none = None
        net.register_parameter("absent", None)
        lazy = nn.LazyLinear(2)
    assert type(net.packed) is Packed
    assert not net.packed.is_meta
    assert net.absent is None
    assert torch.nn.parameter.is_lazy(lazy.weight)


def test_a_tensor_that_is_no_buffer_is_seen_on_meta() -> None:
    """torch.device("meta") has it without values too, and no state dict fills it."""
    with torch.device("meta"):
        net = Net()
    with pytest.raises(ModelMismatchError, match=r"2 would have no values.*\(positions, table\)") as caught:
        load_state_dict_into(net, arrays(Net()))
    assert "parameters_on_meta()" in caught.value.hint
    with torch.device("meta"):
        lstm = nn.LSTM(2, 3)  # keeps a list of its own parameters
    load_state_dict_into(lstm, arrays(original := nn.LSTM(2, 3)))
    x = torch.ones(4, 2)
    assert torch.equal(lstm(x)[0], original(x)[0])


def test_a_parametrization_is_filled() -> None:
    """What torch computes a weight from has no memory either, until it is loaded."""
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    original = weight_norm(nn.Linear(3, 2))
    with parameters_on_meta():
        net = weight_norm(nn.Linear(3, 2))
    load_state_dict_into(net, arrays(original))
    x = torch.ones(1, 3)
    assert torch.equal(net(x), original(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("device", ["parameters", "meta"])
def test_what_a_hook_computes_before_each_pass_needs_no_values(norm: str, device: str) -> None:
    """The older norms of torch keep the weight as an attribute, anew for each forward pass."""
    make = getattr(torch.nn.utils, norm)
    original = make(nn.Linear(3, 2)).eval()
    with parameters_on_meta() if device == "parameters" else torch.device("meta"):
        net = make(nn.Linear(3, 2)).eval()
    load_state_dict_into(net, arrays(original))
    x = torch.ones(1, 3)
    assert torch.equal(net(x), original(x))
