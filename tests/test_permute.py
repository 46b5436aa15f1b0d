"""Channels in another order: the widest subnet computes what it did, and training goes on as it would have."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import netaugfx
from netaugfx.errors import ConfigError
from recipes.tiny import tiny_mobilenet
from tests import measure
from tests.laws.subject import Growth, Source, growths, widen_double
from tests.networks import CORE
from tests.real import FAST
from tests.strategies import NetworkSpec, networks


def some_orders(wide: Any, seed: int = 0) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        width.name: torch.randperm(width.choices[-1], generator=generator).tolist()
        for width in wide.widths.values()
        if width.permutable
    }


def close(found: Any, expected: Any, what: str) -> None:
    """Outputs of two passes, up to the order of sums."""
    assert len(found) == len(expected)
    for (path, a), (_, b) in zip(found, expected, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            assert a.shape == b.shape
            scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
            worst = (a - b).abs().max().item() if b.numel() else 0.0
            assert worst <= measure.TOLERANCE * scale, f"{what}: {path} differs by {worst:.3g}"


def check(source: Source, growth: Growth) -> None:
    wide, _ = widen_double(source, growth, dropout=False)
    orders = some_orders(wide, growth.seed)
    inputs = measure.as_double(source.inputs())
    wide.train()
    before = measure.run(wide.at(wide.max_config), wide, inputs).output
    recalibrated = growth.seed % 2 == 0
    if recalibrated:
        wide.recalibrate(wide.max_config, [inputs])
    wide.eval()
    in_eval = measure.run(wide.at(wide.max_config), wide, inputs).output
    names = list(wide.state_dict())
    wide.permute(orders)
    assert list(wide.state_dict()) == names
    wide.train()
    close(measure.run(wide.at(wide.max_config), wide, inputs).output, before, "train")
    wide.eval()
    if recalibrated:
        close(measure.run(wide.at(wide.max_config), wide, inputs).output, in_eval, "eval")


def test_gradients_that_await_a_step_go_along() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    order = [3, 7, 0, 11, 1, 2, 10, 9, 4, 8, 6, 5]

    def stepped(*, orders: list[dict[str, list[int]]], config: dict[str, int]) -> Any:
        wide = netaugfx.widen(model, example_inputs=x, seed=1)
        optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
        wide.at(config)(x).square().sum().backward()
        for some in orders:
            wide.permute(some)
        optimizer.step()
        return wide

    for config in (
        {"0": 12},
        {},
    ):  # of the base alone: new places get the gradients of channels that had one
        straight = stepped(orders=[], config=config)
        turned = stepped(orders=[{"0": order}], config=config)
        expected, found = (w.at(w.max_config)(x) for w in (straight, turned))
        torch.testing.assert_close(found, expected)


def test_running_statistics_stay_behind_unless_the_widest_subnet_has_its_own() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).double()
    x = torch.randn(8, 3, 5, 5, dtype=torch.float64)
    model(3 * x + 1)  # statistics other than 0 and 1
    for recalibrated in (False, True):
        wide = netaugfx.widen(model, example_inputs=x).eval()
        if recalibrated:
            wide.recalibrate(wide.max_config, [x])
        before = wide.at(wide.max_config)(x)
        wide.permute({"0": list(range(wide.max_config["0"]))[::-1]})
        after = wide.at(wide.max_config)(x)
        assert torch.allclose(before, after, rtol=0, atol=1e-9) is recalibrated


@settings(max_examples=min(settings.default.max_examples, 50))
@given(networks(wide_family=True), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


@pytest.mark.parametrize("case", [c for c in CORE if not c.large], ids=repr)
def test_networks_by_hand(case: Source) -> None:
    check(case, Growth(config=2))


@pytest.mark.parametrize("case", [FAST[0], FAST[1]], ids=repr)
def test_real_models(case: Source) -> None:
    check(case, Growth(factor=1.5, diversity=1))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_mobilenet(
        3, 2, channels=(4, 4, 6), strides=(1, 1, 2), expand_ratio=2, head=8
    ).double()


IMAGES = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def wide_small() -> Any:
    return netaugfx.widen(small(), example_inputs=(IMAGES,), verify=False)


def test_the_base_is_made_of_the_channels_that_lie_first() -> None:
    wide = wide_small()
    whole = netaugfx.extract(wide, wide.max_config).state_dict()
    name = "blocks.0.layers.0"
    order = some_orders(wide)[name]
    wide.permute({name: order})
    first = wide.base.state_dict()["blocks.0.layers.0.weight"]
    assert torch.equal(first, whole["blocks.0.layers.0.weight"][order[:8], :4])
    last = wide.base.state_dict()["blocks.0.layers.6.weight"]
    assert torch.equal(last, whole["blocks.0.layers.6.weight"][:4, order[:8]])
    stem = wide.base.state_dict()["stem.0.weight"]
    assert torch.equal(stem, whole["stem.0.weight"][:4])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.05),
}


def train(wide: Any, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        wide.at(wide.max_config)(IMAGES).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_it_would_have(name: str) -> None:
    one = wide_small()
    optimizer = OPTIMIZERS[name](one.parameters())
    average = AveragedModel(one)
    train(one, optimizer, 3)
    average.update_parameters(one)
    two, other_average = copy.deepcopy(one), copy.deepcopy(average)
    other = OPTIMIZERS[name](two.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    two.permute(some_orders(two), other, other_average)
    for wide, opt, mean in ((one, optimizer, average), (two, other, other_average)):
        train(wide, opt, 3)
        mean.update_parameters(wide)
    for a, b in ((one, two), (average.module, other_average.module)):
        expected = a.at(a.max_config)(IMAGES)
        assert (b.at(b.max_config)(IMAGES) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert not torch.equal(one.base(IMAGES), two.base(IMAGES))


def test_without_its_optimiser_training_goes_elsewhere() -> None:
    """Or the test above would hold for an optimiser that stays behind."""
    one = wide_small()
    optimizer = OPTIMIZERS["sgd"](one.parameters())
    train(one, optimizer, 3)
    two = copy.deepcopy(one)
    other = OPTIMIZERS["sgd"](two.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    two.permute(some_orders(two))
    for wide, opt in ((one, optimizer), (two, other)):
        train(wide, opt, 3)
    difference = (one.at(one.max_config)(IMAGES) - two.at(two.max_config)(IMAGES)).abs().max()
    assert difference > 1e-6


def test_blocks_without_a_step_yet_get_the_momentum_of_what_moves_into_them() -> None:
    wide = wide_small()
    optimizer = OPTIMIZERS["adamw"](wide.parameters())
    optimizer.zero_grad()
    wide(IMAGES).square().mean().backward()
    optimizer.step()
    before = optimizer.state[wide.base.stem[0].weight]["exp_avg"].clone()
    order = [*range(4, 12), *range(4)]  # the base's four channels move to the end
    wide.permute({"stem.0": order}, optimizer)
    assert not optimizer.state[wide.base.stem[0].weight]["exp_avg"].any()
    state = optimizer.state[dict(wide.rooms.named_parameters())["stem.0.weight_axis0"]]
    assert torch.equal(state["exp_avg"][4:], before)
    assert state["step"] == 1
    optimizer.step()  # and it can go on


def test_an_average_of_the_base_alone() -> None:
    wide = wide_small()
    average = AveragedModel(wide.base)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.add_(1.0)
    mean = average.module.stem[0].weight.clone()
    whole = netaugfx.extract(wide, wide.max_config).stem[0].weight
    wide.permute({"stem.0": [1, 5, 0, 7, 2, 3, 4, 6, 8, 9, 10, 11]}, ema=average)
    expected = torch.stack([mean[1], whole[5], mean[0], whole[7]])
    assert torch.equal(average.module.stem[0].weight, expected)


def test_what_cannot_follow_is_refused_and_nothing_changes() -> None:
    wide = wide_small()
    orders = some_orders(wide)
    before = copy.deepcopy(wide.state_dict())

    def refused(message: str, *arguments: Any, **more: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            wide.permute(*arguments, **more)
        measure.same_tensors(wide.state_dict(), before, "refused, but")

    before_widen = torch.optim.SGD(small().parameters(), lr=0.1)
    refused("holds no Parameter of this model: it was made before widen", orders, before_widen)
    refused("no width is called 'stem'", {"stem": [0]})
    refused("the order of 'stem.0' must hold each of 0 to 11 once", {"stem.0": list(range(11))})
    refused("'stem.0' must hold each", {"stem.0": [0] * 12})
    refused("ema is a Linear of another model", orders, ema=nn.Linear(2, 2))
    for make in (
        lambda p: torch.optim.Adafactor(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2),
    ):
        moved = copy.deepcopy(wide)
        optimizer = make(list(moved.parameters()))

        def closure(moved: Any = moved, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = moved.at(moved.max_config)(IMAGES).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        with pytest.raises(ConfigError, match=r"cannot follow: its '.*Use an optimiser such as"):
            moved.permute(orders, optimizer)


def test_channels_whose_order_matters_stay() -> None:
    class Neighbours(nn.Module):
        """Efficient channel attention: a convolution over the channel axis."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.over = nn.Conv2d(2, 4, 1), nn.Conv1d(1, 1, 3, padding=1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(x * self.over(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None])

    wide = netaugfx.widen(Neighbours(), example_inputs=(torch.randn(2, 2, 4, 4),))
    assert not wide.widths["first"].permutable
    with pytest.raises(
        ConfigError, match=r"channels of 'first' cannot change places, since groups"
    ):
        wide.permute({"first": range(12)})
