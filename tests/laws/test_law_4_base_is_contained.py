"""Law 4. The base is contained: with no block that reads augmented channels, every subnet is m."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given

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


def cut_augmented_inputs(wide: Any) -> int:
    """Zero the blocks of weights that read augmented channels; return how many."""
    base = dict(wide.named_base_parameters())
    cut = 0
    for name, block in wide.named_augmented_parameters():
        owner, _, axis = name.partition(".")[2].rpartition("_axis")
        path, _, leaf = owner.rpartition(".")
        reads = leaf == "weight" or leaf.startswith("weight_ih")  # of a recurrent layer
        transposed = isinstance(
            wide.base.get_submodule(path), torch.nn.modules.conv._ConvTransposeNd
        )
        if reads and base[owner].dim() > 1 and axis == ("0" if transposed else "1"):
            with torch.no_grad():
                block.zero_()
            cut += 1
    for name, block in wide.rooms.named_buffers():
        if name.endswith("projection_axis0"):  # x @ projection
            block.zero_()
    return cut


def check(source: Source, growth: Growth) -> None:
    if source.mixes:
        return
    wide, model = widen_double(source, growth, dropout=False)
    inputs = measure.as_double(source.inputs(growth.seed))
    assert {p.dtype for p in wide.parameters()} == {torch.float64}
    config = config_of(wide, growth)
    cut_augmented_inputs(wide)
    found = measure.run(wide.at(config), wide, inputs)
    expected = measure.run(model, model, inputs)
    measure.close_output(found, expected, f"{config}")
    # Augmented channels reach no output now, so base weights get the base's gradients: their inputs
    # and their outputs' gradients, at every base channel of every tensor, are the base's.
    scale = measure.gradient_scale(expected)
    measure.close_inputs(found, expected, scale, f"{config}")
    for name, gradient in expected.gradients.items():
        measure.close_or_none(found.gradients[name], gradient, scale, f"{config}: {name}")


@few
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


@pytest.mark.parametrize("case", [c for c in CASES if not c.mixes], ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in BY_HAND:
        check(case, growth)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    for growth in growths_of(case):
        check(case, growth)
