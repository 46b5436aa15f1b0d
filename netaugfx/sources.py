"""Where the tensors of a subnet come from: laid out once per config, each written once per pass.

`blocks.assemble` says what a subnet's tensor is, by concatenations, and torch.compile sees these. Eager passes copy
every element once, forward and backward, whatever the number of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Axis, Extent, extent
from .blocks import Assembly, Form, Rooms, assemble, form
from .plan import Config, Plan

Stretches = Sequence[tuple[int, int]]
# the sizes that an axis is split into, and which of them are kept; None: all of it
Cut = tuple[list[int], list[bool]] | None
Cuts = Sequence[tuple[int, tuple[list[int], list[bool]]]]
Source = Callable[[], Tensor | None]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Sources:
    """Every Parameter and buffer of a base with its blocks; what depends on no config is worked out once."""

    def __init__(self, plan: Plan, base: nn.Module, rooms: Rooms) -> None:
        self.plan, self.base, self.rooms = plan, base, rooms
        self.axes: dict[Axis, int] = {}  # distinct elastic axes, numbered
        self._known: dict[str, _Stored] = {}
        self._modules: dict[str, nn.Module] = {}

    def stored(self, name: str) -> _Stored:
        """Return the Parameter or buffer `name` with its blocks."""
        if name not in self._known:
            self._known[name] = _Stored(name, self)
        return self._known[name]

    def module(self, path: str) -> nn.Module:
        """Return the base's module at `path`."""
        if path not in self._modules:
            self._modules[path] = self.base.get_submodule(path)
        return self._modules[path]

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
            grows = any(place.grows for _, place in places)
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
    """An extent, and how it cuts the subnet's tensor and the tensors that it comes from."""

    def __init__(self, e: Extent) -> None:
        self.extent, self.length = e, e.length
        self.grows = not e.at_base
        new = [run for run in e.runs if run.new]
        # one new stretch behind the base's
        self.tail = new[0] if len(new) == 1 and len(e.runs) == 2 and e.runs[1].new else None

    @cached_property
    def of_base(self) -> tuple[Cut, Cut]:
        """Where base elements stand in the subnet's tensor, and in their own."""
        return self._own(False), _cut(_stretches(self.extent, False), self.extent.base)

    @cached_property
    def of_new(self) -> tuple[Cut, Cut]:
        """Where new elements stand in the subnet's tensor, and in their own."""
        return self._own(True), _cut(_stretches(self.extent, True), self.extent.new)

    @cached_property
    def of_all(self) -> tuple[Cut, Cut]:
        """Where all elements stand in the subnet's tensor, and in the largest form."""
        full = self.extent.full
        into = ([n for _, n in full], [True] * len(full)) if len(full) > 1 else None
        return into, _cut(full, self.extent.base + self.extent.new)

    def _own(self, new: bool) -> Cut:
        if len(self.extent.runs) == 1:
            return None
        return [run.length for run in self.extent.runs], [
            run.new is new for run in self.extent.runs
        ]


def _stretches(e: Extent, new: bool) -> Stretches:
    return [(run.start, run.length) for run in e.runs if run.new is new]


class _Part:
    """What comes from one tensor: the cuts of the subnet's tensor, and those of the tensor itself, by axis."""

    def __init__(self, cuts: Iterable[tuple[int, tuple[Cut, Cut]]]) -> None:
        cuts = list(cuts)
        self.into = [(axis, into) for axis, (into, _) in cuts if into is not None]
        self.out_of = [(axis, out_of) for axis, (_, out_of) in cuts if out_of is not None]


class Join:
    """How a tensor of one config is put together from the base's and from blocks.

    Args:
        places: Per elastic axis in block order, how it is laid out; some grow.
    """

    def __init__(self, places: Sequence[tuple[int, _Place]]) -> None:
        self.places = places
        self.used = [i for i, place in places if place.grows]
        axis, last = places[-1]
        self.tail = (axis, last.tail) if self.used == [axis] and last.tail is not None else None
        self.parts = self._parts() if self.tail is None else []

    @property
    def steps(self) -> tuple[tuple[int, Extent], ...]:
        return tuple((i, place.extent) for i, place in self.places)

    def _parts(self) -> list[_Part]:
        """What comes from the base's tensor, then from every block that is used."""
        places = self.places
        parts = [_Part((i, p.of_base) for i, p in places)]
        for k, (axis, place) in enumerate(places):
            if place.grows:
                before = [(i, p.of_base) for i, p in places[:k]]
                behind = [(i, p.of_all) for i, p in places[k + 1 :]]
                parts.append(_Part([*before, (axis, place.of_new), *behind]))
        return parts

    def __call__(self, base: Tensor, blocks: Sequence[Tensor]) -> Tensor:
        """Return the subnet's tensor: a new one."""
        if self.tail is not None:
            axis, run = self.tail  # a plain concatenation costs less Python
            return torch.cat((base, blocks[0].narrow(axis, run.start, run.length)), axis)
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
        for axis, place in self.places:
            shape[axis] = place.length
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


def _cut(stretches: Stretches, total: int) -> Cut:
    """Return how to cut `stretches` out of an axis of length `total`."""
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
    return sizes, kept


def _pieces(t: Tensor, cuts: Cuts, rest: list[Tensor] | None = None) -> list[Tensor]:
    """Return the views that `cuts` keep; what they leave is added to `rest`."""
    views = [t]
    for axis, (sizes, kept) in cuts:
        pieces = [list(v.split(sizes, axis)) for v in views]  # type: ignore[no-untyped-call]
        views = [p for group in pieces for p in compress(group, kept)]
        if rest is not None:
            rest += [p for group in pieces for p, k in zip(group, kept, strict=True) if not k]
    return views
