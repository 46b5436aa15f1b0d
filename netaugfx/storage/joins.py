"""How a subnet's tensors are put together from the base's and from blocks: every element copied once, each way.

`blocks.assemble` says what a subnet's tensor is, by concatenations, and torch.compile sees these. Eager passes put
many tensors together in one autograd node, since in small networks the calls cost more than the copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ..axes import Extent
from .blocks import Assembly, Form, assemble

# the sizes that an axis is split into, and which of them are kept; no flags: all of them
Cut = tuple[list[int], list[bool] | None]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Place:
    """An extent, and how it cuts the subnet's tensor and the tensors that it comes from."""

    __slots__ = ("_cuts", "extent", "grows", "length")

    def __init__(self, e: Extent) -> None:
        self.extent, self.length, self.grows = e, e.length, not e.at_base
        self._cuts: tuple[Cut | None, Cut | None, Cut | None, list[int] | None] | None = None

    def cuts(self) -> tuple[Cut | None, Cut | None, Cut | None, list[int] | None]:
        """Return how base elements lie in the base, new ones among the new, all in the largest form and in the subnet.

        None where a tensor is not cut.
        """
        if self._cuts is None:
            e = self.extent
            old = [run.length for run in e.runs if not run.new]
            new = [(run.start, run.length) for run in e.runs if run.new]
            self._cuts = (
                (old, None) if len(old) > 1 else None,
                _cut(new, e.new),
                _cut(e.full, e.base + e.new),
                [n for _, n in e.full] if len(e.full) > 1 else None,
            )
        return self._cuts


class Join:
    """How a tensor of one config is put together from the base's and from blocks.

    Args:
        places: Per elastic axis in block order, how it is laid out; some grow.
    """

    __slots__ = ("_ways", "places", "tail", "used")

    def __init__(self, places: Sequence[tuple[int, Place]]) -> None:
        self.places = places
        self.used = [axis for axis, place in places if place.grows]
        self.tail: tuple[int, int, int] | None = None
        axis, last = places[-1]
        runs = last.extent.runs
        if len(self.used) == 1 and last.grows and len(runs) == 2 and runs[1].new:
            self.tail = axis, runs[1].start, runs[1].length  # one new stretch behind the base's
        self._ways: Any = None

    def plainly(self, base: Tensor, blocks: Sequence[Tensor]) -> Tensor:
        """Return the subnet's tensor by concatenations, which torch.compile and torch.func understand."""
        steps = tuple((axis, place.extent) for axis, place in self.places)
        form = Form("", (), (), None)
        return assemble(base, dict(zip(self.used, blocks, strict=True)), Assembly(form, steps))

    def shape(self, base: Tensor) -> list[int]:
        """Return the shape of the subnet's tensor."""
        shape = list(base.shape)
        for axis, place in self.places:
            shape[axis] = place.length
        return shape

    def ways(self) -> tuple[list[Any], list[list[tuple[int, Cut]]]]:
        """Return how the subnet's tensor is cut, axis by axis, and how the base and every block are.

        The former are `(axis, sizes, which are new, [(later axis, sizes)])`.
        """
        if self._ways is None:
            regions, own = [], [[(axis, place.cuts()[0]) for axis, place in self.places]]
            for k, (axis, place) in enumerate(self.places):
                if not place.grows:
                    continue
                runs = place.extent.runs
                flags = [run.new for run in runs]
                later = [(i, p.cuts()) for i, p in self.places[k + 1 :]]
                behind = [(i, sizes) for i, (_, _, _, sizes) in later if sizes is not None]
                regions.append(
                    (axis, [run.length for run in runs], flags, [not f for f in flags], behind)
                )
                own.append(
                    [
                        *((i, p.cuts()[0]) for i, p in self.places[:k]),
                        (axis, place.cuts()[1]),
                        *((i, full) for i, (_, _, full, _) in later),
                    ]
                )
            self._ways = regions, [[(i, c) for i, c in cuts if c is not None] for cuts in own]
        ways: tuple[list[Any], list[list[tuple[int, Cut]]]] = self._ways
        return ways

    def regions(self, t: Tensor) -> list[list[Tensor]]:
        """Cut a tensor of the subnet's shape: views of what is the base's, then of what is each used block's."""
        old, parts = [t], []
        for axis, sizes, new, others, behind in self.ways()[0]:
            times = len(old)
            pieces = _split(old, axis, sizes)
            fresh = list(compress(pieces, new * times))
            for later, their in behind:
                fresh = _split(fresh, later, their)
            parts.append(fresh)
            old = list(compress(pieces, others * times))
        return [old, *parts]


def _split(views: list[Tensor], axis: int, sizes: list[int]) -> list[Tensor]:
    if len(views) == 1:
        return list(torch.split_with_sizes(views[0], sizes, axis))
    return [piece for v in views for piece in torch.split_with_sizes(v, sizes, axis)]


def _pieces(
    t: Tensor, cuts: list[tuple[int, Cut]], rest: list[Tensor] | None = None
) -> list[Tensor]:
    """Return the views that `cuts` keep; what they leave is added to `rest`."""
    views = [t]
    for axis, (sizes, kept) in cuts:
        pieces = _split(views, axis, sizes)
        if kept is not None:
            flags = kept * len(views)
            if rest is not None:
                rest.extend(compress(pieces, [not k for k in flags]))
            pieces = list(compress(pieces, flags))
        views = pieces
    return views


def joined(joins: Sequence[Join], tensors: Iterable[Sequence[Tensor]]) -> Sequence[Tensor]:
    """Return a subnet's tensors, new ones: each of a base's and of the blocks that its join uses."""
    flat = [t for each in tensors for t in each]
    if torch.is_grad_enabled() and any(t.requires_grad for t in flat):
        made: Sequence[Tensor] = _Joined.apply(joins, *flat)
        return made
    return _written(joins, flat)


def _written(joins: Sequence[Join], tensors: Sequence[Tensor]) -> list[Tensor]:
    made: list[Tensor] = []
    into: list[Tensor] = []
    out_of: list[Tensor] = []
    at = 0
    for join in joins:
        base = tensors[at]
        if join.tail is not None:
            axis, start, n = join.tail
            made.append(torch.cat((base, tensors[at + 1].narrow(axis, start, n)), axis))
            at += 2
            continue
        kind = torch.contiguous_format
        if not base.is_contiguous():
            kind = FORMATS.get(base.dim(), kind)
        t = torch.empty(join.shape(base), dtype=base.dtype, device=base.device, memory_format=kind)
        made.append(t)
        for views, cuts in zip(join.regions(t), join.ways()[1], strict=True):
            into += views
            out_of += _pieces(tensors[at], cuts) if cuts else (tensors[at],)
            at += 1
    if into:
        torch._foreach_copy_(into, out_of)
    return made


def _taken(
    joins: Sequence[Join],
    gradients: Sequence[Tensor | None],
    tensors: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return what the gradients of the subnet's tensors are for the tensors that they come from.

    Views of them where these are used as a whole and in one piece.
    """
    made: list[Tensor | None] = [None] * len(tensors)
    into: list[Tensor] = []
    out_of: list[Tensor] = []
    unused: list[Tensor] = []
    at = 0
    for join, gradient in zip(joins, gradients, strict=True):
        here, at = at, at + 1 + len(join.used)
        if gradient is None or not any(wanted[here:at]):
            continue
        cuts_of = join.ways()[1]
        for i, views, cuts in zip(range(here, at), join.regions(gradient), cuts_of, strict=True):
            if not wanted[i]:
                continue
            if not cuts:
                made[i] = views[0]
                continue
            g = made[i] = torch.empty_like(tensors[i])
            into += _pieces(g, cuts, unused)
            out_of += views
    if into:
        torch._foreach_copy_(into, out_of)
    if unused:
        torch._foreach_zero_(unused)
    return made


class _Joined(torch.autograd.Function):
    """`_written` with a gradient; it is linear, so that the values of its inputs do not matter backward."""

    @staticmethod
    def forward(ctx: Any, joins: Sequence[Join], *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.joins, ctx.tensors = joins, tensors
        return tuple(_written(joins, tensors))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        wanted = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *_taken(ctx.joins, gradients, ctx.tensors, wanted)
        found: list[Tensor | None] = []
        for join, gradient in zip(ctx.joins, gradients, strict=True):
            here, there = len(found), len(found) + 1 + len(join.used)
            leaves = [
                t.detach().requires_grad_(want)
                for t, want in zip(ctx.tensors[here:there], wanted[here:there], strict=True)
            ]
            some = [t for t in leaves if t.requires_grad]
            if gradient is None or not some:
                found += [None] * len(leaves)
                continue
            value = join.plainly(leaves[0], leaves[1:])
            each = iter(torch.autograd.grad(value, some, gradient, create_graph=True))
            found += [next(each) if t.requires_grad else None for t in leaves]
        return None, *found


def _cut(stretches: Sequence[tuple[int, int]], total: int) -> Cut | None:
    """Return how to cut `stretches` out of an axis of length `total`; None: it is one stretch."""
    if len(stretches) == 1 and stretches[0] == (0, total):
        return None
    sizes: list[int] = []
    kept: list[bool] = []
    here = 0
    for start, n in stretches:
        if start > here:
            sizes.append(start - here)
            kept.append(False)
        sizes.append(n)
        kept.append(True)
        here = start + n
    if here < total:
        sizes.append(total - here)
        kept.append(False)
    return sizes, None if all(kept) else kept
