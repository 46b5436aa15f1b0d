"""`netaugfx search`: search the widths of a run's network, and keep what was found.

In RUN/search, for each score and method:

    studies.db              Optuna's studies; `optuna-dashboard sqlite:///RUN/search/studies.db`
    SCORE-METHOD.json       the config that was found, for `netaugfx train --max-config`
    SCORE-METHOD.result.json    its score and cost, the Pareto front, the importance of each width
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from recipes.augment import PlainImages, build_loaders, build_transforms
from recipes.spos import Candidate, Images, Result, search
from recipes.training.checkpoint import make_directory, write_json
from recipes.training.finished import KeptRun, held_out_of, open_run, trained_kinds, wide_of

STUDIES = "studies.db"


def search_run(
    path: Path,
    score: str = "base",
    *,
    budget: str | None = None,
    measure: str = "macs",
    method: str = "evolution",
    trials: int = 1000,
    population: int = 50,
    top: int = 10,
    mutation: float = 0.1,
    kinds: tuple[str, ...] | None = None,
    batches: int = 32,
    batch_size: int = 128,
    hold_out: float | None = None,
    epochs: int = 1,
    lr: float = 0.01,
    seed: int = 0,
    storage: str | None = None,
    out: Path | None = None,
    device: torch.device | None = None,
    workers: int = 0,
    download: bool = False,
    console: Console | None = None,
) -> Result:
    """Search the config of largest score among the subnets of a run's network.

    Args:
        path: the directory of the run, by `--method spos` or `netaug`.
        score: "subnet", "base" or "alignment".
        kinds: which kinds of widths are searched; None: those that the run has trained.
        batches: training batches that are kept, for batch norms, short training and gradients.
        hold_out: share of the training images to judge by; None: what the run held out.
        epochs, lr: of the short training of the score "base".
        others: as in `recipes.spos.search`.

    Raises:
        RunError: there is no such run, it grew no widths, or it held no images out.
        SearchError: as `recipes.spos.search`.
    """
    console, device = console or Console(), device or torch.device("cpu")
    run = open_run(path)
    wide = wide_of(run).to(device)
    images = kept_images(
        run, device, hold_out, batches, batch_size, workers=workers, download=download
    )
    out = make_directory(out or path / "search")
    smoothing = run.config.smoothing
    settings = {
        "subnet": {"recalibrate": batches},
        "base": {"epochs": epochs, "lr": lr, "smoothing": smoothing},
        "alignment": {"smoothing": smoothing},
    }[score]
    name, started, counted = f"{score}-{method}", time.perf_counter(), []

    def told(number: int, candidate: Candidate | str, best: float | None) -> None:
        if isinstance(candidate, str):
            console.print(f"candidate {candidate} (failed)", highlight=False)
            return
        counted.append(candidate.value)
        if best is None or candidate.value > best:
            console.print(
                f"candidate {number:>4} of {trials}  score {candidate.value:.4g}  "
                f"{candidate.cost:,.0f} {measure}",
                highlight=False,
            )

    found = search(
        wide,
        score,
        images=images,
        constraint=budget,
        measure=measure,
        trials=trials,
        method=method,
        population=population,
        top=top,
        mutation=mutation,
        kinds=trained_kinds(run, wide) if kinds is None else kinds,
        storage=storage or out / STUDIES,
        name=name,
        seed=seed,
        told=told,
        **settings,
    )
    file = out / f"{name}.json"
    write_json(file, dict(found.best_config))
    write_json(out / f"{name}.result.json", found.described())
    _print(found, name, console)
    minutes = (time.perf_counter() - started) / 60
    if counted:
        console.print(f"{len(counted) / minutes:,.0f} candidates per minute", highlight=False)
    console.print(
        f"{file}: netaugfx train --method netaug --max-config {file} ...",
        highlight=False,
        soft_wrap=True,
    )
    return found


def kept_images(
    run: KeptRun,
    device: torch.device,
    hold_out: float | None = None,
    batches: int = 32,
    batch_size: int = 128,
    *,
    workers: int = 0,
    download: bool = False,
) -> Images:
    """Training batches as the run augments them, and its held-out images as they are: decoded once."""
    data, held_out = held_out_of(run, hold_out, download=download)
    train, _, _ = build_loaders(data, batch_size, run.config.seed, workers, run.config.augment)
    judged = DataLoader(
        PlainImages(held_out, build_transforms(data)[1]),
        batch_size=max(batch_size, 256),
        generator=torch.Generator(),
        num_workers=workers,
    )
    return Images.of(train, judged, device, batches=batches)


def _print(found: Result, name: str, console: Console) -> None:
    table = Table(title=f"{name}: {len(found.candidates)} candidates, {len(found.failed)} failed")
    for column in ("width", "base", "found", "importance"):
        table.add_column(column, justify="left" if column == "width" else "right", overflow="fold")
    importance, sizes = found.importance(), found.best_config
    for width, choices in found.identity["widths"].items():
        share = f"{importance[width]:.2f}" if width in importance else ""
        table.add_row(width, str(choices[0]), str(sizes[width]), share)
    console.print(table)
    if not importance:
        console.print("importance needs 20 candidates of different scores", highlight=False)
    cost, identity = found.best.cost, found.identity
    console.print(
        f"score {found.best.value:.4g}, {cost:,.0f} {identity['measure']}, "
        f"{cost / identity['base_cost']:.2f} times the base",
        highlight=False,
    )
