"""Operators that move elements and compute none: permutations, concatenation, slices, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import OpenAxis, Var, elastic, fixed, free, resolve, times
from .registry import NoRule, Op, Path, Typed, everywhere, register_rule


@register_rule(*everywhere(["permute"]))
def permute(op: Op) -> tuple[OpenAxis, ...]:
    """Axes in another order."""
    x, dims = op.args[0], op.args[1:] or (op.kwargs["dims"],)
    order: Sequence[int] = dims[0] if isinstance(dims[0], Sequence) else dims
    return tuple(x.axes[d] for d in order)


@register_rule(*everywhere(["transpose", "swapaxes", "swapdims"]))
def transpose(op: Op) -> tuple[OpenAxis, ...]:
    """Two axes change places."""
    a = op.bind("input", "dim0", "dim1")
    axes = list(a["input"].axes)
    axes[a["dim0"]], axes[a["dim1"]] = axes[a["dim1"]], axes[a["dim0"]]
    return tuple(axes)


@register_rule(Tensor.t, torch.t)
def t(op: Op) -> tuple[OpenAxis, ...]:
    """A matrix transposed."""
    return tuple(reversed(op.tensors[0].axes))


@register_rule(*everywhere(["movedim", "moveaxis"]))
def movedim(op: Op) -> tuple[OpenAxis, ...]:
    """Axes moved elsewhere; found by moving numbers in their place."""
    x = op.args[0]
    order = torch.empty(tuple(range(2, 2 + len(x.axes))), device="meta")
    moved = torch.movedim(order, *op.args[1:], **op.kwargs)
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
    x, rank = a["input"], len(op.args[0].axes)
    dims = range(rank) if a["dim"] is None else a["dim"]
    dims = {d % rank for d in ((dims,) if isinstance(dims, int) else dims)}
    dims = {d for d in dims if x.value.shape[d] == 1}
    op.pin(*(x.axes[d] for d in dims), why="drops it")
    return tuple(axis for d, axis in enumerate(x.axes) if d not in dims)


@register_rule(*everywhere(["expand", "broadcast_to"]))
def expand(op: Op) -> tuple[OpenAxis, ...]:
    """Axes of length 1 are repeated; the others pass."""
    x, sizes = op.args[0], op.args[1:]
    nested = len(sizes) == 1 and isinstance(sizes[0], Sequence)
    if op.kwargs:
        raise NoRule
    given = list(sizes[0]) if nested else list(sizes)
    axes: list[OpenAxis] = [fixed(n) for n in op.result.shape]
    for i in range(-len(x.axes), 0):
        if x.value.shape[i] == op.result.shape[i]:
            axes[i] = x.axes[i]
            op.count((1, len(given) + i) if nested else (1 + len(given) + i,), x.axes[i])
        else:
            op.pin(x.axes[i], why="repeats it")
    for path in [p for p in op.counts if _at(given, p) == -1]:
        del op.counts[path]
    return tuple(axes)


def _at(given: Sequence[Any], path: Path) -> Any:
    return given[int(path[-1]) - (1 if len(path) == 1 else 0)]


@register_rule(*everywhere(["expand_as"]))
def like(op: Op) -> tuple[OpenAxis, ...]:
    """Shaped as another tensor: lawful where both have the same axes, pinned elsewhere."""
    x, other = op.args[:2]
    if len(x.axes) == len(other.axes):
        return op.broadcast(x, other)
    raise NoRule


@register_rule(*everywhere(["cat", "concat", "concatenate"]))
def cat(op: Op) -> tuple[OpenAxis, ...]:
    """The axes along `dim` are laid out one after the other; the others are the same."""
    a = op.bind("tensors", "dim", dim=0)
    tensors = [t for t in a["tensors"] if t.value.numel() or t.value.dim() > 1]
    dim = a["dim"] % len(tensors[0].axes)
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


@register_rule(*everywhere(["unbind"]))
def unbind(op: Op) -> Any:
    """An axis taken apart; it must not grow."""
    a = op.bind("input", "dim", dim=0)
    x = a["input"]
    dim = a["dim"] % len(x.axes)
    op.pin(x.axes[dim], why="takes it apart")
    return tuple((*x.axes[:dim], *x.axes[dim + 1 :]) for _ in op.result)


@register_rule(*everywhere(["chunk"]))
def chunk(op: Op) -> Any:
    """Equal parts, which therefore grow alike."""
    a = op.bind("input", "chunks", "dim", dim=0)
    return _parts(op, a["input"], a["dim"])


@register_rule(torch.split, Tensor.split, torch.functional.split, torch.split_with_sizes)
def split(op: Op) -> Any:
    """One part size for all, or a size for each."""
    names = ("input", "split_size_or_sections", "dim")
    a = op.bind("tensor" if "tensor" in op.kwargs else "input", *names[1:], dim=0)
    x = a.get("input") or a["tensor"]
    given = a["split_size_or_sections"] or a.get("split_size")
    if given is None:
        raise NoRule
    at: Path = next(
        ((k,) for k in ("split_size_or_sections", "split_size", "split_sizes") if k in op.kwargs),
        (1,),
    )
    parts = _parts(op, x, a["dim"], equal=not isinstance(given, Sequence))
    dim = a["dim"] % len(x.axes)
    if isinstance(given, Sequence):
        for i, part in enumerate(parts):
            op.count((*at, i), part[dim])
    elif elastic(x.axes[dim]):
        op.count(at, parts[0][dim])
    return parts


def _parts(op: Op, x: Typed, dim: int, equal: bool = True) -> Any:
    dim %= len(x.axes)
    lengths = [v.shape[dim] for v in op.result]
    if not elastic(x.axes[dim]):
        parts = [fixed(n) for n in lengths]
    elif not equal:
        parts = [free(n) for n in lengths]
        op.unify(x.axes[dim], tuple(s for p in parts for s in p))
    elif len(set(lengths)) == 1:
        part = Var(lengths[0])
        op.unify(x.axes[dim], times(len(lengths), ((part,),), 1))
        parts = [((part,),)] * len(lengths)
    else:
        op.pin(x.axes[dim], why="cuts it into unequal parts of a fixed number")
        parts = [fixed(n) for n in lengths]
    return tuple((*x.axes[:dim], resolve(p), *x.axes[dim + 1 :]) for p in parts)


def index(op: Op) -> tuple[OpenAxis, ...]:
    """Slices, numbers, None and ...: a slice cuts its axis, and its bounds are channel counts."""
    x, items = op.args[0], op.args[1]
    nested = isinstance(items, tuple)
    items = items if nested else (items,)
    if any(not isinstance(i, int | slice | None | type(...)) or isinstance(i, bool) for i in items):
        raise NoRule
    rest = len(x.axes) - sum(i is not None and i is not ... for i in items)
    axes: list[OpenAxis] = []
    d = 0
    for k, item in enumerate(items):
        if item is None:
            axes.append(fixed(1))
        elif item is ...:
            axes += x.axes[d : d + rest]
            d += rest
        elif isinstance(item, int):
            op.pin(x.axes[d], why="takes one element of it")
            d += 1
        else:
            axes.append(_slice(op, x, d, item, (1, k) if nested else (1,)))
            d += 1
    return (*axes, *x.axes[d:])


def _slice(op: Op, x: Typed, d: int, item: slice, path: Path) -> OpenAxis:
    axis, n = x.axes[d], x.value.shape[d]
    start, stop, step = item.indices(n)
    if (start, stop, step) == (0, n, 1):
        if item.stop is not None and item.stop == n:
            op.count((*path, "stop"), axis)
        return axis
    if not elastic(axis):
        return fixed(len(range(start, stop, step)))
    if step != 1 or stop <= start:
        op.pin(axis, why="takes every so many elements of it")
        return fixed(len(range(start, stop, step)))
    parts = [free(m) for m in (start, stop - start, n - stop) if m]
    op.unify(axis, tuple(s for p in parts for s in p))
    before = resolve(parts[0]) if start else ()
    here = resolve(parts[1 if start else 0])
    if start:
        op.count((*path, "start"), before)
    if stop < n or item.stop is not None:
        op.count((*path, "stop"), (*before, *here))
    return here


@register_rule(*everywhere(["repeat", "tile"]))
def repeat(op: Op) -> tuple[OpenAxis, ...]:
    """An axis laid out several times."""
    x, given = op.args[0], op.args[1:]
    nested = len(given) == 1 and isinstance(given[0], Sequence)
    counts: Sequence[int] = given[0] if nested else given
    if op.kwargs or len(counts) < len(x.axes):
        raise NoRule
    new = len(counts) - len(x.axes)
    return (
        *(fixed(n) for n in counts[:new]),
        *(times(int(n), axis, 1) for n, axis in zip(counts[new:], x.axes, strict=True)),
    )


@register_rule(*everywhere(["repeat_interleave"]))
def repeat_interleave(op: Op) -> tuple[OpenAxis, ...]:
    """Every element of an axis several times in a row."""
    a = op.bind("input", "repeats", "dim")
    if not isinstance(a["repeats"], int) or a["dim"] is None:
        raise NoRule
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
