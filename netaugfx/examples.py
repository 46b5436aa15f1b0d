"""Example inputs: the arguments of a forward, with or without values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

Example = tuple[tuple[Any, ...], dict[str, Any]]  # positional arguments, keyword arguments


def arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a batch as positional and keyword arguments: a dict is the latter, a tuple or list the former."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, tuple | list):
        return tuple(batch), {}
    return (batch,), {}


def with_given(given: Any, example: Example) -> Example:
    """Return the example as it was given, since what cannot be traced may look at values; else `example`."""
    if given is None:
        return example
    kept: Example = tree_map(
        lambda t: t.detach().clone() if isinstance(t, Tensor) else t, arguments(given)
    )
    return kept


def copied(inputs: Any) -> Any:
    """Return inputs whose tensors a forward may write to."""
    return tree_map_only(Tensor, Tensor.clone, inputs)


def on_meta(example: Any, batch: int | None = None) -> Example:
    """Return `example` on the meta device; whole numbers and flags, which may decide lengths, keep their values.

    Args:
        example: Positional and keyword arguments.
        batch: How many samples there shall be of the one.
    """

    def meta(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        shape = t.shape if batch is None else (batch, *t.shape[1:])
        if t.is_floating_point() or t.is_complex() or t.device.type == "meta":
            return torch.empty(shape, dtype=t.dtype, device="meta")
        return t.detach().expand(shape).clone()

    moved: Example = tree_map(meta, example)
    return moved


def with_batch(example: Example, n: int | None) -> Example:
    """Return `example` on the meta device, without values, with `n` samples.

    Args:
        example: Positional and keyword arguments. The first axis of the first tensor counts samples, and those that are
            as long.
        n: How many; as they are if None.
    """
    lengths = (t.shape[0] for t in tree_leaves(example) if isinstance(t, Tensor) and t.dim())
    batch = next(lengths, None)

    def sized(t: Tensor) -> Tensor:
        batched = n is not None and t.dim() and t.shape[0] == batch
        shape = (n, *t.shape[1:]) if batched else t.shape
        return torch.empty(shape, dtype=t.dtype, device="meta")

    made: Example = tree_map_only(Tensor, sized, example)
    return made


def with_values(example: Example, model: nn.Module, seed: int = 0) -> Example:
    """Return `example` on the device of `model`; what is on the meta device becomes noise from 0 to 1, or zeros."""
    device = next(model.parameters(), torch.empty(0)).device
    generator = torch.Generator().manual_seed(seed)

    def filled(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        if t.device.type != "meta":
            return t.to(device)
        if not t.is_floating_point():
            return torch.zeros(t.shape, dtype=t.dtype, device=device)
        return torch.rand(t.shape, generator=generator, device="cpu").to(device, t.dtype)

    moved: Example = tree_map(filled, example)
    return moved
