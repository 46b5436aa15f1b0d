"""Does NetAug help a network that underfits, harm one that overfits, and what does it depend on?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/netaug.py --data torchvision:CIFAR10@DATA --out runs/netaug

Resumable: each run is a directory in OUT/runs, shared by the parts (OUT/overfit for that one); what is finished is
not run again.
Prints tables and writes OUT/report.md and OUT/report.json. E is --epochs. Parts:

    gain          baseline against NetAug on inner widths up to 2x, 13,154 parameters, E epochs
    statistics    the base's own batch-norm statistics, statistics shared with the subnets, and these recalibrated,
                  on the networks of `gain`
    overfit       a network of 110,570 parameters on 1,000 images, tested on 4,000, 3 E epochs, and what `diagnose`
                  says of its baseline
    strength      how far: inner 1.5, 2 and 3x; streams too, 2 and 3x; the authors' lists, coupled, sorted,
                  streams for E / 2
    regularisers  MixUp, CutMix, dropout, DropBlock, AutoAugment, RandAugment, small decay, no augmentation
    longer        baseline and NetAug at E / 2, E, 2 E
    samples       1, 2 and 3 augmented networks per step
    alpha         0.25, 0.5, 1, 2; falling to 0
    schedule      inner widths for half or three quarters of the epochs

Source: H. Cai, C. Gan, J. Lin, S. Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022, tables 1, 3, 4, 6
and figure 4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from evidence import options_of, write_images, write_report
from rich.console import Console
from torch import Tensor, nn

import netaugfx
from recipes.augment import build_loaders
from recipes.evaluation import evaluate
from recipes.studies.compare import compare, directory_of, parse_arms
from recipes.studies.curves import shown
from recipes.studies.diagnose import diagnose
from recipes.training.config import TrainConfig
from recipes.training.finished import data_of, open_run, wide_of

TINY = "netaugfx:tiny_mobilenet"  # 13,154 parameters
LARGE = {"channels": (32, 32, 64, 64), "expand_ratio": 6, "head": 256}  # 110,570 parameters
GROWN = "netaug:kinds=inner:factor=2"
AUTHORS = "netaug:coupling=expand:sort=True:stop_stream=0.5:decay_norms=False"
LISTS = {"stream": (1.0, 2.0, 3.0), "inner": (1.0, 1.6, 2.2, 2.8)}
PARTS: dict[str, tuple[str, ...]] = {
    "gain": ("baseline", GROWN),
    "overfit": ("baseline", GROWN),
    "strength": (
        "baseline",
        "netaug:kinds=inner:factor=1.5",
        GROWN,
        "netaug:kinds=inner:factor=3",
        "netaug:kinds=stream+inner:factor=2",
        "netaug:kinds=stream+inner:factor=3",
        AUTHORS,
    ),
    "regularisers": (
        *("baseline", "mixup", "cutmix", "dropout", "dropblock"),
        *("autoaugment", "randaugment", "small-decay", "no-augmentation"),
    ),
    "longer": (),  # of E
    "samples": tuple(f"{GROWN}:samples={n}" for n in (1, 2, 3)),
    "alpha": (*(f"{GROWN}:alpha={a}" for a in (0.25, 0.5, 1, 2)), f"{GROWN}:alpha_end=0"),
    "schedule": (GROWN, f"{GROWN}:stop_inner=0.5", f"{GROWN}:stop_inner=0.75"),
}
PASSES = 200  # of base and subnet by turns: a momentum of 0.1 has forgotten what was before
BATCHES = 64  # that recalibration averages over


class Evidence:
    """All parts of one setting."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.base = TrainConfig(
            model=TINY, data=options.data, epochs=options.epochs, channels_last=True
        )

    def run(self, part: str) -> dict[str, Any]:
        if part == "statistics":
            return {"runs": [self.statistics(seed) for seed in self.options.seeds]}
        config, arms = self.base, PARTS[part]
        if part == "longer":
            lengths = (self.base.epochs // 2, self.base.epochs, 2 * self.base.epochs)
            arms = tuple(f"{arm}:epochs={n}" for n in lengths for arm in ("baseline", GROWN))
        if part == "overfit":
            data = write_images(
                self.options.data, self.options.out / "few", 1000, 4000, self.options.download
            )
            config = TrainConfig(
                model=TINY,
                model_args=LARGE,
                data=data,
                epochs=3 * self.base.epochs,
                channels_last=True,
            )
        found: dict[str, Any] = {"arms": self.compare(part, config, arms)}
        if part in ("gain", "overfit"):
            said = diagnose(directory_of(self.where(part), "baseline", self.options.seeds[0]))
            found["diagnosis"] = f"{said.verdict}: {' '.join(said.reasons)}"
        return found

    def where(self, part: str) -> Path:
        """The directory of a part's runs."""
        return self.options.out / ("overfit" if part == "overfit" else "runs")

    def compare(self, part: str, config: TrainConfig, arms: Sequence[str]) -> dict[str, Any]:
        parsed = parse_arms(",".join(arms))
        if AUTHORS in parsed:  # lists hold commas
            parsed["authors"] = parsed.pop(AUTHORS) | {"ratios": LISTS}
        with open(self.options.out / "log.txt", "a") as log:
            return compare(
                config,
                parsed,
                self.options.seeds,
                self.where(part),
                console=Console(file=log, width=160),
                device=self.options.device,
                workers=self.options.workers,
                download=self.options.download,
            )

    def statistics(self, seed: int) -> dict[str, float]:
        """Top-1 of one trained base with three kinds of batch-norm statistics.

        Training normalises by the batch, so that whose running statistics are kept changes no weight: one run
        serves all three.
        """
        run = open_run(directory_of(self.where("gain"), GROWN, seed))
        wide = wide_of(run)
        train, validation, _ = build_loaders(data_of(run), run.config.batch_size, seed, 0)
        accelerator = Accelerator(cpu=True)
        base = netaugfx.extract_base(wide)
        own = evaluate(base, validation, accelerator)["top1"]

        generator = torch.Generator().manual_seed(seed)
        images = (x for x, _ in islice(cycle(train), PASSES))
        share_statistics(base, wide, images, generator)
        shared = evaluate(base, validation, accelerator)["top1"]

        average_statistics(base, (x for x, _ in islice(train, BATCHES)))
        recalibrated = evaluate(base, validation, accelerator)["top1"]
        return {"seed": seed, "own": own, "shared": shared, "recalibrated": recalibrated}


def share_statistics(
    base: nn.Module,
    wide: netaugfx.WideModel,
    images: Iterator[Tensor],
    generator: torch.Generator,
) -> None:
    """Let the base's running statistics follow base and subnets by turns, as if they were one network.

    The base's channels come first in each buffer of this network (nothing is concatenated).
    """
    buffers = dict(base.named_buffers())
    for x in images:
        base.train()
        with torch.no_grad():
            base(x)  # its batch norms have a momentum of 0.1
        config = wide.sample(generator)
        if config == wide.base_config:
            continue
        wide.recalibrate(config, [x])
        for name, seen in wide.statistics.pop(config).items():
            buffers[name].lerp_(seen[: len(buffers[name])], 0.1)


def average_statistics(base: nn.Module, images: Iterator[Tensor]) -> None:
    """Give the base the mean of what its batch norms see."""
    norms = [m for m in base.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
    base.train()
    with torch.no_grad():
        for x in images:
            base(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    lines = [f"    {' '.join(report['command'])}", ""]
    for part, found in report["parts"].items():
        lines += [f"## {part}", ""]
        if part == "statistics":
            lines += ["| statistics of the base | top-1 (%) |", "| --- | ---: |"]
            for kind in ("own", "shared", "recalibrated"):
                lines.append(f"| {kind} | {shown([run[kind] for run in found['runs']])} |")
        else:
            first = next(iter(found["arms"]))
            lines += [
                "| arm | top-1 (%) | over the first | on training images (%) | seconds |",
                "| --- | ---: | ---: | ---: | ---: |",
            ]
            for arm, of in found["arms"].items():
                gain = "" if arm == first else shown(of["gain"]["each"], "+")
                seconds = sum(of["seconds"]) / len(of["seconds"])
                lines.append(
                    f"| {arm} | {shown(of['top1'])} | {gain} | {shown(of['train_top1'])} | {seconds:,.0f} |"
                )
            if "diagnosis" in found:
                lines += ["", f"`diagnose` of the first baseline: {found['diagnosis']}"]
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parts = (*PARTS, "statistics")
    default = ("gain", "statistics", "overfit")
    parser = options_of(__doc__, parts, default, out="runs/netaug", epochs=20)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    return write_report(options, arguments, Evidence(options).run, as_markdown)


if __name__ == "__main__":
    sys.exit(main())
