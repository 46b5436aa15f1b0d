"""`make demo`: a tiny network on handwritten digits, plainly and with NetAug, side by side.

    python -m recipes.studies.demo --out runs/demo [--quick] [--seeds 0 1 2]

Writes OUT/report.json, OUT/curves.png and OUT/base.safetensors (NetAug, first seed); each run lies
in OUT/METHOD-SEED.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from netaugfx.errors import NetAugFXError
from recipes.studies.curves import draw_curves
from recipes.training.checkpoint import write_json
from recipes.training.config import TrainConfig
from recipes.training.loop import train
from recipes.training.rundir import RunDirectory

METHODS = ("baseline", "netaug")
# Small enough to underfit: its training accuracy, too, stays well below 100 %.
MODEL = "netaugfx:tiny_mobilenet"
MODEL_ARGS = {"channels": (3, 3, 4), "strides": (1, 2, 2), "expand_ratio": 2, "head": 8}
EPOCHS = 40


def demo_config(method: str, seed: int, epochs: int) -> TrainConfig:
    """The run of one method and one seed."""
    return TrainConfig(
        model=MODEL,
        model_args=MODEL_ARGS,
        data="digits",
        method=method,
        epochs=epochs,
        batch_size=64,
        lr=0.1,
        seed=seed,
    )


def run_alone(config: TrainConfig, out: Path) -> dict[str, Any]:
    """One run in a process of its own, on one thread and in silence."""
    torch.set_num_threads(1)
    with open("/dev/null", "w") as silence:
        return train(config, out, device="cpu", console=Console(file=silence))


def run_all(
    out: Path, seeds: Sequence[int], epochs: int, console: Console
) -> dict[str, list[dict[str, Any]]]:
    """Train every method with every seed, two at a time.

    Returns:
        Method -> results, one per seed.
    """
    directories = {(method, seed): out / f"{method}-{seed}" for seed in seeds for method in METHODS}
    for directory in directories.values():
        if (directory / "config.json").exists():  # of an earlier demo
            shutil.rmtree(directory)
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max_workers=2, mp_context=spawn) as pool,
        Progress(console=console) as progress,
    ):
        runs = {
            each: pool.submit(run_alone, demo_config(each[0], each[1], epochs), directory)
            for each, directory in directories.items()
        }
        bars = {
            each: progress.add_task(f"{each[0]:8} seed {each[1]}", total=epochs) for each in runs
        }
        while True:
            for each, directory in directories.items():
                progress.update(bars[each], completed=len(RunDirectory(directory).read_metrics()))
            failed = next((run for run in runs.values() if run.done() and run.exception()), None)
            if failed is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                failed.result()
            if all(run.done() for run in runs.values()):
                break
            time.sleep(0.2)
    return {method: [runs[method, seed].result() for seed in seeds] for method in METHODS}


def summary(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print both methods side by side, and what the difference is."""
    table = Table(
        title=f"handwritten digits, {report['params']:,} parameters, {report['epochs']} epochs"
    )
    table.add_column("")
    for seed in report["seeds"]:
        table.add_column(f"seed {seed}", justify="right")
    table.add_column("top-1 (%)", justify="right")
    table.add_column("on training images", justify="right")
    for method in METHODS:
        top1 = report[method]["top1"]
        table.add_row(
            method,
            *(f"{each:.2f}" for each in top1),
            summary(top1),
            summary(report[method]["train_top1"]),
        )
    console.print(table)
    gains = [
        b - a for a, b in zip(report["baseline"]["top1"], report["netaug"]["top1"], strict=True)
    ]
    console.print(
        f"netaug - baseline: {summary(gains)} points; {report['seconds']:.0f} s", highlight=False
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.studies.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one seed, 2 epochs: only whether it runs"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)"
    )
    options = parser.parse_args(arguments)
    seeds, epochs = (options.seeds[:1], 2) if options.quick else (options.seeds, EPOCHS)
    console = Console()
    started = time.perf_counter()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        results = run_all(options.out, seeds, epochs, console)
    except (NetAugFXError, OSError) as error:
        print(f"recipes.studies.demo: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    report: dict[str, Any] = {
        "model": {"name": MODEL, "args": MODEL_ARGS},
        "data": "digits",
        "epochs": epochs,
        "seeds": list(seeds),
        "params": results["baseline"][0]["parameters"],
    }
    for method in METHODS:
        last = [RunDirectory(options.out / f"{method}-{seed}").read_metrics()[-1] for seed in seeds]
        report[method] = {
            "top1": [each["top1"] for each in results[method]],
            "train_top1": [each["train_top1"] for each in last],
            "seconds": [each["seconds"] for each in results[method]],
        }
    shutil.copyfile(
        options.out / f"netaug-{seeds[0]}" / "base.safetensors", options.out / "base.safetensors"
    )
    runs = {
        method: [RunDirectory(options.out / f"{method}-{seed}").read_metrics() for seed in seeds]
        for method in METHODS
    }
    draw_curves(options.out / "curves.png", runs)
    report["seconds"] = round(time.perf_counter() - started, 1)
    write_json(options.out / "report.json", report)
    print_report(report, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
