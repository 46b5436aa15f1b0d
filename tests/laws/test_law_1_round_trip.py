"""Law 1. extract_base(widen(m)) is m, the graph at base_config is m's, and m is never touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import example, given
from torch import nn

import netaugfx
from netaugfx import rewrite, rules, trace
from tests import measure
from tests.laws.subject import BY_HAND, Growth, Source, config_of, few, growths, growths_of, widen
from tests.networks import CASES, CORE, Frozen, Hooked, double_output
from tests.real import TESTED
from tests.strategies import Act, Conv, Drop, Experts, NetworkSpec, Norm, networks


def same_network(found: nn.Module, expected: nn.Module, what: str) -> None:
    """Class, module tree, hooks, names, shapes, dtypes, layouts, flags and values are the same."""
    a, b = measure.structure(found), measure.structure(expected)
    for key in a:
        assert a[key] == b[key], f"{what}: {key}"
    measure.same_tensors(found.state_dict(), expected.state_dict(), what)
    for name, tensor in expected.state_dict(keep_vars=True).items():
        mine = found.state_dict(keep_vars=True)[name]
        assert mine.stride() == tensor.stride(), f"{what}: memory format of {name}"
        assert mine.requires_grad == tensor.requires_grad, f"{what}: requires_grad of {name}"
        assert type(mine) is type(tensor), f"{what}: type of {name}"
        assert mine.data_ptr() != tensor.data_ptr() or mine.numel() == 0, (
            f"{what}: {name} is shared"
        )


def check(source: Source, growth: Growth) -> None:
    model = source.build(growth.seed)
    if growth.eval:
        model.eval()
    before = measure.snapshot(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        state = torch.get_rng_state()
        wide = widen(source, growth, model)
        config = config_of(wide, growth)
        network = netaugfx.extract(wide, config)
        base = netaugfx.extract_base(wide)
        wide.sample()
        wide.at(config)
        assert torch.equal(torch.get_rng_state(), state), "the global random state moved"
        measure.run(wide.at(config), wide, source.inputs(growth.seed))
        measure.run(network, network, source.inputs(growth.seed))
    measure.same_snapshot(measure.snapshot(model), before, "m")
    same_network(base, model, "extract_base")
    measure.same_output(
        measure.run(base, base, source.inputs(1)),
        measure.run(model, model, source.inputs(1)),
        "extract_base",
    )


def check_after_training(source: Source, growth: Growth) -> None:
    """extract_base gives values and flags as they stand in wide now."""
    wide = widen(source, growth)
    model = source.build(growth.seed)
    inputs = source.inputs(growth.seed)
    if growth.eval:
        model.eval()
    for _ in range(2):
        measure.run(wide, wide, inputs)
        measure.step(wide)
        measure.run(model, model, inputs)
        measure.step(model)
        measure.run(wide.at(config_of(wide, growth)), wide, inputs)
    for parameter in wide.parameters():
        parameter.grad = None
    for parameter in model.parameters():
        parameter.grad = None
    for network in (wide, model):
        network.train(growth.eval)
        next(network.parameters()).requires_grad_(False)
    same_network(netaugfx.extract_base(wide), model, "extract_base after training")


def check_graph(source: Source, growth: Growth) -> None:
    """Contracting the rewritten graph at base_config gives m's traced graph, node for node."""
    model = source.build(growth.seed)
    if growth.eval:
        model.eval()
    wide = widen(source, growth, model)
    inputs = source.inputs()
    program, _ = wide.program(inputs, {})
    found = rewrite.contract(program, wide.base_config, wide.plan)
    expected = trace.trace(copy.deepcopy(model), inputs, {}, is_leaf=rules.is_leaf).graph
    assert [describe(n) for n in found.nodes] == [describe(n) for n in expected.nodes]


def describe(node: Any) -> tuple[Any, ...]:
    return node.op, node.name, node.target, str(node.args), str(node.kwargs)


# A norm that counts batches cannot run on the meta device; what it computes is written to in place.
COUNTED = NetworkSpec(
    body=(Conv(out=2, kernel=1), Norm(affine=False, momentum=None), Act(kind="relu_"))
)


# The class holds channel counts and each mode another graph, in which that norm stands behind a drop path.
KEPT_WHOLE = NetworkSpec(
    channels=(2,),
    body=(
        *(Conv(out=4), Experts(groups=2, flat=False), Drop(kind="path"), Norm(momentum=None)),
        Conv(out=4),
    ),
)


@few
@example(COUNTED, Growth())
@example(KEPT_WHOLE, Growth(diversity=2, seed=2, config=1))
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


@few
@given(networks(), growths)
def test_random_networks_after_training(spec: NetworkSpec, growth: Growth) -> None:
    check_after_training(spec, growth)


@few
@given(networks(), growths)
def test_random_graphs(spec: NetworkSpec, growth: Growth) -> None:
    check_graph(spec, growth)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in BY_HAND[:2]:
        check(case, growth)
        check_after_training(case, growth)
        check_graph(case, growth)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    for growth in growths_of(case):
        check(case, growth)
    check_graph(case, growths_of(case)[0])


def test_flags_dtypes_layouts_and_hooks_come_back() -> None:
    for make in (Frozen, Hooked):
        model = make().to(torch.bfloat16, memory_format=torch.channels_last)
        model.head.register_forward_hook(double_output)
        inputs = (torch.randn(2, 3, 8, 8, dtype=torch.bfloat16),)
        wide = netaugfx.widen(model, example_inputs=inputs, verify=False)
        base = netaugfx.extract_base(wide)
        same_network(base, model, make.__name__)
        assert base.head._forward_hooks
        assert {p.dtype for p in wide.parameters()} == {torch.bfloat16}


class Around(nn.Module):
    """A user's model that holds a wide one."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


def test_extract_base_of_what_holds_or_wraps_a_wide_model() -> None:
    case = CORE[0]
    model = case.build()
    wide = widen(case, Growth(), model)
    whole = netaugfx.extract_base(Around(wide))
    assert type(whole) is Around
    same_network(whole.backbone, model, "held")
    averaged = torch.optim.swa_utils.AveragedModel(wide)
    same_network(netaugfx.extract_base(averaged), model, "averaged")
    compiled = torch.compile(wide, backend="eager")
    same_network(netaugfx.extract_base(compiled), model, "compiled")
    with pytest.raises(netaugfx.NetAugFXError):
        netaugfx.extract_base(nn.Linear(2, 2))
