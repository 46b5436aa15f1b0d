"""How good a network is, beyond its accuracy: by class, within the first k, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from recipes.errors import RunError
from recipes.evaluation import batches

BY_CLASS = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}


@torch.no_grad()
def measure(
    predict: Callable[[Tensor], Tensor],
    loader: Iterable,
    num_classes: int,
    *,
    ks: Sequence[int] = (1,),
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], Tensor]:
    """Run a network on a loader once.

    Args:
        predict: images -> logits, in eval mode.
        ks: how many of the most likely classes count, each from 1 to num_classes.

    Returns:
        "loss" in nats; in percent, for each k, "top{k}" (share of images) and "precision@{k}",
        "recall@{k}", "f1@{k}" (means over classes; an image counts for its own class if that is
        among the first k, else for the most likely one, as torchmetrics has it);
        "calibration_error" (15 bins, the mean gap between confidence and accuracy);
        "predicted_classes", how many are ever the most likely, and "classes", how many there are.
        And the confusion matrix, int64 (true, predicted).

    Source: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, for
    the calibration error.
    """
    check_ks(ks, num_classes)
    scores: dict[str, Any] = {}
    for k in sorted(set(ks)):
        scores[f"top{k}"] = MulticlassAccuracy(num_classes, top_k=k, average="micro")
        for name, metric in BY_CLASS.items():
            scores[f"{name}@{k}"] = metric(num_classes, top_k=k, average="macro")
    scores["calibration_error"] = MulticlassCalibrationError(num_classes, n_bins=15, norm="l1")
    metrics = MetricCollection(scores, compute_groups=False).to(device)
    confusion = MulticlassConfusionMatrix(num_classes).to(device)
    loss, count = 0.0, 0
    for images, labels in batches(loader):
        labels = labels.to(device)
        logits = predict(images.to(device)).float()
        metrics.update(logits.softmax(1), labels)
        confusion.update(logits.argmax(1), labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
    if count == 0:
        raise RunError("There is no image to evaluate on.")
    matrix = confusion.compute().cpu()
    computed = metrics.compute()
    percent = {name: 100.0 * float(computed[name]) for name in scores}
    return {
        "images": count,
        "loss": loss / count,
        **percent,
        "predicted_classes": int((matrix.sum(0) > 0).sum()),
        "classes": num_classes,
    }, matrix


def check_ks(ks: Sequence[int], num_classes: int) -> None:
    """Raise RunError where a k is no number of classes."""
    if not ks or min(ks) < 1 or max(ks) > num_classes:
        raise RunError(f"k counts classes, from 1 to the {num_classes} there are; got {list(ks)}.")


def draw_confusion(matrix: Tensor, path: Path, title: str, names: Sequence[str] = ()) -> None:
    """Draw a confusion matrix, each row as shares of its class; up to 20 classes with figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(matrix)
    side = min(12.0, max(4.0, 0.45 * n + 2))
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    image = axes.imshow(shares.tolist(), vmin=0, vmax=1, cmap="Blues")
    axes.set(title=title, xlabel="predicted", ylabel="true")
    if n <= 20:
        labels = list(names) if len(names) == n else [str(i) for i in range(n)]
        axes.set_xticks(range(n), labels, rotation=90)
        axes.set_yticks(range(n), labels)
        for i, j in ((i, j) for i in range(n) for j in range(n) if matrix[i, j] > 0):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, int(matrix[i, j]), ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, shrink=0.7, label="share of the true class")
    figure.savefig(path, dpi=120)


def readable(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The lines of a table: name, value with its unit."""
    lines = []
    for name, value in report.items():
        if name in ("images", "predicted_classes", "classes"):
            lines.append((name.replace("_", " "), f"{value:,}"))
        elif name == "loss":
            lines.append(("loss", f"{value:.4f}"))
        else:
            lines.append((name.replace("_", " "), f"{value:.2f} %"))
    return lines
