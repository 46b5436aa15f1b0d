"""Train a network on images, plainly or with NetAug, so that it can be stopped at any moment and resumed exactly.

Reads top to bottom: what a run is (`TrainConfig`), the run (`train`), an epoch, an evaluation.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from torch import nn

import netaugfx
from recipes.augment import build_loaders
from recipes.checkpoint import load_checkpoint, save_checkpoint, save_weights, write_json
from recipes.data import Data, load_data
from recipes.errors import DataError, LossError, RunError
from recipes.models import build_model
from recipes.netaug import NetAugTask
from recipes.rundir import RunDirectory

NETAUG_ONLY = ("factor", "diversity", "alpha", "samples", "kinds", "keep")


@dataclass(frozen=True)
class TrainConfig:
    """What a run is: two runs of one config end with the same weights (on a CPU, bit for bit)."""

    model: str  # a name as in recipes/models.py
    data: str  # a SPEC as in recipes/data.py
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    num_classes: int | None = None  # None: from the data
    channels: int | None = None
    image_size: int | None = None
    method: str = "baseline"  # or "netaug"
    factor: Any = 3.0  # the widest subnet, times the base (the paper's r); or by kind, {"stream": 3, "inner": 2.8}
    diversity: Any = 2  # steps from the base to the widest (the paper's s)
    alpha: float = 1.0  # weight of the augmented loss (the paper's value)
    samples: int = 1  # augmented networks per step (the paper's value; more hurt)
    kinds: tuple[str, ...] = ("stream", "inner")  # which widths grow
    keep: tuple[str, ...] = ()  # globs of module names whose widths stay
    epochs: int = 10
    batch_size: int = 128
    opt: str = "sgd"  # timm's name; its SGD is Nesterov's
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 4e-5  # the paper's value
    decay_norms: bool = True  # whether norms and biases decay too
    sched: str = "cosine"  # timm's name; stepped after every update
    warmup_epochs: int = 0
    smoothing: float = 0.1  # label smoothing
    seed: int = 0  # of weights, order, augmentation and sampling

    def identity(self) -> dict[str, Any]:
        """The fields that make the run what it is, as JSON."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if self.method == "netaug" or name not in NETAUG_ONLY}


def train(
    config: TrainConfig, out: Path, *, resume: bool = False, device: str = "auto", workers: int = 0,
    download: bool = False, console: Console | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run `config` in the directory `out`, or go on with it where its last checkpoint stands.

    Returns:
        The content of `out`/result.json: accuracy of `out`/base.safetensors in the untouched model, in percent.

    Raises:
        DataError, ModelError: before anything is written. RunError: `out` holds something else, or a checkpoint
        does not fit. LossError: the loss is not finite; the last good checkpoint stays.
    """
    console = console or Console()
    data = load_data(
        config.data, num_classes=config.num_classes, channels=config.channels, image_size=config.image_size,
        download=download,
    )  # fmt: skip
    set_seed(config.seed)
    model = fresh_model(config, data)
    if config.method == "netaug":
        model = widen(model, config, data)
    seen = {"num_classes": data.num_classes, "channels": data.channels, "image_size": data.image_size,
            "train_images": len(data.train), "validation_images": len(data.validation)}  # fmt: skip
    identity = {"config": config.identity(), "data": seen}
    directory = RunDirectory(out)
    directory.check(identity, resume)

    spread = [DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)]
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=spread)
    train_loader, validation_loader, keys = build_loaders(data, config.batch_size, config.seed, workers)
    optimizer = create_optimizer_v2(
        model, config.opt, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay,
        filter_bias_and_bn=not config.decay_norms,
    )  # fmt: skip
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model, optimizer, train_loader, validation_loader
    )
    scheduler, _ = create_scheduler_v2(
        optimizer, config.sched, num_epochs=config.epochs, warmup_epochs=config.warmup_epochs, step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )  # fmt: skip
    criterion = nn.CrossEntropyLoss(label_smoothing=config.smoothing)
    if config.method == "netaug":
        task: TrainingTask = NetAugTask(
            model, criterion, alpha=config.alpha, samples=config.samples, kinds=config.kinds, seed=config.seed
        )
    else:
        task = ClassificationTask(model, criterion, device=accelerator.device, verbose=False)

    plain = accelerator.unwrap_model(model)
    done: dict[str, Any] = {"epochs": 0, "steps": 0, "history": []}
    if directory.checkpoint.exists():  # `check` let it pass only with resume
        task_state, done = load_checkpoint(directory.checkpoint, plain, optimizer)
        task.load_task_state(task_state)
        console.print(f"resuming after epoch {done['epochs']} of {config.epochs}")
    if accelerator.is_main_process:
        directory.claim(identity, plain.plan.to_json() if config.method == "netaug" else None)
        directory.write_metrics(done["history"])
    if scheduler is not None:
        scheduler.step_update(done["steps"])

    for epoch in range(done["epochs"], config.epochs):
        started = time.perf_counter()
        keys.epoch = epoch
        lr = optimizer.param_groups[0]["lr"]
        trained = train_epoch(task, train_loader, optimizer, scheduler, accelerator, done["steps"], directory, console,
                              f"epoch {epoch + 1}/{config.epochs}")  # fmt: skip
        evaluated = evaluate(plain, validation_loader, accelerator)
        if not math.isfinite(evaluated["loss"]):
            raise _loss_error("validation loss", evaluated["loss"], done["steps"] + len(train_loader), directory)
        line = {"epoch": epoch + 1, "step": done["steps"] + len(train_loader), "lr": lr}
        line |= {f"train_{name}": value for name, value in trained.items()}
        line |= {f"val_{name}": value for name, value in evaluated.items()}
        line["seconds"] = round(time.perf_counter() - started, 3)
        done = {"epochs": epoch + 1, "steps": line["step"], "history": [*done["history"], line]}
        if accelerator.is_main_process:
            save_checkpoint(directory.checkpoint, plain, optimizer, task.get_task_state(), done)
            directory.write_metrics(done["history"])
            console.print(_readable(line, config.epochs), highlight=False, soft_wrap=True)
    return finish(config, data, plain, validation_loader, accelerator, directory, done, console)


def fresh_model(config: TrainConfig, data: Data) -> nn.Module:
    """The untouched model of a run."""
    return build_model(
        config.model, num_classes=data.num_classes, channels=data.channels, model_args=config.model_args,
        pretrained=config.pretrained,
    )  # fmt: skip


def widen(model: nn.Module, config: TrainConfig, data: Data) -> netaugfx.WideModel:
    """The model of a NetAug run, widened for images of its data."""
    example = torch.rand(2, data.channels, data.image_size, data.image_size, generator=torch.Generator().manual_seed(0))
    return netaugfx.widen(
        model, factor=config.factor, diversity=config.diversity, keep=config.keep, example_inputs=(example,),
        seed=config.seed,
    )  # fmt: skip


def train_epoch(
    task: TrainingTask, loader: Iterable, optimizer: torch.optim.Optimizer, scheduler: Any, accelerator: Accelerator,
    step: int, directory: RunDirectory, console: Console, title: str,
) -> dict[str, float]:  # fmt: skip
    """Take an optimiser step for each batch.

    Returns:
        Means over the epoch: "loss", for NetAug "base_loss" and "augmented_loss", and "top1" of the base on the
        augmented images as they came by, in percent.
    """
    task.train()
    sums: dict[str, float] = {}
    images = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for input, target in progress.track(_readable_errors(loader), total=len(loader), description=title):  # type: ignore[arg-type]
            optimizer.zero_grad()
            if isinstance(task, NetAugTask):
                result = task.backward(input, target, accelerator.backward)
            else:
                result = task(input, target)
                accelerator.backward(result["loss"])
            step += 1
            if not math.isfinite(loss := result["loss"].item()):
                raise _loss_error("loss", loss, step, directory)
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(step)
            images += len(target)
            for name in ("loss", "base_loss", "augmented_loss"):
                if name in result:
                    sums[name] = sums.get(name, 0.0) + result[name].item() * len(target)
            correct = (result["output"].argmax(1) == target).sum().item()
            sums["top1"] = sums.get("top1", 0.0) + 100.0 * correct
    return {name: value / images for name, value in sums.items()}


@torch.no_grad()
def evaluate(model: nn.Module, loader: Iterable, accelerator: Accelerator) -> dict[str, float]:
    """Cross entropy, top-1 and top-5 (of all classes where there are fewer), in percent, of `model` in eval mode."""
    model.eval()
    loss, top1, top5, images = 0.0, 0, 0, 0
    for input, target in _readable_errors(loader):
        output, target = accelerator.gather_for_metrics((model(input), target))
        ranked = output.topk(min(5, output.shape[1]), dim=1).indices == target[:, None]
        loss += nn.functional.cross_entropy(output.float(), target, reduction="sum").item()
        top1 += ranked[:, 0].sum().item()
        top5 += ranked.any(1).sum().item()
        images += len(target)
    return {"loss": loss / images, "top1": 100.0 * top1 / images, "top5": 100.0 * top5 / images}


def finish(
    config: TrainConfig, data: Data, model: nn.Module, loader: Iterable, accelerator: Accelerator,
    directory: RunDirectory, done: Mapping[str, Any], console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Write base.safetensors, load it into the untouched model, evaluate that, and write result.json.

    Raises:
        RunError: on a CPU, the untouched model does not reach exactly the accuracy of the last epoch.
    """
    base = netaugfx.extract_base(model) if config.method == "netaug" else model
    if accelerator.is_main_process:
        save_weights(directory.base, base)
    accelerator.wait_for_everyone()
    untouched = fresh_model(dataclasses.replace(config, pretrained=False), data)
    untouched.load_state_dict(load_file(directory.base), strict=True)
    reached = evaluate(untouched.to(accelerator.device), loader, accelerator)
    last = done["history"][-1] if done["history"] else None
    if last and accelerator.device.type == "cpu" and reached["top1"] != last["val_top1"]:
        raise RunError(f"{directory.base} reaches top-1 {reached['top1']}, not the {last['val_top1']} of the last epoch.")
    result = {
        "top1": reached["top1"],
        "top5": reached["top5"],
        "epochs": done["epochs"],
        "parameters": sum(parameter.numel() for parameter in untouched.parameters()),
        "seconds": round(sum(line["seconds"] for line in done["history"]), 3),
        "device": str(accelerator.device),
    }
    if accelerator.is_main_process:
        write_json(directory.result, result)
        console.print(f"{directory.base}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % "
                      f"({result['parameters']:,} parameters, {result['seconds']:.0f} s)", highlight=False, soft_wrap=True)  # fmt: skip
    return result


def _readable_errors(loader: Iterable) -> Iterable:
    """The batches of `loader`; a DataError from a worker process loses the traceback that came in its message."""
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error


def _loss_error(which: str, value: float, step: int, directory: RunDirectory) -> LossError:
    kept = f"The last good checkpoint is kept: {directory.checkpoint}." if directory.checkpoint.exists() else ""
    return LossError(f"The {which} is {value} at step {step}. Try a lower --lr. {kept}".rstrip())


def _readable(line: Mapping[str, Any], epochs: int) -> str:
    augmented = f" (augmented {line['train_augmented_loss']:.3f})" if "train_augmented_loss" in line else ""
    return (
        f"epoch {line['epoch']:>3}/{epochs}  lr {line['lr']:.4f}  "
        f"train loss {line.get('train_base_loss', line['train_loss']):.3f}{augmented} top-1 {line['train_top1']:5.2f}  "
        f"val loss {line['val_loss']:.3f} top-1 {line['val_top1']:5.2f} top-5 {line['val_top5']:6.2f}  "
        f"{line['seconds']:.1f} s"
    )
