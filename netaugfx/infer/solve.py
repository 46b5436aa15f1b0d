"""What inference knows of one model while it reads its graphs: the type of every Parameter and of every node."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves, tree_map

from ..axes import Axis
from ..plan import Plan
from ..rules import Call, NoRule, Op, Path, Ref, Typed, layer_of, rule_of
from ..trace import Applied, Traced
from ..unify import OpenAxis, fixed, length, pin
from .functions import Claim, read_function
from .lengths import READS, argument, axes_read, derived, lengths_of
from .parameters import Parameters

OUTPUT = "it is an output of the network"
NO_RULE = "has no rule"
HARMLESS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "element_size",
    "get_device",
    "is_complex",
    "is_conj",
    "is_contiguous",
    "is_floating_point",
    "is_inference",
    "is_neg",
    "is_signed",
    "result_type",
    "type",
}


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
        scaled: Node -> which of its counts hold other lengths too, such as the batch's, beside a literal count of
            channels, so that they are scaled and not replaced (`batch * self.out_channels`).
        numbers: Node -> which of its arguments are computed from channel counts but are no lengths, with the base's
            values, which subnets keep (`q / math.sqrt(q.shape[-1])`).
    """

    axes: dict[fx.Node, Any] = field(default_factory=dict)
    counts: dict[fx.Node, dict[Path, Axis]] = field(default_factory=dict)
    calls: dict[fx.Node, Call] = field(default_factory=dict)
    mixed: set[fx.Node] = field(default_factory=set)
    mixing: dict[fx.Node, list[OpenAxis]] = field(default_factory=dict)
    extra: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)
    scaled: dict[fx.Node, set[Path]] = field(default_factory=dict)
    numbers: dict[fx.Node, dict[Path, Any]] = field(default_factory=dict)


class Solver:
    """The variables of one model while its graphs are read."""

    def __init__(self, root: nn.Module, plan: Plan | None) -> None:
        self.parameters = Parameters(root, plan)
        self.summed: dict[str, set[int]] = {}
        self.summed_factors: list[tuple[str, int, OpenAxis]] = []
        self.fills: dict[str, float] = {}
        self.weights: dict[str, OpenAxis] = {}  # of convolution and linear layers: output channels
        self.touched: list[tuple[str, OpenAxis]] = []
        self.ordered: list[OpenAxis] = []
        self.taken: list[OpenAxis] = []  # input channels of convolution and linear layers
        # where new elements are laid, they, and what they are laid beside
        self.beside: list[tuple[str, OpenAxis, OpenAxis]] = []
        self.numbers: list[tuple[str, list[OpenAxis], OpenAxis]] = []
        self.computed: list[tuple[fx.Node, Typing, Path, Mapping[fx.Node, Any]]] = []
        self.claims: list[Claim] = []
        self.asserted: list[tuple[fx.Node, Mapping[fx.Node, Any]]] = []
        self.opaque: dict[str, str] = {}

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
                None
                if str(node.target) in traced.constants
                else self.parameters.typed(str(node.target))
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
                self._pin(inputs, f"{where(node)} {NO_RULE}")
            if node.target is torch._assert:
                self.asserted.append((node, typed))
            return value, {}
        target: Any = node.target
        parameter = None
        why = NO_RULE
        if node.op == "call_module":
            target = self.parameters.modules[str(node.target)]
            if node.target in traced.opaque:
                self._pin(inputs, f"module '{node.target}' could not be traced")
                return _plain(value), {}
            layer = layer_of(target)
            if layer is not None and not _altered(target):
                try:
                    call = layer.lower(target, *args, **kwargs)
                except NoRule as form:
                    why = str(form)
                else:
                    typing.calls[node] = call
                    return self._call(call, value, node, typing), {}

            def parameter(name: str) -> Typed | None:
                return self.parameters.typed(f"{node.target}.{name}")

            if _altered(target):
                why = f"{where(node)} {_altering(target)}"
                self.opaque[str(node.target)] = why
                self._pin(inputs, why)
                return _plain(value), {}
        if isinstance(target, Applied) and rule_of(target) is None:
            result = read_function(self, node, where(node), inputs, typed, typing, traced.device)
            return (_plain(value) if result is None else result), {}
        op = Op(
            where(node),
            args,
            kwargs,
            value,
            module=target if isinstance(target, nn.Module) else None,
            parameter=parameter,
            derived=derived(node),
            computed=derived(node, READS),
            lengths=lengths_of(node, typed),
            used=_used(node, value),
        )
        return self._apply(op, target, value, node, typing, typed, why)

    def _apply(
        self,
        op: Op,
        target: Any,
        value: Any,
        node: fx.Node,
        typing: Typing,
        typed: Mapping[fx.Node, Any] = {},
        why: str = NO_RULE,
    ) -> tuple[Any, dict[Path, Any]]:
        rule = rule_of(target)
        axes: Any = None
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
                if any(True for _ in op.module.parameters()):
                    cls = type(op.module)
                    self.opaque[str(node.target)] = f"{cls.__module__}.{cls.__qualname__} {why}"
            self._pin([*op.tensors, *extra], f"{op.where} {why}")
            return _plain(value), {}
        typing.mixing.setdefault(node, []).extend(op.mixing)
        self.ordered += op.in_order
        self.taken += op.taken
        self.beside += [(op.where, *axes) for axes in op.beside]
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
            source = argument(node, path)
            if isinstance(source, fx.Node) and isinstance(source.meta["val"], int | float):
                read = axes_read(source, typed)
                typing.numbers.setdefault(node, {})[path] = (source.meta["val"], read, unless)
                self.numbers.append((where(node), read, unless))
        for path, (before, of) in op.places.items():
            typing.numbers.setdefault(node, {})[path] = (length(before), [of], before)
        for path in op.counts:
            if path in op.computed and isinstance(argument(node, path), fx.Node):
                self.computed.append((node, typing, path, typed))
        return _join(value, axes), op.counts

    def _call(self, call: Call, value: Any, node: fx.Node, typing: Typing) -> Any:
        """Infer a lowered layer: the innermost call first."""

        def typed(x: Any) -> Any:
            if isinstance(x, Call):
                return self._call(x, None, node, typing)
            if isinstance(x, Ref):
                return self.parameters.typed(f"{node.target}.{x.name}")
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
    # eq and ne: a tensor is compared with what is none, as torch.jit.isinstance does
    asks = (getattr, len, isinstance, operator.eq, operator.ne)
    return node.target in asks or name in HARMLESS | {"_assert", "is_tensor"}


def _used(node: fx.Node, value: Any) -> frozenset[int]:
    """Return which of several results of a node something reads."""
    if isinstance(value, Tensor) or not isinstance(value, tuple | list):
        return frozenset()
    used: set[int] = set()
    for user in node.users:
        which = user.args[1] if user.target in (operator.getitem, getattr) else None
        if isinstance(which, str):
            used |= {i for i, v in enumerate(value) if user.users and v is getattr(value, which)}
        elif isinstance(which, int):
            used |= {which % len(value)} if user.users else set()
        else:
            used |= {*range(len(value))}
    return frozenset(used)


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
    return (
        "has its weight computed by a hook, as torch.nn.utils.weight_norm and prune do "
        "(torch.nn.utils.parametrizations.weight_norm can grow, and so can a pruned layer after prune.remove)"
    )


def _plain(value: Any) -> Any:
    def one(v: Any) -> Any:
        return Typed(v, tuple(fixed(n) for n in v.shape)) if isinstance(v, Tensor) else v

    return tree_map(one, value)


def _check(axes: Any, value: Any) -> None:
    if not isinstance(value, Tensor):
        return
    if not isinstance(axes, tuple | list) or not all(isinstance(axis, tuple) for axis in axes):
        raise ValueError(
            f"it gave {axes!r} where an axis for each of {value.dim()} dimensions was expected, such as "
            "op.tensors[0].axes"
        )
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
