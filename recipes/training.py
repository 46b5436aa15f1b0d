"""Train a network on images, plainly or with NetAug; stopped at any moment, it resumes exactly.

Reads top to bottom: the whole run (`train`), an epoch of it, its end.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, TrainingTask
from torch import nn
from torch.utils.data import DataLoader

import netaugfx
from recipes.augment import build_loaders
from recipes.checkpoint import load_checkpoint, save_checkpoint, save_weights, write_json
from recipes.config import TrainConfig
from recipes.data import Data, load_data, near
from recipes.errors import LossError, RunError
from recipes.evaluation import batches, evaluate
from recipes.models import build_model, check_logits
from recipes.netaug import NetAugTask
from recipes.rundir import RunDirectory, readable

__all__ = ["TrainConfig", "train"]


@dataclass(frozen=True)
class Run:
    """What every part of a run looks at."""

    config: TrainConfig
    data: Data
    directory: RunDirectory
    accelerator: Accelerator
    console: Console


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    download: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run `config` in the directory `out`, or go on with it where its last checkpoint stands.

    Args:
        out: see recipes/rundir.py for what it will hold.
        resume: go on with the run that `out` holds; where it holds none, start it.
        device: "auto" or "cpu".
        workers: processes that load images; 0 loads them in this one. The result is the same.

    Returns:
        The content of `out`/result.json: among others "top1" and "top5", in percent, that
        `out`/base.safetensors reaches in the untouched model.

    Raises:
        DataError, ModelError: the data or the model cannot be had; nothing has been written.
        RunError: `out` holds something else, or a checkpoint that does not fit; it is left as it
            is.
        LossError: the loss is not finite; the last good checkpoint stays.
    """
    console = console or Console()
    given = {name: getattr(config, name) for name in ("num_classes", "channels", "image_size")}
    data = load_data(config.data, **given, download=download)
    directory = RunDirectory(out)
    identity = {"config": config.identity(), "data": data.described()}
    directory.check(identity, resume)
    set_seed(config.seed)
    model = fresh_model(config, data)
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, data.channels, data.image_size, data.image_size, generator=generator)
    check_logits(model, config.model, example, data.num_classes)
    if config.method == "netaug":
        model = netaugfx.widen(
            model,
            factor=config.factor,
            diversity=config.diversity,
            keep=config.keep,
            example_inputs=(example,),
            seed=config.seed,
        )
        console.print(
            f"{len(model.widths)} widths grow, elastic share {model.elastic_share:.3f}, "
            f"{len(model.pinned)} pinned (netaugfx inspect says why)",
            highlight=False,
            soft_wrap=True,
        )

    # A step of NetAug leaves the blocks that it did not sample unused; buffers broadcast between
    # its two passes would overwrite what the backward pass still needs.
    ranks = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=device == "cpu", kwargs_handlers=[ranks])
    run = Run(config, data, directory, accelerator, console)
    optimizer = build_optimizer(model, config)
    *loaders, keys = build_loaders(data, config.batch_size, config.seed, workers)
    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        model, optimizer, *loaders
    )
    steps_per_epoch = len(train_loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    task = build_task(model, run)

    plain = accelerator.unwrap_model(model)
    epochs_done, history = 0, []
    if directory.checkpoint.exists():  # `check` let it pass only with resume
        task_state, done = load_checkpoint(directory.checkpoint, plain, optimizer)
        task.load_task_state(task_state)
        epochs_done, history = done["epochs"], done["history"]
        run.console.print(f"resuming after epoch {epochs_done} of {config.epochs}")
    elif resume:
        run.console.print(f"nothing to resume in {directory.path}: starting with epoch 1")
    if accelerator.is_main_process:
        plan = plain.plan.to_json() if config.method == "netaug" else None
        directory.claim(identity, plan)
        directory.write_metrics(history)
    if scheduler is not None:
        scheduler.step_update(epochs_done * steps_per_epoch)

    for epoch in range(epochs_done, config.epochs):
        started = time.perf_counter()
        keys.epoch = epoch
        lr = optimizer.param_groups[0]["lr"]
        trained = train_epoch(run, task, train_loader, optimizer, scheduler, epoch)
        reached = evaluate(plain, validation_loader, accelerator)
        step = (epoch + 1) * steps_per_epoch
        if not math.isfinite(reached["loss"]):
            raise _loss_error("validation loss", reached["loss"], step, directory)
        line = {"epoch": epoch + 1, "step": step, "lr": lr}
        line |= {f"train_{name}": value for name, value in trained.items()}
        line |= {f"val_{name}": value for name, value in reached.items()}
        history = [*history, line | {"seconds": round(time.perf_counter() - started, 3)}]
        if accelerator.is_main_process:
            done = {"epochs": epoch + 1, "history": history}
            save_checkpoint(directory.checkpoint, plain, optimizer, task.get_task_state(), done)
            directory.write_metrics(history)
            run.console.print(readable(history[-1], config.epochs), highlight=False, soft_wrap=True)
    return finish(run, plain, validation_loader, history)


def fresh_model(config: TrainConfig, data: Data, pretrained: bool | None = None) -> nn.Module:
    """The untouched model of a run, with weights from torch's global random state."""
    return build_model(
        config.model,
        num_classes=data.num_classes,
        channels=data.channels,
        model_args=config.model_args,
        pretrained=config.pretrained if pretrained is None else pretrained,
    )


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimiser of that name, over the base's Parameters and, for NetAug, their blocks."""
    if config.opt not in list_optimizers():
        raise RunError(
            f"timm has no optimiser {config.opt!r}. {near(config.opt, list_optimizers())}"
        )
    return create_optimizer_v2(
        model,
        config.opt,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        filter_bias_and_bn=not config.decay_norms,
    )


def build_task(model: nn.Module, run: Run) -> TrainingTask:
    """The objective of a run: timm's classification, or NetAug."""
    config = run.config
    criterion = nn.CrossEntropyLoss(label_smoothing=config.smoothing)
    if config.method == "baseline":
        return ClassificationTask(model, criterion, device=run.accelerator.device, verbose=False)
    return NetAugTask(
        model,
        criterion,
        alpha=config.alpha,
        samples=config.samples,
        kinds=config.kinds,
        seed=config.seed,
    )


def train_epoch(
    run: Run,
    task: TrainingTask,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    epoch: int,
) -> dict[str, float]:
    """Take an optimiser step for each batch.

    Returns:
        Means over the epoch: "loss", for NetAug also "base_loss" and "augmented_loss", and "top1"
        of the base, in percent, on the augmented images as they came by.
    """
    task.train()
    step = epoch * len(loader)
    sums: dict[str, float] = {}
    count = 0
    console, title = run.console, f"epoch {epoch + 1}/{run.config.epochs}"
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=len(loader))
        for images, labels in batches(loader):
            optimizer.zero_grad()
            if isinstance(task, NetAugTask):
                result = task.backward(images, labels, run.accelerator.backward)
            else:
                result = task(images, labels)
                run.accelerator.backward(result["loss"])
            step += 1
            losses = {name: result[name].item() for name in result if name.endswith("loss")}
            if not math.isfinite(losses["loss"]):
                raise _loss_error("loss", losses["loss"], step, run.directory)
            optimizer.step()
            if scheduler is not None:
                scheduler.step_update(step)
            count += len(labels)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss * len(labels)
            hits = int((result["output"].argmax(1) == labels).sum())
            sums["top1"] = sums.get("top1", 0.0) + 100.0 * hits
            progress.advance(bar)
    return {name: value / count for name, value in sums.items()}


def finish(
    run: Run, model: nn.Module, loader: DataLoader, history: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write base.safetensors, load it into the untouched model, evaluate that, write result.json.

    Raises:
        RunError: on a CPU, the untouched model does not reach exactly what the last epoch did.
    """
    directory, accelerator = run.directory, run.accelerator
    base = netaugfx.extract_base(model) if run.config.method == "netaug" else model
    if accelerator.is_main_process:
        save_weights(directory.base, base)
    accelerator.wait_for_everyone()
    untouched = fresh_model(run.config, run.data, pretrained=False)
    untouched.load_state_dict(load_file(directory.base), strict=True)
    reached = evaluate(untouched.to(accelerator.device), loader, accelerator)
    last = history[-1]["val_top1"]
    if accelerator.device.type == "cpu" and reached["top1"] != last:
        raise RunError(
            f"{directory.base} reaches top-1 {reached['top1']} in the untouched model, "
            f"and the last epoch reached {last}."
        )
    result = {
        "top1": reached["top1"],
        "top5": reached["top5"],
        "epochs": len(history),
        "parameters": sum(parameter.numel() for parameter in untouched.parameters()),
        "seconds": round(sum(line["seconds"] for line in history), 3),
        "device": str(accelerator.device),
    }
    if accelerator.is_main_process:
        write_json(directory.result, result)
        run.console.print(
            f"{directory.base}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % "
            f"({result['parameters']:,} parameters, {result['seconds']:.0f} s)",
            highlight=False,
            soft_wrap=True,
        )
    return result


def _loss_error(which: str, value: float, step: int, directory: RunDirectory) -> LossError:
    kept = f" The last good checkpoint stays: {directory.checkpoint}."
    return LossError(
        f"The {which} is {value} at step {step}. Try a lower --lr."
        + (kept if directory.checkpoint.exists() else "")
    )
