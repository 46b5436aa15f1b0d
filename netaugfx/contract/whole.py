"""Modules that an extracted graph keeps whole, since they differ between train and eval mode (a drop path by hand).

A graph of their operators would hold for one mode only; a call of the module holds for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, fx, nn

from ..rewrite import Program


def keep_whole(
    graphs: Sequence[fx.Graph],
    programs: Sequence[Program],
    same: Callable[[fx.Graph], bool],
) -> int | None:
    """Let one of two graphs of a network, of train and of eval mode, stand for both; return which, None if none can.

    Args:
        graphs: The plain graphs; one of them is changed.
        programs: What they were made of.
        same: Tells whether a graph, traced anew in either mode, is the graph of that mode.
    """
    root = programs[0].traced.root
    texts = [_by_module(graph) for graph in graphs]
    paths = [p for p in {**texts[0], **texts[1]} if texts[0].get(p) != texts[1].get(p)]
    paths = [p for p in paths if p and not any(q.startswith(f"{p}.") for q in paths)]
    for i, program in enumerate(programs):
        if all(
            p in texts[i] and _plain(root.get_submodule(p)) and _collapse(graphs[i], p, program)
            for p in paths
        ):
            return i if paths and same(graphs[i]) else None
    return None


def _by_module(graph: fx.Graph) -> dict[str, list[str]]:
    """Return the operators that each module calls, in order."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op.startswith("call"):
            found.setdefault(node.meta.get("path", ""), []).append(f"{node.op} {node.target}")
    return found


def _plain(module: nn.Module) -> bool:
    return not [*module.parameters(), *module.buffers()]


def _collapse(graph: fx.Graph, path: str, program: Program) -> bool:
    """Replace the operators of every call of the module at `path` by that call; return whether that can be."""
    typing = program.typing
    counted = {n.name for n in (*typing.counts, *typing.extra, *typing.numbers)}
    for nodes in list(_runs(graph, path)):
        inside = set(nodes)
        given = {m: None for n in nodes for m in n.all_input_nodes if m not in inside}
        taken = [n for n in nodes if any(user not in inside for user in n.users)]
        tensors = [n for n in given if isinstance(n.meta.get("val"), Tensor)]
        if len(given) != 1 or len(tensors) != 1 or len(taken) != 1:
            return False
        if any(n.name in counted for n in nodes):
            return False
        with graph.inserting_before(nodes[0]):
            call = graph.call_module(path, (tensors[0],))
        call.meta.update(taken[0].meta)
        taken[0].replace_all_uses_with(call)
        for n in reversed(nodes):
            graph.erase_node(n)
    return True


def _runs(graph: fx.Graph, path: str) -> Iterator[list[fx.Node]]:
    """Yield the stretches of nodes that the module at `path` makes."""
    run: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.meta.get("path", "") == path and node.op.startswith("call"):
            run.append(node)
        elif run:
            yield run
            run = []
