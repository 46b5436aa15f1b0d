"""Where the tensors of a subnet come from: laid out once per config, each written once per pass.

`blocks.assemble` says what a subnet's tensor is, by concatenations, and torch.compile sees these. Eager passes copy
every element once, forward and backward, whatever the number of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Axis, Extent, extent
from .blocks import Assembly, Form, Rooms, assemble, form
from .plan import Config, Plan

Stretches = Sequence[tuple[int, int]]
Cut = tuple[
    int, list[int], list[bool]
]  # axis, the sizes that it is split into, which of them are kept
Source = Callable[[], Tensor | None]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Sources:
    """Every Parameter and buffer of a base with its blocks; what depends on no config is worked out once."""

    def __init__(self, plan: Plan, base: nn.Module, rooms: Rooms) -> None:
        self.plan, self.base, self.rooms = plan, base, rooms
        self.axes: dict[Axis, int] = {}  # distinct elastic axes, numbered
        self._known: dict[str, _Stored] = {}

    def stored(self, name: str) -> _Stored:
        """Return the Parameter or buffer `name` with its blocks."""
        if name not in self._known:
            self._known[name] = _Stored(name, self)
        return self._known[name]

    def at(self, config: Config) -> Layout:
        """Return where tensors come from at `config`."""
        return Layout(self, config)


class _Stored:
    """A Parameter or buffer where it lies, with its blocks."""

    def __init__(self, name: str, sources: Sources) -> None:
        path, _, self.leaf = name.rpartition(".")
        owner = sources.base.get_submodule(path)
        self.home: dict[str, Tensor | None] = (
            owner._parameters if self.leaf in owner._parameters else owner._buffers  # type: ignore[assignment]
        )
        self.form = form(sources.plan, name)
        axes = sources.axes
        self.order = tuple(
            (i, axes.setdefault(self.form.axes[i], len(axes))) for i in self.form.order
        )
        self.blocks: dict[int, tuple[dict[str, Tensor], str]] = {}
        if self.form.fill is None and self.order:
            room = sources.rooms.room(path)
            for i in self.form.order:
                key = f"{self.leaf}_axis{i}"
                there: dict[str, Tensor] = (
                    room._parameters if key in room._parameters else room._buffers  # type: ignore[assignment]
                )
                self.blocks[i] = (there, key)

    def as_it_is(self) -> Tensor | None:
        return self.home[self.leaf]

    def grown(self, join: Join) -> Tensor | None:
        base = self.home[self.leaf]
        if base is None:
            return None
        fill = self.form.fill
        if fill is not None:
            return assemble(base, {}, Assembly(self.form, join.steps))
        blocks = [there[key] for there, key in (self.blocks[i] for i in join.used)]
        if not base.requires_grad:
            blocks = [block.detach() for block in blocks]
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return join.plainly(self.form, base, blocks)
        return join(base, blocks)


class Layout:
    """Where the tensors of one config come from."""

    def __init__(self, sources: Sources, config: Config) -> None:
        self.sources, self.config = sources, config
        self._places: dict[int, _Place] = {}
        self._joins: dict[Any, Join | None] = {}

    def source(self, name: str) -> Source:
        """Return what gives the tensor `name` at this config, from the tensors as they are when it is called."""
        stored = self.sources.stored(name)
        key = stored.order
        if not key:
            return stored.as_it_is
        if key not in self._joins:
            places = [(i, self._place(stored.form.axes[i], k)) for i, k in key]
            grows = not all(place.extent.at_base for _, place in places)
            self._joins[key] = Join(places) if grows else None
        join = self._joins[key]
        return stored.as_it_is if join is None else partial(stored.grown, join)

    def _place(self, axis: Axis, k: int) -> _Place:
        found = self._places.get(k)
        if found is None:
            plan = self.sources.plan
            found = _Place(extent(axis, plan.base_config, self.config, plan.max_config))
            self._places[k] = found
        return found


class _Place:
    """An extent, as stretches of the subnet's tensor and of the tensors that it comes from."""

    def __init__(self, e: Extent) -> None:
        self.extent, self.length = e, e.length
        self.base: list[
            tuple[int, int]
        ] = []  # where base and new elements stand in the subnet's tensor
        self.new: list[tuple[int, int]] = []
        self.of_base: list[tuple[int, int]] = []  # and in their own
        self.of_new: list[tuple[int, int]] = []
        here = 0
        for run in e.runs:
            (self.new if run.new else self.base).append((here, run.length))
            (self.of_new if run.new else self.of_base).append((run.start, run.length))
            here += run.length
        self.all: list[tuple[int, int]] = []
        here = 0
        for _, n in e.full:
            self.all.append((here, n))
            here += n


class _Part:
    """What comes from one tensor: the cuts of the subnet's tensor, and those of the tensor itself."""

    def __init__(self) -> None:
        self.into: list[Cut] = []
        self.out_of: list[Cut] = []

    def add(self, axis: int, into: Stretches, length: int, out_of: Stretches, total: int) -> None:
        for cuts, stretches, n in ((self.into, into, length), (self.out_of, out_of, total)):
            made = _cut(axis, stretches, n)
            if made is not None:
                cuts.append(made)


class Join:
    """How a tensor of one config is put together from the base's and from blocks.

    Args:
        places: Per elastic axis in block order, how it is laid out.
    """

    def __init__(self, places: Sequence[tuple[int, _Place]]) -> None:
        self.steps = tuple((i, place.extent) for i, place in places)
        self.lengths = [(i, place.length) for i, place in places]
        self.used = [i for i, place in places if place.new]
        self.parts = [_Part()]
        for i, p in places:
            self.parts[0].add(i, p.base, p.length, p.of_base, p.extent.base)
        for k, (axis, place) in enumerate(places):
            if not place.new:
                continue
            part = _Part()
            for i, p in places[:k]:
                part.add(i, p.base, p.length, p.of_base, p.extent.base)
            part.add(axis, place.new, place.length, place.of_new, place.extent.new)
            for i, p in places[k + 1 :]:
                part.add(i, p.all, p.length, p.extent.full, p.extent.base + p.extent.new)
            self.parts.append(part)
        axis, place = places[-1]
        simple = self.used == [axis] and len(place.extent.runs) == 2 and place.base[0][0] == 0
        # one stretch of one block behind the base: a plain concatenation costs less Python
        self.tail = (axis, *place.of_new[0]) if simple else None

    def __call__(self, base: Tensor, blocks: Sequence[Tensor]) -> Tensor:
        """Return the subnet's tensor: a new one."""
        if self.tail is not None:
            axis, start, n = self.tail
            return torch.cat((base, blocks[0].narrow(axis, start, n)), axis)
        if torch.is_grad_enabled() and (base.requires_grad or any(b.requires_grad for b in blocks)):
            made: Tensor = _Joined.apply(self, base, *blocks)
            return made
        return self.written((base, *blocks))

    def plainly(self, form: Form, base: Tensor, blocks: Sequence[Tensor]) -> Tensor:
        """Return the same by concatenations, which torch.compile and torch.func understand."""
        return assemble(base, dict(zip(self.used, blocks, strict=True)), Assembly(form, self.steps))

    def written(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the subnet's tensor from the base's and the blocks."""
        base = tensors[0]
        shape = list(base.shape)
        for axis, n in self.lengths:
            shape[axis] = n
        kind = torch.contiguous_format if base.is_contiguous() else FORMATS.get(base.dim())
        made = torch.empty(
            shape,
            dtype=base.dtype,
            device=base.device,
            memory_format=kind or torch.contiguous_format,
        )
        into: list[Tensor] = []
        out_of: list[Tensor] = []
        for part, t in zip(self.parts, tensors, strict=True):
            into += _pieces(made, part.into)
            out_of += _pieces(t, part.out_of)
        torch._foreach_copy_(into, out_of)
        return made

    def taken(
        self, gradient: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Return what the gradient of the subnet's tensor is for the base's and the blocks."""
        made: list[Tensor | None] = []
        into: list[Tensor] = []
        out_of: list[Tensor] = []
        unused: list[Tensor] = []
        for part, t, want in zip(self.parts, tensors, wanted, strict=True):
            g = None
            if want:
                g = torch.empty_like(t)
                into += _pieces(g, part.out_of, unused)
                out_of += _pieces(gradient, part.into)
            made.append(g)
        if into:
            torch._foreach_copy_(into, out_of)
        if unused:
            torch._foreach_zero_(unused)
        return made


class _Joined(torch.autograd.Function):
    """`Join.written` with a gradient; it is linear."""

    @staticmethod
    def forward(ctx: Any, join: Join, *tensors: Tensor) -> Tensor:
        ctx.join, ctx.tensors = join, [t.detach() for t in tensors]
        return join.written(tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        if not torch.is_grad_enabled():
            return None, *ctx.join.taken(gradients[0], ctx.tensors, wanted)
        leaves = [t.requires_grad_(want) for t, want in zip(ctx.tensors, wanted, strict=True)]
        base, *blocks = leaves
        axes = tuple(((1,),) for _ in range(base.dim()))
        made = ctx.join.plainly(Form("", axes, (), None), base, blocks)
        some = [t for t in leaves if t.requires_grad]
        found = iter(torch.autograd.grad(made, some, gradients[0], create_graph=True))
        return None, *(next(found) if want else None for want in wanted)


def _cut(axis: int, stretches: Stretches, total: int) -> Cut | None:
    """Return how to cut `stretches` out of an axis of length `total`; None for the whole."""
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
    return axis, sizes, kept


def _pieces(t: Tensor, cuts: Sequence[Cut], rest: list[Tensor] | None = None) -> list[Tensor]:
    """Return the views that `cuts` keep; what they leave is added to `rest`."""
    views = [t]
    for axis, sizes, kept in cuts:
        pieces = [list(v.split(sizes, axis)) for v in views]  # type: ignore[no-untyped-call]
        views = [p for group in pieces for p in compress(group, kept)]
        if rest is not None:
            rest += [p for group in pieces for p, k in zip(group, kept, strict=True) if not k]
    return views
