"""Train a network on images, plainly or with NetAug; stopped at any moment, it resumes exactly.

Reads top to bottom: the whole run (`train`), an epoch of it, its end. Its parts: recipes/training/run.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from torch import nn

import netaugfx
from recipes.augment import key, plain_loader
from recipes.data import Data, load_data, split
from recipes.errors import LossError, RunError
from recipes.evaluation import batches, evaluate
from recipes.netaug import NetAugTask
from recipes.objectives import KINDS
from recipes.training.checkpoint import save_weights, write_json
from recipes.training.config import TrainConfig
from recipes.training.growth import (
    alpha_at,
    kinds_at,
    kinds_of,
    refresh_norms,
    sort_channels,
    sorts_at,
)
from recipes.training.ingredients import (
    digest,
    example_images,
    fresh_model,
    laid_out,
    learning_rate,
    with_what_learns,
    without_blocks,
)
from recipes.training.regularise import mix
from recipes.training.run import Cadence, Done, Run, due, keep, restore, set_up
from recipes.training.rundir import RunDirectory, readable
from recipes.training.teaching import netaug_in, own_parameters, teacher_digest

__all__ = ["Cadence", "TrainConfig", "train"]


def train(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    download: bool = False,
    cadence: Cadence | None = None,
    tracker: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run `config` in the directory `out`, or go on with it where its last checkpoint stands.

    Args:
        out: see recipes/training/rundir.py for what it will hold.
        resume: go on with the run that `out` holds; where it holds none, start it.
        device: "auto" or "cpu".
        workers: processes that load images; 0 loads them in this one. The result is the same.
        cadence: when to write checkpoints; the result is the same.
        tracker: Accelerate's name of one, e.g. "tensorboard", which writes to `out`/tensorboard.

    Returns:
        The content of `out`/result.json: among others "top1" and "top5", in percent, that
        `out`/base.safetensors reaches in the untouched model.

    Raises:
        DataError, ModelError: the data or the model cannot be had; nothing has been written.
        RunError: `out` holds something else, a checkpoint that does not fit, or another process at
            work; it is left as it is. Or it cannot be written to; the last checkpoint stays.
        LossError: the loss is not finite; the last good checkpoint stays.
    """
    console = console or Console()
    # A step of NetAug leaves the blocks that it did not sample unused; buffers broadcast between
    # its two passes would overwrite what the backward pass still needs.
    ranks = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    trackers = sorted(str(each.value) for each in get_available_trackers())
    if tracker is not None and tracker not in trackers:
        raise RunError(
            f"There is no tracker {tracker!r} here: installed are {', '.join(trackers) or 'none'}."
        )
    accelerator = Accelerator(
        cpu=device == "cpu" or (device == "auto" and not torch.accelerator.is_available()),
        kwargs_handlers=[ranks],
        gradient_accumulation_steps=config.accumulate,
        mixed_precision=config.precision,
        log_with=tracker,
        project_dir=str(out),
    )
    data = open_data(config, download)
    identity = identity_of(config, data.described())
    directory = RunDirectory(out)
    main = accelerator.is_main_process
    if main:
        directory.check(identity, resume)
    else:
        console = Console(quiet=True)
    run = set_up(config, data, directory, accelerator, console, cadence or Cadence(), workers)
    with directory.locked() if main else nullcontext():
        if main:
            directory.check(identity, resume)  # as another process may have come first
        accelerator.wait_for_everyone()
        done = restore(run, resume)
        if main:
            wide = isinstance(run.plain, netaugfx.WideModel)
            directory.claim(identity, run.plain.plan.to_json() if wide else None)
            directory.write_metrics(done.history)
        if tracker is not None:
            name = "tensorboard" if tracker == "tensorboard" else "netaugfx"
            accelerator.init_trackers(name, config=None)
        while done.epochs < config.epochs:
            train_epoch(run, done)
            finish_epoch(run, done)
            accelerator.log(done.history[-1], step=done.epochs)
        for each in accelerator.trackers:
            each.finish()
        return finish(run, done.history)


def open_data(config: TrainConfig, download: bool = False) -> Data:
    """The images that a run trains on and is validated with.

    Raises:
        DataError: they cannot be had.
    """
    given = {name: getattr(config, name) for name in ("num_classes", "channels", "image_size")}
    return split(load_data(config.data, **given, download=download), config.hold_out)[0]


def identity_of(config: TrainConfig, described: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, as JSON: its config, what its data are, the files of weights that it starts from.

    Args:
        described: what `Data.described` says.

    Raises:
        RunError: there is no file `config.init`.
    """
    identity = {"config": config.identity(), "data": dict(described)}
    if config.init is not None:
        if not Path(config.init).is_file():
            raise RunError(f"--init {config.init}: there is no such file.")
        identity["init_sha256"] = digest(Path(config.init))
    taught = teacher_digest(config.distill)
    return identity if taught is None else identity | {"teacher_sha256": taught}


def train_epoch(run: Run, done: Done) -> None:
    """Train on what is left of an epoch, counting in `done` and writing checkpoints."""
    config, accelerator, task = run.config, run.accelerator, run.task
    epoch, started = done.epochs, time.perf_counter()
    spent, saved = done.seconds, started
    run.keys.epoch, run.keys.skip = epoch, 0
    if done.batches == 0:
        done.lr = learning_rate(run.optimizer)
    netaug = netaug_in(task)
    if netaug is not None:
        kinds = kinds_of(config, netaug.wide)
        netaug.kinds, netaug.alpha = kinds_at(config, epoch, kinds), alpha_at(config, epoch)
        if done.batches == 0 and sorts_at(config, epoch, kinds):
            seen = ((images.to(accelerator.device), y) for images, y in batches(run.some_batches))
            sort_channels(run.plain, run.optimizer, run.average, seen)
    run.keys.skip = done.batches * config.batch_size * accelerator.num_processes
    task.train()
    console, title = run.console, f"epoch {epoch + 1}/{config.epochs}"
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=run.batches_per_epoch, completed=done.batches)
        for images, labels in batches(run.loaders[0]):
            drawn = key(config.seed, epoch, done.batches, accelerator.process_index)
            with accelerator.accumulate(run.model):
                result = backward(run, *mix(images, labels, config, run.data.num_classes, drawn))
                done.batches += 1
                step = run.updates(epoch, done.batches)
                losses = {name: result[name].item() for name in result if name.endswith("loss")}
                if not math.isfinite(losses["loss"]):
                    raise _loss_error("loss", losses, step, run.directory)
                if accelerator.sync_gradients and config.clip_grad is not None:
                    learnt = [*run.model.parameters(), *own_parameters(task)]
                    accelerator.clip_grad_norm_(learnt, config.clip_grad)
                run.optimizer.step()
                run.optimizer.zero_grad()
            done.count += len(labels)
            for name, loss in losses.items():
                done.sums[name] = done.sums.get(name, 0.0) + loss * len(labels)
            hits = int((result["output"].argmax(1) == labels).sum())
            done.sums["top1"] = done.sums.get("top1", 0.0) + 100.0 * hits
            progress.advance(bar)
            if not accelerator.sync_gradients:
                continue
            if run.average is not None:
                run.average.update_parameters(without_blocks(run.plain))
            if run.scheduler is not None:
                run.scheduler.step_update(step)
            now = time.perf_counter()
            done.seconds = spent + now - started
            if due(run, done, step, now - saved):
                keep(run, done)
                saved = now
    done.seconds = spent + time.perf_counter() - started


def backward(run: Run, images: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    """Add the gradients of one batch."""
    if isinstance(run.task, NetAugTask):
        return run.task.backward(images, target, run.accelerator.backward)
    result = run.task(images, target)
    run.accelerator.backward(result["loss"])
    return result


def finish_epoch(run: Run, done: Done) -> None:
    """Evaluate the network, write the line of the epoch, the best weights and a checkpoint."""
    started, accelerator = time.perf_counter(), run.accelerator
    names = list(done.sums)
    totals = [done.sums[name] for name in names] + [float(done.count)]
    if accelerator.num_processes > 1:
        totals = accelerator.reduce(torch.tensor(totals, device=accelerator.device)).tolist()
        for buffer in [*run.plain.buffers(), *(run.average.buffers() if run.average else ())]:
            if buffer.is_floating_point():  # each process has statistics of its own images
                buffer.copy_(accelerator.reduce(buffer, "mean"))
    if run.config.method == "spos":  # whose steps hardly ever pass through the base itself
        run.keys.skip = 0
        seen = ((images.to(accelerator.device), y) for images, y in batches(run.some_batches))
        refresh_norms(without_blocks(run.network), seen)
    reached = evaluate(run.network, run.loaders[1], accelerator)
    step = run.updates(done.epochs + 1)
    if not math.isfinite(reached["loss"]):
        raise _loss_error("validation loss", reached, step, run.directory)
    line = {"epoch": done.epochs + 1, "step": step, "lr": done.lr}
    line |= {f"train_{name}": totals[i] / totals[-1] for i, name in enumerate(names)}
    line |= {f"val_{name}": value for name, value in reached.items()}
    line |= {"seconds": round(done.seconds + time.perf_counter() - started, 3)}
    before = max((each["val_top1"] for each in done.history), default=-1.0)
    done.history = [*done.history, line]
    done.epochs, done.batches, done.count, done.sums, done.seconds = done.epochs + 1, 0, 0, {}, 0.0
    if not accelerator.is_main_process:
        return
    if line["val_top1"] > before:
        save_weights(run.directory.best, extracted(run.network))
    keep(run, done)
    run.directory.write_metrics(done.history)
    run.console.print(readable(line, run.config.epochs), highlight=False, soft_wrap=True)


def extracted(network: nn.Module) -> nn.Module:
    """The untouched model's own network."""
    wide = any(isinstance(module, netaugfx.WideModel) for module in network.modules())
    return netaugfx.extract_base(network) if wide else network


def finish(run: Run, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Write base.safetensors, load it into the untouched model, evaluate that, write result.json.

    Raises:
        RunError: on a CPU, the untouched model does not reach exactly what the last epoch did.
    """
    directory, accelerator = run.directory, run.accelerator
    if accelerator.is_main_process:
        save_weights(directory.base, extracted(run.network))
    accelerator.wait_for_everyone()
    untouched = fresh_model(run.config, run.data, pretrained=False)
    untouched = with_what_learns(untouched, run.config, example_images(run.data))
    untouched.load_state_dict(load_file(directory.base), strict=True)
    untouched = laid_out(untouched, run.config).to(accelerator.device)
    reached = evaluate(untouched, run.loaders[1], accelerator)
    last = history[-1]["val_top1"]
    if accelerator.device.type == "cpu" and reached["top1"] != last:
        raise RunError(
            f"{directory.base} reaches top-1 {reached['top1']} in the untouched model, "
            f"and the last epoch reached {last}."
        )
    plain = accelerator.prepare_data_loader(plain_loader(run.data, run.config.batch_size))
    best = max(history, key=lambda line: line["val_top1"])
    result = {
        "top1": reached["top1"],
        "top5": reached["top5"],
        "best_top1": best["val_top1"],
        "best_epoch": best["epoch"],
        "train_top1": evaluate(untouched, plain, accelerator)["top1"],  # on images as they are
        "epochs": len(history),
        "parameters": sum(parameter.numel() for parameter in untouched.parameters()),
        "seconds": round(sum(line["seconds"] for line in history), 3),
        "device": accelerator.device.type,
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


def _loss_error(
    which: str, losses: Mapping[str, float], step: int, directory: RunDirectory
) -> LossError:
    terms = [name.removesuffix("_loss") for name in losses if name.removesuffix("_loss") in KINDS]
    broken = [name for name in terms if not math.isfinite(losses[f"{name}_loss"])]
    lighter = f", or a lower --objective-weight of {', '.join(broken or terms)}" if terms else ""
    kept = f" The last good checkpoint stays: {directory.checkpoint}."
    return LossError(
        f"The {which} is {losses['loss']} at step {step}. Try a lower --lr{lighter}."
        + (kept if directory.checkpoint.exists() else "")
    )
