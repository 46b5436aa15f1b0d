"""Question: what does NetAug cost over a whole run, how much of a run is data, and what do two processes gain?

    OMP_NUM_THREADS=1 python benchmarks/run.py [--model netaugfx:tiny_mobilenet] [--data digits] [--batch 32]
        [--epochs 3] [--channels-last] [--write NAME]

Seconds of one epoch, medians; baseline and NetAug in turn, in one process and in two on gloo with half the batch each.
  data      the loader alone: read, decode, augment, collate, to device
  baseline  an epoch of training;  netaug: likewise with NetAug as it comes;  the data are within them
  validate  the base on the validation images, once an epoch in either
NetAug's overhead on the run is (netaug + validate) / (baseline + validate) - 1. Seconds "of each process" are those
that it has the core for, of two processes the mean; those by the clock are the slower process's.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from timing import publish

from recipes.data import load_data
from recipes.evaluation import batches, evaluate
from recipes.memory import keep_memory
from recipes.training.config import TrainConfig
from recipes.training.loop import Done, train_epoch
from recipes.training.run import Cadence, set_up
from recipes.training.rundir import RunDirectory

PARTS = ("data", "baseline", "netaug", "validate")
Seconds = dict[
    str, list[tuple[float, float]]
]  # part -> (of the process, by the clock), an epoch each


def measure(index: int, processes: int, port: int, options: argparse.Namespace, out: Any) -> None:
    """Be one of `processes`: train and time, and put the seconds into the queue `out`."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    keep_memory()
    if processes > 1:
        os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "MASTER_PORT": str(port)}
        os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    ranks = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[ranks])
    data = load_data(options.data)
    plain = TrainConfig(
        options.model,
        options.data,
        batch_size=options.batch // processes,
        lr=0.01,
        epochs=100,
        channels_last=options.channels_last,
    )
    console, cadence = Console(quiet=True), Cadence(minutes=None)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            method: set_up(
                replace(plain, method=method),
                data,
                RunDirectory(Path(folder)),
                accelerator,
                console,
                cadence,
                0,
            )
            for method in ("baseline", "netaug")
        }
        parts = {
            name: lambda r=run, e=0: train_epoch(r, Done(epochs=e)) for name, run in runs.items()
        }
        base = runs["baseline"]
        parts["data"] = lambda e=0: [None for _ in batches(base.loaders[0])]
        parts["validate"] = lambda e=0: evaluate(base.network, base.loaders[1], accelerator)
        taken: Seconds = defaultdict(list)
        for epoch in range(options.epochs + 1):  # the first one warms up
            for name, run in parts.items():
                accelerator.wait_for_everyone()
                cpu, clock = time.process_time(), time.perf_counter()
                run(e=epoch)
                found = time.process_time() - cpu, time.perf_counter() - clock
                if epoch:
                    taken[name].append(found)
    out.put(dict(taken))


def in_processes(processes: int, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Return the median seconds of an epoch: the mean of the processes' own, and the slowest's by the clock."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    out = context.SimpleQueue()
    several = [
        context.Process(target=measure, args=(i, processes, port, options, out))
        for i in range(processes)
    ]
    for process in several:
        process.start()
    found: list[Seconds] = [out.get() for _ in several]
    for process in several:
        process.join()
    return {
        part: (
            statistics.median(
                statistics.mean(s[part][e][0] for s in found) for e in range(options.epochs)
            ),
            statistics.median(max(s[part][e][1] for s in found) for e in range(options.epochs)),
        )
        for part in PARTS
    }


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="netaugfx:tiny_mobilenet")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--batch", type=int, default=32, help="images per step of all processes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    options = parser.parse_args()
    lines = [
        f"| processes | seconds | {' | '.join(PARTS)} | NetAug's overhead |",
        f"| ---: | --- |{' ---: |' * (len(PARTS) + 1)}",
    ]
    for processes in (1, 2):
        found = in_processes(processes, options)
        for i, kind in enumerate(("of each process", "by the clock")):
            data, baseline, netaug, validate = (found[part][i] for part in PARTS)
            more = (netaug + validate) / (baseline + validate) - 1
            figures = f"{data:.2f} | {baseline:.2f} | {netaug:.2f} | {validate:.2f} | {more:.0%}"
            lines.append(f"| {processes} | {kind} | {figures} |")
            print(lines[-1], flush=True)
    publish(
        options.write,
        f"An epoch of {options.model} on {options.data}, batch {options.batch}, {options.epochs} epochs, "
        f"{'channels last' if options.channels_last else 'contiguous'};",
        lines,
    )


if __name__ == "__main__":
    main()
