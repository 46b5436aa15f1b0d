"""NetAugTask in a loop of one's own: what a loop usually does, done with it, is what it would be."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2

import netaugfx
from netaugfx.errors import InputError
from recipes.netaug import NetAugTask
from recipes.training.growth import importance_orders
from recipes.training.ingredients import BaseAverage


def plain(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    between = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), *between, nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(6 * 36, 3),
    ).double()  # fmt: skip


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64),
            torch.randint(3, (4,), generator=generator),
        )
        for _ in range(4)
    ]


def task_of(model: nn.Module, images: Tensor, **options: Any) -> NetAugTask:
    return NetAugTask(
        netaugfx.widen(model, example_inputs=(images,), verify=False), F.cross_entropy, **options
    )


def sgd(task: NetAugTask) -> torch.optim.Optimizer:
    return torch.optim.SGD(task.wide.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def same_weights(one: NetAugTask, two: NetAugTask) -> None:
    for (name, a), (_, b) in zip(
        one.wide.named_parameters(), two.wide.named_parameters(), strict=True
    ):
        assert (a - b).abs().max() <= 1e-12, name


def test_an_optimiser_made_before_widen_is_refused(batches: list[tuple[Tensor, Tensor]]) -> None:
    model = plain()
    early = torch.optim.AdamW(model.parameters(), lr=0.1)
    task = task_of(model, batches[0][0])
    early.step()  # nothing has a gradient yet, here or there
    task(*batches[0])["loss"].backward()
    message = r"AdamW holds none of the 12 Parameters .* made before widen\. Make it afterwards"
    with pytest.raises(InputError, match=message):
        early.step()
    other = nn.Linear(2, 2)  # another network, trained beside it, is none of its business
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.AdamW(other.parameters()).step()
    torch.optim.SGD(nn.Linear(2, 2).parameters()).step()  # nor is one that has no gradients yet
    with pytest.raises(InputError, match=r"SGD holds none of the 12 Parameters"):
        torch.optim.SGD(list(model.parameters())[2:]).step()  # some of the model's
    sgd(task).step()
    del task
    gc.collect()
    early.step()


def test_accumulated_gradients_are_those_of_the_larger_batch(
    batches: list[tuple[Tensor, Tensor]],
) -> None:
    largest = lambda wide, *_: wide.max_config  # noqa: E731 - each step the same wider network
    one = task_of(plain(), batches[0][0], sampler=largest)
    two = copy.deepcopy(one)
    for task, size in ((one, 1), (two, 2)):
        optimizer = sgd(task)
        for first in range(0, 4, 2):
            images = torch.cat([x for x, _ in batches[first : first + 2]]).chunk(size)
            labels = torch.cat([y for _, y in batches[first : first + 2]]).chunk(size)
            for x, y in zip(images, labels, strict=True):
                task.backward(x, y, lambda loss, n=size: (loss / n).backward())
            optimizer.step()
            optimizer.zero_grad()
    same_weights(one, two)


def test_a_gradient_scaler_changes_nothing(batches: list[tuple[Tensor, Tensor]]) -> None:
    one = task_of(plain(True), batches[0][0])
    two = copy.deepcopy(one)
    optimizers = sgd(one), sgd(two)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for images, labels in batches:
        one.backward(images, labels)
        optimizers[0].step()
        optimizers[0].zero_grad()
        two.backward(images, labels, lambda loss: scaler.scale(loss).backward())
        scaler.step(optimizers[1])
        scaler.update()
        optimizers[1].zero_grad()
    same_weights(one, two)


def test_clipping_sees_base_and_blocks_together(batches: list[tuple[Tensor, Tensor]]) -> None:
    task = task_of(plain(), batches[0][0])
    task.backward(*batches[0])
    gradients = [p.grad.clone() for p in task.wide.parameters() if p.grad is not None]
    norm = torch.cat([each.flatten() for each in gradients]).norm()
    found = nn.utils.clip_grad_norm_(task.wide.parameters(), max_norm=0.01)
    assert abs(found - norm) <= 1e-12 * norm
    clipped = [p.grad for p in task.wide.parameters() if p.grad is not None]
    for before, after in zip(gradients, clipped, strict=True):
        assert (after - before * 0.01 / norm).abs().max() <= 1e-6 * before.abs().max()


def test_both_networks_see_one_draw_of_mixup(batches: list[tuple[Tensor, Tensor]]) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        seen.append((output, target))
        return F.cross_entropy(output, target)

    torch.manual_seed(0)
    images, labels = v2.MixUp(alpha=0.5, num_classes=3)(batches[0][0].clone(), batches[0][1])
    wide = netaugfx.widen(plain(), example_inputs=(images,))
    task = NetAugTask(wide, criterion, samples=2)
    result = task.backward(images, labels)
    assert len(seen) == 3
    assert all(target is labels for _, target in seen)
    assert torch.equal(result["output"], wide.base(images))
    assert ((labels > 0) & (labels < 1)).any()


def test_the_average_of_the_base_alone(batches: list[tuple[Tensor, Tensor]]) -> None:
    task = task_of(plain(True), batches[0][0])
    optimizer, average = sgd(task), BaseAverage(task.wide.base, 0.9)
    expected: dict[str, Tensor] = {}
    for images, labels in batches:
        task.backward(images, labels)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(task.wide.base)
        for name, value in task.wide.base.state_dict().items():
            old = expected.get(name, value.clone())
            expected[name] = 0.9 * old + 0.1 * value if value.is_floating_point() else value.clone()
    found = average.module.state_dict()
    assert found.keys() == plain(True).state_dict().keys()  # no blocks
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-12, name
    plain(True).load_state_dict(found, strict=True)
    assert isinstance(average, AveragedModel)


def test_checkpointed_activations_and_another_classifier() -> None:
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 4])
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=10, drop_rate=0.2)
    model.reset_classifier(5)
    checkpointed = copy.deepcopy(model)
    checkpointed.set_grad_checkpointing()
    gradients = []
    for each in (model, checkpointed):
        wide = netaugfx.widen(each, factor=1.5, example_inputs=(images,), verify=False)
        assert wide.pinned == {"classifier": "it is an output of the network"}
        torch.manual_seed(1)
        task = NetAugTask(wide, nn.CrossEntropyLoss())
        assert task.backward(images, labels)["output"].shape == (2, 5)
        gradients.append({name: p.grad for name, p in wide.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
    assert set(netaugfx.extract_base(wide).state_dict()) == set(model.state_dict())


# Lightning's own: it asks torch's pytree in a way that torch will drop, and says what it would like to have.
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.filterwarnings(
    "ignore:.*(does not have many workers|Checkpoint directory|smaller than)"
)
def test_lightning(batches: list[tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """Two epochs by the Trainer, stopped in between, are two epochs by hand."""
    lightning = pytest.importorskip("lightning")
    from recipes.lightning import NetAugModule

    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    by_hand = task_of(plain(True), batches[0][0], seed=3)
    wide, fresh = copy.deepcopy(by_hand.wide), copy.deepcopy(by_hand.wide)
    optimizer = sgd(by_hand)
    for images, labels in batches * 2:
        by_hand(images, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    def module(of: Any) -> Any:
        return NetAugModule(
            of,
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
            criterion=F.cross_entropy,
            seed=3,
        )

    def trainer(epochs: int) -> Any:
        return lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", default_root_dir=tmp_path, **quiet
        )

    first = trainer(1)
    first.fit(module(wide), loader, loader)
    assert "val_top1" in first.callback_metrics
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = module(fresh)
    trainer(2).fit(second, loader, loader, ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    same_weights(second.task, by_hand)
    names = set(second.state_dict())
    assert names == {f"wide.{name}" for name in fresh.state_dict()}  # each once


def test_lightning_moves_the_criterion(
    batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lightning")
    from recipes.lightning import NetAugModule

    images, labels = batches[0]
    wide = task_of(plain().float(), images.float()).wide
    weight = torch.tensor([1.0, 2.0, 3.0])
    options = {"criterion": nn.CrossEntropyLoss(weight=weight), "seed": 3}
    module = NetAugModule(wide, torch.optim.SGD, **options).double()
    monkeypatch.setattr(module, "log_dict", lambda _: None)  # which needs a Trainer
    by_hand = NetAugTask(wide, lambda y, t: F.cross_entropy(y, t, weight.double()), seed=3)
    assert torch.equal(module.training_step((images, labels), 0), by_hand(images, labels)["loss"])
    assert {name.partition(".")[0] for name in module.state_dict()} == {"wide", "criterion"}
    assert len(list(module.parameters())) == len(list(wide.parameters()))


def test_what_timm_does_with_a_task(batches: list[tuple[Tensor, Tensor]]) -> None:
    """Its averages, clipping and checkpoints, as timm's training script calls them."""
    task = task_of(plain(True), batches[0][0])
    task.setup_ema(decay=0.5)
    optimizer = sgd(task)
    for images, labels in batches:
        task(images, labels)["loss"].backward()
        nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
    task.wide.permute(importance_orders(task.wide), optimizer, task.get_trainable_module(ema=True))
    held = task.get_checkpoint_state() | task.get_checkpoint_state(ema=True)
    assert set(held) == {"state_dict", "task_state", "state_dict_ema", "task_state_ema"}
    averaged = netaugfx.extract_base(task.get_eval_model(ema=True))
    assert averaged.state_dict().keys() == plain(True).state_dict().keys()
    other = task_of(plain(True), batches[0][0], seed=9)
    other.load_checkpoint_state(held["state_dict"], held["task_state"])
    for images, labels in batches[:2]:
        for each in (task, other):
            each(images, labels)["loss"].backward()
        for mine, theirs in zip(task.wide.parameters(), other.wide.parameters(), strict=True):
            assert (mine.grad is None) == (theirs.grad is None)
            assert mine.grad is None or torch.equal(mine.grad, theirs.grad)
