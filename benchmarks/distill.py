"""Does distillation add to NetAug, and does T. stddev tell which augmentation suits a teacher?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/distill.py --data torchvision:CIFAR10@DATA \\
        --images 20000 --epochs 10 --seeds 0 1 2 --parts order stddev --out runs/distill

Resumable: each run is a directory of its own in OUT, and what is finished is not run again. The images are a part of
the data with as many of each class, written once into OUT/images. Prints tables and writes OUT/report.md,
OUT/report.json and the pictures. Parts:

    order     baseline, KD, NetAug, NetAug+KD, NetAug+RKD by the widest subnet, detached or not   6 runs per seed
    stddev    T. stddev of the nine schemes against the test loss of one student per scheme       9 runs
    pick      KD, with CutMix, with CutMixPick; and with twice the epochs                         6 runs per seed
    student   stddev with a second student                                                        9 runs
    combos    teacher and student trained with or without AutoAugment, and CutMix                 8 runs per seed

Source: H. Cai et al., ICLR 2022, table 2; H. Wang et al., NeurIPS 2022, figure 1 and tables; S. Park et al., 2020,
section 5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence import add_image_options, images_of, options_of, trained, write_report
from rich.console import Console
from scipy import stats

from recipes.schemes import SCHEMES
from recipes.studies.curves import interval, shown
from recipes.studies.ranking import rank
from recipes.training.config import TrainConfig
from recipes.training.distillation import Distillation
from recipes.training.rundir import RunDirectory

PARTS = ("order", "stddev", "pick", "student", "combos")
STUDENT = "netaugfx:tiny_mobilenet"  # 13,154 parameters
SECOND = {"channels": (12, 12, 18, 18), "head": 72}  # of the same family
TEACHER = {"channels": (32, 32, 64, 64), "expand_ratio": 6, "head": 256}  # 110,570 parameters


class Evidence:
    """All runs of one setting."""

    def __init__(self, options: argparse.Namespace, data: str, console: Console):
        self.options, self.out, self.console = options, options.out, console
        netaug = {"factor": {"stream": 1.0, "inner": options.inner}, "kinds": ("inner",)}
        self.base = TrainConfig(
            model=STUDENT,
            data=data,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            channels_last=True,
            **netaug,
        )

    def run(self, name: str, seed: int, **changes: Any) -> dict[str, Any]:
        """The result of one run and the test loss at its end; trained where it is not there."""
        config = replace(self.base, seed=seed, **changes)
        directory = self.out / f"{name}-{seed}"
        result = trained(self.options, config, directory, self.console)
        return result | {"test_loss": RunDirectory(directory).read_metrics()[-1]["val_loss"]}

    def teacher(self, name: str = "teacher", **changes: Any) -> str:
        """The directory of a trained teacher."""
        epochs = self.options.teacher_epochs
        self.run(name, 0, model_args=TEACHER, epochs=epochs, **changes)
        return str(self.out / f"{name}-0")

    def kd(self, teacher: str | None = None, **fields: Any) -> Distillation:
        return Distillation(teacher=teacher or self.teacher(), **fields)

    def table(
        self, arms: Mapping[str, Mapping[str, Any]], prefix: str = ""
    ) -> dict[str, dict[str, Any]]:
        """Each arm with every seed: top-1 in percent, seed by seed, and seconds."""
        found = {}
        for seed in self.options.seeds:  # seed by seed, so that a part of them compares all arms
            for arm, changes in arms.items():
                result = self.run(f"{prefix}{arm}", seed, **changes)
                row = found.setdefault(arm, {"top1": [], "test_loss": [], "seconds": []})
                for key in row:
                    row[key].append(result[key])
        return found

    # ------------------------------------------------------------------------------------- the parts

    def order(self) -> dict[str, Any]:
        own = {"teacher": "widest", "objectives": ("rkd",)}
        arms: dict[str, dict[str, Any]] = {
            "baseline": {},
            "kd": {"distill": self.kd()},
            "netaug": {"method": "netaug"},
            "netaug+kd": {"method": "netaug", "distill": self.kd()},
            "netaug+rkd": {"method": "netaug", "distill": Distillation(**own)},
            "netaug+rkd-attached": {
                "method": "netaug",
                "distill": Distillation(**own, detach=False),
            },
        }
        return {"arms": self.table(arms)}

    def stddev(self, name: str = "stddev", **student: Any) -> dict[str, Any]:
        teacher = self.teacher()
        plain = f"{name}-none"
        self.run(plain, 0, distill=self.kd(), **student)
        schemes = rank(
            teacher,
            student=str(self.out / f"{plain}-0"),
            samples=self.options.samples,
            repeats=self.options.repeats,
            out=self.out / f"{name}-ranking",
            device=torch.device("cpu" if self.options.device == "cpu" else "cuda"),
            workers=self.options.workers,
            console=Console(quiet=True),
        )
        rows = {row["scheme"]: row for row in schemes}
        for scheme in SCHEMES:
            result = self.run(f"{name}-{scheme}", 0, distill=self.kd(scheme=scheme), **student)
            rows[scheme] |= {key: result[key] for key in ("test_loss", "top1")}
        x, y = ([row[key] for row in rows.values()] for key in ("stddev", "test_loss"))
        tests = {
            "Pearson": stats.pearsonr(x, y),
            "Spearman": stats.spearmanr(x, y),
            "Kendall": stats.kendalltau(x, y),
        }
        scatter(rows, tests, self.out / f"{name}.png")
        return {
            "schemes": list(rows.values()),
            "tests": {
                key: {"correlation": float(test.statistic), "p": float(test.pvalue)}
                for key, test in tests.items()
            },
        }

    def pick(self) -> dict[str, Any]:
        arms = {}
        for times in (1, 2):
            for scheme in (None, "cutmix", "cutmixpick"):
                arms[f"kd+{scheme or 'nothing'} {times}x"] = {
                    "distill": self.kd(scheme=scheme),
                    "epochs": times * self.options.epochs,
                }
        return {"arms": self.table(arms, "pick-")}

    def student(self) -> dict[str, Any]:
        return self.stddev("student", model_args=SECOND)

    def combos(self) -> dict[str, Any]:
        ways: dict[str, dict[str, Any]] = {
            "autoaugment": {"augment": "autoaugment"},
            "cutmix": {"cutmix": 1.0},
        }
        arms = {}
        for way, changes in ways.items():
            for taught in (False, True):
                teacher = self.teacher(f"teacher-{way}", **changes) if taught else self.teacher()
                for learns in (False, True):
                    who = [said for said, so in (("teacher", taught), ("student", learns)) if so]
                    name = f"{way} for {' and '.join(who) or 'neither'}"
                    arms[name] = {"distill": self.kd(teacher)} | (changes if learns else {})
        short = {f"{i}": arm for i, arm in enumerate(arms.values())}
        found = self.table(short, "combo-")
        return {"arms": {name: found[f"{i}"] for i, name in enumerate(arms)}}


def scatter(rows: Mapping[str, Mapping[str, Any]], tests: Mapping[str, Any], path: Path) -> None:
    """T. stddev against the student's test loss, a point for each scheme."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for scheme, row in rows.items():
        axes.plot(row["interval"], [row["test_loss"]] * 2, color="tab:blue", alpha=0.3)
        axes.plot(row["stddev"], row["test_loss"], "o", color="tab:blue")
        axes.annotate(
            scheme,
            (row["stddev"], row["test_loss"]),
            fontsize=8,
            xytext=(4, 4),
            textcoords="offset points",
        )
    said = ", ".join(f"{k} {t.statistic:.2f} (p = {t.pvalue:.3f})" for k, t in tests.items())
    axes.set(xlabel="T. stddev", ylabel="test loss of the student (nats)")
    axes.set_title(said, fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    lines = [f"    {' '.join(report['command'])}", ""]
    for part, found in report["parts"].items():
        lines += [f"## {part}", ""]
        if "arms" in found:
            first, *_ = found["arms"].values()
            lines += [
                "| | top-1 (%) | over the first | test loss | seconds |",
                "| --- | ---: | ---: | ---: | ---: |",
            ]
            for arm, row in found["arms"].items():
                gains = [a - b for a, b in zip(row["top1"], first["top1"], strict=True)]
                gain = "" if row is first else shown(gains, "+")
                loss, seconds = interval(row["test_loss"])[0], interval(row["seconds"])[0]
                lines.append(
                    f"| {arm} | {shown(row['top1'])} | {gain} | {loss:.4f} | {seconds:,.0f} |"
                )
        else:
            lines += [
                "| scheme | T. stddev | 95% interval | test loss | top-1 (%) |",
                "| --- | ---: | ---: | ---: | ---: |",
            ]
            for row in found["schemes"]:
                low, high = row["interval"]
                lines.append(
                    f"| {row['scheme']} | {row['stddev']:.3g} | {low:.3g} to {high:.3g} | "
                    f"{row['test_loss']:.4f} | {row['top1']:.2f} |"
                )
            said = [
                f"{name} {test['correlation']:.3f} (p = {test['p']:.4f})"
                for name, test in found["tests"].items()
            ]
            lines += ["", f"Correlation: {', '.join(said)}."]
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options_of(__doc__, PARTS, ("order", "stddev"), out="runs/distill", epochs=10)
    add_image_options(parser)
    parser.add_argument("--teacher-epochs", type=int, default=20, help="of a teacher")
    parser.add_argument("--inner", type=float, default=2.0, help="how far inner widths grow")
    parser.add_argument("--samples", type=int, default=640, help="K of T. stddev")
    parser.add_argument("--repeats", type=int, default=200, help="of T. stddev")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(options, images_of(options), Console())
    return write_report(options, arguments, lambda part: getattr(evidence, part)(), as_markdown)


if __name__ == "__main__":
    sys.exit(main())
