"""Question: does being elastic cost time, in a base pass, in a subnet's pass, in a NetAug step?

    python benchmarks/step.py [--models NAME ...] [--side 64] [--batch 32] [--pairs 15] --out docs/results/step.md

Forward and backward in train mode, interleaved A B A B in one process; the figure is the median of pairwise ratios.
  base    wide(x) over the plain model
  subnet  wide.at(c)(x) over extract(wide, c), for the same random config c (factor 3, diversity 2)
  netaug  base and subnet pass of the wide model over the plain model's pass and the extracted subnet's
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision

import netaugfx

MODELS = (
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "mnasnet_small",
    "resnet18",
    "regnetx_002",
    "efficientnet_b0",
    "densenet121",
    "torchvision:shufflenet_v2_x0_5",
    "convnext_atto",
)


def build(name: str) -> torch.nn.Module:
    """Return the untrained model of a timm name, or of `torchvision:NAME`."""
    if name.startswith("torchvision:"):
        return torchvision.models.get_model(name.partition(":")[2], weights=None)
    return timm.create_model(name)


def seconds(run: Callable[[], None]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def ratio(a: Callable[[], None], b: Callable[[], None], pairs: int) -> float:
    """Return the median over pairs of the time of `a` over that of `b`, run in turn."""
    for run in (a, b, a, b):
        run()
    return statistics.median(seconds(a) / seconds(b) for _ in range(pairs))


def measure(name: str, batch: int, side: int, pairs: int) -> tuple[float, float, float]:
    """Return the ratios of base pass, subnet pass and NetAug step."""
    torch.manual_seed(0)
    model = build(name).train()
    x = torch.randn(batch, 3, side, side)
    wide = netaugfx.widen(model, example_inputs=x[:2], verify=False)
    config = wide.sample(torch.Generator().manual_seed(1))
    plain, subnet = netaugfx.extract(wide, config).train(), wide.at(config)

    def step(*networks: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            for network in networks:
                network(x).sum().backward()
            for module in (model, wide, plain):
                module.zero_grad()

        return run

    return (
        ratio(step(wide), step(model), pairs),
        ratio(step(subnet), step(plain), pairs),
        ratio(step(wide, subnet), step(model, plain), pairs),
    )


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    lines = [
        f"Batch {options.batch}, {options.side} pixels, float32, {options.threads} thread(s), {options.pairs} pairs, "
        f"PyTorch {torch.__version__}, {platform.processor() or platform.machine()}, {time.strftime('%d %B %Y')}.",
        "",
        "| model | base / plain | subnet / extracted | NetAug step / sum of plain steps |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in options.models:
        base, subnet, step = measure(name, options.batch, options.side, options.pairs)
        lines.append(f"| {name} | {base:.3f} | {subnet:.3f} | {step:.3f} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
