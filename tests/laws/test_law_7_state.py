"""Law 7. State: names, copies, checkpoints, dtypes, layouts, data parallel, safetensors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import example, given
from torch import Tensor, nn
from torch.nn.utils import parametrize

import netaugfx
from tests import measure
from tests.laws.subject import Growth, Source, config_of, few, growths, growths_of, widen
from tests.networks import CASES, CORE, WHOLE
from tests.real import TESTED
from tests.strategies import Conv, Head, Hidden, NetworkSpec, Norm, Pad, SpatialGate, networks


def same_model(found: Any, wide: Any, source: Source, config: dict[str, int], what: str) -> None:
    """Both compute the same at base and at a config, and are made of the same values."""
    measure.same_tensors(found.state_dict(), wide.state_dict(), what)
    assert found.plan == wide.plan, what
    inputs = source.inputs(3)
    for sizes in ({}, config):
        a = measure.run(found.at(sizes), found, inputs, seed=1)
        b = measure.run(wide.at(sizes), wide, inputs, seed=1)
        measure.same_output(a, b, what)
        measure.same_tensors(a.gradients, b.gradients, f"{what}: gradient of")
        measure.same_tensors(a.buffers, b.buffers, f"{what}: buffer")


def check(source: Source, growth: Growth) -> None:
    model = source.build(growth.seed)
    wide = widen(source, growth, model)
    config = config_of(wide, growth)
    # names
    state, base = wide.state_dict(), model.state_dict()
    assert set(base) <= set(state)
    for name, tensor in base.items():
        measure.same(state[name], tensor, name)
    own = {name for name, _ in wide.named_parameters()}
    split = {name for name, _ in wide.named_base_parameters()}
    assert split == {name for name, _ in model.named_parameters()}
    assert own == split | {name for name, _ in wide.named_augmented_parameters()}
    assert no_new_aliases(wide, model)
    # copies
    copied = copy.deepcopy(wide)
    same_model(copied, wide, source, config, "deepcopy")
    shared = {p.data_ptr() for p in wide.parameters()} & {p.data_ptr() for p in copied.parameters()}
    assert not shared, "a copy shares its weights"
    if not any(parametrize.is_parametrized(m) for m in model.modules()):  # torch pickles none
        same_model(pickle.loads(pickle.dumps(wide)), wide, source, config, "pickle")
    # a checkpoint and a plan
    plan = netaugfx.Plan.from_json(wide.plan.to_json())
    assert plan == wide.plan
    again = netaugfx.widen(
        source.build(growth.seed + 1).train(model.training),
        plan=plan,
        verify=False,
        example_inputs=source.inputs(),
    )
    for a, b in zip(again.modules(), wide.modules(), strict=True):
        a.training = b.training
    again.load_state_dict(wide.state_dict())
    same_model(again, wide, source, config, "state_dict and plan")
    # m's own checkpoint, at any step
    fresh = source.build(growth.seed + 2)
    wide.load_base(fresh.state_dict())
    for name, tensor in fresh.state_dict().items():
        measure.same(wide.state_dict()[name], tensor, f"load_base {name}")
    measure.same_tensors(
        dict(wide.named_augmented_parameters()), dict(copied.named_augmented_parameters()), "block"
    )


def no_new_aliases(wide: nn.Module, model: nn.Module) -> bool:
    """Tensors of a state dict that share memory are those that share it in m."""

    def groups(state: dict[str, Tensor]) -> set[frozenset[str]]:
        found: dict[int, set[str]] = {}
        for name, tensor in state.items():
            if tensor.numel():
                found.setdefault(tensor.untyped_storage().data_ptr(), set()).add(name)
        return {frozenset(names) for names in found.values() if len(names) > 1}

    return groups(wide.state_dict()) == groups(model.state_dict())


def check_moves(source: Source, growth: Growth, used: bool = True) -> None:
    """.to(), .half(), channels_last: all tensors follow, and it still runs what extract gives.

    Args:
        source, growth: the network.
        used: whether the model has run before it moves, so that what it keeps from a pass is there.
    """
    model = measure.without_dropout(source.build(growth.seed))
    wide = widen(source, growth, model)
    config = config_of(wide, growth)
    inputs = source.inputs()
    if used:
        measure.run(wide.at(config), wide, inputs)
    for dtype in (torch.bfloat16, torch.float64):
        wide.to(dtype)
        assert {p.dtype for p in wide.parameters()} == {dtype}
        moved = tuple(x.to(dtype) for x in inputs)
        try:
            model.to(dtype)(*moved)
        except (
            RuntimeError
        ) as error:  # torch has not every operator in every dtype, nor torchvision
            if isinstance(error, NotImplementedError) or "not implemented for" in str(error):
                continue
            raise
        network = netaugfx.extract(wide, config)
        assert {p.dtype for p in network.parameters()} <= {dtype}
        compare = measure.rounded_output if source.fused else measure.same_output
        compare(
            measure.run(wide.at(config), wide, moved),
            measure.run(network, network, moved),
            f"{dtype}",
        )
        assert {p.dtype for p in netaugfx.extract_base(wide).parameters()} == {dtype}
    wide.half()
    assert {p.dtype for p in wide.parameters()} == {torch.float16}
    wide.float()
    if inputs[0].dim() != 4:
        return
    # In float64: a batch norm over the two values of a 1x1 map magnifies rounding without bound.
    wide.double()
    inputs = tuple(x.double() for x in inputs)
    found = measure.run(wide.at(config), wide, inputs)
    wide.to(memory_format=torch.channels_last)
    try:
        wide(*inputs)
        netaugfx.extract(wide, config).to(memory_format=torch.channels_last)(*inputs)
    except RuntimeError:
        return  # a view that the plain network cannot take in this layout
    again = measure.run(wide.at(config), wide, inputs)
    for (path, a), (_, b) in zip(again.output, found.output, strict=True):
        if isinstance(a, Tensor) and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=path)


@few
@given(networks(), growths)
def test_random_networks(spec: NetworkSpec, growth: Growth) -> None:
    check(spec, growth)


# Of one channel or kernel, the base's convolution leaves the layout of its input; a subnet's does not, and the head's
# view cannot take it: no more can it in the plain network.
VIEWED = NetworkSpec(
    size=7,
    channels=(1,),
    stems=((Pad(kind="channels"),),),
    body=(
        Conv(bias=False),
        SpatialGate(),
        Conv(out=2, stride=2, dilation=2, padding="same"),
        Norm(affine=False, momentum=None),
        Pad(kind="channels"),
    ),
    head=Head(reduce="", size=2, flatten="view", hidden=(Hidden(out=1),)),
)


@few
@example(VIEWED, Growth(factor=3.0, config=1))
@given(networks(), growths)
def test_random_networks_move(spec: NetworkSpec, growth: Growth) -> None:
    check_moves(spec, growth, used=growth.seed > 0)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    for growth in (Growth(), Growth(config=2, eval=True)):
        check(case, growth)
        check_moves(case, growth)
        check_moves(case, growth, used=False)


@pytest.mark.parametrize("case", TESTED, ids=repr)
def test_real_models(case: Source) -> None:
    check(case, growths_of(case)[1])


@pytest.mark.parametrize("case", WHOLE, ids=repr)
def test_safetensors(case: Source, tmp_path: Path) -> None:
    wide = widen(case, Growth())
    path = tmp_path / "wide.safetensors"
    safetensors.torch.save_file(wide.state_dict(), path)
    again = widen(case, Growth(seed=1))
    again.load_state_dict(safetensors.torch.load_file(path))
    same_model(again, wide, case, dict(wide.max_config), "safetensors")
    safetensors.torch.save_model(netaugfx.extract_base(wide), str(path))
    untouched = case.build(5)
    safetensors.torch.load_model(untouched, path, strict=True)
    measure.same_tensors(untouched.state_dict(), wide.base.state_dict(), "safetensors of the base")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "case", [c for c in CORE if c.name in ("audio", "video", "image and table", "called twice")]
)
def test_distributed_data_parallel(case: Source) -> None:
    wide = widen(case, Growth())
    alone = copy.deepcopy(wide)
    parallel = nn.parallel.DistributedDataParallel(wide, find_unused_parameters=True)
    inputs = case.inputs()
    for sizes in ({}, dict(wide.max_config), measure.some_config(wide, 4)):

        def call(*given: Tensor, sizes: dict[str, int] = sizes) -> Any:
            with wide.at(sizes):
                return parallel(*given)

        found = measure.run(call, wide, inputs)
        expected = measure.run(alone.at(sizes), alone, inputs)
        measure.same_output(found, expected, "parallel")
        for name, gradient in expected.gradients.items():
            mine = found.gradients[name]
            if gradient is None:
                assert mine is None or not mine.any(), name
            else:
                measure.same(mine, gradient, f"parallel: gradient of {name}")
