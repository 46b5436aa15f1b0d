"""Law 3. wide at c computes what extract(wide, c), a network of plain modules, computes."""

from __future__ import annotations

import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from torch import Tensor, nn
from torch.nn.utils import parametrize

import netaugfx
from netaugfx.copies import deep_copy
from tests import measure
from tests.laws.subject import (
    BY_HAND,
    Growth,
    Source,
    config_of,
    few,
    growths,
    growths_of,
    widen,
    widen_double,
)
from tests.networks import CASES, CORE
from tests.real import FAST, TESTED
from tests.strategies import (
    Affine,
    Branches,
    Conv,
    Drop,
    Head,
    Hidden,
    NetworkSpec,
    Slice,
    networks,
)

ROOT = Path(__file__).parents[2]


def check(source: Source, growth: Growth) -> None:
    check_float32(source, growth)
    check_float64(source, growth)


def check_float32(source: Source, growth: Growth) -> None:
    """Outputs and random numbers are equal, at the traced image size and at another.

    A graph refuses a size at which Python would have taken another way; it is extracted for that size then.
    """
    wide = widen(source, growth)
    config = config_of(wide, growth)
    network = netaugfx.extract(wide, config)
    for size in (None, source.other_size()):
        inputs = source.inputs(growth.seed, size=size)
        found = measure.run(wide.at(config), wide, inputs, seed=5)
        if size is not None and refuses(network, inputs):
            network = extract_for(source, growth, wide, config, inputs)
        expected = measure.run(network, network, inputs, seed=5)
        compare = measure.rounded_output if source.fused else measure.same_output
        compare(found, expected, f"{config}")
        assert torch.equal(found.random, expected.random), "random numbers consumed"


def refuses(network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        deep_copy(network)(*inputs)
    except AssertionError as error:
        return "extract anew" in str(error)
    return False


def extract_for(
    source: Source, growth: Growth, wide: Any, config: Any, inputs: tuple[Tensor, ...]
) -> nn.Module:
    """The same subnet, extracted from a wide model that was traced for these inputs."""
    model = source.build(growth.seed)
    anew = netaugfx.widen(model, plan=wide.plan, example_inputs=inputs, verify=False)
    anew.load_state_dict(wide.state_dict())
    anew.train(wide.training)
    return netaugfx.extract(anew, config)


def check_float64(source: Source, growth: Growth) -> None:
    """Outputs and the gradients of shared Parameters agree, element by element."""
    wide = widen_double(source, growth)[0]
    measure.make_distinct(wide)
    config = config_of(wide, growth)
    network = netaugfx.extract(wide, config)
    origin = measure.Provenance(wide, network)
    inputs = measure.as_double(source.inputs(growth.seed))
    for mode in ("as built", "eval", "train"):
        if mode != "as built":
            network = netaugfx.extract(wide, config)  # a pass moves its running statistics
            wide.train(mode == "train")
            network.train(mode == "train")
        found = measure.run(wide.at(config), wide, inputs, seed=5)
        expected = measure.run(network, network, inputs, seed=5)
        what = f"{config} {mode}"
        measure.close_output(found, expected, what)
        scale = measure.gradient_scale(found, expected)
        measure.close_inputs(found, expected, scale, what)
        for name, gradient in origin.scatter(network, expected.gradients).items():
            measure.close_or_none(found.gradients[name], gradient, scale, f"{what}: {name}")


def check_plain(source: Source, growth: Growth) -> None:
    """No class or function of the library's is in the pickled network."""
    wide = widen(source, growth)
    network = netaugfx.extract(wide, config_of(wide, growth))
    if any(parametrize.is_parametrized(m) for m in network.modules()):  # torch pickles none such
        with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
            pickle.dumps(source.build())
        return
    names = [str(argument) for _, argument, _ in pickletools.genops(pickle.dumps(network))]
    assert not [name for name in names if "netaugfx" in name]


# A drop path written by hand and channel counts in the forward: no graph of operators holds for both modes.
TWO_GRAPHS = NetworkSpec(
    size=7,
    body=(Conv(out=4, kernel=4, stride=2, padding="same"), Drop(kind="path")),
    head=Head(reduce="sum keepdim", flatten="literal", hidden=(Hidden(out=6),), out=3),
)


# A drop path's mask has axes of length 1 that are computed, and the channel is one: the mask is no width for all that.
ONE_CHANNEL = NetworkSpec(
    size=8,
    body=(Conv(out=4), Conv(out=1), Drop(kind="path"), Conv(out=3)),
    head=Head(reduce="amax", out=1),
)

# Whether branches are resized depends on the image size, and the literal slice needs a graph.
BY_SIZE = NetworkSpec(
    size=4,
    body=(
        Conv(out=2, kernel=4),
        Slice(count=4),
        Affine(kind="linear"),
        Branches(bodies=((), (Conv(out=4, stride=2),)), how="cat"),
    ),
)


@few
@example(BY_SIZE, Growth(eval=True))
@example(TWO_GRAPHS, Growth())
@example(TWO_GRAPHS, Growth(eval=True))
@example(ONE_CHANNEL, Growth())
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


@few
@given(networks(), growths)
def test_random_networks_pickle_plainly(spec: NetworkSpec, growth: Growth) -> None:
    check_plain(spec, growth)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in BY_HAND:
        check(case, growth)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    for growth in growths_of(case):
        check(case, growth)


LOAD = """
import pickle, sys, warnings

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "netaugfx":
            raise ImportError("netaugfx is not installed")

sys.meta_path.insert(0, Block())
import torch
from torch.nn.utils import parametrize

torch.set_num_threads(1)
torch.backends.mkldnn.set_flags(False)  # as here
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        network, inputs, expected = pickle.load(file)
    with torch.no_grad():
        output = network(*inputs)
    torch.save(output, path + ".out")
assert not [name for name in sys.modules if name.startswith("netaugfx")]
"""


def test_pickled_networks_run_where_netaugfx_is_not_installed(tmp_path: Path) -> None:
    expected = {}
    for number, case in enumerate([*CORE, *FAST]):
        growth = Growth(1.5, 1, eval=True)
        wide = widen(case, growth)
        inputs = case.inputs()
        network = netaugfx.extract(wide, wide.max_config)
        path = tmp_path / f"{number}.pickle"
        path.write_bytes(pickle.dumps((network, inputs, None)))
        with torch.no_grad():
            expected[path] = wide.at(wide.max_config)(*inputs)
    command = [sys.executable, "-c", LOAD, *map(str, expected)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for path, output in expected.items():
        found = torch.load(f"{path}.out", weights_only=False)
        pairs = zip(measure.leaves(found), measure.leaves(output), strict=True)
        for (name, a), (_, b) in pairs:
            measure.same(a, b, f"{path.name} {name}")
