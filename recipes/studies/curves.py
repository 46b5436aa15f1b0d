"""Metrics of runs over their epochs: read, summed up and drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

Metrics = Sequence[Mapping[str, Any]]  # of one run, a line for each epoch


def draw_curves(to: Path | IO[str], runs: Mapping[str, Sequence[Metrics]]) -> None:
    """Draw training and validation accuracy of each arm: its seeds thin, their mean thick.

    Args:
        to: the picture to write, its suffix says as what; or an open file, which gets SVG.
        runs: arm -> metrics of each of its seeds; empty ones are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
    others = [arm for arm in runs if arm != "baseline"]
    colour = {arm: colours[i % len(colours)] for i, arm in enumerate(others)}
    colour["baseline"] = "tab:gray"
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, split, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("train", "val"),
        ("training (augmented images, as they came by)", "validation"),
        strict=True,
    ):
        for i, (arm, seeds) in enumerate(runs.items()):
            curves = [[line[f"{split}_top1"] for line in metrics] for metrics in seeds if metrics]
            if not curves:
                continue
            for curve in curves:
                epochs = range(1, len(curve) + 1)
                axes.plot(epochs, curve, color=colour[arm], alpha=0.3, linewidth=0.8)
            means = [statistics.mean(each) for each in zip(*curves, strict=False)]
            style = "-" if i <= len(colours) else "--"
            epochs = range(1, len(means) + 1)
            axes.plot(epochs, means, style, color=colour[arm], label=arm)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("top-1 (%)")
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend()
    figure.savefig(to, dpi=120, format=None if isinstance(to, Path) else "svg")


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of `values` and the half width of its 95% interval (Student's t); None for one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    deviation = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(t.ppf(0.975, len(values) - 1)) * deviation


def shown(values: Sequence[float], sign: str = "") -> str:
    """Mean and 95% interval for a person."""
    mean, half = interval(values)
    return f"{mean:{sign}.2f}" + (f" ± {half:.2f}" if half is not None else "")
