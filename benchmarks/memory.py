"""Question: does being elastic cost memory, in a base pass, in a subnet's pass, in a NetAug step?

    OMP_NUM_THREADS=1 python benchmarks/memory.py [--models NAME ...] [--side 128] [--batch 32] [--device cpu]
        [--write NAME]

Each figure is one process: it builds the networks, runs a small batch once, drops the gradients, and reads how much
the peak of the resident set (on CUDA: of the allocator) exceeds what it held before, in MiB: activations and gradients.
  plain      the plain model           base     wide(x)
  extracted  extract(wide, c)          subnet   wide.at(c)(x)
  together   task(x, y)["loss"].backward(), one backward pass     apart   task.backward(x, y), two of them
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timing import build, publish

import netaugfx
from recipes.netaug import NetAugTask

MODES = ("plain", "base", "extracted", "subnet", "together", "apart")


def resident(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def peak(run: Callable[[], None], device: str) -> int:
    """Return by how many bytes the peak while `run` runs exceeds what is held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def measure(mode: str, options: argparse.Namespace) -> int:
    """Return the peak of one pass in bytes."""
    (name,) = options.models
    model = build(name).train().to(options.device)
    draw = functools.partial(torch.randn, device=options.device)
    x = draw(options.batch, 3, options.side, options.side)
    y = torch.zeros(options.batch, dtype=torch.long, device=options.device)
    wide = netaugfx.widen(model, example_inputs=x[:2], verify=False)
    config = wide.sample(torch.Generator().manual_seed(1))
    wide.sample = lambda *_, **__: config
    task = NetAugTask(wide, torch.nn.CrossEntropyLoss())
    networks = {"plain": model, "base": wide, "subnet": wide.at(config)}
    if mode == "extracted":
        networks[mode] = netaugfx.extract(wide, config)

    def run(x: torch.Tensor, y: torch.Tensor) -> None:
        if mode == "apart":
            task.backward(x, y)
        elif mode == "together":
            task(x, y)["loss"].backward()
        else:
            task.criterion(networks[mode](x), y).backward()

    run(x[:2], y[:2])
    for module in (model, wide, *networks.values()):
        if isinstance(module, torch.nn.Module):
            module.zero_grad()
    return peak(lambda: run(x, y), options.device)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", default=("mobilenetv2_035", "resnet18", "densenet121")
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    parser.add_argument("--mode", choices=MODES, help="measure one figure in this process")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.mode:
        print(measure(options.mode, options))
        return
    lines = [
        f"| MiB | {' | '.join(MODES)} | apart / larger of base and subnet |",
        f"| --- |{' ---: |' * (len(MODES) + 1)}",
    ]
    shared = [
        "--batch",
        str(options.batch),
        "--side",
        str(options.side),
        "--device",
        options.device,
    ]
    for name in options.models:
        found = {}
        for mode in MODES:
            command = [sys.executable, __file__, "--models", name, "--mode", mode, *shared]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[mode] = int(done.stdout.split()[-1]) / 2**20
        share = found["apart"] / max(found["base"], found["subnet"])
        lines.append(f"| {name} | {' | '.join(f'{found[m]:.0f}' for m in MODES)} | {share:.2f} |")
        print(lines[-1], flush=True)
    publish(
        options.write,
        f"Batch {options.batch}, {options.side} pixels, float32, {options.device}, one process a figure;",
        lines,
    )


if __name__ == "__main__":
    main()
