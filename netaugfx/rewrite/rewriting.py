"""(graph, Plan) -> graph at a config: elastic operators, and expressions of the config where channel counts stood.

The rewritten graph is one for all configs. Its first placeholder `bound` is the config with everything that depends on
it alone worked out beforehand; every other node is a plain function. Nodes that stand for a node of the traced graph
say so in `meta["origin"]`, so that `contract` is the inverse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..axes import size, widths_of
from ..infer import Typing, axes_read
from ..plan import Config, Plan
from ..rules import (
    BATCH_NORM,
    SUBNET_BATCH_NORMS,
    SUBNET_FORMS,
    Call,
    Path,
    Ref,
    Typed,
    layer_of,
    rule_of,
)
from ..trace import Guard, Traced
from .program import (
    TOGETHER,
    Program,
    Site,
    checked,
    constant,
    count,
    nothing,
    opaque,
    scaled,
    submodule,
    tensor,
)

FIRST = "bound"


def rewrite(traced: Traced, typing: Typing, plan: Plan) -> Program:
    """Return the graph of every config of `plan` for one traced graph. Neither is changed."""
    program = Program(traced, typing, fx.Graph())
    _Rewriter(program, plan).run()
    return program


class _Rewriter:
    def __init__(self, program: Program, plan: Plan) -> None:
        self.program, self.plan = program, plan
        self.graph = program.graph
        self.new: dict[fx.Node, fx.Node] = {}
        self.names = {node.name for node in program.traced.graph.nodes}
        self.index: dict[Any, int] = {}
        root = program.traced.root
        self.first: dict[int, str] = {}
        for name, t in [*root.named_parameters(), *root.named_buffers()]:
            self.first.setdefault(id(t), name)

    def run(self) -> None:
        name = FIRST
        while name in self.names:
            name = f"_{name}"
        self.bound = self.graph.placeholder(name)
        self.bound.meta["val"] = None
        read_of_data = _read_of_data(self.program)
        for node in self.program.traced.graph.nodes:
            made = self.node(node)
            made.meta["origin"] = node
            self.new[node] = made
            for guard in read_of_data.get(node, ()):
                self._call(checked, (self.bound, made, self._known(self.program.reads, guard)), {})
        self.graph.lint()
        self._group()
        self.program.run = fx.GraphModule(nn.Module(), self.graph).forward

    def node(self, node: fx.Node) -> fx.Node:
        traced, graph = self.program.traced, self.graph
        args: Any
        kwargs: Any
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.new[n])
        if node.op == "placeholder":
            return graph.create_node("placeholder", node.target, args, kwargs, name=node.name)
        if node.op == "output":
            made: fx.Node = graph.output(args[0])
            return made
        if node.op == "get_attr":
            target = str(node.target)
            if target in traced.constants:
                return self._call(constant, (self.bound, target), {}, node.name)
            if _unread(node):
                return self._call(nothing, (self.bound,), {}, node.name)
            return self._tensor(target, name=node.name, private=self._written(node))
        if node.op == "call_module":
            return self._module(node, args, kwargs)
        scaled_here = self.program.typing.scaled.get(node, ())
        for path, axis in self.program.typing.counts.get(node, {}).items():
            make = partial(self._scaled if path in scaled_here else self._count, axis)
            args, kwargs = replace_argument(args, kwargs, path, make)
        for path, number in self.program.typing.numbers.get(node, {}).items():
            args, kwargs = replace_argument(args, kwargs, path, partial(_instead, number))
        kwargs = {**kwargs, **self.program.typing.extra.get(node, {})}
        if node.op == "call_method":
            return graph.create_node("call_method", node.target, args, kwargs, name=node.name)
        function: Any = node.target
        return self._call(SUBNET_FORMS.get(function, function), args, kwargs, node.name)

    def _module(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        path = str(node.target)
        module = self.program.traced.root.get_submodule(path)
        layer = layer_of(module)
        if node in self.program.typing.calls and layer is not None:
            lowered = layer.lower(module, *args, **kwargs)
            return self._lowered(lowered, self.program.typing.calls[node], path, node.name)
        i = self._known(self.program.modules, path)
        own = [*module.named_parameters(), *module.named_buffers()]
        if not own:
            return self._call(submodule, (self.bound, i, *args), kwargs, node.name)
        tensors = {}
        if rule_of(module) is not None:
            names = [name for name, _ in own if self._canonical(f"{path}.{name}") in self.plan.axes]
            tensors = {name: self._tensor(f"{path}.{name}") for name in names}
        return self._call(opaque, (self.bound, i, tensors, *args), kwargs, node.name)

    def _lowered(self, call: Call, inferred: Call, path: str, name: str | None = None) -> fx.Node:
        args: list[Any] = []
        unread = UNREAD if _by_the_batch(call.target, call.args, call.kwargs) else ()
        for i, (a, b) in enumerate(zip(call.args, inferred.args, strict=True)):
            if isinstance(a, Call):
                args.append(self._lowered(a, b, path))
            elif isinstance(a, Ref):
                owner = self.program.traced.root.get_submodule(path)
                there = owner._parameters.get(a.name, owner._buffers.get(a.name))
                args.append(
                    None if there is None or i in unread else self._tensor(f"{path}.{a.name}")
                )
            else:
                args.append(a)
        new_args: Any = tuple(args)
        kwargs: Any = dict(call.kwargs)
        for at, axis in inferred.counts.items():
            new_args, kwargs = replace_argument(new_args, kwargs, at, partial(self._count, axis))
        return self._call(SUBNET_FORMS.get(call.target, call.target), new_args, kwargs, name)

    def _call(self, target: Any, args: Any, kwargs: Any, name: str | None = None) -> fx.Node:
        return self.graph.create_node("call_function", target, args, kwargs, name=name)

    def _canonical(self, name: str) -> str:
        path, _, leaf = name.rpartition(".")
        owner = self.program.traced.root.get_submodule(path)
        t = owner._parameters.get(leaf, owner._buffers.get(leaf))
        return self.first.get(id(t), name)

    def _tensor(self, target: str, private: bool = False, name: str | None = None) -> fx.Node:
        site = Site(self._canonical(target), private)
        return self._call(tensor, (self.bound, self._known(self.program.sites, site)), {}, name)

    def _count(self, axis: Any, original: Any) -> fx.Node:
        return self._call(count, (self.bound, self._known(self.program.sizes, axis), original), {})

    def _scaled(self, axis: Any, original: Any) -> fx.Node:
        base = size(axis, self.plan.base_config)
        i = self._known(self.program.sizes, axis)
        return self._call(scaled, (self.bound, i, base, original), {})

    def _group(self) -> None:
        """Group neighbours among the sites that can grow."""
        program, plan = self.program, self.plan
        here: list[int] = []
        total = 0
        for i, site in enumerate(program.sites):
            axes = plan.axes.get(site.name, ())
            if site.private or not any(True for axis in axes for _ in widths_of(axis)):
                continue
            n = prod(size(axis, plan.max_config) for axis in axes)
            if not here or total + n > TOGETHER:
                program.groups.append(here := [])
                total = 0
            here.append(i)
            total += n

    def _known(self, table: list[Any], item: Any) -> int:
        key = (id(table), item)
        if key not in self.index:
            self.index[key] = len(table)
            table.append(item)
        return self.index[key]

    def _written(self, node: fx.Node) -> bool:
        """Return whether the reader of a buffer or a plain tensor may write to it: then the subnet gets a copy."""
        owner_path, _, leaf = str(node.target).rpartition(".")
        owner = self.program.traced.root.get_submodule(owner_path)
        if leaf not in owner._buffers and leaf not in vars(owner):
            return False
        return _written(node)


def _written(node: fx.Node) -> bool:
    """Return whether something may write to the value of a node, or to a view of it."""
    for user in node.users:
        name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
        if user.target in SUBNET_FORMS:
            continue
        if user.op == "output" or rule_of(user.target) is None or name.endswith("_"):
            return True
        if name == "setitem" and user.args[0] is node:
            return True
        if name.startswith("i") and getattr(user.target, "__module__", "") == "_operator":
            return True
        if _same_storage(user.meta["val"], node.meta["val"]) and _written(user):
            return True
    return False


def _same_storage(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    same: bool = a.untyped_storage()._cdata == b.untyped_storage()._cdata
    return same


def _read_of_data(program: Program) -> dict[fx.Node, list[Guard]]:
    """Return by node what data or autocast, and no width, could change of what Python read."""
    guards = [guard for guard in program.traced.guards if guard.by_data or _of_dtype(guard.node)]
    found: dict[fx.Node, list[Guard]] = {}
    if not guards:
        return found
    typed = {
        node: Typed(node.meta["val"], axes)
        for node, axes in program.typing.axes.items()
        if isinstance(node.meta["val"], Tensor)
    }
    for guard in guards:
        tensor = typed.get(guard.node)
        axes: Any = tensor.axes[:1] if tensor else axes_read(guard.node, typed)
        if not any(True for axis in axes for _ in widths_of(axis)):
            found.setdefault(guard.node, []).append(guard)
    return found


def _of_dtype(node: fx.Node) -> bool:
    """Return whether this is a dtype or worked out from one: the meta device does not know autocast's."""
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return False
    return isinstance(value, torch.dtype) or any(map(_of_dtype, node.all_input_nodes))


UNREAD = (BATCH_NORM.index("running_mean"), BATCH_NORM.index("running_var"))


def _by_the_batch(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether this is a batch norm that normalises by the batch: in a subnet it has no running statistics."""
    if SUBNET_FORMS.get(target) not in SUBNET_BATCH_NORMS:
        return False
    return {**dict(zip(BATCH_NORM, args, strict=False)), **kwargs}.get("training") is True


def _unread(node: fx.Node) -> bool:
    """Return whether a tensor is read as running statistics of batch norms in training, and as nothing else."""
    return bool(node.users) and all(
        _by_the_batch(user.target, user.args, user.kwargs)
        and all(i in UNREAD for i, a in enumerate(user.args) if a is node)
        and all(k in BATCH_NORM[1:3] for k, a in user.kwargs.items() if a is node)
        for user in node.users
    )


def replace_argument(
    args: Any, kwargs: Any, path: Path, make: Callable[[Any], Any]
) -> tuple[Any, Any]:
    """Return the arguments with `make(original)` at `path`."""
    if isinstance(path[0], int):
        changed = list(args)
        changed[path[0]] = _inside(changed[path[0]], path[1:], make)
        return tuple(changed), kwargs
    return args, {**kwargs, path[0]: _inside(kwargs[path[0]], path[1:], make)}


def _inside(value: Any, path: Path, make: Callable[[Any], Any]) -> Any:
    if not path:
        return make(value)
    step = path[0]
    if isinstance(value, slice):
        bounds = {"start": value.start, "stop": value.stop, "step": value.step}
        bounds[str(step)] = make(bounds[str(step)])
        return slice(bounds["start"], bounds["stop"], bounds["step"])
    assert isinstance(value, Sequence)
    assert isinstance(step, int)
    items = list(value)
    items[step] = _inside(items[step], path[1:], make)
    return tuple(items) if isinstance(value, tuple) else items


def _times(graph: fx.Graph, ratio: Fraction, original: fx.Node) -> fx.Node:
    product = graph.call_function(operator.mul, (original, ratio.numerator))
    return graph.call_function(operator.floordiv, (product, ratio.denominator))


def _instead(n: int | float, _: Any) -> int | float:
    return n


def contract(program: Program, config: Config, plan: Plan) -> fx.Graph:
    """Return the plain graph of `program` at `config`: the inverse of `rewrite`.

    At `plan.base_config` it is the traced graph, node for node.
    """
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    at_base = config == plan.base_config
    for node in program.graph.nodes:
        origin = node.meta.get("origin")
        if origin is None:
            continue
        args, kwargs = map_arg((origin.args, origin.kwargs), lambda n: new[n])
        if not at_base:
            for path, axis in program.typing.counts.get(origin, {}).items():
                n = size(axis, config)
                make: Callable[[Any], Any] = partial(_instead, n)
                if path in program.typing.scaled.get(origin, ()):
                    ratio = Fraction(n, size(axis, plan.base_config))
                    make = partial(_times, graph, ratio)
                args, kwargs = replace_argument(args, kwargs, path, make)
            for path, number in program.typing.numbers.get(origin, {}).items():
                args, kwargs = replace_argument(args, kwargs, path, partial(_instead, number))
            kwargs = {**kwargs, **program.typing.extra.get(origin, {})}
        made = graph.create_node(origin.op, origin.target, args, kwargs, name=origin.name)
        made.meta.update(origin.meta)
        new[origin] = made
    return graph
