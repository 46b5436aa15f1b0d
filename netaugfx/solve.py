"""What inference knows of one model while it reads its graphs: the type of every Parameter and of every node."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from .axes import (
    ONE_FACTOR,
    Axis,
    OpenAxis,
    Var,
    choose,
    elastic,
    fixed,
    free,
    length,
    pin,
    resolve,
    variables,
)
from .errors import GuardError, PlanError
from .plan import Plan
from .rules import Call, NoRule, Op, Path, Ref, Typed, layer_of, rule_of
from .trace import Traced, is_plain

READS: frozenset[Any] = frozenset({operator.getitem, "size", getattr})
OUTPUT = "it is an output of the network"
LAYERS_OWN = {"weight", "bias", "in_proj_weight", "in_proj_bias", "running_mean", "running_var"}
FEW = 16  # segments; a pinned axis of more of them is listed as one
HARMLESS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "is_floating_point",
    "element_size",
}
RANKS = {"dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "element_size"}


@dataclass
class Typing:
    """What inference found out about one graph.

    Args (fields):
        axes: Node -> the elastic form of its value: an `Axis` per dimension where the value is a tensor, a tree of
            them where it is a tuple, list or dict, None for anything else.
        counts: Node -> which of its arguments are channel counts, and of which axis.
        calls: Node of a layer with Parameters -> the functions that it stands for.
        mixed: Nodes whose result depends on all channels, new ones included (a norm over channels).
        mixing: Node -> the axes that it would mix, while it is not yet known which of them grow.
        extra: Node -> keyword arguments that subnets add (the base's scale of an attention).
        numbers: Node -> which of its arguments are computed from channel counts but are no lengths, with the base's
            values, which subnets keep (`q / math.sqrt(q.shape[-1])`).
    """

    axes: dict[fx.Node, Any] = field(default_factory=dict)
    counts: dict[fx.Node, dict[Path, Axis]] = field(default_factory=dict)
    calls: dict[fx.Node, Call] = field(default_factory=dict)
    mixed: set[fx.Node] = field(default_factory=set)
    mixing: dict[fx.Node, list[OpenAxis]] = field(default_factory=dict)
    extra: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[fx.Node, dict[Path, Any]] = field(default_factory=dict)


class Solver:
    """The variables of one model while its graphs are read."""

    def __init__(self, root: nn.Module, plan: Plan | None) -> None:
        self.tensors: dict[str, Tensor] = {
            **dict(root.named_parameters()),
            **dict(root.named_buffers()),
        }
        self.first: dict[int, str] = {}
        for name, tensor in self.tensors.items():
            self.first.setdefault(id(tensor), name)
        self.root = root
        self.modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
        self.plan = plan
        self.seeds = {w.name: Var(w.base, given=True) for w in plan.widths} if plan else {}
        self.parameters: dict[str, tuple[OpenAxis, ...]] = {}
        self.summed: dict[str, set[int]] = {}
        self.summed_factors: list[tuple[str, int, OpenAxis]] = []
        self.fills: dict[str, float] = {}
        self.weights: dict[str, OpenAxis] = {}  # of convolution and linear layers: output channels
        self.touched: list[tuple[str, OpenAxis]] = []
        self.ordered: list[OpenAxis] = []
        self.numbers: list[tuple[str, list[OpenAxis], OpenAxis]] = []
        self.computed: list[tuple[str, dict[Path, OpenAxis], Path, list[OpenAxis]]] = []
        self.opaque: dict[str, str] = {}

    def parameter(self, name: str) -> Typed | None:
        """Return a Parameter or buffer by any of its names, typed."""
        tensor = self._tensor(name)
        if tensor is None:
            return None
        name = self.first.get(id(tensor), name)
        if name not in self.parameters:
            if self.plan is None:
                plain = self._plain_axes(name, tensor)
                self.parameters[name] = tuple(
                    fixed(n) if i in plain else free(n) for i, n in enumerate(tensor.shape)
                )
            else:
                axes = self.plan.axes.get(name)
                self.parameters[name] = (
                    tuple(self._seeded(axis) for axis in axes)
                    if axes is not None
                    else tuple(fixed(n) for n in tensor.shape)
                )
        return Typed(tensor, self.parameters[name], name)

    def _tensor(self, name: str) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        owner = self.modules.get(path)
        if owner is None:
            return None
        for room in (owner._parameters, owner._buffers):
            if leaf in room:
                return room[leaf]
        return None

    def _plain_axes(self, name: str, tensor: Tensor) -> set[int]:
        """Return the axes that are no widths: a kernel's extent, a length of 1 meant to be repeated, an index's."""
        path, _, leaf = name.rpartition(".")
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:  # an index into something
            return set(range(tensor.dim()))
        m = self.modules[path]
        if is_plain(m, leaf):
            return set(range(tensor.dim()))
        if leaf == "weight" and isinstance(m, nn.modules.conv._ConvNd):
            return set(range(2, tensor.dim()))
        if leaf in LAYERS_OWN:
            return set()
        return {i for i, n in enumerate(tensor.shape) if n == 1}

    def _seeded(self, axis: Axis) -> OpenAxis:
        return tuple(
            tuple(self.seeds[f] if isinstance(f, str) else f for f in segment) for segment in axis
        )

    def graph(self, traced: Traced) -> Typing:
        """Read one graph."""
        typed: dict[fx.Node, Any] = {}
        typing = Typing()
        for node in traced.graph.nodes:
            value = node.meta.get("val")
            result, counts = self._node(node, value, typed, typing, traced)
            typed[node] = result
            if counts:
                typing.counts[node] = counts
            path = node.meta.get("path", "")
            if node.op.startswith("call"):
                for t in self._typed(result):
                    self.touched += [(path, axis) for axis in t.axes]
                for argument in (n for n in node.all_input_nodes if n.op != "get_attr"):
                    for t in self._typed(typed[argument]):
                        self.touched += [(path, axis) for axis in t.axes]
        typing.axes = {node: _axes(tree) for node, tree in typed.items()}
        return typing

    @staticmethod
    def _typed(tree: Any) -> list[Typed]:
        leaves = tree_leaves(tree, is_leaf=lambda x: isinstance(x, Typed))
        return [x for x in leaves if isinstance(x, Typed)]

    def _node(
        self,
        node: fx.Node,
        value: Any,
        typed: Mapping[fx.Node, Any],
        typing: Typing,
        traced: Traced,
    ) -> tuple[Any, dict[Path, Any]]:
        if node.op == "placeholder":
            return _plain(value), {}
        if node.op == "get_attr":
            found = (
                None if str(node.target) in traced.constants else self.parameter(str(node.target))
            )
            return (found or _plain(value)), {}
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: typed[n])
        inputs = self._typed((args, kwargs))
        if node.op == "output":
            for t in inputs:
                for axis in t.axes:
                    pin(axis, OUTPUT)
            return None, {}
        if node.target is operator.getitem and not isinstance(args[0], Typed | None):
            tree: Any = args[0]
            return (tree[args[1]] if self._typed(tree) else value), {}
        if node.target is getattr and isinstance(args[0], tuple) and self._typed(args[0]):
            source: Any = node.args[0]
            members = source.meta["val"]
            member = getattr(members, str(args[1]))
            named = [t for t, v in zip(args[0], members, strict=True) if v is member]
            return (named[0] if named else value), {}
        # a dataclass or named tuple is made, which only outputs are
        if isinstance(node.target, type):
            self._pin(inputs, OUTPUT)
            return value, {}
        writes = node.target is operator.setitem
        if not writes and not any(isinstance(v, Tensor) for v in tree_leaves(value)):
            if inputs and not _harmless(node):
                self._pin(inputs, f"{where(node)} has no rule")
            return value, {}
        target: Any = node.target
        parameter = None
        if node.op == "call_module":
            target = self.modules[str(node.target)]
            if node.target in traced.opaque:
                self._pin(inputs, f"module '{node.target}' could not be traced")
                return _plain(value), {}
            layer = layer_of(target)
            if layer is not None and not _altered(target):
                call = layer.lower(target, *args, **kwargs)
                typing.calls[node] = call
                return self._call(call, value, node, typing), {}

            def parameter(name: str) -> Typed | None:
                return self.parameter(f"{node.target}.{name}")

            if _altered(target):
                why = f"{where(node)} {_altering(target)}"
                self.opaque[str(node.target)] = why
                self._pin(inputs, why)
                return _plain(value), {}
        op = Op(
            where(node),
            args,
            kwargs,
            value,
            module=target if isinstance(target, nn.Module) else None,
            parameter=parameter,
            derived=_derived(node),
            computed=_derived(node, READS),
            lengths=_lengths(node, typed),
        )
        return self._apply(op, target, value, node, typing, typed)

    def _apply(
        self,
        op: Op,
        target: Any,
        value: Any,
        node: fx.Node,
        typing: Typing,
        typed: Mapping[fx.Node, Any] = {},
    ) -> tuple[Any, dict[Path, Any]]:
        rule = rule_of(target)
        axes: Any = None
        why = "has no rule"
        if rule is not None:
            try:
                axes = rule(op)
                _check(axes, value)
            except NoRule as form:
                rule, why = None, str(form) or why
            except (
                Exception
            ) as error:  # a rule that fails must not stop inference: its operator is pinned
                self._pin(
                    op.tensors, f"{op.where}: its rule failed ({type(error).__name__}: {error})"
                )
                return _plain(value), {}
        if rule is None:
            extra = []
            if op.module is not None:
                mine = [n for n, _ in op.module.named_parameters(recurse=False)]
                extra = [t for n in mine if (t := op.parameter(n)) is not None]
            self._pin([*op.tensors, *extra], f"{op.where} {why}")
            return _plain(value), {}
        typing.mixing.setdefault(node, []).extend(op.mixing)
        self.ordered += op.in_order
        if op.extra:
            typing.extra[node] = op.extra
        for name, axis, of in op.summed:
            if of is None:
                self.summed.setdefault(name, set()).add(axis)
            else:
                self.summed_factors.append((name, axis, of))
        self.fills.update(op.filled)
        self.weights.update({name or f"computed for {node.name}": a for name, a in op.layers})
        for path, unless in op.numbers.items():
            source = _argument(node, path)
            if isinstance(source, fx.Node) and isinstance(source.meta["val"], int | float):
                axes_read = _read(source, typed)
                typing.numbers.setdefault(node, {})[path] = (
                    source.meta["val"],
                    axes_read,
                    unless,
                )
                self.numbers.append((where(node), axes_read, unless))
        for path in op.counts:
            source = _argument(node, path) if path in op.computed else None
            if isinstance(source, fx.Node):
                self.computed.append((op.where, op.counts, path, _read(source, typed)))
        return _join(value, axes), op.counts

    def _call(self, call: Call, value: Any, node: fx.Node, typing: Typing) -> Any:
        """Infer a lowered layer: the innermost call first."""

        def typed(x: Any) -> Any:
            if isinstance(x, Call):
                return self._call(x, None, node, typing)
            if isinstance(x, Ref):
                return self.parameter(f"{node.target}.{x.name}")
            return x

        args = tuple(typed(a) for a in call.args)
        kwargs = {k: typed(a) for k, a in call.kwargs.items()}
        if value is None:
            values = tree_map(
                lambda t: t.value if isinstance(t, Typed) else t,
                (args, kwargs),
                is_leaf=lambda t: isinstance(t, Typed),
            )
            value = call.target(*values[0], **values[1])
        op = Op(where(node), args, kwargs, value)
        result, counts = self._apply(op, call.target, value, node, typing)
        call.counts = counts
        return result

    @staticmethod
    def _pin(tensors: Iterable[Typed], reason: str) -> None:
        for t in tensors:
            for axis in t.axes:
                pin(axis, reason)

    # -------------------------------------------------------------------------------------- after the graphs

    def keep_numbers(self) -> None:
        """Pin what is computed with as a number together with lengths that are not channel counts.

        A number of channel counts alone stays the base's; of an image's size, it must follow. A length such as
        `B * C * H` follows by itself where it is computed from the widths of its own axis, and is no number then.
        """
        for here, counts, path, read in self.computed:
            axis = resolve(counts[path]) if path in counts else ()
            own = {v for v in variables(axis) if v.reason is None}
            if not own or all(len(segment) == 1 for segment in axis):
                continue
            plain = [one for one in map(resolve, read) if not variables(one)]
            if {v for one in read for v in variables(resolve(one)) if v.reason is None} == own:
                del counts[path]
            elif plain:
                for one in (axis, *read):
                    pin(
                        one,
                        f"{here} computes its length from that of other channels and an image's size",
                    )
        for here, axes, unless in self.numbers:
            if (
                not elastic(unless)
                and any(elastic(a) for a in axes)
                and any(not variables(resolve(a)) for a in axes)
            ):
                for axis in axes:
                    pin(axis, f"{here} computes with its length and that of another axis at once")

    def check(self) -> None:
        """Raise if a width of the given plan had to be bound or pinned."""
        for name, v in self.seeds.items():
            if v.reason is not None or v.bound is not None:
                why = v.reason or "its channels fall apart otherwise"
                raise GuardError(
                    f"The plan does not fit this graph: width {name!r} cannot grow here, since {why}. The graph "
                    "depends on the inputs or on train and eval flags; plan with example_inputs like these, or "
                    f"keep the layers of {name!r}."
                )

    def keep(self, globs: Iterable[str], root: nn.Module) -> None:
        """Pin the widths of every Parameter whose module matches one of `globs`."""
        if isinstance(globs, str):
            globs = (globs,)
        paths = [path for path, _ in root.named_modules() if path]
        for glob in globs:
            under = {p for p in paths if fnmatchcase(p, glob)}
            if not under:
                raise PlanError(
                    f"keep: no module matches {glob!r}; modules are {', '.join(paths[:8])} ..."
                )
            for name, axes in self.parameters.items():
                owner = name.rpartition(".")[0]
                if any(owner == p or owner.startswith(f"{p}.") for p in under):
                    for axis in axes:
                        pin(axis, f"it is kept by keep={glob!r}")

    def require_makers(self) -> None:
        """Pin what only buffers and sums have: a width needs a Parameter that makes its channels."""
        made = {
            v
            for name, axes in self.parameters.items()
            if isinstance(self._tensor(name), nn.Parameter)
            for i, axis in enumerate(axes)
            if i not in self.summed.get(name, ())
            for v in variables(resolve(axis))
        }
        for axes in self.parameters.values():
            for axis in axes:
                for v in variables(resolve(axis)):
                    if v not in made and v.reason is None:
                        v.reason = "no Parameter makes these channels"

    def choose(self) -> None:
        """Let one factor of every product grow."""
        here = [axis for axes in self.parameters.values() for axis in axes]
        choose([*here, *dict.fromkeys(axis for _, axis in self.touched)])
        for name, axis, of in self.summed_factors:
            if elastic(of):
                self.summed.setdefault(name, set()).add(axis)

    def names(self) -> dict[Var, str]:
        """Name every variable after the first layer that has it, with an index where that layer has several."""
        names: dict[Var, str] = {}
        taken: set[str] = set()
        for parameter, axes in self.parameters.items():
            owner = parameter.rpartition(".")[0] or parameter
            for i, axis in enumerate(axes):
                axis = resolve(axis)
                distinct = list(dict.fromkeys(variables(axis)))
                taken_in = i in self.summed.get(parameter, ())
                if (
                    len(distinct) > 1 or taken_in
                ):  # the factors that stay are no width of this layer
                    alone = {one[0] for s in axis if len(one := variables((s,))) == 1}
                    distinct = [v for v in distinct if not _stays(v, alone)]
                if len(distinct) > FEW and all(v.reason for v in distinct):
                    distinct = distinct[
                        :1
                    ]  # an axis that slices cut to pieces and something pinned
                new = [v for v in distinct if v not in names]
                for v in new:
                    name = owner if len(distinct) == 1 else f"{owner}[{distinct.index(v)}]"
                    if name in taken:
                        name = f"{parameter}:{i}" + (
                            f"[{distinct.index(v)}]" if len(distinct) > 1 else ""
                        )
                    names[v] = name
                    taken.add(name)
        touched = dict.fromkeys(axis for _, axis in self.touched)
        touching = {v for axis in touched for v in variables(resolve(axis))}
        return {v: n for v, n in names.items() if v in touching or v.reason is None}

    def kinds(self, traces: Sequence[Traced]) -> dict[Var, str]:
        """Tell for every variable whether it lies wholly within one block."""
        places: dict[Var, list[str] | None] = {}
        cache: dict[OpenAxis, list[Var]] = {}
        for path, axis in self.touched:
            if axis not in cache:
                cache[axis] = variables(resolve(axis))
            for v in cache[axis]:
                parts = path.split(".") if path else []
                old = places.get(v)
                places[v] = parts if old is None else _common(old, parts)
        kinds: dict[Var, str] = {}
        for axes in self.parameters.values():
            for axis in axes:
                for v in variables(resolve(axis)):
                    parts = list(places.get(v) or [])
                    while parts and _container(self.modules[".".join(parts)]):
                        parts.pop()
                    kinds[v] = "inner" if parts else "stream"
        return kinds

    def share(self) -> tuple[float, int]:
        """Return the elastic output channels of convolution and linear layers over all, and how many there are."""
        elastic = total = 0
        for axis in self.weights.values():
            for segment in resolve(axis):
                n = 1
                for f in segment:
                    n *= f if isinstance(f, int) else f.size
                inside = [f for f in segment if isinstance(f, Var)]
                if any(v.reason == OUTPUT for v in inside):
                    continue
                total += n
                elastic += n if any(v.reason is None for v in inside) else 0
        return (elastic / total if total else 1.0), total

    def spans(self, names: Mapping[Var, str]) -> dict[Var, tuple[str, ...]]:
        """Return the layers one of whose axes each variable spans."""
        layers: dict[Var, dict[str, None]] = {v: {} for v in names}
        for parameter, axes in self.parameters.items():
            owner = parameter.rpartition(".")[0] or parameter
            for axis in axes:
                for v in variables(resolve(axis)):
                    if v in layers:
                        layers[v][owner] = None
        return {v: tuple(found) for v, found in layers.items()}


def where(node: fx.Node) -> str:
    """Return how messages call a node: the operator, and the user's line."""
    source = node.meta.get("source", "unknown source")
    if node.op == "call_module":
        return f"'{node.target}' ({source})"
    name = (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", node.target)
    )
    return f"{name}() ({source})"


def _harmless(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target) in HARMLESS
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    return node.target in (getattr, len, isinstance) or name in HARMLESS | {"_assert", "is_tensor"}


def _altered(module: nn.Module) -> bool:
    """Return whether the weight of a torch layer is not simply its Parameter (old spectral norm, say)."""
    return "weight" not in module._parameters and hasattr(module, "weight")


def _altering(module: nn.Module) -> str:
    """Return how a layer's weight comes about that is not simply its Parameter."""
    lists: Any = getattr(module, "parametrizations", {})
    names = [type(p).__name__.strip("_") for several in lists.values() for p in several]
    if "SpectralNorm" in names:
        return (
            "divides its weight by the largest singular value of the whole, estimated by iterations "
            "whose state belongs to the base (SpectralNorm)"
        )
    if names:
        return f"computes its weight from other Parameters ({', '.join(names)})"
    return "computes its weight from other Parameters"


def _argument(node: fx.Node, path: Path) -> Any:
    """Return what stands at `path` among the arguments of a node."""
    found: Any = node.args if isinstance(path[0], int) else node.kwargs
    for step in path:
        found = found[step]
    return found


def _shape(node: Any, typed: Mapping[fx.Node, Any]) -> Sequence[OpenAxis] | None:
    """Return the axes whose lengths a node holds (`x.shape`, `x.size()`, `x.shape[2:]`), None for any other."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source: Any = node.args[0]
    if node.target is operator.getitem and isinstance(node.args[1], slice):
        found = _shape(source, typed)
        bounds = (node.args[1].start, node.args[1].stop, node.args[1].step)
        literal = all(b is None or isinstance(b, int) for b in bounds)
        return None if found is None or not literal else found[node.args[1]]
    whole = node.target == "size" and len(node.args) == 1 and not node.kwargs
    tensor = typed.get(source) if isinstance(source, fx.Node) else None
    if isinstance(tensor, Typed) and (whole or node.args[1:] == ("shape",)):
        return tensor.axes
    return None


def _length(node: Any, typed: Mapping[fx.Node, Any]) -> OpenAxis | None:
    """Return the axis whose length a node reads (`x.shape[1]`, `x.size(1)`), None for any other node."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source: Any = node.args[0]
    index: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(index, int):
        return None
    if node.target is operator.getitem:
        axes = _shape(source, typed)
        return None if axes is None else axes[index]
    tensor = typed.get(source) if isinstance(source, fx.Node) else None
    return tensor.axes[index] if node.target == "size" and isinstance(tensor, Typed) else None


def _lengths(node: fx.Node, typed: Mapping[fx.Node, Any]) -> dict[Path, OpenAxis]:
    """Return which arguments of a node are lengths of axes, and of which."""
    found: dict[Path, OpenAxis] = {}
    for path in _derived(node):
        argument = _argument(node, path)
        axis, axes = _length(argument, typed), _shape(argument, typed)
        if axis is not None:
            found[path] = axis
        found |= {(*path, i): one for i, one in enumerate(axes or ())}
    return found


def _read(node: fx.Node, typed: Mapping[fx.Node, Any]) -> list[OpenAxis]:
    """Return the axes whose lengths a number depends on."""
    axis = _length(node, typed)
    if axis is not None:
        return [axis]
    found: list[OpenAxis] = []
    for source in node.all_input_nodes:
        tensor = typed.get(source)
        if not isinstance(tensor, Typed):
            found += _read(source, typed)
        elif node.target not in RANKS and not (node.target is getattr and node.args[1] in RANKS):
            found += tensor.axes
    return found


def _derived(node: fx.Node, without: frozenset[Any] = frozenset()) -> frozenset[Path]:
    def counts(argument: Any) -> bool:
        return isinstance(argument, fx.Node) and argument.target not in without

    found: set[Path] = set()
    arguments: list[tuple[str | int, Any]] = [*enumerate(node.args), *node.kwargs.items()]
    for key, argument in arguments:
        if counts(argument):
            found.add((key,))
        elif isinstance(argument, Sequence) and not isinstance(argument, str):
            found |= {(key, i) for i, a in enumerate(argument) if counts(a)}
    return frozenset(found)


def _plain(value: Any) -> Any:
    def one(v: Any) -> Any:
        return Typed(v, tuple(fixed(n) for n in v.shape)) if isinstance(v, Tensor) else v

    return tree_map(one, value)


def _check(axes: Any, value: Any) -> None:
    if not isinstance(value, Tensor):
        return
    if tuple(length(axis) for axis in axes) != tuple(value.shape):
        raise ValueError(
            f"it gave lengths {[length(a) for a in axes]} for shape {list(value.shape)}"
        )


def _join(value: Any, axes: Any) -> Any:
    if value is None:  # an assignment
        return None
    if isinstance(value, Tensor):
        return Typed(value, tuple(axes))
    joined = [_join(v, a) for v, a in zip(value, axes, strict=True)]
    return tuple(joined)


def _axes(tree: Any) -> Any:
    return tree_map(
        lambda t: t.axes if isinstance(t, Typed) else None,
        tree,
        is_leaf=lambda t: isinstance(t, Typed),
    )


def _common(a: list[str], b: list[str]) -> list[str]:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def _container(module: nn.Module) -> bool:
    forward = type(module).forward
    return forward is nn.Sequential.forward or forward is nn.Module.forward


def _stays(v: Var, alone: set[Var]) -> bool:
    """Return whether `v` is a factor of a product whose width is another factor's; `alone` are those of no product."""
    return v.reason == ONE_FACTOR or (v.reason is not None and v.size == 1 and v not in alone)
