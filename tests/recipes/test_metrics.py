"""Metrics against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recipes.errors import RunError
from recipes.metrics import draw_confusion, measure, readable

N, CLASSES = 60, 4


@pytest.fixture
def logits_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(N, CLASSES, generator=generator)
    logits[:, 3] -= 20  # never predicted
    return logits, torch.randint(CLASSES, (N,), generator=generator)


def run(logits: Tensor, labels: Tensor, **options: object) -> tuple[dict, Tensor]:
    """With the row's number as the image."""
    rows = torch.arange(len(labels))
    loader = [(rows[i : i + 16], labels[i : i + 16]) for i in range(0, len(labels), 16)]
    return measure(lambda images: logits[images], loader, CLASSES, **options)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_by_hand(logits_and_labels: tuple[Tensor, Tensor], k: int) -> None:
    logits, labels = logits_and_labels
    report, _ = run(logits, labels, ks=(k,))
    first = [row.argsort(descending=True)[:k].tolist() for row in logits]
    truth = labels.tolist()
    hits = [label in best for label, best in zip(truth, first, strict=True)]
    assert report[f"top{k}"] == pytest.approx(100 * sum(hits) / N)
    given = [t if hit else best[0] for t, hit, best in zip(truth, hits, first, strict=True)]
    precision, recall, f1 = [], [], []
    for c in range(CLASSES):
        right = sum(g == t == c for g, t in zip(given, truth, strict=True))
        precision.append(right / max(1, given.count(c)))
        recall.append(right / truth.count(c))
        f1.append(2 * right / (given.count(c) + truth.count(c)))
    for name, each in {"precision": precision, "recall": recall, "f1": f1}.items():
        assert report[f"{name}@{k}"] == pytest.approx(100 * sum(each) / CLASSES, rel=1e-5), name


def test_loss_calibration_and_confusion_by_hand(logits_and_labels: tuple[Tensor, Tensor]) -> None:
    logits, labels = logits_and_labels
    report, matrix = run(logits, labels)
    p = logits.softmax(1)
    assert report["loss"] == pytest.approx(-p[range(N), labels].log().mean().item(), rel=1e-5)
    confidence, predicted = p.max(1)
    gap = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            right = (predicted == labels)[inside].float().mean()
            gap += inside.float().mean().item() * abs(right - confidence[inside].mean()).item()
    assert report["calibration_error"] == pytest.approx(100 * gap, rel=1e-4)
    expected = [
        [sum((labels == t) & (predicted == c)).item() for c in range(CLASSES)]
        for t in range(CLASSES)
    ]
    assert matrix.tolist() == expected
    assert (report["predicted_classes"], report["classes"], report["images"]) == (3, CLASSES, N)
    assert "top5" not in report
    assert dict(readable(report))["top1"].endswith(" %")


def test_the_picture(logits_and_labels: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    _, matrix = run(*logits_and_labels)
    draw_confusion(matrix, tmp_path / "confusion.png", "of four classes", ["a", "b", "c", "d"])
    draw_confusion(torch.eye(30), tmp_path / "large.png", "of thirty")
    for name in ("confusion.png", "large.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_bad_input(logits_and_labels: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RunError, match=r"from 1 to the 4 there are; got \[0, 1\]"):
        run(*logits_and_labels, ks=(0, 1))
    with pytest.raises(RunError, match=r"from 1 to the 4 there are; got \[1, 20\]"):
        run(*logits_and_labels, ks=(1, 20))
    with pytest.raises(RunError, match="no image to evaluate on"):
        measure(lambda x: x, [], CLASSES)
