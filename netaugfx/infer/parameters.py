"""The Parameters and buffers of one model: each typed once, by variables of its own or as a plan says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..axes import Axis
from ..plan import Plan
from ..rules import Typed
from ..trace import is_plain
from ..unify import OpenAxis, Var, fixed

LAYERS_OWN = {"weight", "bias", "in_proj_weight", "in_proj_bias", "running_mean", "running_var"}


class Parameters:
    """Types the Parameters and buffers of a model, by any of their names.

    Args:
        root: The model.
        plan: What they are typed by; each axis is a variable of its own if None.

    Attributes:
        axes: What has been typed so far, by first names.
        seeds: The variables of the plan's widths.
        first: id of a tensor -> its first name.
        modules: By path.
    """

    def __init__(self, root: nn.Module, plan: Plan | None) -> None:
        self.root, self.plan = root, plan
        self.first: dict[int, str] = {}
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            self.first.setdefault(id(tensor), name)
        self.modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
        self.seeds = (
            {w.name: Var(w.base, given=True, own=True) for w in plan.widths} if plan else {}
        )
        self.axes: dict[str, tuple[OpenAxis, ...]] = {}

    def typed(self, name: str) -> Typed | None:
        """Return a Parameter or buffer by any of its names, typed."""
        tensor = self.tensor(name)
        if tensor is None:
            return None
        name = self.first.get(id(tensor), name)
        if name not in self.axes:
            if self.plan is None:
                plain = self._plain_axes(name, tensor)
                self.axes[name] = tuple(
                    fixed(n) if i in plain else ((Var(n, own=True),),)
                    for i, n in enumerate(tensor.shape)
                )
            else:
                axes = self.plan.axes.get(name)
                self.axes[name] = (
                    tuple(self._seeded(axis) for axis in axes)
                    if axes is not None
                    else tuple(fixed(n) for n in tensor.shape)
                )
        return Typed(tensor, self.axes[name], name)

    def inside(self, path: str) -> list[str]:
        """Return the Parameters and buffers of a module, by the names that `parameters` has them under."""
        inner = self.root.get_submodule(path)
        tensors = [*inner.named_parameters(), *inner.named_buffers()]
        return [self.first.get(id(t), f"{path}.{name}") for name, t in tensors]

    def tensor(self, name: str) -> Tensor | None:
        path, _, leaf = name.rpartition(".")
        owner = self.modules.get(path)
        if owner is None:
            return None
        for room in (owner._parameters, owner._buffers):
            if leaf in room:
                return room[leaf]
        return None

    def _plain_axes(self, name: str, tensor: Tensor) -> set[int]:
        """Return the axes that are no widths: a kernel's extent, a length of 1 meant to be repeated, an index's."""
        path, _, leaf = name.rpartition(".")
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:  # an index into something
            return set(range(tensor.dim()))
        m = self.modules[path]
        if is_plain(m, leaf):
            return set(range(tensor.dim()))
        if leaf == "weight" and isinstance(m, nn.modules.conv._ConvNd):
            return set(range(2, tensor.dim()))
        if leaf in LAYERS_OWN:
            return set()
        return {i for i, n in enumerate(tensor.shape) if n == 1}

    def _seeded(self, axis: Axis) -> OpenAxis:
        return tuple(
            tuple(self.seeds[f] if isinstance(f, str) else f for f in segment) for segment in axis
        )
