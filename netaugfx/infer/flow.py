"""Typed graphs -> the data flow between layers: what `describe` cannot say in a table, and a picture can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..plan import Layer
from ..trace import Traced
from ..unify import OpenAxis, Var, resolve, variables


def flow(
    traces: Sequence[Traced],
    axes: Sequence[Mapping[fx.Node, Any]],
    names: Mapping[Var, str],
) -> tuple[Layer, ...]:
    """Return the layers of a model in graph order, each with what flows into it.

    A layer is a module with Parameters or buffers that the graph uses, or an opaque one; an operator without them
    is passed through, unless several flows meet in it: then it is a join.

    Args:
        traces: Graphs of one model. What a later one has beyond the first comes after it.
        axes: For each graph, node -> the axes of its value (trees of them where it has several tensors).
        names: Of the widths, pinned ones included.
    """
    found: dict[str, Layer] = {}
    for traced, typed in zip(traces, axes, strict=True):
        for layer in _graph(traced, typed, names).values():
            old = found.get(layer.name, layer)
            inputs = tuple(dict.fromkeys((*old.inputs, *layer.inputs)))
            found[layer.name] = Layer(old.name, old.type, old.is_join, old.widths, inputs)
    return tuple(found.values())


def _graph(
    traced: Traced, typed: Mapping[fx.Node, Any], names: Mapping[Var, str]
) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    sources: dict[fx.Node, tuple[str, ...]] = {}  # what flows into the users of a node
    owners: dict[fx.Node, tuple[str, ...]] = {}  # whose Parameters a node is computed from, alone
    depends = {node for node in traced.graph.nodes if node.op == "placeholder"}
    for node in traced.graph.nodes:
        if node.op == "get_attr" and node.target not in traced.constants:
            owners[node] = (str(node.target).rpartition(".")[0] or str(node.target),)
            continue
        if not node.op.startswith("call"):
            continue
        if not any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val"))):
            continue
        before = node.all_input_nodes
        own = _once(owners.get(n, ()) for n in before)
        came = _once(sources.get(n, ()) for n in before)
        if node.op == "call_module":
            module = traced.root.get_submodule(str(node.target))
            state = any(True for _ in (*module.parameters(), *module.buffers()))
            if state or node.target in traced.opaque:
                own = (str(node.target),)
        elif not any(n in depends for n in before):
            owners[node] = own
            continue
        depends.add(node)
        if own:
            name, kind = own[0], _type(traced.root, own[0])
        elif len(came) > 1:
            name, kind = _join_name(node, found), _operator(node)
        else:
            sources[node] = came
            continue
        inputs = tuple(s for s in came if s != name)
        if name in found:
            inputs = tuple(dict.fromkeys((*found[name].inputs, *inputs)))
        widths = _widths(typed.get(node), names)
        found[name] = Layer(name, kind, not own, widths, inputs)
        sources[node] = (name,)
    return found


def _once(parts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(x for part in parts for x in part))


def _type(root: nn.Module, path: str) -> str:
    try:
        return type(root.get_submodule(path)).__name__
    except AttributeError:
        return "Parameter"


def _operator(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target).rpartition(".")[2]
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_") or "operator"


def _join_name(node: fx.Node, taken: Mapping[str, Layer]) -> str:
    """Return a name for a join: its module's path and the operator, numbered where there are several."""
    stem = f"{node.meta.get('path', '')}:{_operator(node)}"
    name, i = stem, 1
    while name in taken:
        name, i = f"{stem}_{i}", i + 1
    return name


def _widths(tree: Any, names: Mapping[Var, str]) -> tuple[str, ...]:
    """Return the widths of a tree of axes, in the order of the channels."""
    found: dict[str, None] = {}

    def axis(x: OpenAxis) -> None:
        found.update(dict.fromkeys(names[v] for v in variables(resolve(x)) if v in names))

    def walk(x: Any) -> None:
        if isinstance(x, dict):
            x = tuple(x.values())
        if not isinstance(x, tuple | list):
            return
        if _is_axis(x):
            axis(tuple(x))
            return
        for part in x:
            walk(part)

    walk(tree)
    return tuple(found)


def _is_axis(x: Any) -> bool:
    return bool(x) and all(
        isinstance(s, tuple) and bool(s) and all(isinstance(f, int | Var) for f in s) for s in x
    )
