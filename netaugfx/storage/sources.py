"""Where the tensors of a subnet come from: laid out once per config, put together in groups at every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..axes import Axis, extent, widths_of
from ..plan import Config, Plan
from .blocks import Assembly, Rooms, assemble, form
from .joins import Join, Place, joined

Source = Callable[[], Tensor | None]
FEW = 2  # widths in an axis; the layouts of such axes recur from config to config, and are kept
MOST = 10_000  # that are kept


class Sources:
    """Every Parameter and buffer of a base with its blocks; what depends on no config is worked out once."""

    def __init__(self, plan: Plan, base: nn.Module, rooms: Rooms) -> None:
        self.plan, self.base, self.rooms = plan, base, rooms
        self.axes: dict[Axis, int] = {}  # distinct elastic axes, numbered
        self.names: dict[int, tuple[str, ...]] = {}  # of the widths in them
        self.places: dict[
            tuple[int, tuple[int, ...]], Place
        ] = {}  # by axis and these widths' sizes
        self.joins: dict[
            tuple[Any, ...], Join | None
        ] = {}  # by axes of the tensor and their places
        self._known: dict[str, _Stored] = {}
        self._modules: dict[str, nn.Module] = {}

    def stored(self, name: str) -> _Stored:
        """Return the Parameter or buffer `name` with its blocks."""
        if name not in self._known:
            self._known[name] = _Stored(name, self)
        return self._known[name]

    def number(self, axis: Axis) -> int:
        """Return the number of `axis`."""
        k = self.axes.setdefault(axis, len(self.axes))
        if k not in self.names:
            self.names[k] = tuple(dict.fromkeys(widths_of(axis)))
        return k

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
        rooms: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers, vars(owner))
        self.home: dict[str, Tensor | None] = next(room for room in rooms if self.leaf in room)
        self.form = form(sources.plan, name)
        self.order = tuple((i, sources.number(self.form.axes[i])) for i in self.form.order)
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

    def filled(self, join: Join) -> Tensor | None:
        base = self.home[self.leaf]
        if base is None:
            return None
        steps = tuple((axis, place.extent) for axis, place in join.places)
        return assemble(base, {}, Assembly(self.form, steps))

    def parts(self, join: Join) -> list[Tensor] | None:
        """Return the base's tensor and the blocks that `join` uses; without gradients if it has none."""
        base = self.home[self.leaf]
        if base is None:
            return None
        blocks = [there[key] for there, key in (self.blocks[i] for i in join.used)]
        if not base.requires_grad:
            blocks = [block.detach() for block in blocks]
        return [base, *blocks]

    def alone(self, join: Join) -> Tensor | None:
        parts = self.parts(join)
        if parts is None:
            return None
        if not eager():
            return join.plainly(parts[0], parts[1:])
        return joined((join,), (parts,))[0]


def eager() -> bool:
    """Return whether nobody looks on who understands concatenations alone: torch.compile, torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


class Layout:
    """Where the tensors of one config come from."""

    def __init__(self, sources: Sources, config: Config) -> None:
        self.sources = sources
        plan = sources.plan
        self.sizes = dict(plan.base_config), dict(config), dict(plan.max_config)
        self._places: dict[int, Place] = {}
        self._joins: dict[Any, Join | None] = {}

    def source(self, name: str) -> Source:
        """Return what gives the tensor `name` at this config, from the tensors as they are when it is called."""
        stored = self.sources.stored(name)
        join = self._join(stored)
        if join is None:
            return stored.as_it_is
        return partial(stored.alone if stored.form.fill is None else stored.filled, join)

    def group(self, names: Iterable[tuple[int, str]]) -> Group:
        """Return those of the tensors `names`, by number, that are made of blocks at this config."""
        items = {}
        for i, name in names:
            stored = self.sources.stored(name)
            join = self._join(stored)
            if join is not None and stored.form.fill is None:
                items[i] = stored, join
        return Group(items)

    def _join(self, stored: _Stored) -> Join | None:
        key = stored.order
        if not key:
            return None
        if key not in self._joins:
            axes, names = stored.form.axes, self.sources.names
            places = tuple([self._place(axes[i], k) for i, k in key])
            recur = all(len(names[k]) <= FEW for _, k in key)
            kept = self.sources.joins if recur else {}
            which = (*(i for i, _ in key), *places)
            if which not in kept:
                if len(kept) >= MOST:
                    kept.clear()
                grows = any(place.grows for place in places)
                where = [(i, place) for (i, _), place in zip(key, places, strict=True)]
                kept[which] = Join(where) if grows else None
            self._joins[key] = kept[which]
        return self._joins[key]

    def _place(self, axis: Axis, k: int) -> Place:
        found = self._places.get(k)
        if found is None:
            names, config = self.sources.names[k], self.sizes[1]
            if len(names) > FEW:
                found = Place(extent(axis, *self.sizes))
            else:
                which = k, tuple([config[name] for name in names])
                found = self.sources.places.get(which)
                if found is None:
                    if len(self.sources.places) >= MOST:
                        self.sources.places.clear()
                    found = self.sources.places[which] = Place(extent(axis, *self.sizes))
            self._places[k] = found
        return found


class Group:
    """Tensors of one config, by number, that may be put together at once."""

    def __init__(self, items: dict[int, tuple[_Stored, Join]]) -> None:
        self.items = items

    def alone(self, i: int) -> Tensor | None:
        """Return one of the tensors."""
        stored, join = self.items[i]
        return stored.alone(join)

    def together(self) -> dict[int, Tensor]:
        """Return all of the tensors that the base has."""
        parts = {i: stored.parts(join) for i, (stored, join) in self.items.items()}
        some = {i: each for i, each in parts.items() if each is not None}
        return dict(zip(some, joined([self.items[i][1] for i in some], some.values()), strict=True))
