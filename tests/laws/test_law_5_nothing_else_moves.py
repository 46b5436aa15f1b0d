"""Law 5. A pass at c moves exactly what extract(wide, c) holds, and no buffer of the base."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import netaugfx
from tests import measure
from tests.laws.subject import (
    BY_HAND,
    Growth,
    Source,
    config_of,
    few,
    growths,
    growths_of,
    widen_double,
)
from tests.networks import CASES
from tests.real import TESTED
from tests.strategies import NetworkSpec, networks


def check(source: Source, growth: Growth, freeze: bool = False) -> None:
    wide = widen_double(source, growth)[0]
    measure.make_distinct(wide)
    if freeze:  # every other Parameter of the base, once it is wide
        for parameter in list(wide.base_parameters())[::2]:
            parameter.requires_grad_(False)
    config = config_of(wide, growth)
    network = netaugfx.extract(wide, config)
    origin = measure.Provenance(wide, network)
    inputs = measure.as_double(source.inputs(growth.seed))
    before = {name: buffer.clone() for name, buffer in wide.named_buffers()}
    state = measure.snapshot(wide.base)
    found = measure.run(wide.at(config), wide, inputs, seed=2)
    if wide.plan.config(config) != wide.base_config:
        measure.same_tensors(found.buffers, before, "buffer")
        measure.same_tensors(wide.base.state_dict(), state["state"], "the base's")
        assert state["training"] == [m.training for m in wide.base.modules()]
    expected = measure.run(network, network, inputs, seed=2)
    scale = measure.gradient_scale(found, expected)
    frozen = {name for name, p in wide.named_parameters() if not p.requires_grad}
    for name, gradient in origin.scatter(network, expected.gradients).items():
        mine = found.gradients[name]
        if mine is None:
            measure.close_or_none(None, gradient, scale, f"{config}: {name} got none")
            continue
        assert name not in frozen, f"{name} is frozen and got a gradient"
        measure.close(mine, gradient, scale, f"{config}: {name}")
        untouched = gradient == 0
        assert not mine[untouched].abs().gt(measure.TOLERANCE * scale).any(), name


@few
@given(networks(), growths, st.booleans())
def test_random_networks(spec: NetworkSpec, growth: Growth, freeze: bool) -> None:
    check(spec, growth, freeze)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in BY_HAND:
        check(case, growth)
    check(case, BY_HAND[0], freeze=True)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    for growth in growths_of(case):
        check(case, growth)
