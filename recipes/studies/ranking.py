"""`netaugfx rank-augmentations`: which augmentation suits a teacher, with no student trained.

Source: as recipes/schemes.py, section 3: the smaller a scheme's T. stddev, the better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from recipes.augment import ShuffledKeys, build_loaders, normalisation
from recipes.data import Data, load_data
from recipes.errors import DistillError
from recipes.evaluation import batches
from recipes.models import check_logits, parse_model_args
from recipes.schemes import SCHEMES, build_scheme, interval_of, stddev_of, teacher_means
from recipes.training.checkpoint import make_directory, write_json
from recipes.training.finished import base_of, data_of, open_run
from recipes.training.teaching import load_network


class Epochs:
    """A training loader that goes on to the next epoch each time it is started."""

    def __init__(self, loader: DataLoader, keys: ShuffledKeys):
        self.loader, self.keys, self.next = loader, keys, 0

    def __iter__(self) -> Iterator[Any]:
        self.keys.epoch, self.next = self.next, self.next + 1
        yield from batches(self.loader)


def rank(
    teacher: str,
    *,
    data: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    teacher_args: Sequence[str] = (),
    schemes: Sequence[str] | None = None,
    student: str | None = None,
    samples: int = 640,
    repeats: int = 100,
    batch_size: int = 64,
    seed: int = 0,
    out: Path = Path("runs/augmentations"),
    device: torch.device | None = None,
    workers: int = 0,
    download: bool = False,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measure T. stddev of each scheme; write OUT/augmentations.json and .png.

    Args:
        teacher: the directory of a finished run, or a model's name with `weights` or `pretrained`.
        data: a SPEC; the teacher run's own if None.
        schemes: names of recipes.schemes.SCHEMES; all that are possible if None.
        student: the directory of a run that judges for cutmixpick-student.
        samples: K, of x and x' together. repeats: means whose deviation is taken.

    Returns:
        Best first: "scheme", "stddev" (of a probability), "interval" (its 95% bounds).

    Raises:
        DistillError, ModelError, RunError, DataError: bad input; nothing has been written.
    """
    console, device = console or Console(), device or torch.device("cpu")
    images = _images(teacher, data, download)
    network, name = load_network(
        teacher,
        images,
        weights=weights,
        pretrained=pretrained,
        model_args=parse_model_args(teacher_args),
    )
    loader, _, keys = build_loaders(images, batch_size, seed, workers)
    example = next(iter(Epochs(loader, keys)))[0][:2]
    check_logits(network, f"The teacher {name}", example, images.num_classes)
    judge = base_of(open_run(Path(student))).to(device) if student else None
    if judge is not None:
        check_logits(judge, f"The student {student}", example.to(device), images.num_classes)
    asked = list(schemes or [each for each in SCHEMES if judge or each != "cutmixpick-student"])
    built = [build_scheme(each, *normalisation(images.channels)) for each in asked]
    if judge is None and any(each.judge == "student" for each in built):
        raise DistillError("cutmixpick-student picks by a student's entropy: give --student RUN.")
    network.to(device)
    rows = []
    for scheme in built:
        means = teacher_means(
            network,
            Epochs(loader, keys),
            scheme,
            samples,
            repeats,
            generator=torch.Generator().manual_seed(seed),
            student=judge,
        )
        low, high = interval_of(means)
        rows.append({"scheme": scheme.name, "stddev": stddev_of(means), "interval": [low, high]})
        console.print(f"{scheme.name}: {rows[-1]['stddev']:.3g}", highlight=False)
    rows.sort(key=lambda row: row["stddev"])
    make_directory(out)
    settings = {"teacher": name, "K": samples, "repeats": repeats, "seed": seed}
    write_json(out / "augmentations.json", settings | {"schemes": rows})
    draw(rows, out / "augmentations.png", f"{name}, K = {samples}, {repeats} repeats")
    table = Table(title="T. stddev, best first")
    for column in ("scheme", "T. stddev", "95% interval", ""):
        table.add_column(column, justify="left" if column in ("scheme", "") else "right")
    for row in rows:
        low, high = row["interval"]
        table.add_row(
            row["scheme"],
            f"{row['stddev']:.3g}",
            f"{low:.3g} to {high:.3g}",
            SCHEMES[row["scheme"]],
        )
    console.print(table)
    return rows


def _images(teacher: str, data: str | None, download: bool) -> Data:
    path = Path(teacher)
    if (path / "config.json").is_file():
        return data_of(open_run(path), data, download=download)
    if data is None:
        raise DistillError(f"Which images? {teacher} is no finished run: give --data SPEC.")
    return load_data(data, download=download)


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the schemes with their intervals, best at the top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.4 * len(rows) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(reversed(rows)):
        axes.plot(row["interval"], [place, place], color="tab:blue", alpha=0.5)
        axes.plot(row["stddev"], place, "o", color="tab:blue")
    axes.set_yticks(range(len(rows)), [row["scheme"] for row in reversed(rows)])
    axes.set(title=title, xlabel="T. stddev (of a probability; smaller is better)")
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)
