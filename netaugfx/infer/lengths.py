"""Numbers that a forward reads from shapes and passes on: which arguments of a node they are, and of which axes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..rules import Path, Typed
from ..unify import OpenAxis, Var, length_at

READS: frozenset[Any] = frozenset({operator.getitem, "size", getattr})
RANKS = {"dim", "ndim", "ndimension", "dtype", "device", "is_floating_point", "element_size"}


def argument(node: fx.Node, path: Path) -> Any:
    """Return what stands at `path` among the arguments of a node."""
    found: Any = node.args if isinstance(path[0], int) else node.kwargs
    for step in path:
        found = found[step]
    return found


def shape_read(node: Any, typed: Mapping[fx.Node, Any]) -> Sequence[OpenAxis] | None:
    """Return the axes whose lengths a node holds (`x.shape`, `x.size()`, `x.shape[2:]`), None for any other."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source: Any = node.args[0]
    if node.target is operator.getitem and isinstance(node.args[1], slice):
        found = shape_read(source, typed)
        bounds = (node.args[1].start, node.args[1].stop, node.args[1].step)
        literal = all(b is None or isinstance(b, int) for b in bounds)
        return None if found is None or not literal else found[node.args[1]]
    whole = node.target == "size" and len(node.args) == 1 and not node.kwargs
    tensor = typed.get(source) if isinstance(source, fx.Node) else None
    if isinstance(tensor, Typed) and (whole or node.args[1:] == ("shape",)):
        return tensor.axes
    return None


def length_read(node: Any, typed: Mapping[fx.Node, Any]) -> OpenAxis | None:
    """Return the axis whose length a node reads (`x.shape[1]`, `x.size(1)`), None for any other node."""
    if not isinstance(node, fx.Node) or not node.args:
        return None
    source: Any = node.args[0]
    index: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(index, int):
        return None
    if node.target is operator.getitem:
        axes = shape_read(source, typed)
        return None if axes is None else axes[index]
    tensor = typed.get(source) if isinstance(source, fx.Node) else None
    return tensor.axes[index] if node.target == "size" and isinstance(tensor, Typed) else None


def lengths_of(node: fx.Node, typed: Mapping[fx.Node, Any]) -> dict[Path, OpenAxis]:
    """Return which arguments of a node are lengths of axes, and of which."""
    found: dict[Path, OpenAxis] = {}
    for path in derived(node):
        given = argument(node, path)
        axis, axes = length_read(given, typed), shape_read(given, typed)
        if axis is not None:
            found[path] = axis
        found |= {(*path, i): one for i, one in enumerate(axes or ())}
    return found


def axes_read(node: fx.Node, typed: Mapping[fx.Node, Any]) -> list[OpenAxis]:
    """Return the axes whose lengths a number depends on."""
    axis, axes = length_read(node, typed), shape_read(node, typed)
    if axis is not None:
        return [axis]
    if axes is not None:
        return list(axes)
    found: list[OpenAxis] = []
    for source in node.all_input_nodes:
        tensor = typed.get(source)
        if not isinstance(tensor, Typed):
            found += axes_read(source, typed)
        elif node.target not in RANKS and not (node.target is getattr and node.args[1] in RANKS):
            found += tensor.axes
    return found


def number_at(node: Any, typed: Mapping[fx.Node, Any], sizes: Mapping[Var, int]) -> Any:
    """Return what a number that is computed from lengths would be if widths had other `sizes`."""
    if not isinstance(node, fx.Node):
        return node
    axis, axes = length_read(node, typed), shape_read(node, typed)
    if axis is not None:
        return length_at(axis, sizes)
    if axes is not None:
        return torch.Size(length_at(one, sizes) for one in axes)
    if any(isinstance(typed.get(source), Typed) for source in node.all_input_nodes):
        return node.meta["val"]  # a number of dimensions, a dtype, a count of all elements
    args, kwargs = fx.node.map_arg(
        (node.args, dict(node.kwargs)), lambda n: number_at(n, typed, sizes)
    )
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs) if callable(node.target) else node.meta["val"]


def derived(node: fx.Node, without: frozenset[Any] = frozenset()) -> frozenset[Path]:
    """Return which arguments of a node are made by other nodes, but for those whose target is in `without`."""

    def counts(given: Any) -> bool:
        return isinstance(given, fx.Node) and given.target not in without

    found: set[Path] = set()
    arguments: list[tuple[str | int, Any]] = [*enumerate(node.args), *node.kwargs.items()]
    for key, given in arguments:
        if counts(given):
            found.add((key,))
        elif isinstance(given, Sequence) and not isinstance(given, str):
            found |= {(key, i) for i, a in enumerate(given) if counts(a)}
    return frozenset(found)


def at_other_sizes(growing: Sequence[Var], holds: Callable[[dict[Var, int]], bool]) -> bool:
    """Return whether something holds at other sizes of these variables, too, no two of which grow by the same."""
    for step in (1, 2, 3, 5):
        try:
            if not holds({v: v.size * (step + 1) + step * i for i, v in enumerate(growing)}):
                return False
        except Exception:  # the user's arithmetic, at a size that it does not take
            return False
    return True
