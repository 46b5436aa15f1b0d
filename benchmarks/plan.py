"""Question: how long does it take to plan and widen a model, against the number of nodes of its graph?

    pip install torch-pruning
    OMP_NUM_THREADS=1 python benchmarks/plan.py [--models NAME ...] [--rounds 3] [--write NAME]
    OMP_NUM_THREADS=1 python benchmarks/plan.py --depths 1 3 10 30 100 250 500 [--picture FILE.png]

Seconds, the median of the rounds, in one process, in turn:
  trace     trace the eval graph                       infer     graph -> plan
  rewrite   graph and plan -> graph of every config    plan      netaugfx.plan: train and eval graphs, jointly
  widen     netaugfx.widen without verification        verify    netaugfx.verify on it
  others    Torch-Pruning's DependencyGraph().build_dependency and all of get_all_groups
With --depths, of chains of so many inverted residual blocks instead: how `plan` grows with the number of nodes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings

import torch
from timing import MODELS, build, publish, seconds

import netaugfx
from netaugfx.infer import infer
from netaugfx.rewrite import rewrite
from netaugfx.rules import is_leaf
from netaugfx.trace import trace

STAGES = ("trace", "infer", "rewrite", "plan", "widen", "verify", "others")


def others(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Build what Torch-Pruning builds."""
    import torch_pruning

    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    list(graph.get_all_groups())


def measure(name: str, side: int, rounds: int) -> tuple[int, dict[str, float | None]]:
    """Return the number of nodes, and the seconds of every stage; None where it fails."""
    model = build(name).eval()
    x = torch.randn(2, 3, side, side)
    traced = trace(model, (x,), is_leaf=is_leaf)
    made, (typing,) = infer([traced])
    plan = netaugfx.plan(model, example_inputs=x)
    wide = netaugfx.widen(model, plan=plan, example_inputs=x, verify=False)
    stages = {
        "trace": lambda: trace(model, (x,), is_leaf=is_leaf),
        "infer": lambda: infer([traced]),
        "rewrite": lambda: rewrite(traced, typing, made),
        "plan": lambda: netaugfx.plan(model, example_inputs=x),
        "widen": lambda: netaugfx.widen(model, example_inputs=x, verify=False),
        "verify": lambda: netaugfx.verify(wide),
        "others": lambda: others(model, x),
    }
    taken: dict[str, list[float]] = {stage: [] for stage in stages}
    for _ in range(rounds):
        for stage, run in stages.items():
            try:
                taken[stage].append(seconds(run))
            except Exception as error:
                print(f"{name}: {stage} fails: {type(error).__name__}: {str(error)[:200]}")
    medians = {stage: statistics.median(t) if t else None for stage, t in taken.items()}
    return len(traced.graph.nodes), medians


class Block(torch.nn.Module):
    """An inverted residual: 9 nodes in the graph of either mode."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(channels, inner, 1, bias=False),
            torch.nn.BatchNorm2d(inner),
            torch.nn.ReLU(),
            torch.nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            torch.nn.BatchNorm2d(inner),
            torch.nn.ReLU(),
            torch.nn.Conv2d(inner, channels, 1, bias=False),
            torch.nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def against_nodes(depths: list[int], rounds: int) -> list[tuple[int, float]]:
    """Return the number of nodes of both graphs, and the median seconds of `plan`, for each depth."""
    found = []
    x = torch.randn(2, 3, 8, 8)
    for depth in depths:
        blocks = [Block(8) for _ in range(depth)]
        ends = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), *blocks, *ends)
        nodes = sum(
            len(trace(model.train(mode), (x,), is_leaf=is_leaf).graph.nodes)
            for mode in (True, False)
        )
        taken = [seconds(lambda: netaugfx.plan(model, example_inputs=x)) for _ in range(rounds)]  # noqa: B023
        found.append((nodes, statistics.median(taken)))
    return found


def draw(found: list[tuple[int, float]], file: str) -> None:
    """Draw seconds against nodes on logarithmic axes, beside a line of slope 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    nodes, taken = zip(*found, strict=True)
    axes.loglog(nodes, taken, "o-", label="plan")
    axes.loglog(nodes, [taken[-1] * n / nodes[-1] for n in nodes], ":", label="in proportion")
    axes.set(xlabel="nodes of both graphs", ylabel="seconds")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(file, dpi=100)


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--write", metavar="NAME", help="the table's name in docs/results/performance.md"
    )
    parser.add_argument("--depths", nargs="+", type=int, help="blocks of the chains")
    parser.add_argument("--picture", metavar="FILE", help="seconds against nodes, with --depths")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.depths:
        found = against_nodes(options.depths, options.rounds)
        if options.picture:
            draw(found, options.picture)
        rows = [f"| {n:,} | {s:.3f} | {1e3 * s / n:.2f} |" for n, s in found]
        head = ["| nodes of both graphs | seconds | ms for each node |", "| ---: | ---: | ---: |"]
        publish(
            options.write,
            f"Chains of inverted residual blocks, {options.rounds} rounds;",
            [*head, *rows],
        )
        return
    logging.disable()
    lines = [
        f"| model | nodes | {' | '.join(STAGES[:-1])} | Torch-Pruning | plan / Torch-Pruning |",
        f"| --- |{' ---: |' * (len(STAGES) + 2)}",
    ]
    for name in options.models:
        nodes, found = measure(name, options.side, options.rounds)
        figures = ["-" if found[s] is None else f"{found[s]:.2f}" for s in STAGES]
        share = found["plan"] / found["others"] if found["others"] else None
        figures.append("-" if share is None else f"{share:.2f}")
        lines.append(f"| {name} | {nodes} | {' | '.join(figures)} |")
        print(lines[-1], flush=True)
    publish(options.write, f"Seconds, {options.side} pixels, {options.rounds} rounds;", lines)


if __name__ == "__main__":
    main()
