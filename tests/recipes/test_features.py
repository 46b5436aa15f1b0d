"""Features by name: what is watched is what the network computes, and watching changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import netaugfx
from recipes.errors import DistillError
from recipes.features import Watch, eval_mode, look, usual_places
from recipes.tiny import tiny_mobilenet


def small() -> nn.Module:
    torch.manual_seed(0)
    return tiny_mobilenet(
        4, 2, channels=(4, 4, 6), strides=(1, 1, 2), expand_ratio=2, head=8
    ).double()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def widened() -> netaugfx.WideModel:
    example = torch.zeros(2, 2, 8, 8, dtype=torch.float64)
    return netaugfx.widen(small(), example_inputs=(example,), verify=False)


@pytest.fixture
def wide(widened: netaugfx.WideModel) -> netaugfx.WideModel:
    return copy.deepcopy(widened)


NAMES = ("blocks.0", "blocks.1.layers.4", "head", "classifier:input", "blocks.1:input")
NODES = ("blocks.0.add", "flatten")


def by_hand(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The same places, by calling the parts of the network one after another."""
    first = model.blocks[0](model.stem(images))
    last = model.blocks[1]
    head = model.head(last(first))
    pooled = model.pool(head).flatten(1)
    return {
        "blocks.0": first,
        "blocks.0.add": first,
        "blocks.1.layers.4": last.layers[:5](first),
        "head": head,
        "classifier:input": pooled,
        "blocks.1:input": first,
        "flatten": pooled,
    }


@pytest.mark.parametrize("names", [NAMES, NODES, NAMES + NODES], ids=["modules", "nodes", "both"])
def test_features_of_the_base(names: tuple[str, ...], images: Tensor) -> None:
    model = small().eval()
    expected = by_hand(model, images)
    with Watch(model, names) as watch:
        output = model(images)
    assert torch.equal(output, model(images))
    (watched,) = watch.passes
    assert torch.equal(watched.output, output)
    assert watched.config is None
    assert set(watched.features) == set(names)
    for name in names:
        assert torch.equal(watched[name], expected[name]), name


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_features_of_a_subnet(mode: str, wide: netaugfx.WideModel, images: Tensor) -> None:
    wide.train(mode == "train")
    config = wide.max_config
    plain = netaugfx.extract(wide, config)
    with Watch(plain, NAMES) as watch:
        plain(images)
    expected = watch.passes[0]
    with Watch(wide, NAMES) as watch:
        wide(images)
        output = wide.at(config)(images)
        with wide.at(config):
            wide(images)
    assert [each.config for each in watch.passes] == [None, config, config]
    for watched in watch.passes[1:]:
        assert torch.allclose(watched.output, output, rtol=1e-12)
        for name in NAMES:
            assert torch.allclose(watched[name], expected[name], rtol=1e-12, atol=1e-14), name
    assert watch.passes[0]["head"].shape == (3, 8, 4, 4)
    assert watch.passes[1]["head"].shape == (3, 24, 4, 4)


@pytest.mark.parametrize("names", [(), NAMES, NODES])
def test_watching_changes_nothing(
    names: tuple[str, ...], wide: netaugfx.WideModel, images: Tensor
) -> None:
    """Gradients, buffers, random numbers and the module itself are as without."""
    other = copy.deepcopy(wide)
    before = set(wide.__dict__), set(wide.base.__dict__)
    torch.manual_seed(0)
    with Watch(wide, names) as watch:
        (wide(images).sum() + wide.at(wide.max_config)(images).sum()).backward()
    assert len(watch.passes) == 2
    after = torch.get_rng_state()
    torch.manual_seed(0)
    (other(images).sum() + other.at(other.max_config)(images).sum()).backward()
    assert torch.equal(after, torch.get_rng_state())
    for one, two in zip(wide.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, two.grad, rtol=1e-12)
    for one, two in zip(wide.buffers(), other.buffers(), strict=True):
        assert torch.allclose(one, two, rtol=1e-12)
    assert (set(wide.__dict__), set(wide.base.__dict__)) == before
    for module in wide.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert "forward" not in wide.base.__dict__


def test_gradients_pass_through_features(wide: netaugfx.WideModel, images: Tensor) -> None:
    with Watch(wide, ["blocks.0"]) as watch:
        wide(images)
        wide.at(wide.max_config)(images)
    for watched in watch.passes:
        (gradient,) = torch.autograd.grad(watched["blocks.0"].square().sum(), wide.stem[0].weight)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", ["0", "conv2d"])
def test_what_works_in_place_does_not_reach_back(name: str, images: Tensor) -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.conv2d(self[0](x), torch.ones(4, 4, 1, 1).double())
            return self[1](x).mean((2, 3))

    torch.manual_seed(0)
    model = Net(nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True)).double()
    with Watch(model, [name]) as watch:
        model(images)
    assert (watch.passes[0][name] < 0).any()


def test_the_last_run_of_a_module_counts(images: Tensor) -> None:
    conv = nn.Conv2d(2, 2, 1).double()
    model = nn.Sequential(conv, nn.ReLU(), conv)
    with Watch(model, ["0"]) as watch:
        output = model(images)
    assert torch.equal(watch.passes[0]["0"], output)


def test_names_that_lead_nowhere(images: Tensor, wide: netaugfx.WideModel) -> None:
    for model in (small(), wide):
        with pytest.raises(DistillError, match=r"no features named 'block.0'. Near: blocks.0, "):
            look(model, ["block.0"], images)
        with pytest.raises(DistillError, match=r"no features named 'blocks.0.mul'. Near: "):
            look(model, ["blocks.0.mul"], images)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(2, 2, 1).double(), nn.ReLU()
            self.pair = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.pair((self.used(x), 1))[0]

    with pytest.raises(DistillError, match="no features at 'idle': it did not run"):
        look(Net(), ["used", "idle"], images)
    with pytest.raises(DistillError, match=r"no features at 'pair': it .* no tensor"):
        look(Net(), ["pair"], images)


def test_a_network_without_a_graph_has_modules_alone(images: Tensor) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1).double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return x + 1 if x.sum() > 0 else x - 1

    assert look(Net(), ["conv"], images) == {"conv": (3, 2, 8, 8)}
    with pytest.raises(DistillError, match=r"has no module 'con', and no graph .* Near: conv"):
        look(Net(), ["con"], images)


def test_looking_changes_nothing(images: Tensor) -> None:
    model = small().train()
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    assert usual_places(model, images) == {"map": "head", "embedding": "classifier:input"}
    look(model, NAMES + NODES, images)
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == flags
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_usual_places_of_what_has_few(images: Tensor) -> None:
    assert usual_places(nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).double(), images) == {
        "embedding": "1:input"
    }
    maps = nn.Sequential(nn.Conv2d(2, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    assert usual_places(maps, images) == {"map": "0", "embedding": "0"}
