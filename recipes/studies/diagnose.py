"""`netaugfx diagnose RUN`: does a network underfit, and can NetAug be expected to help it?

NetAug gives a network capacity while it trains. A network that lacks capacity makes nearly as many
errors on its training images as on others; one that does not makes most of its errors on others
alone, and more capacity lets it learn its training images by heart.

Source: H. Cai, C. Gan, J. Lin, S. Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022,
section 4.3 and figure 4: NetAug raises training and validation accuracy of a tiny network; it
raises the training accuracy of ResNet-50 and lowers its validation accuracy. The measure and its
thresholds are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from recipes.errors import RunError
from recipes.training.checkpoint import read_json
from recipes.training.rundir import RunDirectory

UNDERFITS, OVERFITS = 0.25, 0.5  # share of the validation error that is not made in training too
RISING = 0.5  # points of validation accuracy that the last tenth of the epochs still brought


@dataclass(frozen=True)
class Diagnosis:
    """What the curves of a baseline say.

    Args:
        verdict: "underfits", "overfits", "between" or "untrained".
        train_top1: in percent, of the trained network on training images as they are, or where the
            run has not ended, in its last epoch on augmented ones.
        val_top1: in percent, in the last epoch.
        share: (train_top1 - val_top1) / (100 - val_top1), at least 0: the share of the validation
            error that the network does not make on training images.
        rising: points that val_top1 gained over the last tenth of the epochs.
        reasons: sentences.
        advice: options of `netaugfx train` to try; none where NetAug is not expected to help.
    """

    verdict: str
    train_top1: float
    val_top1: float
    share: float
    rising: float
    reasons: tuple[str, ...]
    advice: str


def diagnose(directory: Path) -> Diagnosis:
    """Read a baseline's run and say what it suffers from.

    Raises:
        RunError: `directory` holds no baseline's run, or none with two epochs.
    """
    run = RunDirectory(directory)
    if not run.config.exists():
        raise RunError(f"{directory} holds no run: expected what `netaugfx train --out` wrote.")
    held = run.held()
    method = held["config"]["method"]
    if held["config"].get("distill"):
        method = "distillation"
    if method != "baseline":
        raise RunError(
            f"{directory} is a run of {method}. Give one of the same network with --method baseline."
        )
    metrics = run.read_metrics()
    if len(metrics) < 2:
        raise RunError(f"{directory} has {len(metrics)} epochs so far; curves need two or more.")
    result = read_json(run.result) if run.result.exists() else {}
    return judge(metrics, held["data"]["num_classes"], result.get("train_top1"))


def judge(
    metrics: Sequence[Mapping[str, Any]], num_classes: int, train_top1: float | None
) -> Diagnosis:
    """Judge the curves of a baseline.

    Args:
        metrics: a line for each epoch, as in metrics.jsonl.
        train_top1: on training images as they are, in percent; None: what the last epoch had.
    """
    last = metrics[-1]
    reasons = []
    if train_top1 is None:
        train_top1 = last["train_top1"]
        reasons.append(
            "Training accuracy is that of the last epoch, on augmented images as they came by; on "
            "plain ones it is known when a run has ended."
        )
    val = last["val_top1"]
    share = max(0.0, train_top1 - val) / (100 - val) if val < 100 else 0.0
    tenth = max(1, len(metrics) // 10)
    rising = val - metrics[-1 - tenth]["val_top1"]
    losses = [line["val_loss"] for line in metrics]
    turned = 1 + losses.index(min(losses))
    reasons.append(
        f"It is wrong on {100 - train_top1:.1f} % of training images and on {100 - val:.1f} % of "
        f"validation images: {1 - share:.0%} of its validation error is made in training too."
    )
    if rising > RISING:
        reasons.append(
            f"Validation accuracy rose by {rising:.1f} points over the last {tenth} epoch(s): "
            "longer training comes first."
        )
    if turned <= 0.8 * len(metrics) and losses[-1] > 1.05 * min(losses):
        reasons.append(f"Validation loss has risen since epoch {turned}, a sign of overfitting.")
    if train_top1 < 150 / num_classes:
        verdict, advice = "untrained", ""
        reasons.append("It is hardly better than chance: check data and learning rate first.")
    elif share <= UNDERFITS:
        verdict = "underfits"
        reasons.append(
            "It lacks capacity rather than regularisation: NetAug can be expected to help."
        )
        advice = (
            "--method netaug --kinds stream inner --factor 3 --diversity 2 --alpha 1"  # the paper's
            if len(metrics) >= 40
            else "--method netaug --kinds inner --factor inner=2 --diversity 2 --alpha 1"
        )
    elif share < OVERFITS:
        verdict = "between"
        reasons.append("NetAug may help or hurt: try it weakly, over several seeds.")
        advice = "--method netaug --kinds inner --factor inner=2 --diversity 1 --alpha 0.5"
    else:
        verdict, advice = "overfits", ""
        reasons.append(
            "Most of its errors are on images that it has not seen: capacity is not what it lacks, "
            "and NetAug may hurt. "
            "More images, augmentation or regularisation may help."
        )
    return Diagnosis(verdict, train_top1, val, share, rising, tuple(reasons), advice)


def print_diagnosis(diagnosis: Diagnosis, console: Console, *, as_json: bool = False) -> None:
    """Print it for a person, or as JSON."""
    if as_json:
        print(json.dumps(asdict(diagnosis), indent=2))
        return
    console.print(f"The network {diagnosis.verdict}." if diagnosis.verdict.endswith("fits") else (
        "The network neither clearly underfits nor overfits." if diagnosis.verdict == "between"
        else "The network has not learnt yet."
    ), style="bold")  # fmt: skip
    for reason in diagnosis.reasons:
        console.print(f"- {reason}", highlight=False, soft_wrap=True)
    if diagnosis.advice:
        console.print(
            f"Try: netaugfx train ... {diagnosis.advice}", highlight=False, soft_wrap=True
        )
