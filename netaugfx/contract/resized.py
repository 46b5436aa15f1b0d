"""A copy of a network whose tensors have other sizes, and whose layers say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..axes import size
from ..copies import deep_copy
from ..model import WideModel
from ..plan import Config, Plan
from ..rewrite import Program
from ..rules import layer_of, resize


def values_at(wide: WideModel, config: Config) -> Callable[[str, Tensor], Tensor]:
    """Return what stands in a subnet for a tensor of the base: a copy of what `wide.at(config)` uses."""
    layout = wide.layout(config)
    statistics = wide.statistics.get(config, {})

    def value(name: str, t: Tensor) -> Tensor:
        made = statistics.get(name)
        if made is None:
            with torch.no_grad():
                made = layout.source(name)()
        assert made is not None
        return made.detach().clone(memory_format=torch.preserve_format)

    return value


def shapes_at(plan: Plan, config: Config) -> Callable[[str, Tensor], Tensor]:
    """Return what stands in a subnet for a tensor of the base, its shape alone."""

    def value(name: str, t: Tensor) -> Tensor:
        axes = plan.axes.get(name)
        shape = t.shape if axes is None else [size(axis, config) for axis in axes]
        return torch.empty(shape, dtype=t.dtype, device="meta")

    return value


def with_sizes(
    root: nn.Module, value: Callable[[str, Tensor], Tensor], program: Program, config: Config
) -> nn.Module:
    """Return a copy of `root` with other tensors, and with the numbers of its layers set to their shapes."""
    memo: dict[int, Any] = {}
    for name, p in root.named_parameters():
        memo[id(p)] = nn.Parameter(value(name, p), requires_grad=p.requires_grad)
    for name, b in root.named_buffers():
        memo[id(b)] = value(name, b)
    made = deep_copy(root, memo)
    for m in made.modules():
        resize(m)
    for (
        node,
        call,
    ) in program.typing.calls.items():  # shapes do not tell more groups from wider ones
        path = str(node.target)
        layer = layer_of(made.get_submodule(path))
        if layer is not None and layer.groups is not None:
            name, at = layer.groups
            axis = call.counts.get((at,))
            n = getattr(root.get_submodule(path), name) if axis is None else size(axis, config)
            setattr(made.get_submodule(path), name, n)
            resize(made.get_submodule(path))
    return made
