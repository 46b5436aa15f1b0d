"""A run: what it looks at, how far it is, how it is set up, kept and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from timm.scheduler import create_scheduler_v2
from timm.task import TrainingTask
from torch import nn
from torch.utils.data import DataLoader

from recipes.augment import ShuffledKeys, build_loaders
from recipes.data import Data
from recipes.models import check_logits
from recipes.netaug import sample_uniformly
from recipes.training.checkpoint import load_checkpoint, save_checkpoint
from recipes.training.config import TrainConfig
from recipes.training.growth import kinds_of, widen
from recipes.training.ingredients import (
    BaseAverage,
    build_optimizer,
    build_task,
    example_images,
    fresh_model,
    laid_out,
    load_weights,
    with_what_learns,
    without_blocks,
)
from recipes.training.regularise import add_dropblock
from recipes.training.rundir import RunDirectory
from recipes.training.teaching import own_parameters, rewrapped, teach


@dataclass(frozen=True)
class Cadence:
    """When to write a checkpoint within an epoch, beside that at its end; in one process only."""

    steps: int | None = None  # optimiser steps
    minutes: float | None = 10.0


@dataclass(frozen=True)
class Run:
    """What every part of a run looks at."""

    config: TrainConfig
    data: Data
    directory: RunDirectory
    accelerator: Accelerator
    console: Console
    cadence: Cadence
    model: nn.Module  # as Accelerate wraps it
    plain: nn.Module  # without the wrapper: a WideModel for NetAug
    average: BaseAverage | None
    task: TrainingTask
    optimizer: Any
    scheduler: Any
    loaders: tuple[DataLoader, DataLoader]  # training and validation
    keys: ShuffledKeys
    some_batches: DataLoader  # training images, the same in every process
    batches_per_epoch: int

    @property
    def network(self) -> nn.Module:
        """The network that counts: the average of the base where there is one, else the base."""
        return self.plain if self.average is None else self.average.module

    def updates(self, epochs: int, in_epoch: int = 0) -> int:
        """The optimiser steps of whole epochs and of a number of batches of the next one."""
        n = self.config.accumulate
        return epochs * -(-self.batches_per_epoch // n) + -(-in_epoch // n)


@dataclass
class Done:
    """How far a run is: JSON, and part of every checkpoint."""

    epochs: int = 0  # whole ones
    batches: int = 0  # of the epoch under way, in this process
    count: int = 0  # images of it
    sums: dict[str, float] = field(default_factory=dict)  # of its losses and hits
    seconds: float = 0.0  # spent on it
    lr: float = 0.0  # at its start
    history: list[dict[str, Any]] = field(default_factory=list)  # a line for each whole epoch


def set_up(
    config: TrainConfig,
    data: Data,
    directory: RunDirectory,
    accelerator: Accelerator,
    console: Console,
    cadence: Cadence,
    workers: int,
) -> Run:
    """All parts of a run as they are before its first step; nothing is written."""
    set_seed(config.seed)
    model, example = fresh_model(config, data), example_images(data)
    check_logits(model, config.model, example, data.num_classes)
    if config.init is not None:
        fresh = load_weights(model, Path(config.init))
        said = f"; fresh: {', '.join(fresh)}" if fresh else ""
        console.print(f"starting from {config.init}{said}", highlight=False, soft_wrap=True)
    model = with_what_learns(model, config, example)
    if config.dropblock:
        add_dropblock(model, config.dropblock)
    sampler = sample_uniformly
    if config.grows:
        model, sampler = widen(model, config, example)
        kinds = kinds_of(config, model)
        grows = sum(width.kind in kinds for width in model.widths.values())
        console.print(
            f"{grows} of {len(model.widths)} widths grow ({' and '.join(kinds)}), "
            f"elastic share {model.elastic_share:.3f}, "
            f"{len(model.pinned)} pinned (netaugfx inspect says why)",
            highlight=False,
            soft_wrap=True,
        )
        if config.sort and (config.pretrained or config.init is not None):
            console.print("trained weights: channels are not sorted")
    model = laid_out(model, config)
    average = BaseAverage(without_blocks(model), config.ema) if config.ema is not None else None
    task = build_task(model, config, sampler, next(model.parameters()).device)
    task = teach(task, config, data, example)
    optimizer = build_optimizer(model, config)
    if own_parameters(task):
        optimizer.add_param_group({"params": own_parameters(task)})
    some_batches, validation, keys = build_loaders(
        data, config.batch_size, config.seed, workers, config.augment
    )
    model, optimizer, *loaders = accelerator.prepare(model, optimizer, some_batches, validation)
    if average is not None:
        average.to(accelerator.device)
    batches_per_epoch = len(loaders[0])
    scheduler, _ = create_scheduler_v2(
        optimizer,
        config.sched,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=-(-batches_per_epoch // config.accumulate),
    )
    return Run(
        *(config, data, directory, accelerator, console, cadence),
        model=model,
        plain=accelerator.unwrap_model(model),
        average=average,
        task=rewrapped(task, model, accelerator),
        optimizer=optimizer,
        scheduler=scheduler,
        loaders=tuple(loaders),
        keys=keys,
        some_batches=some_batches,
        batches_per_epoch=batches_per_epoch,
    )


def restore(run: Run, resume: bool) -> Done:
    """Where the run stands: at its last checkpoint, or at its beginning."""
    done = Done()
    path = run.directory.checkpoint
    if path.exists():  # `check` let it pass only with resume
        task_state, held = load_checkpoint(path, run.plain, run.optimizer, run.average)
        run.task.load_task_state(task_state)
        if run.accelerator.scaler is not None and held["scaler"]:
            run.accelerator.scaler.load_state_dict(held["scaler"])
        done = Done(**held["done"])
        within = f", {done.batches} batches" if done.batches else ""
        run.console.print(f"resuming after epoch {done.epochs} of {run.config.epochs}{within}")
    elif resume:
        run.console.print(f"nothing to resume in {run.directory.path}: starting with epoch 1")
    if run.scheduler is not None:
        run.scheduler.step_update(run.updates(done.epochs, done.batches))
    return done


def keep(run: Run, done: Done) -> None:
    """Write a checkpoint."""
    scaler = run.accelerator.scaler
    held = {"done": vars(done), "scaler": scaler.state_dict() if scaler is not None else {}}
    path, task_state = run.directory.checkpoint, run.task.get_task_state()
    save_checkpoint(path, run.plain, run.optimizer, task_state, held, run.average)


def due(run: Run, done: Done, step: int, seconds: float) -> bool:
    """Whether to write a checkpoint within the epoch; several processes do so at its end alone."""
    if done.batches == run.batches_per_epoch or run.accelerator.num_processes > 1:
        return False
    steps, minutes = run.cadence.steps, run.cadence.minutes
    return bool(steps and step % steps == 0) or (minutes is not None and seconds >= 60 * minutes)
