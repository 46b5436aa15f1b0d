"""Finished runs, opened again: their configuration, their base, their subnets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import netaugfx
from netaugfx.plan import KINDS
from recipes.data import Data, check_classes, load_data, split
from recipes.errors import RunError
from recipes.training.checkpoint import check_weights
from recipes.training.config import TrainConfig
from recipes.training.distillation import Distillation
from recipes.training.growth import kinds_of
from recipes.training.ingredients import example_images, fresh_model, with_what_learns


@dataclass(frozen=True)
class KeptRun:
    """A run's directory, read. `described` is what config.json says about its data."""

    path: Path
    config: TrainConfig
    described: dict[str, Any]


def open_run(path: Path) -> KeptRun:
    """Read the run that `path` holds.

    Raises:
        RunError: it holds none, or one of another version.
    """
    file = path / "config.json"
    if not file.is_file():
        raise RunError(f"{path} holds no run: there is no {file}.")
    try:
        held = json.loads(file.read_text())
        given = dict(held["config"])
        if given.get("distill"):
            given["distill"] = Distillation.from_json(given["distill"])
        known = {each.name for each in fields(TrainConfig)}
        strange = sorted(given.keys() - known)
        if strange:
            raise RunError(f"{file} is of another version: it has {', '.join(strange)}.")
        for name in ("kinds", "keep"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        return KeptRun(path, TrainConfig(**given), held["data"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{file} does not read as a run's configuration ({error}).") from error


def data_of(run: KeptRun, spec: str | None = None, *, download: bool = False) -> Data:
    """The run's data, without what it held out, or those of `spec` read for its model."""
    shape = {name: run.described[name] for name in ("num_classes", "channels", "image_size")}
    data = load_data(spec or run.config.data, **shape, download=download)
    check_classes(
        run.described.get("classes"), data.classes, str(run.path), spec or run.config.data
    )
    return data if spec else split(data, run.config.hold_out)[0]


def held_out_of(
    run: KeptRun, share: float | None = None, *, download: bool = False
) -> tuple[Data, Sequence]:
    """The run's data with the images that its training left, and those that it held out.

    Args:
        share: hold out this share of the training images, whether the run has seen them or not.

    Raises:
        RunError: the run held nothing out, and no share is given; or another share than it held out.
    """
    if share is not None and not 0 < share < 1:
        raise RunError(f"The share to hold out lies between 0 and 1, e.g. 0.1; {share!r} came.")
    kept = run.config.hold_out
    if share is not None and 0 < kept != share:
        raise RunError(
            f"{run.path} held out {kept:g} of its images, and trained on the others: a split of {share:g} "
            "would judge by some of these. Leave --hold-out away."
        )
    share = kept if share is None else share
    if not share:
        raise RunError(
            f"{run.path} trained on all of its images, so the held-out split has size zero. Train with --hold-out 0.1, "
            "or give --hold-out 0.1 here: then scores are taken on images that the run has trained on."
        )
    shape = {name: run.described[name] for name in ("num_classes", "channels", "image_size")}
    return split(load_data(run.config.data, **shape, download=download), share)


def untrained(run: KeptRun) -> nn.Module:
    """The run's model with fresh weights."""
    shape = {name: run.described[name] for name in ("num_classes", "channels", "image_size")}
    data = Data((), (), **shape)
    model = fresh_model(run.config, data, pretrained=False)
    return with_what_learns(model, run.config, example_images(data))


def base_of(run: KeptRun) -> nn.Module:
    """The network that the run trained, in eval mode.

    Raises:
        RunError: the run is not finished, or its weights are of another model.
    """
    path = run.path / "base.safetensors"
    if not path.is_file():
        raise RunError(f"{run.path} is not finished: there is no {path.name}. Add --resume to it.")
    return with_weights(untrained(run), path)


def with_weights(model: nn.Module, path: Path) -> nn.Module:
    """Load a safetensors file into `model`, which is put in eval mode and returned.

    Raises:
        RunError: there is no such file, or it is one of another model.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is no safetensors file ({error}).") from error
    check_weights(path, weights, model)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def trained_kinds(run: KeptRun, wide: netaugfx.WideModel) -> tuple[str, ...]:
    """The kinds of widths that the run has grown; blocks of others are as they were drawn."""
    distill = run.config.distill
    return KINDS if distill and distill.teacher == "widest" else kinds_of(run.config, wide)


def wide_of(run: KeptRun) -> netaugfx.WideModel:
    """The wide model of a run, as its last checkpoint holds it, in eval mode.

    Raises:
        RunError: the run grew no widths, or has no checkpoint.
    """
    plan, checkpoint = run.path / "plan.json", run.path / "checkpoint.safetensors"
    if not plan.is_file():
        if run.config.grows:
            raise RunError(f"{plan} is missing: the widths that {run.path} grew are not known.")
        raise RunError(f"{run.path} grew no widths: only --config base is possible.")
    if not checkpoint.is_file():
        raise RunError(f"{run.path} has no checkpoint yet.")
    channels, size = run.described["channels"], run.described["image_size"]
    wide = netaugfx.widen(
        untrained(run),
        plan=netaugfx.Plan.from_json(plan.read_text()),
        example_inputs=(torch.zeros(2, channels, size, size),),
        verify=False,
    )
    prefix = "weights/"
    try:
        with safe_open(checkpoint, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights: dict[str, Tensor] = {
                name.removeprefix(prefix): file.get_tensor(name) for name in names
            }
    except (SafetensorError, OSError) as error:
        raise RunError(f"{checkpoint} is truncated or no checkpoint ({error}).") from error
    check_weights(checkpoint, weights, wide)
    wide.load_state_dict(weights, strict=True)
    return wide.eval()
