"""Operators that pick elements: slices, indices, parts of unequal lengths, assignment to a slice, embeddings."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unify import OpenAxis, elastic, fixed, free, resolve, times
from .op import Call, NoRule, Op, Path, Ref, Typed
from .registry import everywhere, layer, register_rule


def between(
    op: Op, x: Typed, d: int, start: int, stop: int, why: str = ""
) -> tuple[OpenAxis, OpenAxis]:
    """Cut axis `d` of `x`: return what lies before `start`, and what lies between `start` and `stop`."""
    axis, n = x.axes[d], x.value.shape[d]
    if elastic(axis) and stop > start and not why:
        parts = [free(m) for m in (start, stop - start, n - stop) if m]
        op.unify(axis, tuple(s for p in parts for s in p))
        return (resolve(parts[0]) if start else ()), resolve(parts[1 if start else 0])
    op.pin(axis, why=why)
    return fixed(start, axis), fixed(max(0, stop - start), axis)


def _slice(op: Op, x: Typed, d: int, item: slice, path: Path) -> OpenAxis:
    axis, n = x.axes[d], x.value.shape[d]
    start, stop, step = item.indices(n)
    whole = (start, stop, step) == (0, n, 1)
    if not elastic(axis):
        return axis if whole else fixed(len(range(start, stop, step)), axis)
    if step != 1 or stop <= start:
        op.pin(axis, why="takes every so many elements of it")
        return fixed(len(range(start, stop, step)), axis)
    before, here = ((), axis) if whole else between(op, x, d, start, stop)
    if item.start:
        op.place((*path, "start"), before, axis)
    if item.stop is not None:
        op.place((*path, "stop"), (*before, *here), axis)
    return here


def _picked(op: Op, x: Typed, d: int, why: str) -> None:
    """Say that elements of axis `d` are picked by their numbers: rows of a table, or channels, which then stay."""
    if x.name is not None:
        op.settle(x.axes[d])
    else:
        op.pin(x.axes[d], why=why)


@register_rule(operator.getitem)
def index(op: Op) -> tuple[OpenAxis, ...]:
    """Slices, numbers, None, ..., lists and tensors of numbers: a slice cuts its axis, a picked one must not grow."""
    x, items = op.args[0], op.args[1]
    nested = isinstance(items, tuple)
    given: list[Any] = list(items) if nested else [items]
    if any(isinstance(i, bool) or (_tensor(i) and i.value.dtype == torch.bool) for i in given):
        raise NoRule("picks elements by a mask")
    if not all(i is None or i is ... or isinstance(i, int | slice | list | Typed) for i in given):
        raise NoRule
    paths: list[Path] = [(1, k) if nested else (1,) for k in range(len(given))]
    rest = len(x.axes) - sum(i is not None and i is not ... for i in given)
    by_list = any(isinstance(i, list | Typed) for i in given)
    axes: list[OpenAxis] = []
    at = 0  # where the axes of lists and tensors go
    places: list[int] = []  # where lists and tensors stand; numbers beside them count as such
    picks: list[Typed] = []
    d = 0
    for k, item in enumerate(given):
        if item is None:
            axes.append(fixed(1))
        elif item is ...:
            axes += x.axes[d : d + rest]
            d += rest
        elif isinstance(item, slice):
            axes.append(_slice(op, x, d, item, paths[k]))
            d += 1
        else:
            if isinstance(item, int):
                op.pin(x.axes[d], why="takes one element of it")
            else:
                _picked(op, x, d, "picks channels of it by their numbers")
            if by_list:
                places.append(k)
                picks.append(_indices(item))
                at = len(axes) if len(places) == 1 else at
            d += 1
    axes += x.axes[d:]
    if picks:
        apart = places[-1] - places[0] >= len(places)
        at = 0 if apart else at
        axes[at:at] = op.broadcast(*picks)
    return tuple(axes)


def _tensor(item: Any) -> bool:
    return isinstance(item, Typed)


def _indices(item: Any) -> Typed:
    if isinstance(item, Typed):
        return item
    value = torch.empty(torch.tensor(item, device="cpu").shape, device="meta")
    return Typed(value, tuple(fixed(n) for n in value.shape))


@register_rule(operator.setitem)
def assign(op: Op) -> None:
    """Assignment to a part of a tensor: the part and what is written there have the same axes."""
    x, items, value = op.args
    if x.name is not None:
        raise NoRule("writes to it in place")
    if isinstance(items, Typed) and items.value.dtype == torch.bool:  # a mask over the first axes
        if isinstance(value, Typed) and value.axes:
            raise NoRule("writes to the elements of a mask")
        rank = len(items.axes)
        op.broadcast(Typed(x.value[(..., *[0] * (len(x.axes) - rank))], x.axes[:rank]), items)
        return
    part = index(op)
    if isinstance(value, Typed):
        shape = [sum(_size(s) for s in axis) for axis in part]
        op.broadcast(Typed(torch.empty(shape, device="meta"), part), value)
    elif not isinstance(value, int | float):
        raise NoRule


def _size(segment: tuple[Any, ...]) -> int:
    n = 1
    for f in segment:
        n *= f if isinstance(f, int) else f.size
    return n


@register_rule(*everywhere(["narrow"]))
def narrow(op: Op) -> tuple[OpenAxis, ...]:
    """A slice by its start and length."""
    names = ("input", "dim", "start", "length")
    a = op.bind(*names)
    x, start, n = a["input"], a["start"], a["length"]
    if not isinstance(start, int):
        raise NoRule("starts where a tensor says")
    d = a["dim"] % len(x.axes)
    from_end = start < 0
    start %= max(1, x.value.shape[d])
    before, here = between(op, x, d, start, start + n)
    if elastic(x.axes[d]):
        if start or from_end:
            op.place(op.path("start", *names), before, x.axes[d])
        op.count(op.path("length", *names), here)
    return (*x.axes[:d], here, *x.axes[d + 1 :])


@register_rule(*everywhere(["select"]))
def select(op: Op) -> tuple[OpenAxis, ...]:
    """One element of an axis, which must not grow."""
    a = op.bind("input", "dim", "index")
    x = a["input"]
    d = a["dim"] % len(x.axes)
    op.pin(x.axes[d], why="takes one element of it")
    return (*x.axes[:d], *x.axes[d + 1 :])


@register_rule(*everywhere(["index_select"]))
def index_select(op: Op) -> tuple[OpenAxis, ...]:
    """Elements of an axis by their numbers; it must not grow."""
    a = op.bind("input", "dim", "index")
    x, d = a["input"], a["dim"] % len(a["input"].axes)
    _picked(op, x, d, "picks channels of it by their numbers")
    chosen = a["index"].axes[0] if a["index"].axes else fixed(1)
    return (*x.axes[:d], chosen, *x.axes[d + 1 :])


@register_rule(*everywhere(["gather", "take_along_dim"]))
def gather(op: Op) -> tuple[OpenAxis, ...]:
    """Elements along an axis by their numbers, others for every place; the axis must not grow."""
    x, other = op.tensors
    a = op.bind("input", "dim", "index")
    dim = next(
        (i for i in (a["dim"], a["index"], op.kwargs.get("dim")) if isinstance(i, int)), None
    )
    if dim is None or len(x.axes) != len(other.axes):
        raise NoRule
    dim %= len(x.axes)
    axes = []
    for d, (mine, theirs) in enumerate(zip(x.axes, other.axes, strict=True)):
        n, m = x.value.shape[d], other.value.shape[d]
        if d == dim:
            _picked(op, x, d, "picks elements along it by their numbers")
            axes.append(theirs)
        elif n == m:
            op.unify(mine, theirs)
            axes.append(resolve(mine))
        else:
            op.pin(mine, theirs, why="takes a part of it")
            axes.append(fixed(op.result.shape[d]))
    return tuple(axes)


@register_rule(
    *everywhere(
        ["take", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill",
         "index_put", "masked_select", "masked_scatter", "put", "bucketize", "bincount", "unique"]
    )
)  # fmt: skip
def by_number(op: Op) -> Any:
    """Elements addressed by their numbers, wherever they lie."""
    raise NoRule("addresses elements by their numbers")


@register_rule(*everywhere(["chunk"]))
def chunk(op: Op) -> Any:
    """Parts of one length, which therefore grow alike, and a last one that may be shorter by a number that stays."""
    a = op.bind("input", "chunks", "dim", dim=0)
    op.number(op.path("chunks", "input", "chunks"))
    return _parts(op, a["input"], a["dim"], a["chunks"])


@register_rule(torch.split, Tensor.split, torch.functional.split, torch.split_with_sizes,
               Tensor.split_with_sizes)  # fmt: skip
def split(op: Op) -> Any:
    """One part size for all, or a size for each."""
    names = ("input", "split_size_or_sections", "dim")
    a = op.bind("tensor" if "tensor" in op.kwargs else "input", *names[1:], dim=0)
    x = a.get("input") or a["tensor"]
    given = next(
        (a[k] for k in (names[1], "split_size", "split_sizes") if a.get(k) is not None), None
    )
    if given is None:
        raise NoRule
    at: Path = next(
        ((k,) for k in ("split_size_or_sections", "split_size", "split_sizes") if k in op.kwargs),
        (1,),
    )
    parts = _parts(op, x, a["dim"], None if isinstance(given, Sequence) else len(op.result))
    dim = a["dim"] % len(x.axes)
    if isinstance(given, Sequence):
        for i, part in enumerate(parts):
            op.count((*at, i), part[dim])
    elif elastic(x.axes[dim]):
        op.count(at, parts[0][dim])
    return parts


@register_rule(*everywhere(["tensor_split", "hsplit", "vsplit", "dsplit"]))
def tensor_split(op: Op) -> Any:
    """A number of parts, or where to cut."""
    x = op.tensors[0]
    names = ("input", "indices_or_sections", "dim")
    a = op.bind(*names, dim=0)
    key = next((k for k in ("indices", "sections") if k in op.kwargs), names[1])
    given, dim = a[key], a["dim"]
    if op.name != "tensor_split":
        dim = {"hsplit": min(1, len(x.axes) - 1), "vsplit": 0, "dsplit": 2}[op.name]
    if isinstance(given, int):
        op.number(op.path(key, *names))
        return _parts(op, x, dim, given)
    if not isinstance(given, Sequence):
        raise NoRule("cuts where a tensor says")
    dim %= len(x.axes)
    n = x.value.shape[dim]
    bounds = [0, *(i % n if i < 0 else i for i in given), n]
    if any(b <= a for a, b in pairwise(bounds)):
        op.pin(x.axes[dim], why="cuts it into parts, some of them empty")
    parts = _parts(op, x, dim)
    before: OpenAxis = ()
    for i, part in enumerate(parts[:-1]):
        before = (*before, *part[dim])
        op.place((*op.path(key, *names), i), before, x.axes[dim])
    return parts


def _parts(op: Op, x: Typed, dim: int, number: int | None = None) -> Any:
    """Return the axes of parts, free of each other; where their `number` stays, their differences in length stay."""
    dim %= len(x.axes)
    lengths = [v.shape[dim] for v in op.result]
    shortest = min(lengths, default=0)
    if not elastic(x.axes[dim]):
        parts = [fixed(n, x.axes[dim]) for n in lengths]
    elif number is None:
        parts = [free(n) for n in lengths]
        op.unify(x.axes[dim], tuple(s for p in parts for s in p))
    elif number != len(lengths) or shortest == 0:
        op.pin(x.axes[dim], why=f"cuts it into {number} parts, which it is too short for")
        parts = [fixed(n, x.axes[dim]) for n in lengths]
    else:
        part = free(shortest)
        rest = {n: free(n - shortest) for n in lengths if n > shortest}
        op.pin(*rest.values(), why="makes its parts unequal, by channels whose number stays")
        parts = [(*part, *rest.get(n, ())) for n in lengths]
        whole = tuple(s for p in parts for s in p) if rest else times(number, part, 1)
        op.unify(x.axes[dim], whole, f"cuts it into {number} equal parts{_across(x.axes[dim])}")
    return tuple((*x.axes[:dim], resolve(p), *x.axes[dim + 1 :]) for p in parts)


def _across(axis: OpenAxis) -> str:
    """Return what the channels of an axis lie in that cannot be cut evenly (after a shuffle, say)."""
    segments = resolve(axis)
    if len(segments) > 1 or len(segments[0]) == 1:
        return ", across channels that are concatenated"
    groups = _size(segments[0][:1])
    return f", which its {groups} groups of {_size(segments[0][1:])} channels do not divide into"


@register_rule(*everywhere(["unbind"]))
def unbind(op: Op) -> Any:
    """An axis taken apart; it must not grow."""
    a = op.bind("input", "dim", dim=0)
    x = a["input"]
    dim = a["dim"] % len(x.axes)
    op.pin(x.axes[dim], why="takes it apart")
    return tuple((*x.axes[:dim], *x.axes[dim + 1 :]) for _ in op.result)


EMBEDDING = ("input", "weight", "padding_idx", "max_norm")


@register_rule(F.embedding)
def embedding(op: Op) -> tuple[OpenAxis, ...]:
    """Rows of a table: their length is a width, their number is none."""
    a = op.bind(*EMBEDDING)
    x, weight = a["input"], a["weight"]
    if a["max_norm"] is not None:
        raise NoRule("rescales its weight in place (max_norm)")
    op.settle(weight.axes[0])
    return (*x.axes, weight.axes[1])


@register_rule(F.embedding_bag)
def embedding_bag(op: Op) -> tuple[OpenAxis, ...]:
    """Rows of a table, added up, averaged or compared."""
    a = op.bind("input", "weight", "offsets", "max_norm")
    weight = a["weight"]
    if a["max_norm"] is not None:
        raise NoRule("rescales its weight in place (max_norm)")
    op.settle(weight.axes[0])
    return (fixed(op.result.shape[0]), weight.axes[1])


def _resize_embedding(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        m.num_embeddings, m.embedding_dim = tensors["weight"].shape


@layer(nn.Embedding, resize=_resize_embedding)
def lower_embedding(m: Any, x: Typed) -> Call:
    """An embedding is `F.embedding`."""
    rest = (m.padding_idx, m.max_norm, m.norm_type, m.scale_grad_by_freq, m.sparse)
    return Call(F.embedding, (x, Ref("weight"), *rest))


@layer(nn.EmbeddingBag, resize=_resize_embedding)
def lower_embedding_bag(
    m: Any, x: Typed, offsets: Any = None, per_sample_weights: Any = None
) -> Call:
    """A bag of embeddings is `F.embedding_bag`."""
    rest = (m.max_norm, m.norm_type, m.scale_grad_by_freq, m.mode, m.sparse, per_sample_weights,
            m.include_last_offset, m.padding_idx)  # fmt: skip
    return Call(F.embedding_bag, (x, Ref("weight"), offsets, *rest))
