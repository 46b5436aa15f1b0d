"""Channels in another order: whole widths, everywhere they occur, with gradients, and what an optimiser keeps.

The law: in whatever order its channels lie, the widest subnet computes what it did. The base does not: it is made of
the channels that lie first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor, nn

from ..axes import Axis, Extent, extent, size
from ..errors import ConfigError
from ..plan import Config, Plan
from .blocks import Form, Rooms, assemble, assembly, create, form

Orders = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Grown:
    """One Parameter or buffer of the base, its blocks by axis, and how its elastic axes are reordered."""

    name: str
    form: Form
    tensor: Tensor
    blocks: Mapping[int, Tensor]
    places: Mapping[int, Tensor]  # axis -> int64 (n,): where each element along it comes from
    plan: Plan

    def whole(self, tensor: Tensor, blocks: Mapping[int, Tensor]) -> Tensor:
        """Return the largest form of `tensor` and `blocks`, which have the shapes of these."""
        largest = self.plan.max_config
        cache: dict[Axis, Extent] = {}
        laid = assembly(self.form, self.plan.base_config, largest, largest, cache)
        return assemble(tensor, blocks, laid)

    def reordered(self, whole: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return a largest form in the new order, cut into the base's part and the blocks."""
        for axis, places in self.places.items():
            whole = whole.index_select(axis, places.to(whole.device))
        part, largest = whole, self.plan.max_config
        for axis in self.form.order:
            here = extent(self.form.axes[axis], self.plan.base_config, largest, largest)
            where = torch.tensor(here.base_positions(), device=whole.device)
            part = part.index_select(axis, where)
        return part, create(self.form, self.tensor, whole, self.plan)


def permute(
    plan: Plan,
    base: nn.Module,
    rooms: Rooms,
    orders: Orders,
    statistics: Mapping[Config, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    ema: nn.Module | None = None,
) -> dict[Config, dict[str, Tensor]]:
    """Reorder channels in place, as `WideModel.permute` documents it.

    Returns:
        The batch-norm statistics of the widest subnet in the new order, where it had any; those of others are
        dropped, since they are other networks now.
    """
    whole = checked(plan, orders)
    for argument, kind in ((optimizer, torch.optim.Optimizer), (ema, nn.Module)):
        if argument is not None and not isinstance(argument, kind):
            raise ConfigError(f"permute: a torch {kind.__name__} was expected; {argument!r} came.")
    with torch.no_grad():
        grown = list(_grown(plan, base, rooms, whole))
        if optimizer is not None:
            _check_state(optimizer, [*base.named_parameters(), *rooms.named_parameters()])
        # all that can be refused has been refused: from here on, everything is changed
        if ema is not None:
            _move_average(ema, grown, plan, whole)
        if optimizer is not None:
            for each in grown:
                _move_state(optimizer, each)
        for each in grown:
            _move_gradients(each)
            _write(each, each.tensor, each.blocks)
        kept = {name: t.clone() for name, t in statistics.get(plan.max_config, {}).items()}
        for name in kept:
            for axis, places in _places(plan, name, whole).items():
                kept[name] = kept[name].index_select(axis, places.to(kept[name].device))
    return {plan.max_config: kept} if kept else {}


def checked(plan: Plan, orders: Orders) -> dict[str, list[int]]:
    """Return `orders` as lists.

    Raises:
        ConfigError: An unknown, pinned or not permutable width, or what is no permutation of its channels.
    """
    if not isinstance(orders, Mapping):
        raise ConfigError(
            f"permute: orders must be a mapping from width name to a permutation; {orders!r} came."
        )
    found = {}
    for name, order in orders.items():
        if name not in plan.by_name:
            why = f" (it is pinned: {plan.pinned[name]})" if name in plan.pinned else ""
            raise ConfigError(f"permute: no width is called {name!r}{why}; see describe(plan).")
        if not plan.by_name[name].permutable:
            raise ConfigError(
                f"permute: the channels of {name!r} cannot change places, since groups, a shuffle or a "
                "convolution over channels depend on their order; leave it out (Width.permutable says which)."
            )
        n = plan.max_config[name]
        try:
            found[name] = [
                index(i) for i in (order.tolist() if isinstance(order, Tensor) else order)
            ]
            came = f"{len(found[name])} numbers"
        except TypeError:
            found[name], came = [], repr(order)
        if sorted(found[name]) != list(range(n)):
            raise ConfigError(
                f"permute: the order of {name!r} must hold each of 0 to {n - 1} once, since it has {n} channels at "
                f"its widest; {came} came."
            )
    return found


def _grown(plan: Plan, base: nn.Module, rooms: Rooms, orders: Orders) -> Iterator[Grown]:
    """Yield every Parameter and buffer of the base along which a width of `orders` lies."""
    tensors = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    own = {**dict(rooms.named_parameters()), **dict(rooms.named_buffers())}
    for name in plan.axes:
        places = _places(plan, name, orders)
        if places and tensors.get(name) is not None:
            whole = form(plan, name)
            blocks = {
                axis: own[f"{name}_axis{axis}"]
                for axis in whole.order
                if f"{name}_axis{axis}" in own
            }
            yield Grown(name, whole, tensors[name], blocks, places, plan)


def _places(plan: Plan, name: str, orders: Orders) -> dict[int, Tensor]:
    """Return, for every axis of a tensor that is reordered, where each element of its largest form comes from."""
    found = {}
    for i, axis in enumerate(plan.axes.get(name, ())):
        if not any(f in orders for segment in axis for f in segment):
            continue
        places: list[int] = []
        at = 0
        for segment in axis:
            n = size((segment,), plan.max_config)
            k = next((k for k, f in enumerate(segment) if isinstance(f, str) and f in orders), None)
            if k is None:
                places += range(at, at + n)
            else:
                order = orders[str(segment[k])]
                inner = size((segment[k + 1 :],), plan.max_config)
                for outer in range(size((segment[:k],), plan.max_config)):
                    starts = (at + (outer * len(order) + c) * inner for c in order)
                    places += [start + j for start in starts for j in range(inner)]
            at += n
        found[i] = torch.tensor(places, dtype=torch.long, device="cpu")
    return found


def _write(grown: Grown, tensor: Tensor, blocks: Mapping[int, Tensor]) -> None:
    """Reorder `tensor` and `blocks` in place; new elements of a running statistic have its fill."""
    part, others = grown.reordered(grown.whole(tensor, blocks))
    tensor.copy_(part)
    for axis, block in blocks.items():
        block.copy_(others[axis])


# ------------------------------------------------------------------------------------------------ what goes along


def _check_state(
    optimizer: torch.optim.Optimizer, named: Sequence[tuple[str, nn.Parameter]]
) -> None:
    """Raise where the optimiser holds none of these Parameters, or keeps something that is not per element."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held & {id(p) for _, p in named}:
        raise ConfigError(
            f"permute: {type(optimizer).__name__} holds no Parameter of this model: it was made before widen. "
            "Make it from wide.parameters()."
        )
    for name, p in named:
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and (value.shape == p.shape or value.dim() == 0):
                continue
            if value is None or isinstance(value, int | float | str):
                continue
            what = (
                f"shape {list(value.shape)}"
                if isinstance(value, Tensor)
                else f"{type(value).__name__}"
            )
            raise ConfigError(
                f"permute: the state of {type(optimizer).__name__} cannot follow: its {key!r} of {name!r} "
                f"({list(p.shape)}) is of {what}, not one value per element. Use an optimiser such as SGD or "
                "AdamW, or do not sort."
            )


def _move_gradients(grown: Grown) -> None:
    """Reorder the gradients that await a step."""
    owners = {-1: grown.tensor, **grown.blocks}
    if all(t.grad is None for t in owners.values()):
        return
    values = {i: torch.zeros_like(t) if t.grad is None else t.grad for i, t in owners.items()}
    part, blocks = grown.reordered(grown.whole(values.pop(-1), values))
    for i, t in owners.items():
        moved = part if i == -1 else blocks[i]
        if t.grad is not None or moved.any():
            t.grad = torch.empty_like(t).copy_(moved)


def _move_state(optimizer: torch.optim.Optimizer, grown: Grown) -> None:
    """Reorder the optimiser's values per element; its counters (Adam's step) stay with their Parameters."""
    owners = {-1: grown.tensor, **grown.blocks}
    states = {i: optimizer.state[t] for i, t in owners.items() if optimizer.state.get(t)}
    keys = {
        key: value.dtype
        for i, state in states.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.dim() and value.shape == owners[i].shape
    }
    moved: dict[int, dict[str, Tensor]] = {i: {} for i in owners}
    for key, dtype in keys.items():
        values = {
            i: states[i][key]
            if i in states and key in states[i]
            else torch.zeros_like(t, dtype=dtype)
            for i, t in owners.items()
        }
        part, blocks = grown.reordered(grown.whole(values.pop(-1), values))
        moved[-1][key] = part
        for i in grown.blocks:
            moved[i][key] = blocks[i].to(dtype)
    for i, t in owners.items():
        if i not in states:  # it has had no step yet; now it holds channels that have
            if not any(value.any() for value in moved[i].values()):
                continue
            other = next(iter(states.values()))
            optimizer.state[t] = {
                key: value.clone() if isinstance(value, Tensor) else value
                for key, value in other.items()
                if key not in keys
            }
        for key, value in moved[i].items():
            optimizer.state[t][key] = torch.empty_like(t, dtype=value.dtype).copy_(value)


def _move_average(ema: nn.Module, grown: Sequence[Grown], plan: Plan, orders: Orders) -> None:
    """Reorder an average of the wide model, or of its base alone: then channels new to it come as they are now."""
    module = ema
    while True:
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        if plan.axes.keys() <= tensors.keys():
            break
        inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            raise ConfigError(
                f"permute: ema is a {type(ema).__name__} of another model. Give an average of wide, or of wide.base."
            )
        module = inner
    rooms = getattr(module, "rooms", None)
    own = (
        {each.name: each for each in _grown(plan, module, rooms, orders)}
        if rooms is not None
        else {}
    )
    for each in grown:
        if each.name in own:
            _write(own[each.name], own[each.name].tensor, own[each.name].blocks)
        else:
            part, _ = each.reordered(each.whole(tensors[each.name], each.blocks))
            tensors[each.name].copy_(part)


def read_magnitudes(plan: Plan, base: nn.Module, rooms: Rooms) -> dict[str, Tensor]:
    """Return how strongly each channel is read: the L1 norm of the weights that read it, in the widest subnet.

    Returns:
        Width name -> float64 (n,), n its largest size; widths that no layer reads are left out.
    """
    every = {w.name: list(range(plan.max_config[w.name])) for w in plan.widths}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for each in _grown(plan, base, rooms, every):
            for axis in plan.contracted.get(each.name, ()):
                if axis not in each.places:
                    continue
                whole = each.whole(each.tensor, each.blocks).abs().double()
                sums = whole.sum([d for d in range(whole.dim()) if d != axis]).cpu()
                at = 0
                for segment in each.form.axes[axis]:
                    n = size((segment,), plan.max_config)
                    for k, name in enumerate(segment):
                        if isinstance(name, str):
                            own = sums[at : at + n].reshape(
                                size((segment[:k],), plan.max_config),
                                plan.max_config[name],
                                size((segment[k + 1 :],), plan.max_config),
                            )
                            found[name] = found.get(name, 0) + own.sum((0, 2))
                    at += n
    return found
