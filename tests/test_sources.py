"""A subnet's tensors, written at once, are what the concatenations of `blocks.assemble` give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import FrozenBatchNorm2d

import netaugfx
from netaugfx.rewrite import nothing
from netaugfx.storage import Layout, Sources, assemble, assembly, form
from tests.networks import CASES, Case
from tests.real import timm_model


def reference(wide: netaugfx.WideModel, name: str, config: netaugfx.Config) -> Tensor:
    path, _, leaf = name.rpartition(".")
    owner, room = wide.base.get_submodule(path), wide.rooms.room(path)
    home = owner._parameters if leaf in owner._parameters else owner._buffers
    rooms = {**room._parameters, **room._buffers}
    shape = form(wide.plan, name)
    blocks = (
        {i: rooms[shape.block(i).rpartition(".")[2]] for i in shape.order}
        if shape.fill is None
        else {}
    )
    return assemble(
        home[leaf], blocks, assembly(shape, wide.base_config, config, wide.max_config, {})
    )


def agree(wide: netaugfx.WideModel) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in wide.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    one = {w.name: w.choices[-1] for w in wide.plan.widths[:1]}
    parameters = [p for p in wide.parameters() if p.requires_grad]
    for config in (
        wide.max_config,
        wide.plan.config(one),
        wide.sample(generator),
        wide.sample(generator),
    ):
        layout = Sources(wide.plan, wide.base, wide.rooms).at(config)
        for name in wide.plan.axes:
            found, expected = layout.source(name)(), reference(wide, name, config)
            assert found is not None
            assert torch.equal(found, expected), name
            assert found.is_contiguous() == expected.is_contiguous()
            assert found.requires_grad == expected.requires_grad
            if not expected.requires_grad:
                continue
            weight = torch.randn(expected.shape, generator=generator).to(expected.dtype)
            gradients = [
                torch.autograd.grad(t, parameters, weight, allow_unused=True)
                for t in (found, expected)
            ]
            for a, b in zip(*gradients, strict=True):
                assert (a is None) == (b is None), name
                assert a is None or torch.equal(a, b), name
        agree_together(wide, layout, config, generator)


def agree_together(
    wide: netaugfx.WideModel, layout: Layout, config: netaugfx.Config, generator: torch.Generator
) -> None:
    """All at once, as a pass puts them together, but for one whose value no gradient reaches."""
    names = list(wide.plan.axes)
    found = layout.group(enumerate(names)).together()
    expected = {i: reference(wide, names[i], config) for i in found}
    learns = [i for i in found if expected[i].requires_grad][1:]
    for i, t in found.items():
        assert torch.equal(t, expected[i]), names[i]
    parameters = [p for p in wide.parameters() if p.requires_grad]
    weights = [torch.randn(found[i].shape, generator=generator).to(found[i].dtype) for i in learns]
    if not learns:
        return
    both = []
    for made in (found, expected):
        for _ in range(2):  # the second time added to what is there
            given = [weight.clone() for weight in weights]  # torch lets gradients be views of them
            torch.autograd.backward([made[i] for i in learns], given, retain_graph=True)
        both.append([p.grad for p in parameters])
        for p in parameters:
            p.grad = None
    for p, a, b in zip(parameters, *both, strict=True):
        assert (a is None) == (b is None)
        assert a is None or (torch.equal(a, b) and a.shape == p.shape)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_of_networks_by_hand(case: Case) -> None:
    try:
        wide = netaugfx.widen(case.build(), example_inputs=case.inputs(), verify=not case.core)
    except netaugfx.PlanError as error:
        pytest.skip(str(error))
    agree(wide)


def test_of_a_concatenating_network_in_channels_last() -> None:
    model = timm_model("densenet121", growth_rate=4, block_config=(2, 2, 2, 2)).to(
        memory_format=torch.channels_last
    )
    agree(netaugfx.widen(model, example_inputs=torch.zeros(2, 3, 32, 32), verify=False))


def small() -> tuple[netaugfx.WideModel, netaugfx.Config, Tensor]:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.Tanh(),
        torch.nn.Conv2d(4, 5, 3),
        torch.nn.Tanh(),
        torch.nn.Conv2d(5, 2, 3),
    ).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wide = netaugfx.widen(model, example_inputs=x, verify=False)
    return wide, wide.plan.config({"0": 8, "2": 15}), x


def test_gradients_of_gradients_are_those_of_the_extracted_network() -> None:
    wide, config, x = small()
    network = netaugfx.extract(wide, config)
    found = []
    for run, weight in ((wide.at(config), wide.base[2].weight), (network, network[2].weight)):
        (first,) = torch.autograd.grad(run(x).square().sum(), weight, create_graph=True)
        (second,) = torch.autograd.grad(first[:5, :4].square().sum(), weight)
        found.append(second[:5, :4])
    torch.testing.assert_close(*found)


def test_frozen_tensors_get_no_gradient() -> None:
    wide, config, x = small()
    wide.base[2].weight.requires_grad_(False)
    wide.rooms.room("0").weight_axis0.requires_grad_(False)
    wide.at(config)(x).sum().backward()
    missing = {name for name, p in wide.named_parameters() if p.grad is None}
    assert missing == {
        "2.weight",
        "augmented.2.weight_axis0",
        "augmented.2.weight_axis1",
        "augmented.0.weight_axis0",
    }


def test_running_statistics_are_not_put_together_in_training() -> None:
    wide = netaugfx.widen(
        timm_model("mobilenetv3_small_050").train(),
        example_inputs=torch.zeros(2, 3, 32, 32),
        verify=False,
    )
    program, _ = wide.program(*wide.example)
    names = {site.name for site in program.sites}
    assert any(name.endswith("bn1.weight") for name in names)
    assert not any(name.endswith("running_mean") for name in names)
    assert any(node.target is nothing for node in program.graph.nodes)
    wide.eval()
    program, _ = wide.program(*wide.example)
    assert any(site.name.endswith("running_mean") for site in program.sites)


class Unset(torch.nn.Module):
    """A Parameter that nobody has filled yet."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((8, 1, 1), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def test_blocks_beside_a_parameter_that_is_not_a_number_are_zero() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), Unset(), torch.nn.Conv2d(8, 4, 1))
    wide = netaugfx.widen(model, example_inputs=torch.zeros(2, 3, 4, 4), verify=False)
    blocks = dict(wide.named_augmented_parameters())
    assert torch.equal(blocks["augmented.1.scale_axis0"], torch.zeros(16, 1, 1))


def test_new_variances_are_no_less_than_the_least_of_the_base() -> None:
    norm = FrozenBatchNorm2d(64)
    norm.running_var.copy_(torch.linspace(0.1, 1.9, 64))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 1), norm, torch.nn.Conv2d(64, 4, 1))
    x = torch.randn(2, 3, 8, 8)
    wide = netaugfx.widen(model, factor=3.0, example_inputs=x)
    block = dict(wide.named_buffers())["augmented.1.running_var_axis0"]
    assert len(block) == 128
    assert torch.isin(block, norm.running_var).all()
    assert len(block.unique()) > 32
    assert wide.at(wide.max_config)(x).isfinite().all()


def test_where_nothing_is_new_there_is_no_block() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(1, 6, 1), torch.nn.Conv2d(6, 4, 1)
    )
    x = torch.randn(2, 3, 4, 4)
    wide = netaugfx.widen(model, factor=1.25, diversity=1, example_inputs=x)
    assert wide.widths["0"].choices == (1,)
    assert set(dict(wide.named_augmented_parameters())) == {
        "augmented.1.weight_axis0",
        "augmented.1.bias_axis0",
        "augmented.2.weight_axis1",
    }
    wide.at(wide.max_config)(x).sum().backward()
    assert all(p.grad is not None for p in wide.parameters())
