"""Operators that move elements and compute none: permutations, concatenation, repetition, patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unify import OpenAxis, elastic, fixed, free, length, resolve, times
from .op import NoRule, Op, Path, Typed
from .registry import everywhere, register_rule


@register_rule(*everywhere(["permute"]))
def permute(op: Op) -> tuple[OpenAxis, ...]:
    """Axes in another order."""
    x, dims = op.tensors[0], op.args[1:] or (op.kwargs["dims"],)
    order: Sequence[int] = dims[0] if isinstance(dims[0], Sequence) else dims
    return tuple(x.axes[d] for d in order)


@register_rule(*everywhere(["transpose", "swapaxes", "swapdims"]))
def transpose(op: Op) -> tuple[OpenAxis, ...]:
    """Two axes change places."""
    first = "axis0" if "axis0" in op.kwargs or "axis1" in op.kwargs else "dim0"
    second = f"{first[:-1]}1"
    a = op.bind("input", first, second)
    axes = list(a["input"].axes)
    axes[a[first]], axes[a[second]] = axes[a[second]], axes[a[first]]
    return tuple(axes)


@register_rule(*everywhere(["t", "adjoint"]))
def turned(op: Op) -> tuple[OpenAxis, ...]:
    """The last two axes change places; a vector stays."""
    axes = op.tensors[0].axes
    return (*axes[:-2], *reversed(axes[-2:]))


@register_rule(getattr)
def attribute(op: Op) -> tuple[OpenAxis, ...]:
    """`x.T`, `x.mT` and the like; `x.data` has the axes of x."""
    x, name = op.args
    if name in ("mT", "mH", "H"):
        return (*x.axes[:-2], *reversed(x.axes[-2:]))
    if name == "T":
        return tuple(reversed(x.axes))
    if name in ("data", "real", "imag"):
        return tuple(x.axes)
    raise NoRule


@register_rule(*everywhere(["movedim", "moveaxis"]))
def movedim(op: Op) -> tuple[OpenAxis, ...]:
    """Axes moved elsewhere; found by moving numbers in their place."""
    x = op.tensors[0]
    order = torch.empty(tuple(range(2, 2 + len(x.axes))), device="meta")
    moved = torch.movedim(order, *op.args[1:], **{k: v for k, v in op.kwargs.items() if v is not x})
    return tuple(x.axes[n - 2] for n in moved.shape)


@register_rule(*everywhere(["unsqueeze"]))
def unsqueeze(op: Op) -> tuple[OpenAxis, ...]:
    """A new axis of length 1."""
    a = op.bind("input", "dim")
    axes = list(a["input"].axes)
    axes.insert(a["dim"] % (len(axes) + 1), fixed(1))
    return tuple(axes)


@register_rule(*everywhere(["squeeze"]))
def squeeze(op: Op) -> tuple[OpenAxis, ...]:
    """Axes of length 1 are dropped; they must not grow."""
    a = op.bind("input", "dim")
    x, rank = a["input"], len(op.tensors[0].axes)
    dims = range(rank) if a["dim"] is None else a["dim"]
    dims = {d % rank for d in ((dims,) if isinstance(dims, int) else dims)}
    dims = {d for d in dims if x.value.shape[d] == 1}
    op.pin(*(x.axes[d] for d in dims), why="drops it")
    return tuple(axis for d, axis in enumerate(x.axes) if d not in dims)


@register_rule(*everywhere(["expand", "broadcast_to"]))
def expand(op: Op) -> tuple[OpenAxis, ...]:
    """Axes of length 1 are repeated; the others pass."""
    x, (given, paths) = op.tensors[0], op.sizes("size")
    axes = op.made(paths)
    for i in range(-len(x.axes), 0):
        if x.value.shape[i] == op.result.shape[i]:
            axes[i] = x.axes[i]
            if given[i] != -1:
                op.count(paths[i], x.axes[i])
                op.number(paths[i], unless=x.axes[i])
        else:
            op.pin(x.axes[i], why="repeats it")
    return tuple(axes)


@register_rule(*everywhere(["expand_as"]))
def like(op: Op) -> tuple[OpenAxis, ...]:
    """Repeated to the shape of another tensor, whose axes it then has."""
    return op.broadcast(*op.tensors)


@register_rule(torch.broadcast_tensors, torch.functional.broadcast_tensors)
def broadcast_tensors(op: Op) -> Any:
    """All repeated to one shape."""
    return tuple(op.broadcast(*op.tensors) for _ in op.result)


@register_rule(*everywhere(["cat", "concat", "concatenate"]))
def cat(op: Op) -> tuple[OpenAxis, ...]:
    """The axes along `dim` are laid out one after the other; the others are the same."""
    a = op.bind("tensors", "dim", dim=0)
    tensors = [t for t in a["tensors"] if t.value.numel() or t.value.dim() > 1]
    return _cat(op, tensors, a["dim"])


STACKS = {"hstack": 1, "vstack": 0, "row_stack": 0, "dstack": 2, "column_stack": 1}


@register_rule(*everywhere(STACKS))
def stacks(op: Op) -> tuple[OpenAxis, ...]:
    """`cat` along the first, second or third axis."""
    tensors = op.tensors
    rank = len(tensors[0].axes)
    dim = STACKS[op.name]
    if rank == 1 and op.name == "hstack":
        dim = 0
    elif rank < max(2, dim + 1):  # axes are added first
        raise NoRule
    return _cat(op, tensors, dim)


def _cat(op: Op, tensors: Sequence[Typed], dim: int) -> tuple[OpenAxis, ...]:
    dim %= len(tensors[0].axes)
    axes = list(tensors[0].axes)
    for t in tensors[1:]:
        for d, axis in enumerate(t.axes):
            if d != dim:
                op.unify(axes[d], axis)
    axes[dim] = resolve(tuple(s for t in tensors for s in resolve(t.axes[dim])))
    return tuple(axes)


@register_rule(*everywhere(["stack"]))
def stack(op: Op) -> tuple[OpenAxis, ...]:
    """A new axis; all others are the same."""
    a = op.bind("tensors", "dim", dim=0)
    axes = list(op.broadcast(*a["tensors"]))
    axes.insert(a["dim"] % (len(axes) + 1), fixed(len(a["tensors"])))
    return tuple(axes)


@register_rule(*everywhere(["repeat", "tile"]))
def repeat(op: Op) -> tuple[OpenAxis, ...]:
    """An axis laid out several times."""
    x, (given, paths) = op.tensors[0], op.sizes("dims" if op.name == "tile" else "repeats")
    missing = len(x.axes) - len(given)
    here: list[Path | None] = [*[None] * missing, *paths]
    counts = [*[1] * missing, *(int(n) for n in given)]
    repeated = [*[fixed(1)] * -missing, *x.axes]
    axes: list[OpenAxis] = []
    for path, n, axis in zip(here, counts, repeated, strict=True):
        old = length(axis)
        if path is not None and path in op.lengths and (old == 1 or not elastic(axis)):
            op.pin(axis, why="repeats it")  # along the channels of another tensor
            axes.append(times(1, op.lengths[path], old))
            continue
        if path is not None:
            op.number(path)
        axes.append(times(n, axis, 1))
    return tuple(axes)


@register_rule(*everywhere(["repeat_interleave"]))
def repeat_interleave(op: Op) -> tuple[OpenAxis, ...]:
    """Every element of an axis several times in a row."""
    a = op.bind("input", "repeats", "dim")
    if not isinstance(a["repeats"], int) or a["dim"] is None:
        raise NoRule
    op.number(op.path("repeats", "input", "repeats"))
    x, dim = a["input"], a["dim"] % len(op.tensors[0].axes)
    return (*x.axes[:dim], times(1, x.axes[dim], a["repeats"]), *x.axes[dim + 1 :])


@register_rule(Tensor.roll, torch.roll)
def roll(op: Op) -> tuple[OpenAxis, ...]:
    """The axes that are rolled must not grow."""
    a = op.bind("input", "shifts", "dims")
    if a["dims"] is None:
        raise NoRule
    dims = (a["dims"],) if isinstance(a["dims"], int) else a["dims"]
    op.pin(*(a["input"].axes[d] for d in dims), why="rolls it")
    return tuple(a["input"].axes)


@register_rule(*everywhere(["rot90"]))
def rotate(op: Op) -> tuple[OpenAxis, ...]:
    """Two axes turned by quarters; they must not grow."""
    x = op.tensors[0]
    dims = {d % len(x.axes) for d in op.bind("input", "k", "dims", dims=(0, 1))["dims"]}
    op.pin(*(x.axes[d] for d in dims), why="turns it")
    return tuple(fixed(op.result.shape[d]) if d in dims else a for d, a in enumerate(x.axes))


@register_rule(*everywhere(["diagonal"]))
def diagonal(op: Op) -> tuple[OpenAxis, ...]:
    """The diagonal of two axes, which must not grow, becomes the last one."""
    x = op.tensors[0]
    a = op.bind("input", "offset", "dim1", "dim2", dim1=0, dim2=1)
    dims = {a[k] % len(x.axes) for k in ("dim1", "dim2")}
    op.pin(*(x.axes[d] for d in dims), why="takes a diagonal of it")
    return (*(a for d, a in enumerate(x.axes) if d not in dims), fixed(op.result.shape[-1]))


@register_rule(*everywhere(["tril", "triu"]))
def triangle(op: Op) -> tuple[OpenAxis, ...]:
    """A triangle of the last two axes, which must not grow."""
    axes = op.tensors[0].axes
    op.pin(*axes[-2:], why="takes a triangle of it")
    return tuple(axes)


@register_rule(*everywhere(["unfold"]), nn.Unfold)
def unfold(op: Op) -> tuple[OpenAxis, ...]:
    """Patches: `nn.Unfold` lays channels out as channels x patch; `Tensor.unfold` makes windows of an axis."""
    x = op.tensors[0]
    if len(op.result.shape) == len(x.axes) + 1:
        dim = op.bind("input", "dimension", "size", "step")["dimension"] % len(x.axes)
        op.pin(x.axes[dim], why="makes windows of it")
        axes = [*x.axes, fixed(op.result.shape[-1])]
        axes[dim] = fixed(op.result.shape[dim])
        return tuple(axes)
    if len(x.axes) != 4:
        raise NoRule
    op.pin(*x.axes[2:], why="slides over it")
    patch = op.result.shape[1] // x.value.shape[1]
    return (x.axes[0], times(1, x.axes[1], patch), fixed(op.result.shape[2]))


@register_rule(F.fold, nn.Fold)
def fold(op: Op) -> tuple[OpenAxis, ...]:
    """The inverse of `nn.Unfold`."""
    x = op.tensors[0]
    if len(x.axes) != 3:
        raise NoRule
    channels = free(op.result.shape[1])
    op.unify(x.axes[1], times(1, channels, x.value.shape[1] // op.result.shape[1]))
    op.pin(x.axes[2], why="slides over it")
    return (x.axes[0], resolve(channels), *(fixed(n) for n in op.result.shape[2:]))
