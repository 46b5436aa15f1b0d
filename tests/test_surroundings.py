"""What stands around a pass: gradients on or off, autocast, threads; and what a model is asked by those who wrap it."""

from __future__ import annotations

import _thread
import copy
import threading
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaugfx
from recipes.netaug import NetAugTask

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1])


class Net(nn.Module):
    """Two convolutions, with something before and something between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

    def before(self, x: Tensor) -> Tensor:
        return x

    def between(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Any:
        y = self.between(self.a(self.before(x)))
        return self.head(self.b(y.relu()).relu().mean((2, 3)))


def without_blocks(wide: Any) -> Any:
    """The same with blocks of zeros: what adds channels adds nothing to the outputs."""
    with torch.no_grad():
        for block in wide.augmented_parameters():
            block.zero_()
    return wide


# ------------------------------------------------------------------------------------------------ gradients


class Normalised(Net):
    def before(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return (x - 0.5) / 0.2


@pytest.mark.parametrize("first", [True, False])
def test_no_grad_inside_a_forward_leaves_the_mode_of_the_pass(first: bool) -> None:
    wide = netaugfx.widen(Normalised(), example_inputs=X, verify=False).eval()
    for grad in (first, not first, first):
        with torch.set_grad_enabled(grad):
            output = wide.at(wide.max_config)(X)
            assert torch.is_grad_enabled() is grad
        assert output.requires_grad is grad
        assert torch.is_grad_enabled()


def test_blocks_learn_also_where_the_first_pass_had_no_gradients() -> None:
    wide = netaugfx.widen(Normalised(), example_inputs=X)
    task = NetAugTask(wide, nn.CrossEntropyLoss(), alpha=0.0)
    task(X, Y)["loss"].backward()
    wide.zero_grad()
    task.alpha = 1.0
    task(X, Y)["loss"].backward()
    assert any(p.grad is not None for p in wide.augmented_parameters())


class Literal(Normalised):
    """Its forward holds a channel count, so that only a graph can stand for a wider subnet."""

    def between(self, y: Tensor) -> Tensor:
        return y.reshape(y.shape[0], 4, *y.shape[2:])


@pytest.mark.parametrize("made_with", [True, False])
def test_an_extracted_graph_leaves_the_mode_of_the_pass(made_with: bool) -> None:
    wide = netaugfx.widen(Literal(), example_inputs=X).eval()
    with torch.set_grad_enabled(made_with):
        plain = netaugfx.extract(wide, wide.max_config)
    assert isinstance(plain, torch.fx.GraphModule)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output = plain(X)
            assert torch.is_grad_enabled() is grad
        assert output.requires_grad is grad


class AsksForGradients(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * 2 if torch.is_grad_enabled() else y


def test_a_forward_that_asks_whether_gradients_are_on() -> None:
    wide = without_blocks(netaugfx.widen(AsksForGradients(), example_inputs=X)).eval()
    for grad in (True, False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(wide.at(wide.max_config)(X), wide(X))


class AsksOfTheInput(Net):
    def before(self, x: Tensor) -> Tensor:
        return x * 2 if x.requires_grad else x


def test_a_forward_that_asks_whether_its_input_wants_gradients() -> None:
    wide = without_blocks(netaugfx.widen(AsksOfTheInput(), example_inputs=X)).eval()
    for wants in (False, True, False):
        x = X.clone().requires_grad_(wants)
        torch.testing.assert_close(wide.at(wide.max_config)(x), wide(x))


def test_layers_that_are_unfrozen_after_widen_learn_with_their_blocks() -> None:
    model = Net()
    model.a.requires_grad_(False)
    wide = netaugfx.widen(model, example_inputs=X)
    wide.at(wide.max_config)(X).sum().backward()
    frozen = [p for n, p in wide.named_augmented_parameters() if n.startswith("augmented.a.")]
    assert frozen
    assert all(p.grad is None for p in frozen)
    wide.a.requires_grad_(True)
    wide.at(wide.max_config)(X).sum().backward()
    assert all(p.grad is not None for p in (wide.a.weight, *frozen))


# ------------------------------------------------------------------------------------------------ autocast


class AsksForAutocast(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * 2 if torch.is_autocast_enabled("cpu") else y


class AsksForDtype(Net):
    def between(self, y: Tensor) -> Tensor:
        return y if y.dtype == torch.float32 else y * 100


class Masked(Net):
    def between(self, y: Tensor) -> Tensor:
        return y.masked_fill(y < 0, torch.finfo(y.dtype).min).clamp(min=-1.0)


@pytest.mark.parametrize("kind", [AsksForAutocast, Masked])
def test_a_subnet_follows_autocast_as_the_base_does(kind: type[Net]) -> None:
    wide = without_blocks(netaugfx.widen(kind(), example_inputs=X)).eval()
    for on in (False, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            torch.testing.assert_close(
                wide.at(wide.max_config)(X), wide(X), rtol=0.05 if on else 1e-5, atol=0.02
            )


def test_a_dtype_that_autocast_changes_is_not_taken_for_another() -> None:
    wide = netaugfx.widen(AsksForDtype(), example_inputs=X).eval()
    subnet = wide.at(wide.max_config)
    subnet(X)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(netaugfx.GuardError, match=r"reads True at .*under autocast it would"),
    ):
        subnet(X)
    subnet(X)


# ------------------------------------------------------------------------------------------------ inputs


class InPlace(Net):
    def before(self, x: Tensor) -> Tensor:
        x -= 0.5
        return x


def test_a_forward_that_writes_to_its_input_is_widened() -> None:
    wide = netaugfx.widen(InPlace(), example_inputs=X.clone())
    assert wide.pinned.keys() == {"head"}
    assert netaugfx.verify(wide)


# ------------------------------------------------------------------------------------------------ with blocks


def test_a_with_block_is_that_of_its_thread() -> None:
    wide = netaugfx.widen(Net(), example_inputs=X).eval()
    entered, leave, left = (threading.Event() for _ in range(3))
    small = {"a": wide.widths["a"].choices[1]}

    def other() -> None:
        with wide.at(small):
            entered.set()
            leave.wait(60)
        left.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(60)
    assert torch.equal(wide(X), wide.base(X))
    with wide.at(wide.max_config):
        leave.set()
        assert left.wait(60)
        assert torch.equal(wide(X), wide.at(wide.max_config)(X))
    thread.join()
    assert torch.equal(wide(X), wide.base(X))


def test_a_thread_of_torch_serves_the_block_that_is_open() -> None:
    """A backward pass that runs a forward again does so in a thread that Python did not start."""
    wide = netaugfx.widen(Net(), example_inputs=X).eval()
    found: list[Tensor] = []
    done = threading.Event()

    def again() -> None:
        found.append(wide(X))
        done.set()

    with wide.at(wide.max_config):
        _thread.start_new_thread(again, ())
        assert done.wait(60)
    assert torch.equal(found[0], wide.at(wide.max_config)(X))


def test_a_copy_that_is_made_in_a_with_block_is_at_rest() -> None:
    wide = netaugfx.widen(Net(), example_inputs=X).eval()
    with wide.at(wide.max_config):
        twin = copy.deepcopy(wide)
    assert torch.equal(twin(X), wide(X))


def test_equal_configs_are_one_key() -> None:
    one = netaugfx.Config({"a": 8, "b": 10})
    other = netaugfx.Config({"b": 10, "a": 8})
    assert one == other
    assert {one: 1}[other] == 1


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


def test_statistics_are_found_by_an_equal_config_and_go_with_other_weights() -> None:
    wide = netaugfx.widen(Normed(), example_inputs=X).eval()
    sizes = dict(wide.max_config)
    before = wide.at(sizes)(X)
    wide.recalibrate(netaugfx.Config(dict(reversed(sizes.items()))), [X + 3])
    assert not torch.equal(wide.at(sizes)(X), before)
    wide.load_state_dict(wide.state_dict())
    assert torch.equal(wide.at(sizes)(X), before)
    wide.recalibrate(sizes, [X + 3])
    wide.load_base(wide.base.state_dict())
    assert torch.equal(wide.at(sizes)(X), before)


# ------------------------------------------------------------------------------------------------ who asks a model


class Counts(Net):
    """The root has a state, and entries of an older name."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_load_state_dict_pre_hook(_renamed)

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}first.bias" in state:
        state[f"{prefix}a.bias"] = state.pop(f"{prefix}first.bias")


def test_the_state_of_the_root_is_saved_and_loaded() -> None:
    model = Counts()
    model.count = 7
    wide = netaugfx.widen(model, example_inputs=X)
    state = OrderedDict(wide.state_dict())
    assert state["_extra_state"] == {"count": 7}
    state["first.bias"] = state.pop("a.bias") + 1
    again = netaugfx.widen(Counts(), plan=wide.plan, example_inputs=X)
    assert again.load_state_dict(state).missing_keys == []
    assert again.base.count == 7
    assert torch.equal(again.a.bias, wide.a.bias + 1)
    del state["augmented.a.bias_axis0"]
    with pytest.raises(RuntimeError, match=r"Missing key.*augmented\.a\.bias_axis0"):
        again.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*augmented\.more"):
        again.load_state_dict({**wide.state_dict(), "augmented.more": X})


class Named(nn.Module):
    """Its children have names that a WideModel has attributes of."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.run, self.plan = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.plan(self.run(self.base(x).relu()).relu().mean((2, 3)))


def test_children_are_found_by_their_paths() -> None:
    wide = netaugfx.widen(Named(), example_inputs=X)
    assert type(wide.get_submodule("base")) is nn.Conv2d
    assert wide.get_parameter("run.weight").shape == (5, 4, 3, 3)
    assert wide.get_submodule("") is wide
    assert wide.get_parameter("augmented.run.bias_axis0").ndim == 1
    with pytest.raises(AttributeError):
        wide.get_submodule("none")


def test_the_blocks_of_what_no_decay_is_for_have_none() -> None:
    model: Any = Net()
    assert not hasattr(netaugfx.widen(model, example_inputs=X), "no_weight_decay")
    model.no_weight_decay = lambda: {"a.weight"}
    wide = netaugfx.widen(model, example_inputs=X)
    assert wide.no_weight_decay() == {"a.weight", "augmented.a.weight_axis0"}


class Repeats(Net):
    """It reads data, so that its children are widened apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def before(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > -1e9 else x

    def no_weight_decay(self) -> set[str]:
        return {"body.0.weight"}


def test_the_blocks_of_parts_are_named_by_their_paths() -> None:
    wide = netaugfx.widen(Repeats(), example_inputs=X)
    assert wide.plan.parts == ("body",)
    assert wide.no_weight_decay() == {"body.0.weight", "body.augmented.0.weight_axis0"}
    assert {name for name, _ in wide.names_of_blocks()} == {
        name for name, _ in wide.named_augmented_parameters()
    }


def test_data_parallel_is_refused() -> None:
    wide = netaugfx.widen(Net(), example_inputs=X)
    with pytest.raises(netaugfx.InputError, match="DistributedDataParallel"):
        wide._replicate_for_data_parallel()  # type: ignore[operator]
    assert torch.equal(wide(X), wide.base(X))
