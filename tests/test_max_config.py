"""`max_config`: each width grows to its size there, and no further."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import netaugfx
from netaugfx.errors import ConfigError

X = torch.zeros(2, 3, 8, 8)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU()),
        *(nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
    )


@pytest.mark.parametrize("diversity", [1, 2, 3])
def test_each_width_grows_to_its_size_and_no_further(diversity: int) -> None:
    sizes = {"0": 11, "3": 9}  # "5" is left out
    wide = netaugfx.widen(model(), max_config=sizes, diversity=diversity, example_inputs=X)
    assert wide.max_config == {"0": 11, "3": 9, "5": 5}
    assert wide.base_config == {"0": 4, "3": 6, "5": 5}
    assert wide.widths["5"].choices == (5,)
    assert len(wide.widths["0"].choices) == 1 + diversity
    plain = netaugfx.extract(wide, wide.max_config)
    found = [m.out_channels for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert found == [11, 9, 5]
    for name, p in netaugfx.extract_base(wide).named_parameters():
        assert torch.equal(p, model().get_parameter(name)), name


def test_a_config_of_a_wider_model_is_one() -> None:
    wide = netaugfx.widen(model(), factor=4, diversity=3, example_inputs=X)
    config = wide.sample(torch.Generator().manual_seed(1))
    again = netaugfx.widen(model(), max_config=config, example_inputs=X)
    assert again.max_config == config
    grown = sum(p.numel() for p in again.parameters())
    assert grown == sum(p.numel() for p in netaugfx.extract(wide, config).parameters())


def test_rounding_never_goes_beyond_it() -> None:
    plan = netaugfx.plan(model(), max_config={"0": 11}, diversity=4, divisor=8, example_inputs=X)
    assert plan.by_name["0"].choices[-1] == 11


def test_what_is_no_max_config() -> None:
    for sizes, message in (
        ({"O": 8}, "max_config: no width is called 'O'"),
        ({"0": 3}, "max_config: '0' cannot be 3; its base is 4"),
        ({"0": 8.5}, r"max_config: '0' cannot be 8\.5; its base is 4"),
    ):
        with pytest.raises(ConfigError, match=message):
            netaugfx.widen(model(), max_config=sizes, example_inputs=X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_recalibration_is_what_pytorch_does_to_the_plain_network(
    norm: type[nn.Module], dtype: torch.dtype
) -> None:
    m = nn.Sequential(
        nn.Conv2d(3, 4, 3), norm(4, track_running_stats=True), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    wide = netaugfx.widen(m.to(dtype), example_inputs=X.to(dtype))
    batches = [
        3 + torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i in (0, 1)
    ]
    wide.recalibrate(wide.max_config, batches)
    found = netaugfx.extract(wide, wide.max_config)
    plain = copy.deepcopy(found).train()
    plain[1].reset_running_stats()
    plain[1].momentum = (
        None if norm is nn.BatchNorm2d else 1.0
    )  # an instance norm knows no plain mean
    seen = []
    for x in batches:
        plain(x)
        seen.append([getattr(plain[1], name).clone() for name in ("running_mean", "running_var")])
    expected = (
        seen[-1] if norm is nn.BatchNorm2d else [sum(each) / 2 for each in zip(*seen, strict=True)]
    )
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for name, value in zip(("running_mean", "running_var"), expected, strict=True):
        mine = getattr(found[1], name)
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, value, rtol=tolerance, atol=tolerance)


def test_statistics_that_are_not_finite_change_nothing() -> None:
    wide = netaugfx.widen(model(), example_inputs=X).eval()
    images = torch.randn(8, 3, 8, 8)
    wide.recalibrate(wide.max_config, [images])
    before = wide.at(wide.max_config)(images)
    with pytest.raises(ConfigError, match="not finite"):
        wide.recalibrate(wide.max_config, [images * float("nan")])
    assert torch.equal(wide.at(wide.max_config)(images), before)


def test_the_statistics_of_a_subnet_are_dropped_again() -> None:
    wide = netaugfx.widen(model(), example_inputs=X).eval()
    images = torch.randn(8, 3, 8, 8)
    subnet = wide.at(wide.max_config)
    stale = subnet(images)
    wide.uncalibrate(wide.max_config)
    assert torch.equal(subnet(images), stale)
    wide.recalibrate(wide.max_config, [images])
    assert not torch.equal(subnet(images), stale)
    wide.uncalibrate(wide.max_config)
    assert torch.equal(subnet(images), stale)
    assert wide.statistics == {}
    with pytest.raises(ConfigError, match="No width is called"):
        wide.uncalibrate({"nowhere": 3})
