"""Law 2. wide at base_config is m: outputs, gradients, buffers, random numbers; also switching."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from torch import nn

import netaugfx
from tests import measure
from tests.laws.subject import BY_HAND, Growth, Source, config_of, few, growths, growths_of, widen
from tests.networks import CASES, Case, Frozen, SamePadded
from tests.real import TESTED
from tests.strategies import (
    Conv,
    Depthwise,
    Experts,
    Gated,
    Grouped,
    Head,
    NetworkSpec,
    Norm,
    Pad,
    Pool,
    Shuffle,
    Split,
    networks,
)


def same_pass(
    wide: nn.Module, call: measure.Run, model: nn.Module, inputs: tuple, what: str
) -> None:
    """One pass of each, compared; then one step of each."""
    found = measure.run(call, wide, inputs, seed=3)
    expected = measure.run(model, model, inputs, seed=3)
    measure.same_output(found, expected, what)
    names = dict(wide.named_base_parameters())
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in names.items()}
    measure.same_tensors(gradients, expected.gradients, f"{what}: gradient of")
    for a, b in zip(found.inputs, expected.inputs, strict=True):
        measure.same(a, b, f"{what}: the input's gradient")
    for name, parameter in wide.named_augmented_parameters():
        assert parameter.grad is None, f"{what}: {name} got a gradient"
    for name, buffer in expected.buffers.items():
        measure.same(found.buffers[name], buffer, f"{what}: buffer {name}")
    assert torch.equal(found.random, expected.random), f"{what}: random numbers consumed"
    measure.step(wide)
    measure.step(model)


def check(source: Source, growth: Growth) -> None:
    model = source.build(growth.seed)
    wide = widen(source, growth, model)
    config = config_of(wide, growth)
    inputs = source.inputs(growth.seed)
    for mode in ("as built", "eval", "train"):
        if mode != "as built":
            wide.train(mode == "train")
            model.train(mode == "train")
        same_pass(wide, wide, model, inputs, f"{mode}: wide")
        same_pass(wide, wide.at(wide.base_config), model, inputs, f"{mode}: at base_config")
        measure.run(wide.at(config), wide, inputs)
        same_pass(wide, wide.at({}), model, inputs, f"{mode}: after switching")
        with wide.at(config):
            measure.run(wide, wide, inputs)
        same_pass(wide, wide, model, inputs, f"{mode}: after a with block")
        size = source.other_size()
        if size is not None:
            other = source.inputs(growth.seed, size=size)
            same_pass(wide, wide.at(wide.base_config), model, other, f"{mode}: {size} pixels")
            measure.run(wide.at(config), wide, other)
            same_pass(wide, wide, model, inputs, f"{mode}: after {size} pixels")


# One channel on a map of one pixel: a shape does not tell where it goes, and at 7 pixels the map has more.
ONE_BY_ONE = NetworkSpec(
    size=4,
    body=(
        Conv(out=2),
        Conv(out=1, kernel=5, bias=False),
        Shuffle(groups=3),
        Shuffle(groups=3),
        Conv(bias=False),
    ),
)


# At 6 pixels the literal of the view gives a row for each pixel; the norm's count of batches is read anew there.
MIXED_SAMPLES = NetworkSpec(
    size=3,
    channels=(1,),
    body=(
        Norm(momentum=None),
        Conv(out=5),
        Pool(size=3, stride=1, function=True, ceil=True),
    ),
    head=Head(reduce="", flatten="literal", out=4),
)


# Channels that are padded are pinned only after the graph is read: their zeros' channels cannot grow either.
PADDED_AND_PINNED = NetworkSpec(
    stems=((Conv(out=4), Pool(kind="adaptive avg", size=1)),),
    body=(
        Conv(out=3),
        Gated(how="glu"),
        Experts(out=3, groups=2),
        Split(first=3, body=(Pad(kind="channels"), Depthwise(), Grouped(groups=3))),
    ),
)


@few
@example(ONE_BY_ONE, Growth(factor=2.0))
@example(PADDED_AND_PINNED, Growth(factor=2.0))
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


def test_where_a_view_mixes_samples_the_base_does_and_a_subnet_refuses() -> None:
    growth = Growth(factor=2.0, eval=True)
    check(MIXED_SAMPLES, growth)
    model = MIXED_SAMPLES.build(0).eval()
    wide = widen(MIXED_SAMPLES, growth, model)
    larger = MIXED_SAMPLES.inputs(0, size=6)
    expected = model(*larger)
    assert len(expected) == 16 * len(larger[0])
    measure.same(wide(*larger), expected, "with a row for each pixel")
    with pytest.raises(netaugfx.GuardError, match=r"reshape\(\) \(modules.py:\d+\) cuts it"):
        wide.at(wide.max_config)(*larger)
    measure.same_output(
        measure.run(wide.at({}), wide, MIXED_SAMPLES.inputs(0)),
        measure.run(model, model, MIXED_SAMPLES.inputs(0)),
        "afterwards",
    )


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in BY_HAND:
        check(case, growth)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    check(case, growths_of(case)[0])


@pytest.mark.parametrize("make", [SamePadded, Frozen])
def test_a_bfloat16_and_channels_last_model(make: type[nn.Module]) -> None:
    for dtype, layout in (
        (torch.bfloat16, torch.contiguous_format),
        (torch.float32, torch.channels_last),
    ):
        case = Case(make.__name__, make)
        model = case.build().to(dtype, memory_format=layout)
        inputs = (case.inputs()[0].to(dtype, memory_format=layout),)
        wide = netaugfx.widen(model, example_inputs=inputs, verify=False)
        measure.run(wide.at(wide.max_config), wide, inputs)
        same_pass(wide, wide, model, inputs, f"{dtype} {layout}")
