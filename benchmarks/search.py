"""Does a supernet rank subnets, does evolution beat chance, and does a searched NetAug beat the default one?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/search.py --data torchvision:CIFAR10@DATA \\
        --images 20000 --epochs 10 --seeds 0 1 2 --parts speed tau methods --out runs/search

Resumable: each run is a directory of its own in OUT, searches are studies in OUT/studies.db, single scores are in
OUT/scores.json, and what is there is not done again. The images are a part of the data with as many of each class,
written once into OUT/images. Prints tables and writes OUT/report.md and OUT/report.json. A tenth of the training
images is held out for scores; the test images are only for figures told here. Parts:

    speed      candidates per minute of each score, and the share of the time that is evaluation
    tau        Kendall's tau between inherited accuracy (held-out) and accuracy trained alone (test)    N runs
    methods    the best of evolution, NSGA-II and random search at equal evaluations, over search seeds
    agreement  Kendall's tau between the three scores, and of the score `base` with itself over seeds
    gain       accuracy of the base: default NetAug (r=3, s=2), configs found by each score, and random ones,
               of the same ceiling on MACs and the same epochs                                     5 runs per seed

Source: Z. Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV 2020, section 4.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from evidence import add_image_options, images_of, options_of, trained, write_report
from rich.console import Console
from scipy import stats
from search_tables import WANTED, as_markdown

import netaugfx
from netaugfx.plan import KINDS
from recipes.augment import key, plain_loader
from recipes.spos import SCORES, Images, Result, build_score, search
from recipes.spos.budget import Ceiling
from recipes.studies.searching import STUDIES, kept_images
from recipes.training.checkpoint import write_json
from recipes.training.config import TrainConfig
from recipes.training.finished import data_of, open_run, wide_of

PARTS = ("speed", "tau", "methods", "agreement", "gain")
MODEL = "netaugfx:tiny_mobilenet"  # 13,154 parameters


class Evidence:
    """All runs and searches of one setting."""

    def __init__(self, options: argparse.Namespace, data: str, console: Console):
        self.options, self.out, self.console = options, options.out, console
        self.config = TrainConfig(
            model=MODEL,
            data=data,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            channels_last=True,
            kinds=KINDS,
        )
        self.file = self.out / "scores.json"
        self.known = json.loads(self.file.read_text()) if self.file.exists() else {}

    # ------------------------------------------------------------------------------- what is kept

    def run(self, name: str, seed: int, **changes: Any) -> dict[str, Any]:
        """The result of one run; trained where it is not there."""
        config = replace(self.config, seed=seed, **changes)
        return trained(self.options, config, self.out / f"{name}-{seed}", self.console)

    def scored(self, score: str, config: Mapping[str, int], **settings: Any) -> float:
        """The score of one config; taken where it is not kept."""
        name = json.dumps([score, settings, dict(config)])
        if name not in self.known:
            value = build_score(score, self.wide, self.images, **settings)
            self.known[name] = value(self.wide.plan.config(config))
            write_json(self.file, self.known)
        return self.known[name]

    @cached_property
    def wide(self) -> netaugfx.WideModel:
        """The supernet, trained by uniform single paths; wider than the default, within its ceiling."""
        self.run(
            "supernet",
            0,
            method="spos",
            factor=self.options.factor,
            diversity=self.options.diversity,
            hold_out=0.1,
            ceiling=f"{self.ceiling_of_the_default}x",
            epochs=self.options.supernet_epochs or self.options.epochs,
        )
        return wide_of(open_run(self.out / "supernet-0"))

    @cached_property
    def ceiling_of_the_default(self) -> float:
        """MACs of the widest network of default NetAug, times those of the base."""
        wide = netaugfx.widen(build_tiny(), verify=False)
        return round(wide.macs(wide.max_config) / wide.macs(wide.base_config), 4)

    @cached_property
    def constraint(self) -> str:
        return f"{self.ceiling_of_the_default}x"

    @cached_property
    def images(self) -> Images:
        run, device = open_run(self.out / "supernet-0"), torch.device("cpu")
        return kept_images(run, device, None, self.options.batches, self.options.batch_size)

    @cached_property
    def test_images(self) -> Images:
        """The same training batches, with the test images in the place of the held-out ones."""
        data = data_of(open_run(self.out / "supernet-0"))
        swapped = replace(data, train=data.validation)
        return Images(self.images.train, tuple(plain_loader(swapped, 256)))

    def searched(self, score: str, method: str, seed: int, trials: int) -> Result:
        """A search in OUT/studies.db; it goes on where it was."""
        wide, images = self.wide, self.images  # trained first, so that its line comes first
        self.console.print(
            f"{time.strftime('%H:%M')} search {score} {method} {seed}", highlight=False
        )
        return search(
            wide,
            score,
            images=images,
            constraint=self.constraint,
            trials=trials,
            method=method,
            population=min(self.options.population, max(2, trials // 2)),
            storage=self.out / STUDIES,
            name=f"{score}-{method}-{seed}-{trials}",
            seed=seed,
        )

    def drawn(self, count: int, seed: int) -> list[netaugfx.Config]:
        """Distinct configs, uniform within the ceiling; the first is the base."""
        ceiling = Ceiling(self.wide, self.constraint)
        generator = torch.Generator().manual_seed(key(seed))
        found = {self.wide.base_config: None}
        while len(found) < count:
            found[ceiling.draw(generator)] = None
        return list(found)

    # ------------------------------------------------------------------------------------ the parts

    def speed(self) -> dict[str, Any]:
        rows = {}
        for score in SCORES:
            build_score(score, self.wide, self.images)(self.wide.max_config)  # traced once
            started, spent = time.perf_counter(), time.process_time()
            found = search(
                self.wide,
                score,
                images=self.images,
                constraint=self.constraint,
                trials=self.options.timed,
                population=max(2, self.options.timed // 4),
                storage=self.out / f"speed-{score}-{time.time_ns()}.db",
            )
            seconds = time.perf_counter() - started
            rows[score] = {
                "per_minute": 60 * len(found.candidates) / seconds,
                "per_cpu_minute": 60 * len(found.candidates) / (time.process_time() - spent),
                "evaluation": sum(each.seconds for each in found.candidates) / seconds,
            }
        for file in self.out.glob("speed-*"):
            file.unlink()
        return {"speed": rows, "batches": len(self.images.train), "held_out": self.held_out}

    @property
    def held_out(self) -> int:
        return sum(len(labels) for _, labels in self.images.held_out)

    def tau(self) -> dict[str, Any]:
        rows = []
        path = Path(__file__).resolve().with_name("alone.py")
        for i, config in enumerate(self.drawn(self.options.subnets, 1)):
            inherited = self.scored("subnet", config)
            reached = self.run(
                f"alone-{i:02}",
                0,
                model=f"{path}:alone",
                model_args={"sizes": dict(config)},
                epochs=self.options.alone_epochs or self.options.epochs,
            )
            macs = self.wide.macs(config) / self.wide.macs(self.wide.base_config)
            rows.append({"macs": macs, "inherited": inherited, "alone": reached["top1"]})
        inherited, alone = ([row[name] for row in rows] for name in ("inherited", "alone"))
        macs = [row["macs"] for row in rows]
        return {
            "subnets": rows,
            "taus": {
                "inherited and alone": kendall(inherited, alone),
                "MACs and alone": kendall(macs, alone),
            },
        }

    def methods(self) -> dict[str, Any]:
        arms: dict[str, dict[str, list[float]]] = {}
        judge = build_score("subnet", self.wide, self.test_images)
        for method in ("random", "evolution", "nsga2"):
            arms[method] = {"best": [], "test": [], "macs": []}
            for seed in self.options.search_seeds:
                found = self.searched("subnet", method, seed, self.options.trials)
                arms[method]["best"].append(found.best.value)
                arms[method]["test"].append(judge(found.best_config))
                arms[method]["macs"].append(found.best.cost / found.identity["base_cost"])
        some = self.searched("subnet", "random", self.options.search_seeds[0], self.options.trials)
        values = [each.value for each in some.candidates]
        return {
            "methods": arms,
            "trials": self.options.trials,
            "spread": statistics.stdev(values),
            "noise": binomial(statistics.mean(values), self.held_out),
        }

    def agreement(self) -> dict[str, Any]:
        configs = self.drawn(self.options.compared, 2)
        columns: dict[str, list[float]] = {
            name: [self.scored(name, config) for config in configs] for name in SCORES
        }
        columns["base, other seed"] = [self.scored("base", config, seed=1) for config in configs]
        columns["MACs"] = [float(self.wide.macs(config)) for config in configs]
        names = list(columns)
        return {
            "taus": {
                f"{a} and {b}": kendall(columns[a], columns[b])
                for i, a in enumerate(names)
                for b in names[i + 1 :]
            },
            "spread": {name: statistics.stdev(columns[name]) for name in SCORES},
            "configs": len(configs),
        }

    def gain(self) -> dict[str, Any]:
        found = {}
        for score in SCORES:
            trials = self.options.base_trials if score == "base" else self.options.trials
            found[score] = self.searched(score, "evolution", 0, trials).best_config
        arms: dict[str, list[float]] = {"default (r=3, s=2)": []}
        seconds: dict[str, list[float]] = {}
        for seed in self.options.seeds:
            runs: dict[str, dict[str, Any]] = {"default (r=3, s=2)": {}}
            runs |= {f"found by {score}": {"max_config": dict(c)} for score, c in found.items()}
            drawn = self.drawn(2, 100 + seed)[1]
            runs["random config"] = {"max_config": dict(drawn)}
            for arm, changes in runs.items():
                name = arm.split(" (")[0].replace(" ", "-")
                result = self.run(name, seed, method="netaug", **changes)
                arms.setdefault(arm, []).append(result["top1"])
                seconds.setdefault(arm, []).append(result["seconds"])
        default = arms["default (r=3, s=2)"]
        needed = {
            arm: seeds_needed([a - b for a, b in zip(values, default, strict=True)])
            for arm, values in arms.items()
            if values is not default
        }
        macs = {score: self.wide.macs(c) / self.wide.macs({}) for score, c in found.items()}
        return {
            "gain": arms,
            "seconds": seconds,
            "seeds_needed": needed,
            "found": {score: dict(config) for score, config in found.items()},
            "macs": macs,
        }


def build_tiny() -> torch.nn.Module:
    from recipes.tiny import tiny_mobilenet

    return tiny_mobilenet()


def kendall(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Kendall's tau-b, its p-value, and a 95% interval by bootstrap over the pairs (2,000 draws)."""
    tau, p = stats.kendalltau(a, b)
    draw = numpy.random.default_rng(0)
    taus = []
    for _ in range(2000):
        some = draw.integers(0, len(a), len(a))
        value = stats.kendalltau([a[i] for i in some], [b[i] for i in some])[0]
        if not math.isnan(value):
            taus.append(value)
    low, high = numpy.percentile(taus, [2.5, 97.5]) if taus else (math.nan, math.nan)
    return {"tau": float(tau), "p": float(p), "interval": [float(low), float(high)], "n": len(a)}


def binomial(percent: float, n: int) -> float:
    """The standard error in points of an accuracy on n images."""
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)


def seeds_needed(differences: Sequence[float]) -> int | None:
    """How many seeds give a 95% interval of half-width `WANTED`, at the spread that was measured."""
    if len(differences) < 2:
        return None
    deviation, n = statistics.stdev(differences), 2
    while stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) > WANTED:
        n += 1
    return n


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options_of(__doc__, PARTS, PARTS, out="runs/search", epochs=10)
    add_image_options(parser)
    parser.add_argument("--supernet-epochs", type=int, help="of the supernet, if not --epochs")
    parser.add_argument("--alone-epochs", type=int, help="of a subnet alone, if not --epochs")
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1, 2], help="of methods")
    parser.add_argument("--factor", type=float, default=4.0, help="of the supernet")
    parser.add_argument("--diversity", type=int, default=3, help="of the supernet")
    parser.add_argument("--subnets", type=int, default=12, help="to train alone")
    parser.add_argument("--compared", type=int, default=30, help="configs of agreement")
    parser.add_argument("--trials", type=int, default=300, help="candidates of a search")
    parser.add_argument("--base-trials", type=int, default=150, help="those of the score base")
    parser.add_argument("--population", type=int, default=50, help="of a generation")
    parser.add_argument("--timed", type=int, default=40, help="candidates of speed")
    parser.add_argument("--batches", type=int, default=32, help="training batches that are kept")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    evidence = Evidence(options, images_of(options), Console())
    return write_report(options, arguments, lambda part: getattr(evidence, part)(), as_markdown)


if __name__ == "__main__":
    sys.exit(main())
