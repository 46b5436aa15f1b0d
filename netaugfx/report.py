"""What is elastic, what is pinned and why: as text and as a graph."""

from __future__ import annotations

import networkx as nx

from .model import WideModel
from .plan import Plan


def describe(wide_or_plan: WideModel | Plan) -> str:
    """Return a table of widths (name, kind, choices, layers), of pins with their reasons, and of opaque modules."""
    plan = wide_or_plan.plan if isinstance(wide_or_plan, WideModel) else wide_or_plan
    rows = [("width", "kind", "sizes", "layers")]
    rows += [(w.name, w.kind, " ".join(map(str, w.choices)), _few(w.layers)) for w in plan.widths]
    lengths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [
        "  ".join(
            (*(cell.ljust(n) for cell, n in zip(row[:3], lengths, strict=True)), row[3])
        ).rstrip()
        for row in rows
    ]
    if plan.pinned:
        lines += ["", "pinned"]
        lines += [f"  {name}: {reason}" for name, reason in plan.pinned.items()]
    if plan.opaque:
        lines += ["", "left as they are"]
        lines += [f"  {path}: {reason}" for path, reason in plan.opaque.items()]
    lines += [
        "",
        f"{len(plan.widths)} widths, elastic share {plan.elastic_share:.3f}, "
        f"{plan.augmented_elements:,} numbers in blocks",
    ]
    return "\n".join(lines)


def _few(layers: tuple[str, ...], most: int = 4) -> str:
    rest = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {rest} more" if rest > 0 else "")


def to_networkx(plan: Plan) -> nx.DiGraph:
    """Return a directed graph from every width to the layers that it spans, in graph order.

    Nodes have `kind`: `stream`, `inner`, `pinned` or `layer`; widths also `base` and `choices`, pinned ones `reason`.
    """
    graph = nx.DiGraph()
    for w in plan.widths:
        graph.add_node(("width", w.name), kind=w.kind, base=w.base, choices=w.choices)
        for layer in w.layers:
            graph.add_node(("layer", layer), kind="layer")
            graph.add_edge(("width", w.name), ("layer", layer))
    for name, reason in plan.pinned.items():
        graph.add_node(("width", name), kind="pinned", reason=reason)
    return graph
