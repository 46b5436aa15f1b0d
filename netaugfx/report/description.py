"""What is elastic, what is pinned and why: as text and as a graph."""

from __future__ import annotations

from typing import Any

import networkx as nx

from ..errors import PlanError
from ..model import WideModel
from ..plan import Plan


def describe(wide_or_plan: WideModel | Plan) -> str:
    """Return a table of widths (name, kind, choices, layers), of pins with their reasons, and of opaque modules."""
    plan = _plan_of(wide_or_plan, "describe")
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
        f"{plan.augmented_elements:,} numbers in blocks ({plan.block_memory()} in float32)",
    ]
    return "\n".join(lines)


def _plan_of(given: Any, what: str) -> Plan:
    if not isinstance(given, WideModel | Plan):
        raise PlanError(
            f"{what} expects what plan() or widen() returned; {type(given).__name__} came."
        )
    return given.plan if isinstance(given, WideModel) else given


def _few(layers: tuple[str, ...], most: int = 4) -> str:
    rest = len(layers) - most
    return ", ".join(layers[:most]) + (f" and {rest} more" if rest > 0 else "")


def to_networkx(wide_or_plan: WideModel | Plan) -> nx.DiGraph:
    """Return the data flow between the layers as a directed graph, its nodes in graph order.

    Nodes are the names of `plan.flow`: layers, and joins, in which several flows meet. Each has

    - `type`: the class of the module, or the operator of a join; `is_join`: which of the two it is,
    - `widths`: the widths of its output in the order of the channels, pinned ones included,
    - `pinned`: of these, width -> reason; `opaque`: why the module was left as it is, else None.

    The graph's own attributes are `widths`, a mapping from name to `Width`, `pinned` and `opaque`.
    """
    plan = _plan_of(wide_or_plan, "to_networkx")
    graph = nx.DiGraph(
        widths=dict(plan.by_name), pinned=dict(plan.pinned), opaque=dict(plan.opaque)
    )
    for layer in plan.flow:
        graph.add_node(
            layer.name,
            type=layer.type,
            is_join=layer.is_join,
            widths=layer.widths,
            pinned={w: plan.pinned[w] for w in layer.widths if w in plan.pinned},
            opaque=plan.opaque.get(layer.name),
        )
    graph.add_edges_from((source, layer.name) for layer in plan.flow for source in layer.inputs)
    return graph
