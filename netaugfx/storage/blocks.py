"""A Parameter and its augmented blocks: create them, and assemble the Parameter of a subnet.

The base keeps its own Parameter. Beside it lies, for every elastic axis, one block with what is new along that axis.
For a convolution's weight `(out, in, k, k)`:

    base | axis 1      axis 1: new inputs of the base's outputs
    -----+-------      axis 0: new outputs, over all inputs of the largest form
       axis 0

In general the elastic axes are ordered, summed ones last, and the block of an axis is base along the axes before it
and full along those behind it. A subnet concatenates what it needs, so a base pass has no slice, copy or extra kernel.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..axes import Axis, Extent, extent, size, widths_of
from ..plan import Plan


@dataclass(frozen=True)
class Form:
    """How one Parameter or buffer grows: its elastic axes in block order, and the axis types behind them."""

    name: str
    axes: tuple[Axis, ...]
    order: tuple[int, ...]
    fill: float | None

    def block(self, axis: int) -> str:
        """Return the name of the block that is new along `axis`."""
        return f"{self.name}_axis{axis}"


def form(plan: Plan, name: str) -> Form:
    """Return how the Parameter or buffer `name` grows."""
    axes = plan.axes.get(name, ())
    elastic = [i for i, axis in enumerate(axes) if any(True for _ in widths_of(axis))]
    summed = plan.contracted.get(name, ())
    order = [i for i in elastic if i not in summed] + [i for i in elastic if i in summed]
    return Form(name, axes, tuple(order), plan.fills.get(name))


@dataclass(frozen=True)
class Assembly:
    """A `Form` at one config: per elastic axis in block order, where the elements along it come from."""

    form: Form
    steps: tuple[tuple[int, Extent], ...]

    @property
    def at_base(self) -> bool:
        return all(step.at_base for _, step in self.steps)


def assembly(
    form: Form,
    base: Mapping[str, int],
    config: Mapping[str, int],
    largest: Mapping[str, int],
    cache: dict[Axis, Extent],
) -> Assembly:
    """Lay out `form` at `config`; `cache` holds the extents that this config has had already."""
    steps = []
    for i in form.order:
        axis = form.axes[i]
        if axis not in cache:
            cache[axis] = extent(axis, base, config, largest)
        steps.append((i, cache[axis]))
    return Assembly(form, tuple(steps))


def assemble(base: Tensor, blocks: Mapping[int, Tensor], a: Assembly) -> Tensor:
    """Return the tensor of a subnet: `base` itself where nothing grows, else a concatenation.

    Args:
        base: The base's Parameter or buffer.
        blocks: Axis -> block; blocks of a Parameter that does not require gradients give none either.
        a: The layout at the config.
    """
    value = base
    for k in range(len(a.steps) - 1, -1, -1):
        axis, here = a.steps[k]
        if here.at_base:
            continue
        if a.form.fill is not None:
            shape = list(value.shape)
            shape[axis] = here.new
            block = value.new_full(shape, a.form.fill)
        else:
            block = blocks[axis] if base.requires_grad else blocks[axis].detach()
            for later, other in a.steps[k + 1 :]:
                block = take(block, later, other.full)
        pieces = [
            _narrow(block if run.new else value, axis, run.start, run.length) for run in here.runs
        ]
        value = torch.cat(pieces, axis)
    return value


def take(tensor: Tensor, axis: int, stretches: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the `(start, length)` stretches of `tensor` along `axis`: a view where there is one, else a copy."""
    if len(stretches) == 1:
        return _narrow(tensor, axis, *stretches[0])
    return torch.cat([_narrow(tensor, axis, start, n) for start, n in stretches], axis)


def _narrow(tensor: Tensor, axis: int, start: int, n: int) -> Tensor:
    if start == 0 and n == tensor.shape[axis]:
        return tensor
    return tensor.narrow(axis, start, n)


def create(form: Form, base: Tensor, full: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Cut the blocks of `base` out of `full`, a tensor of the largest form's shape; the base's part is not used.

    Returns:
        Axis -> block where there is something new along it: contiguous copies in the base's dtype, device and
        memory format.
    """
    largest = plan.max_config
    whole = {i: extent(form.axes[i], plan.base_config, largest, largest) for i in form.order}
    positions = {i: torch.tensor(e.base_positions(), device="cpu") for i, e in whole.items()}
    blocks: dict[int, Tensor] = {}
    for k, axis in enumerate(form.order):
        old = set(positions[axis].tolist())
        found = [p for p in range(full.shape[axis]) if p not in old]
        if not found:
            continue
        new = torch.tensor(found, dtype=torch.long, device="cpu")
        block = full.index_select(axis, new.to(full.device))
        for before in form.order[:k]:
            block = block.index_select(before, positions[before].to(full.device))
        last = base.dim() == 4 and not base.is_contiguous()
        kind = torch.channels_last if last else torch.contiguous_format
        blocks[axis] = block.to(base.device, base.dtype).contiguous(memory_format=kind)
    return blocks


def extend(base: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return a tensor of `shape` like `base`: the constant that it is, or noise of its mean and spread.

    Where no two values differ in sign (variances), elements are drawn from the values, so that none has another sign.
    """
    if base.device.type == "meta":
        return torch.empty(shape, device="meta")
    values = base.detach().double().cpu()
    values = values[values.isfinite()]
    if values.numel() == 0:
        return torch.zeros(shape)
    mean = float(values.mean())
    spread = float(values.std(correction=0))
    if spread == 0 or not base.is_floating_point():
        return torch.full(shape, float(values[0]))
    if values.min() >= 0 or values.max() <= 0:
        drawn = torch.randint(len(values), shape, generator=generator, device="cpu")
        return values[drawn].float()
    return torch.empty(shape).normal_(mean, spread, generator=generator)


def own_seed(name: str, seed: int) -> int:
    """Return a seed of its own for `name`, so that one layer's values do not depend on the others."""
    return zlib.crc32(name.encode()) ^ (seed & 0xFFFFFFFF)


def initial(
    form: Form, base: Tensor, plan: Plan, seed: int, reset: Mapping[str, Tensor] | None
) -> Tensor:
    """Return the largest form's initial values: as the layer's own `reset_parameters` made them, else by `extend`."""
    own = (reset or {}).get(form.name.rpartition(".")[2])
    if own is not None and (own.device.type == "meta" or not own.isnan().any()):
        return own
    generator = torch.Generator().manual_seed(own_seed(form.name, seed))
    return extend(base, tuple(size(axis, plan.max_config) for axis in form.axes), generator)


def parent(block: str) -> str:
    """Return the name of the base's Parameter that a block adds to, from the block's name in its rooms."""
    return block.rpartition("_axis")[0]


class Rooms(nn.Module):
    """The tree of blocks; it mirrors the base's module tree, and holds `<parameter>_axis<k>` where a layer grows."""

    def room(self, path: str) -> Rooms:
        """Return the room of the module at `path`, built where it is missing."""
        here = self
        for part in path.split(".") if path else ():
            if part not in here._modules:
                here.add_module(part, Rooms())
            child = here._modules[part]
            assert isinstance(child, Rooms)
            here = child
        return here
