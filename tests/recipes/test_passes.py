"""Several passes on one batch see the same input, also where a forward writes to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.nn import functional as F

import netaugfx
from netaugfx.errors import InputError
from recipes.distill import DistillTask
from recipes.netaug import NetAugTask
from recipes.passes import SameInput
from recipes.sandwich import SandwichTask
from recipes.teachers import FrozenTeacher, OnlineTeacher


class Shifted(nn.Module):
    """Takes a constant off its input, in place or not."""

    def __init__(self, in_place: bool):
        super().__init__()
        torch.manual_seed(0)
        self.in_place = in_place
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            x -= 0.5
        else:
            x = x - 0.5
        return self.head(self.features(x).mean((2, 3)))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (4,), generator=generator)


def wide(in_place: bool) -> netaugfx.WideModel:
    example = (torch.zeros(2, 2, 6, 6, dtype=torch.float64),)
    return netaugfx.widen(Shifted(in_place).double(), example_inputs=example, verify=False)


def netaug(in_place: bool) -> Any:
    return NetAugTask(wide(in_place), F.cross_entropy, samples=2)


def sandwich(in_place: bool) -> Any:
    return SandwichTask(wide(in_place), F.cross_entropy)


def taught_by_the_widest(in_place: bool) -> Any:
    student = wide(in_place)
    inner = NetAugTask(student, F.cross_entropy)
    return DistillTask(inner, OnlineTeacher(student, "widest"), ["kd"], batch()[0])


def plain_student(in_place: bool) -> Any:
    student = ClassificationTask(
        Shifted(in_place).double(), F.cross_entropy, device=torch.device("cpu"), verbose=False
    )
    teacher = FrozenTeacher(Shifted(in_place).double())
    return DistillTask(student, teacher, ["kd"], batch()[0])


@pytest.mark.parametrize("task_of", [netaug, sandwich, taught_by_the_widest, plain_student])
def test_a_forward_that_writes_to_its_input_trains_as_one_that_does_not(
    task_of: Callable[[bool], Any],
) -> None:
    writes, does_not = task_of(True), task_of(False)
    images, labels = batch()
    for _ in range(3):
        found, expected = writes(images, labels), does_not(images, labels)
        assert torch.equal(images, batch()[0])
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.equal(found[name], expected[name]), name
        found["loss"].backward()
        expected["loss"].backward()
    for one, other in zip(
        writes.trainable_module.parameters(), does_not.trainable_module.parameters(), strict=True
    ):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_separate_backward_passes_see_the_same_input() -> None:
    images, labels = batch()
    for _ in range(2):
        found = netaug(True).backward(images, labels)
        assert torch.equal(found["augmented_loss"], netaug(False)(images, labels)["augmented_loss"])
        assert torch.equal(images, batch()[0])


class Sometimes(nn.Module):
    """Writes to its second input while `writes`, and remembers what it was given."""

    writes = False
    given: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.given = y
        if self.writes:
            y.add_(1)
        return x + y


def test_what_writes_nothing_gets_no_copies_but_the_first() -> None:
    run, module = SameInput(), Sometimes()
    x, y = torch.zeros(2), torch.ones(2)
    run(module, (x, y))
    assert module.given is not y
    run(module, (x, y))
    assert module.given is y
    module.writes = True
    with pytest.raises(InputError, match=r"Sometimes has written to its input in place, .* first"):
        run(module, (x, y))
    module.eval()  # where it may do otherwise
    for _ in range(2):
        y = torch.ones(2)
        assert torch.equal(run(module, (x, y)), torch.full((2,), 2.0))
        assert torch.equal(y, torch.ones(2))
    with torch.inference_mode():
        y = torch.ones(2)
        run(module.train(), (x, y))
        assert torch.equal(y, torch.ones(2))
