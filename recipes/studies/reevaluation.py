"""`netaugfx evaluate RUN`: how good a finished run's base, or one of its subnets, is by class."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import netaugfx
from recipes.augment import build_loaders
from recipes.errors import RunError
from recipes.evaluation import batches
from recipes.metrics import check_ks, draw_confusion, measure, readable
from recipes.spos.result import read_sizes
from recipes.training.checkpoint import make_directory, write_json
from recipes.training.finished import KeptRun, base_of, data_of, open_run, trained_kinds, wide_of

WHOSE = ("run", "which", "config", "recalibrated")  # of a report, what is no measure


def evaluate_run(
    path: Path,
    which: str = "base",
    *,
    data: str | None = None,
    ks: Sequence[int] | None = None,
    recalibrate: int = 32,
    batch_size: int = 256,
    out: Path | None = None,
    as_json: bool = False,
    device: torch.device | None = None,
    workers: int = 0,
    download: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate on validation images; write evaluation-WHICH.json and confusion-WHICH.png.

    Args:
        path: the directory of the run.
        which: "base"; "widest", every width that the run has grown at its largest; or a JSON file that maps width
            names to sizes.
        ks: how many of the most likely classes count; 1 and 5 if None, or 1 of fewer classes.
        recalibrate: training batches that a subnet's batch norms take statistics from; 0: the
            base's statistics on the base's channels, which says little.
        out: where to write; the run's own directory if None.

    Returns:
        What `recipes.metrics.measure` does, and "run", "config" (the sizes), "recalibrated".

    Raises:
        RunError: there is no such run, or it has no such subnet. ConfigError: an unknown width.
    """
    device = device or torch.device("cpu")
    run = open_run(path)
    sizes = read_config(which)
    network, predict, grown = _network(run, sizes, device)
    images = data_of(run, data, download=download)
    ks = ks or [k for k in (1, 5) if k <= images.num_classes]
    check_ks(ks, images.num_classes)
    out = make_directory(out or path)
    some, validation, _ = build_loaders(images, batch_size, run.config.seed, workers)
    calibrated = 0
    if grown is not None and recalibrate:
        seen = [x.to(device) for x, _ in islice(batches(some), recalibrate)]
        network.recalibrate(grown, seen)
        calibrated = len(seen)
    report, matrix = measure(predict, validation, images.num_classes, ks=ks, device=device)
    report = {
        "run": str(path),
        "which": which,
        "config": dict(grown) if grown is not None else None,
        "recalibrated": calibrated,
    } | report
    name = which if which in ("base", "widest") else Path(which).stem
    write_json(out / f"evaluation-{name}.json", report)
    classes = images.classes or ()
    draw_confusion(matrix, out / f"confusion-{name}.png", f"{path.name}, {name}", classes)
    _print(report, out, name, as_json, console or Console())
    return report


def read_config(which: str) -> dict[str, int] | str:
    """ "base", "widest", or the sizes in a JSON file.

    Raises:
        RunError: there is no such file. SearchError: it is no mapping to whole numbers.
    """
    if which in ("base", "widest"):
        return which
    if not Path(which).is_file():
        raise RunError(f"--config {which}: expected base, widest or a JSON file; there is no file.")
    return read_sizes(Path(which), "--config")


def _network(
    run: KeptRun, sizes: dict[str, int] | str, device: torch.device
) -> tuple[Any, Callable[[Tensor], Tensor], netaugfx.Config | None]:
    """The network, how to run it, and its config where that is not the base's."""
    if sizes == "base":
        base = base_of(run).to(device)
        return base, base, None
    wide = wide_of(run).to(device)
    if isinstance(sizes, str):
        kinds = trained_kinds(run, wide)
        sizes = {w.name: w.choices[-1] for w in wide.plan.widths if w.kind in kinds}
    config = wide.at(sizes).config
    if config == wide.base_config:
        return wide, wide, None
    return wide, wide.at(config), config


def _print(report: dict[str, Any], out: Path, name: str, as_json: bool, console: Console) -> None:
    if as_json:
        console.print_json(json.dumps(report))
        return
    table = Table(title=f"{report['run']}, {name}")
    table.add_column("on validation images")
    table.add_column("value", justify="right")
    shown = {key: value for key, value in report.items() if key not in WHOSE}
    for line in readable(shown):
        table.add_row(*line)
    console.print(table)
    console.print(f"{out / f'confusion-{name}.png'}", highlight=False, soft_wrap=True)
