"""`netaugfx train --compare ARMS --seeds LIST`: several ways to train, side by side.

An arm is a name in `ARMS`, or several joined by +, as netaug+mixup; behind a colon, it sets a field
of TrainConfig, as netaug:alpha=0.5:kinds=stream+inner. Each arm and seed is a run in OUT/ARM-SEED; a
comparison that was stopped goes on where it was. OUT/comparison.json and .png hold the outcome.

Source: H. Cai, C. Gan, J. Lin, S. Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022,
tables 3 and 6: NetAug against regularisers.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recipes.errors import RunError, near
from recipes.studies.curves import draw_curves, interval, shown
from recipes.training.checkpoint import read_json, write_json
from recipes.training.config import TrainConfig
from recipes.training.loop import identity_of, open_data, train
from recipes.training.rundir import RunDirectory

# What an arm changes in the run that the other options describe.
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "netaug": {"method": "netaug"},
    "dropout": {"dropout": 0.2},
    "dropblock": {"dropblock": 0.1},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "autoaugment": {"augment": "autoaugment"},
    "randaugment": {"augment": "randaugment"},
    "small-decay": {"weight_decay": 1e-5},
    "no-augmentation": {"augment": "none"},
}


def parse_arms(text: str) -> dict[str, dict[str, Any]]:
    """Arm -> what it changes, of a comma-separated list.

    >>> parse_arms("baseline,netaug+mixup:epochs=40")
    {'baseline': {}, 'netaug+mixup:epochs=40': {'method': 'netaug', 'mixup': 0.2, 'epochs': 40}}
    """
    found = {}
    for arm in filter(None, (each.strip() for each in text.split(","))):
        names, *settings = arm.split(":")
        changes: dict[str, Any] = {}
        for name in names.split("+"):
            if name not in ARMS:
                raise RunError(f"--compare: there is no arm {name!r}. {near(name, list(ARMS))}")
            changes |= ARMS[name]
        for setting in settings:
            name, equals, value = setting.partition("=")
            fields = [each.name for each in dataclasses.fields(TrainConfig) if each.name != "seed"]
            if not equals or name not in fields:
                raise RunError(f"--compare: {arm!r} sets no field {name!r}. {near(name, fields)}")
            changes[name] = _value(name, value)
        found[arm] = changes
    if not found:
        raise RunError(f"--compare: no arm was given. Known are {', '.join(ARMS)}.")
    return found


def _value(name: str, text: str) -> Any:
    """The value of a field: a Python literal, or else a string."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = tuple(text.split("+")) if name in ("kinds", "keep") else text
    default = TrainConfig.__dataclass_fields__[name].default
    if isinstance(default, int | float) and not isinstance(value, int | float):
        raise RunError(f"--compare: {name} is a number, as {default}; got {text!r}.")
    return value


def directory_of(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm and a seed lies."""
    return out / f"{re.sub(r'[^A-Za-z0-9_.+=-]+', '-', arm)}-{seed}"


def parse_seeds(text: str) -> tuple[int, ...]:
    """Whole numbers of a comma-separated list, each once."""
    try:
        return tuple(dict.fromkeys(int(each) for each in text.split(",")))
    except ValueError as error:
        raise RunError(f"--seeds expects whole numbers, as 0,1,2; got {text!r}.") from error


def compare(
    config: TrainConfig,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    out: Path,
    *,
    console: Console,
    **options: Any,
) -> dict[str, Any]:
    """Train every arm with every seed, seed by seed, and compare what their base networks reach.

    Args:
        config: what all runs have in common.
        arms: name -> fields of the config that it changes.
        options: for `train`.

    Returns:
        The content of OUT/comparison.json: for each arm "top1" and "train_top1" of each seed, in
        percent, and "gain", the difference to the first arm with the same seed.

    Raises:
        RunError: OUT is itself a run, or holds runs of another comparison: of other settings, data or weights to start
            from.
    """
    if (out / "config.json").exists():
        raise RunError(f"{out} holds a single run. Choose another --out.")
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    described = _describer(options.get("download", False))
    runs = [  # all of them at once: a value that no run can have stops them before the first
        (arm, replace(config, **changes, seed=seed))
        for seed in seeds
        for arm, changes in arms.items()
    ]
    for arm, run in runs:
        directory = directory_of(out, arm, run.seed)
        console.print(f"{arm}, seed {run.seed}", style="bold", highlight=False)
        begun = (directory / "config.json").exists()
        results[arm][run.seed] = finished(directory, run, described) or train(
            run, directory, resume=begun, console=console, **options
        )
        outcome = summarise(results)
        write_json(out / "comparison.json", outcome)
    curves = {
        arm: [RunDirectory(directory_of(out, arm, seed)).read_metrics() for seed in seeds]
        for arm in arms
    }
    draw_curves(out / "comparison.png", curves)
    print_comparison(outcome, console)
    return outcome


Describe = Callable[[TrainConfig], Mapping[str, Any]]  # what the data of a config are


def describe_data(config: TrainConfig) -> Mapping[str, Any]:
    """What the data of a config are, as JSON; they are not fetched."""
    return open_data(config).described()


def finished(
    directory: Path, config: TrainConfig, described: Describe = describe_data
) -> dict[str, Any] | None:
    """The result of a run that has ended, None if there is none of this config, data and weights.

    Raises:
        DataError, RunError: the data, or the weights that the run starts from, cannot be had.
    """
    run = RunDirectory(directory)
    if not run.result.exists():
        return None
    if not run.holds(identity_of(config, described(config))):
        return None  # `train` says what differs
    return read_json(run.result)


def _describer(download: bool) -> Describe:
    """Tell what the data of a config are, opening the same ones once."""
    known: dict[tuple[Any, ...], Mapping[str, Any]] = {}

    def described(config: TrainConfig) -> Mapping[str, Any]:
        names = ("data", "num_classes", "channels", "image_size", "hold_out")
        key = tuple(getattr(config, name) for name in names)
        if key not in known:
            known[key] = open_data(config, download).described()
        return known[key]

    return described


def summarise(results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Arm -> its results by seed, as JSON."""
    first = next(iter(results.values()))
    found: dict[str, Any] = {}
    for arm, of in results.items():
        gains = [of[seed]["top1"] - first[seed]["top1"] for seed in of if seed in first]
        found[arm] = {"seeds": list(of)}
        found[arm] |= {
            name: [each[name] for each in of.values()]
            for name in ("top1", "train_top1", "seconds", "parameters")
        }
        if gains:
            mean, half = interval(gains)
            found[arm]["gain"] = {"each": gains, "mean": mean, "half_interval_95": half}
    return found


def print_comparison(outcome: Mapping[str, Any], console: Console) -> None:
    """Print a row for each arm: mean and 95% interval over the seeds, the value alone for one seed."""
    first = next(iter(outcome))
    seeds = len(outcome[first]["seeds"])
    table = Table(title=f"{seeds} seeds, mean and 95% interval" if seeds > 1 else "1 seed")
    table.add_column("arm", overflow="fold", min_width=20)
    for column in ("top-1 (%)", "gain", "in training (%)", "seconds"):
        table.add_column(column, justify="right")
    for arm, of in outcome.items():
        table.add_row(
            arm,
            shown(of["top1"]),
            "" if arm == first else shown(of["gain"]["each"], "+"),
            shown(of["train_top1"]),
            f"{sum(of['seconds']) / len(of['seconds']):.0f}",
        )
    console.print(table)
    console.print(
        f"gain: top-1 less that of {first}, seed by seed; in training: top-1 on plain training images",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
