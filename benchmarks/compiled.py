"""Question: what does a pool of compiled subnets cost, and what does it gain?

    OMP_NUM_THREADS=1 python benchmarks/compiled.py [--models NAME ...] [--pool 2] [--side 64] [--batch 32]
        [--pairs 5] [--device cpu] [--write NAME]

Forward and backward in train mode; seconds to compile (the first pass of each config, wall time), then the median
ratio of a compiled pass to the eager one of the same network, in turn: the base, and the configs of the pool.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from timing import build, publish, ratio

import netaugfx


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mobilenetv3_small_050"])
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        "| model | network | seconds to compile | compiled / eager |",
        "| --- | --- | ---: | ---: |",
    ]
    for name in options.models:
        model = build(name).train().to(options.device)
        x = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
        wide = netaugfx.widen(model, example_inputs=x[:2], verify=False)
        generator = torch.Generator().manual_seed(0)
        pool: dict[netaugfx.Config, None] = {}
        while len(pool) < options.pool:
            pool[wide.sample(generator, pool=options.pool)] = None

        def step(network: Callable[[torch.Tensor], torch.Tensor]) -> None:
            network(x).sum().backward()  # noqa: B023 - called within this turn of the loop
            wide.zero_grad()  # noqa: B023

        pairs = [("base", wide, torch.compile(wide))]
        pairs += [("subnet", wide.at(c), torch.compile(wide.at(c))) for c in pool]
        found: dict[str, list[tuple[float, float]]] = {"base": [], "subnet": []}
        for kind, eager, compiled in pairs:
            start = time.perf_counter()
            step(compiled)
            taken = time.perf_counter() - start
            share = ratio(lambda n=compiled: step(n), lambda n=eager: step(n), options.pairs)
            found[kind].append((taken, share))
            print(name, kind, f"{taken:.1f} s", f"{share:.3f}", flush=True)
        for kind, figures in found.items():
            label = kind if kind == "base" else f"subnet, mean of {len(figures)}"
            taken, share = (statistics.mean(column) for column in zip(*figures, strict=True))
            lines.append(f"| {name} | {label} | {taken:.1f} | {share:.3f} |")
    publish(
        options.write,
        f"Batch {options.batch}, {options.side} pixels, float32, {options.device}, {torch.get_num_threads()} "
        f"thread(s), {options.pairs} pairs;",
        lines,
    )


if __name__ == "__main__":
    main()
