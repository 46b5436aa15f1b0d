"""Question: does being elastic cost time, in a base pass, in a subnet's pass, in a NetAug step?

    OMP_NUM_THREADS=1 python benchmarks/step.py [--models NAME ...] [--side 64] [--batch 32] [--pairs 7]
        [--channels-last] [--autocast] [--system-memory] [--device cpu] [--write NAME]

Forward and backward in train mode, interleaved A B A B in one process; the figure is the median of pairwise ratios.
  base    wide(x) over the plain model
  subnet  wide.at(c)(x) over extract(wide, c), for the same random config c (factor 3, diversity 2)
  netaug  base and subnet pass of the wide model over the plain model's pass and the extracted subnet's
The C library keeps freed memory, as `netaugfx train` has it; with --system-memory it returns it to the system.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from timing import MODELS, build, publish, ratio

import netaugfx
from recipes.memory import keep_memory


def measure(name: str, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the ratios of base pass, subnet pass and NetAug step."""
    kind = torch.channels_last if options.channels_last else torch.contiguous_format
    model = build(name).train().to(options.device, memory_format=kind)
    x = torch.randn(options.batch, 3, options.side, options.side, device=options.device)
    x = x.contiguous(memory_format=kind)
    wide = netaugfx.widen(model, example_inputs=x[:2], verify=False)
    config = wide.sample(torch.Generator().manual_seed(1))
    plain, subnet = netaugfx.extract(wide, config).train(), wide.at(config)

    def step(*networks: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for network in networks:
                with torch.autocast(options.device, torch.bfloat16, enabled=options.autocast):
                    loss = network(x).float().sum()
                loss.backward()
            for module in (model, wide, plain):
                module.zero_grad()

        return run

    return (
        ratio(step(wide), step(model), options.pairs),
        ratio(step(subnet), step(plain), options.pairs),
        ratio(step(wide, subnet), step(model, plain), options.pairs),
    )


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--autocast", action="store_true", help="bfloat16")
    parser.add_argument("--system-memory", action="store_true", help="glibc as it comes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    options = parser.parse_args()
    if not options.system_memory:
        keep_memory()
    warnings.simplefilter("ignore")
    lines = [
        "| model | base / plain | subnet / extracted | NetAug step / sum of plain steps |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in options.models:
        base, subnet, step = measure(name, options)
        lines.append(f"| {name} | {base:.3f} | {subnet:.3f} | {step:.3f} |")
        print(lines[-1], flush=True)
    publish(
        options.write,
        f"Batch {options.batch}, {options.side} pixels, {'bfloat16 autocast' if options.autocast else 'float32'}, "
        f"{'channels last' if options.channels_last else 'contiguous'}, {torch.get_num_threads()} thread(s), "
        f"freed memory {'returned to the system' if options.system_memory else 'kept'}, "
        f"{options.pairs} pairs;",
        lines,
    )


if __name__ == "__main__":
    main()
