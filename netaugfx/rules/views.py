"""Views: axes merged and taken apart, which shuffles and gates are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn

from ..unify import (
    OpenAxis,
    OpenFactor,
    OpenSegment,
    Var,
    elastic,
    fixed,
    free,
    length,
    merge,
    resolve,
    times,
)
from .op import NoRule, Op, Path, Typed
from .registry import everywhere, register_rule

SHAPED = {"input", "shape", "size"}


@register_rule(Tensor.view, *everywhere(["reshape"]))
def view(op: Op) -> tuple[OpenAxis, ...]:
    """A literal factor stays and the derived or -1 factor grows; where both are literal the inner grows."""
    x = op.tensors[0]
    if any(isinstance(a, torch.dtype) for a in op.args[1:]) or set(op.kwargs) - SHAPED:
        raise NoRule
    given, paths = op.sizes("shape" if "shape" in op.kwargs else "size")
    axes = regroup(op, x.axes, list(op.result.shape), _open(op, given, paths))
    _count(op, axes, given, paths)
    return axes


def _open(op: Op, given: Sequence[Any], paths: Sequence[Path]) -> list[bool]:
    """Return which lengths are no literals; in a shape that is given whole, those of axes that grow."""
    return [
        p in op.derived or n == -1 or elastic(op.lengths.get(p, ()))
        for p, n in zip(paths, given, strict=True)
    ]


def _count(op: Op, axes: Sequence[OpenAxis], given: Sequence[Any], paths: Sequence[Path]) -> None:
    for axis, n, path in zip(axes, given, paths, strict=True):
        if n != -1:
            op.count(path, axis)
            op.number(path, unless=axis)  # C // groups, where it is the groups that grow


def regroup(
    op: Op, axes: Sequence[OpenAxis], shape: Sequence[int], open_: Sequence[bool]
) -> tuple[OpenAxis, ...]:
    """Return the axes of a view with this `shape`; `open_` tells which of its lengths are not literals."""
    result: list[OpenAxis] = []
    i = j = 0
    while i < len(axes) or j < len(shape):
        own, made = _ones(map(length, axes[i:])), _ones(shape[j:])
        if made > 1 and own not in (0, made) and any(map(elastic, axes[i : i + own])):
            result += _among_ones(op, axes[i : i + own], open_[j : j + made])
            i, j = i + own, j + made
            continue
        start, first = i, j
        a = b = 1
        if i < len(axes):
            a, i = length(axes[i]), i + 1
        if j < len(shape):
            b, j = shape[j], j + 1
        while a != b:
            if a < b:
                a, i = a * length(axes[i]), i + 1
            else:
                b, j = b * shape[j], j + 1
        # an axis of length 1 beside a group joins it when nothing else can take it
        result += _group(op, axes[start:i], shape[first:j], open_[first:j])
    return tuple(result)


def _ones(lengths: Iterable[int]) -> int:
    return sum(1 for _ in takewhile(lambda n: n == 1, lengths))


def _among_ones(op: Op, axes: Sequence[OpenAxis], open_: Sequence[bool]) -> list[OpenAxis]:
    """Return the axes that axes of length 1 become when there are more or fewer of them: the only open one grows."""
    growing = [axis for axis in axes if elastic(axis)]
    if len(growing) == sum(open_) == 1:
        return [growing[0] if grows else fixed(1) for grows in open_]
    op.pin(*growing, why="cannot tell it from its other axes of length 1")
    return [fixed(1) for _ in open_]


def _group(
    op: Op, axes: Sequence[OpenAxis], shape: Sequence[int], open_: Sequence[bool]
) -> list[OpenAxis]:
    """Return the axes that a group of axes with the same number of elements becomes."""
    if len(axes) == len(shape) == 1:
        return [axes[0]]
    merged = _merge(op, axes)
    if len(shape) == 1:
        return [merged]
    if not elastic(merged):
        return [fixed(n, merged) if n > 1 else fixed(n) for n in shape]
    if all(n == 1 for n in shape):
        op.pin(merged, why="cannot tell it from its other axes of length 1")
        return [fixed(n) for n in shape]
    if len(merged) == 1:
        return _deal(op, merged[0], shape, open_)
    if repeated := _repeated(merged, shape):
        return repeated
    long = [k for k, n in enumerate(shape) if n != 1]
    grows = next((k for k in reversed(long) if open_[k]), long[-1])
    inner = free(shape[grows])
    op.unify(merged, times(prod(shape[:grows]), inner, prod(shape[grows + 1 :])))
    return [resolve(inner) if k == grows else fixed(n) for k, n in enumerate(shape)]


def _repeated(axis: OpenAxis, shape: Sequence[int]) -> list[OpenAxis] | None:
    """Return what becomes of the same concatenation several times (heads of keys and values), None for others."""
    k = max(i for i, n in enumerate(shape) if n != 1)
    outer = prod(shape[:k])
    part, rest = divmod(len(axis), outer)
    if rest or axis != axis[:part] * outer:
        return None
    return [axis[:part] if i == k else fixed(n) for i, n in enumerate(shape)]


def _deal(
    op: Op, segment: OpenSegment, shape: Sequence[int], open_: Sequence[bool]
) -> list[OpenAxis]:
    """Deal the factors of a product out to the lengths of `shape`; a width that spans several is refined."""
    dealt: list[list[OpenFactor]] = [[] for _ in shape]
    room = list(shape)
    k = 0
    for factor in segment:
        left = factor if isinstance(factor, int) else factor.size
        parts: list[tuple[int, int]] = []  # dimension, size
        while left > 1:
            while room[k] == 1:
                k += 1
            n = gcd(left, room[k])
            if n == 1 or (n != left and n != room[k]):
                op.pin((segment,), why="cuts it across its factors")
                return [fixed(n, (segment,)) if n > 1 else fixed(n) for n in shape]
            parts.append((k, n))
            room[k] //= n
            left //= n
        if isinstance(factor, int) or factor.reason is not None:
            for d, n in parts:
                dealt[d].append(n)
        elif len(parts) <= 1:
            dealt[parts[0][0] if parts else k].append(factor)
        else:
            pieces = tuple(Var(n, literal=not open_[d] or n != shape[d]) for d, n in parts)
            op.unify(((factor,),), (pieces,))
            for (d, _), piece in zip(parts, pieces, strict=True):
                dealt[d].append(piece)
    return [resolve((tuple(factors) or (1,),)) for factors in dealt]


def _merge(op: Op, axes: Sequence[OpenAxis]) -> OpenAxis:
    """Return the axis that `axes` give when they are laid out as one: one factor of a product may be elastic."""
    if not axes:
        return fixed(1)
    growing = [k for k, axis in enumerate(axes) if elastic(axis)]
    if not growing:
        return fixed(prod(length(axis) for axis in axes), tuple(s for axis in axes for s in axis))
    return merge(axes, f"{op.where} merges it with another elastic axis")


@register_rule(*everywhere(["flatten"]))
def flatten(op: Op) -> tuple[OpenAxis, ...]:
    """Axes start to end become one."""
    a = op.bind("input", "start_dim", "end_dim", start_dim=0, end_dim=-1)
    return _flatten(op, a["input"], a["start_dim"], a["end_dim"])


@register_rule(*everywhere(["ravel"]))
def ravel(op: Op) -> tuple[OpenAxis, ...]:
    """All axes become one."""
    return _flatten(op, op.tensors[0], 0, -1)


@register_rule(nn.Flatten)
def flatten_module(op: Op) -> tuple[OpenAxis, ...]:
    """Axes start to end become one."""
    m: Any = op.module
    return _flatten(op, op.tensors[0], m.start_dim, m.end_dim)


def _flatten(op: Op, x: Typed, start: int, end: int) -> tuple[OpenAxis, ...]:
    rank = len(x.axes)
    if rank == 0:
        return (fixed(1),)
    start, end = start % rank, end % rank
    return (*x.axes[:start], _merge(op, x.axes[start : end + 1]), *x.axes[end + 1 :])


@register_rule(*everywhere(["unflatten"]))
def unflatten(op: Op) -> tuple[OpenAxis, ...]:
    """One axis becomes several."""
    a = op.bind("input", "dim", "sizes")
    x, sizes = a["input"], list(a["sizes"])
    dim = a["dim"] % len(x.axes)
    at = op.path("sizes", "input", "dim", "sizes")
    paths: list[Path] = [(*at, i) for i in range(len(sizes))]
    shape = op.result.shape[dim : dim + len(sizes)]
    axes = _group(op, [x.axes[dim]], shape, _open(op, sizes, paths))
    _count(op, axes, sizes, paths)
    return (*x.axes[:dim], *axes, *x.axes[dim + 1 :])


@register_rule(Tensor.view_as, Tensor.reshape_as)
def reshape_as(op: Op) -> tuple[OpenAxis, ...]:
    """A view with the shape of another tensor, whose axes it then has."""
    x, other = op.args[:2]
    axes = regroup(op, x.axes, list(other.value.shape), [True] * len(other.axes))
    for mine, theirs in zip(axes, other.axes, strict=True):
        op.unify(theirs, mine)
    return tuple(resolve(axis) for axis in axes)


@register_rule(torch.view_as_real)
def parts(op: Op) -> tuple[OpenAxis, ...]:
    """Real and imaginary parts become a last axis."""
    return (*op.tensors[0].axes, fixed(2))


@register_rule(torch.view_as_complex)
def whole(op: Op) -> tuple[OpenAxis, ...]:
    """The last axis, which must not grow, holds real and imaginary parts."""
    *axes, last = op.tensors[0].axes
    op.pin(last, why="takes it for numbers of two parts")
    return tuple(axes)


@register_rule(*everywhere(["pixel_shuffle"]), nn.PixelShuffle)
def pixel_shuffle(op: Op) -> tuple[OpenAxis, ...]:
    """R x r neighbouring channels become space."""
    r = op.module.upscale_factor if op.module is not None else op.bind("input", "r")["r"] or 0
    r = int(r or op.kwargs["upscale_factor"])  # type: ignore[arg-type]
    x = op.tensors[0]
    channels = free(op.result.shape[-3])
    op.pin(*x.axes[-2:], why="interleaves it")
    op.unify(x.axes[-3], times(1, channels, r * r))
    return (*x.axes[:-3], resolve(channels), *(fixed(n) for n in op.result.shape[-2:]))


@register_rule(*everywhere(["pixel_unshuffle"]), nn.PixelUnshuffle)
def pixel_unshuffle(op: Op) -> tuple[OpenAxis, ...]:
    """R x r neighbours in space become channels."""
    x = op.tensors[0]
    op.pin(*x.axes[-2:], why="takes it apart")
    inner = op.result.shape[-3] // x.value.shape[-3]
    space = (fixed(n) for n in op.result.shape[-2:])
    return (*x.axes[:-3], times(1, x.axes[-3], inner), *space)


@register_rule(*everywhere(["channel_shuffle"]), nn.ChannelShuffle)
def channel_shuffle(op: Op) -> tuple[OpenAxis, ...]:
    """Channels as groups x width become width x groups."""
    x = op.tensors[0]
    groups: Any = (
        op.module.groups if op.module is not None else op.bind("input", "groups")["groups"]
    )
    width = free(x.value.shape[1] // groups)
    op.unify(x.axes[1], times(groups, width, 1))
    return (x.axes[0], times(1, width, groups), *x.axes[2:])


@register_rule(*everywhere(["glu"]), nn.GLU)
def glu(op: Op) -> tuple[OpenAxis, ...]:
    """Two halves, one gating the other."""
    x = op.tensors[0]
    dim: Any = op.module.dim if op.module is not None else op.bind("input", "dim", dim=-1)["dim"]
    dim %= len(x.axes)
    half = free(op.result.shape[dim])
    op.unify(x.axes[dim], times(2, half, 1))
    return (*x.axes[:dim], resolve(half), *x.axes[dim + 1 :])
