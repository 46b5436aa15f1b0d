"""Law 6: NetAug with weight 0 on the augmented loss, its pass executed, is plain training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from hypothesis import example, given
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import netaugfx
from netaugfx import PlanError
from recipes.netaug import NetAugTask, netaug_loss
from tests import networks, strategies

STEPS = 3


def criterion(output: object, target: object) -> Tensor:
    """A loss for any output: all of its tensors, bounded so that no step explodes."""
    leaves = [leaf for leaf in tree_leaves(_fields(output)) if isinstance(leaf, Tensor)]
    return sum((leaf.float().tanh().square().mean() for leaf in leaves), torch.zeros(()))


def _fields(output: object) -> object:
    return vars(output) if hasattr(output, "__dataclass_fields__") else output


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
    )


def train(task_or_model: nn.Module, step_of: str, batches: list) -> Tensor:
    """Train and return the global random state that is left."""
    torch.manual_seed(3)
    sgd = optimiser(task_or_model)
    for inputs in batches:
        sgd.zero_grad()
        if step_of == "plain":
            criterion(task_or_model(*inputs), None).backward()
        elif step_of == "forward":
            task_or_model(inputs, None)["loss"].backward()
        else:
            task_or_model.backward(inputs, None)
        sgd.step()
    return torch.get_rng_state()


def check(model: nn.Module, batches: list[tuple[Tensor, ...]], **growth: Any) -> None:
    """`model` trained plainly, and in a NetAugTask with alpha = 0, ends the same to the bit."""
    plain = copy.deepcopy(model)
    if not criterion(copy.deepcopy(model)(*batches[0]), None).requires_grad:
        return  # nothing to train
    try:
        wide = netaugfx.widen(model, example_inputs=batches[0], **growth)
    except PlanError as error:
        if not str(error).startswith("Nothing can grow"):
            raise
        return
    left = train(plain, "plain", batches)
    for step_of in ("forward", "backward"):
        try:
            task = NetAugTask(copy.deepcopy(wide), criterion, alpha=0.0, samples=2)
        except PlanError:
            return  # no width can grow
        result = train(task, step_of, batches)
        assert torch.equal(result, left), "the global random state differs"
        trained = netaugfx.extract_base(task.wide).state_dict()
        assert trained.keys() == plain.state_dict().keys()
        for name, expected in plain.state_dict().items():
            assert bits(trained[name]) == bits(expected), name


def bits(tensor: Tensor) -> bytes:
    """The bytes of a tensor: -0 is not 0, and nan is nan."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@example(
    strategies.NetworkSpec(
        body=(
            strategies.Conv(out=3, kernel=3, padding="half"),
            strategies.Drop(kind="nn"),
            strategies.Conv(out=2),
        )
    )
)
@given(strategies.networks())
def test_random_networks(spec: strategies.NetworkSpec) -> None:
    check(spec.build(), [spec.inputs(seed) for seed in range(STEPS)])


@pytest.mark.parametrize("case", networks.CORE, ids=repr)
def test_networks_by_hand(case: networks.Case) -> None:
    check(case.build(), [case.inputs(seed) for seed in range(STEPS)])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv3_small_050", {"drop_rate": 0.2, "drop_path_rate": 0.1}),
        ("resnet18", {"drop_rate": 0.2, "drop_path_rate": 0.1}),
    ],
)
def test_real_models(name: str, options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32, generator=generator),) for _ in range(STEPS)]
    torch.manual_seed(0)
    check(timm.create_model(name, num_classes=10, **options), batches)


def test_even_the_augmented_gradients_weighted_by_zero_change_nothing() -> None:
    """Not only skipped: a backward pass through the subnet, times 0, leaves the weights equal."""
    spec = strategies.NetworkSpec(
        body=(
            strategies.Conv(out=4, kernel=3, padding="half"),
            strategies.Norm(),
            strategies.Drop(kind="nn"),
            strategies.Conv(out=2),
        )
    )
    model, batches = spec.build(), [spec.inputs(seed) for seed in range(STEPS)]
    plain = copy.deepcopy(model)
    left = train(plain, "plain", batches)
    task = NetAugTask(netaugfx.widen(model, example_inputs=batches[0]), criterion, alpha=1.0)
    torch.manual_seed(3)
    sgd = optimiser(task)
    for inputs in batches:
        sgd.zero_grad()
        output = task.trainable_module(*inputs)
        augmented = list(task._augmented_losses(inputs, None))
        (criterion(output, None) + 0.0 * augmented[0]).backward()
        sgd.step()
    assert torch.equal(torch.get_rng_state(), left)
    trained = netaugfx.extract_base(task.wide).state_dict()
    for name, expected in plain.state_dict().items():
        assert torch.equal(trained[name], expected), name


def test_zero_times_infinity_stays_out_of_the_loss() -> None:
    base = torch.tensor(2.0, requires_grad=True)
    loss = netaug_loss(base, [torch.tensor(float("inf"))], alpha=0.0)
    assert loss.item() == 2.0
