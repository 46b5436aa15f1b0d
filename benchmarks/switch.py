"""Question: what does another config cost: to lay it out, to draw it, to count its MACs, to extract it?

    OMP_NUM_THREADS=1 python benchmarks/switch.py [--models NAME ...] [--configs 30] [--write NAME]

Milliseconds, medians over configs that were not seen before, each side in turn:
  switch   what a config that was not seen before adds to its first pass: its counts and layouts, and what putting
           its tensors together takes more for the first time than for the second
  sample   wide.sample();  budget: wide.sample(budget=2), after the first one, and first: the first one
  macs     wide.macs(config);  extract: netaugfx.extract(wide, config)
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import torch
from timing import MODELS, build, publish, seconds

import netaugfx
from netaugfx.rewrite import Bound

COLUMNS = ("switch", "sample", "budget", "first", "macs", "extract")


def measure(name: str, side: int, configs: int) -> tuple[int, dict[str, float]]:
    """Return the number of layers with Parameters, and milliseconds by column."""
    model = build(name).to("meta").train()
    x = torch.empty(2, 3, side, side, device="meta")
    wide = netaugfx.widen(model, example_inputs=x, verify=False)
    generator = torch.Generator().manual_seed(0)
    first = seconds(lambda: wide.sample(generator, budget=2))
    program, _ = wide.program((x,), {})
    wide.bound(program, wide.max_config)
    taken: dict[str, list[float]] = {column: [] for column in COLUMNS}
    taken["first"].append(first)
    with torch.no_grad():
        for i in range(configs):
            config = wide.sample(generator)
            laid = seconds(lambda c=config: wide.bound(program, c))
            bound = wide.bound(program, config)
            first = seconds(lambda b=bound: put_together(b, len(program.sites)))
            again = seconds(lambda b=bound: put_together(b, len(program.sites)))
            taken["switch"].append(laid + first - again)
            taken["sample"].append(seconds(lambda: wide.sample(generator)))
            taken["budget"].append(seconds(lambda: wide.sample(generator, budget=2)))
            taken["macs"].append(seconds(lambda c=config: wide.macs(c)))
            if i < 2:
                taken["extract"].append(seconds(lambda c=config: netaugfx.extract(wide, c)))
    layers = sum(any(True for _ in m.parameters(recurse=False)) for m in model.modules())
    return layers, {column: statistics.median(t) * 1e3 for column, t in taken.items()}


def put_together(bound: Bound, sites: int) -> None:
    """Read every tensor of a config as a pass does, in groups."""
    one = bound.begin()
    for i in range(sites):
        one.tensor(i)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--configs", type=int, default=30)
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines = [
        f"| model | layers | {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * (len(COLUMNS) + 1)}",
    ]
    for name in options.models:
        layers, found = measure(name, options.side, options.configs)
        lines.append(f"| {name} | {layers} | {' | '.join(f'{found[c]:.2f}' for c in COLUMNS)} |")
        print(lines[-1], flush=True)
    publish(
        options.write, f"Milliseconds, {options.side} pixels, {options.configs} configs;", lines
    )


if __name__ == "__main__":
    main()
