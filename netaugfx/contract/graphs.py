"""A rewritten graph as a network of plain modules: layers that know their mode, and guards for what Python read."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..rewrite import Program
from ..rules import BATCH_NORM
from ..trace import Applied, compute, substitute

OF_SIZE = {torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def with_modules(graph: fx.Graph, network: nn.Module) -> None:
    """Turn batch norm and dropout functions of `graph` into modules, which know train from eval mode.

    Where the batch norm's tensors are those of one module of `network`, a plain batch norm takes its place.
    """
    for node in list(graph.nodes):
        if node.target in OF_SIZE and (
            len(node.args) > 1 or (node.args and isinstance(node.args[0], int))
        ):
            node.args = (node.args,)  # torch.fx reads a pickled graph anew, where zeros(n, 4) fails
        if node.target is F.dropout:
            given = {**dict(zip(("input", "p"), node.args, strict=False)), **node.kwargs}
            name = f"dropout_of_{node.name}"
            network.add_module(name, nn.Dropout(given.get("p", 0.5)))
            network._modules[name].training = network.training  # type: ignore[union-attr]
            _replaced(graph, node, name, given["input"])
        if node.target is F.batch_norm:
            given = {**dict(zip(BATCH_NORM, node.args, strict=False)), **node.kwargs}
            read = {k: given.get(k) for k in BATCH_NORM[1:5]}
            paths = {
                str(n.target).rpartition(".")[0] if str(n.target).rpartition(".")[2] == k else None
                for k, n in read.items()
                if isinstance(n, fx.Node)
            }
            path = paths.pop() if len(paths) == 1 else None
            if path is None or any(
                isinstance(n, fx.Node) and n.op != "get_attr" for n in read.values()
            ):
                continue
            _place_norm(network, path, node.meta["val"].dim(), given)
            _replaced(graph, node, path, given["input"])
    for node in reversed(list(graph.nodes)):
        counter = node.op == "get_attr" and str(node.target).endswith("num_batches_tracked")
        if counter and all(user.target == "add_" and not user.users for user in node.users):
            for user in list(node.users):
                graph.erase_node(user)
            graph.erase_node(node)
        elif node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _replaced(graph: fx.Graph, node: fx.Node, path: str, source: Any) -> None:
    with graph.inserting_before(node):
        new = graph.call_module(path, (source,))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _place_norm(network: nn.Module, path: str, rank: int, given: Mapping[str, Any]) -> None:
    old = network.get_submodule(path)
    if type(old) in NORMS.values():
        return
    tracked, affine = given["running_mean"] is not None, given.get("weight") is not None
    n = next(
        len(t)
        for t in (*old._parameters.values(), *old._buffers.values())
        if t is not None and t.dim()
    )
    new = NORMS[rank](n, given.get("eps", 1e-5), given.get("momentum", 0.1), affine, tracked)
    new._parameters.update({k: p for k, p in old._parameters.items() if k in new._parameters})
    new._buffers.update({k: b for k, b in old._buffers.items() if k in new._buffers})
    for name, child in old.named_children():
        new.add_module(name, child)
    new.training = old.training
    owner, _, leaf = path.rpartition(".")
    network.get_submodule(owner)._modules[leaf] = new


def network_of(network: nn.Module, program: Program, graph: fx.Graph) -> fx.GraphModule:
    """Return a `GraphModule` that runs `graph` with the modules, tensors and flags of `network`."""
    for name, t in program.traced.constants.items():
        network.register_buffer(name, t.clone(), persistent=False)
    _by_class(graph, network)
    module = fx.GraphModule(network, graph)
    flags = {path: m.training for path, m in network.named_modules()}
    for path, m in module.named_modules():
        m.training = flags.get(path, network.training)
    return module


def _by_class(graph: fx.Graph, network: nn.Module) -> None:
    """Let `graph` find every `torch.autograd.Function` in `network`, which is pickled with the name of its class."""
    for node in list(graph.nodes):
        if isinstance(node.target, Applied):
            function: Any = node.target.function
            name = function.__name__
            while getattr(network, name, function) is not function:
                name = f"_{name}"
            setattr(network, name, function)
            with graph.inserting_before(node):
                found = graph.get_attr(name)
                made = graph.call_method("apply", (found, *node.args), node.kwargs)
            made.meta.update(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def add_guards(graph: fx.Graph, program: Program, sized: fx.GraphModule) -> None:
    """Let `graph` refuse inputs at which the forward would have taken another way.

    What Python read while tracing is compared with what it would read; what depends on channel counts, and so
    differs at this config, is left out.

    Args:
        graph: Is changed.
        program: What it was made of.
        sized: The plain graph of `program` at this config, on the meta device or not; it goes there.
    """
    inputs = [torch.empty_like(t, device="meta") for t in program.traced.inputs.tensors]
    seen = _values(sized.to("meta"), inputs, program.traced.device)
    named = {n.name: n for n in graph.nodes}
    for guard in program.traced.guards:
        name = guard.node.name
        if name not in named or name not in seen or not guard.holds(seen[name]):
            continue
        here = _Behind(graph, named[name])
        known: Any = guard.value
        if guard.read is len or isinstance(known, tuple):  # of keys
            read = here.call(len if guard.read is len else tuple, here.last)
        elif known is Tensor:
            read, known = here.call(hasattr, here.last, "is_leaf"), True
        elif isinstance(known, type):
            # torch.fx cannot write a class down
            read = here.call(getattr, here.call(type, here.last), "__name__")
            known = known.__name__
        elif isinstance(known, bool) and isinstance(seen[name], int | float):
            # not truth(), which torch.fx cannot read anew from a pickle
            read = (
                here.last if isinstance(seen[name], bool) else here.call(operator.ne, here.last, 0)
            )
        elif isinstance(known, int | float | str) and type(known) is type(seen[name]):
            read = here.last
        else:
            continue
        said = f"extracted for inputs at which this is {known} ({guard.source}); extract anew"
        here.call(torch._assert, here.call(operator.eq, read, known), said)


class _Behind:
    """Puts calls behind a node, one after the other."""

    def __init__(self, graph: fx.Graph, node: fx.Node) -> None:
        self.graph, self.last = graph, node

    def call(self, function: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.call_function(function, args)
        # what a proxy of torch.fx would answer at once, when the graph is read anew from a pickle
        self.last.meta["is_wrapped"] = function in (hasattr, len, tuple, type)
        return self.last


def _values(
    module: fx.GraphModule, inputs: Sequence[Tensor], device: torch.device
) -> dict[str, Any]:
    """Return the values that a graph computes from `inputs` on the meta device, by node name."""
    values: dict[fx.Node, Any] = {}
    tensors = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(tensors)
        elif node.op != "output":
            args, kwargs = substitute((node.args, node.kwargs), values.__getitem__)
            called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(called, nn.modules.batchnorm._BatchNorm):  # it may read how often it ran
                values[node] = torch.empty_like(args[0])
            else:
                try:
                    values[node] = compute(module, device, node.op, node.target, args, kwargs)
                except Exception:
                    if called is None:
                        raise
                    values[node] = node.meta[
                        "val"
                    ]  # it reads data, and nothing in it or before it grows
    return {n.name: v for n, v in values.items()}


def lines_of(graph: fx.Graph) -> list[str]:
    """Return the nodes as text, one naming another by its number; what Python alone read is left out."""
    live: dict[fx.Node, None] = {}
    for n in reversed(graph.nodes):
        python = getattr(n.target, "__module__", "") in ("_operator", "builtins", "math")
        value = n.meta.get("val")
        if not python or value is None or isinstance(value, Tensor) or live.keys() & n.users.keys():
            live[n] = None
    order = [n for n in reversed(live) if n.op != "get_attr"]  # read anywhere, it is the same
    number = {n: i for i, n in enumerate(order)}

    def named(n: fx.Node) -> tuple[str, Any]:
        return ("get", n.target) if n.op == "get_attr" else ("node", number[n])

    return [f"{n.op} {n.target} {fx.node.map_arg((n.args, dict(n.kwargs)), named)}" for n in order]
