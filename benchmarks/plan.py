"""Question: how long does it take to plan and widen a model, against the number of nodes of its graph?

    pip install torch-pruning
    OMP_NUM_THREADS=1 python benchmarks/plan.py [--models NAME ...] [--rounds 3] [--write NAME]

Seconds, the median of the rounds, in one process, in turn:
  trace     trace the eval graph                       infer     graph -> plan
  rewrite   graph and plan -> graph of every config    plan      netaugfx.plan: train and eval graphs, jointly
  widen     netaugfx.widen without verification        verify    netaugfx.verify on it
  others    Torch-Pruning's DependencyGraph().build_dependency and all of get_all_groups
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
    options = parser.parse_args()
    warnings.simplefilter("ignore")
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
