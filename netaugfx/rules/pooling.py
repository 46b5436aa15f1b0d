"""Pooling, padding and resampling over space; channels pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map

from ..unify import OpenAxis, elastic, fixed, resolve
from .op import NoRule, Op
from .registry import register_rule

SPACE = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d, F.max_pool1d,
        F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d, torch.max_pool1d, torch.avg_pool1d,
        torch.adaptive_avg_pool1d, torch.adaptive_max_pool1d, F.lp_pool1d, F.max_pool1d_with_indices,
        F.adaptive_max_pool1d_with_indices),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, F.max_pool2d,
        F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d, F.lp_pool2d,
        F.max_pool2d_with_indices, F.adaptive_max_pool2d_with_indices,
        torch._C._nn.avg_pool2d, torch._C._nn.adaptive_avg_pool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.LPPool3d, F.max_pool3d,
        F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d, torch.max_pool3d,
        F.lp_pool3d, F.max_pool3d_with_indices, F.adaptive_max_pool3d_with_indices,
        torch._C._nn.avg_pool3d, torch._C._nn.adaptive_avg_pool3d),
}  # fmt: skip


def _pool(rank: int) -> Any:
    def pool(op: Op) -> Any:
        x = op.tensors[0]
        op.pin(*x.axes[-rank:], why="pools over it")
        return tree_map(
            lambda v: (*x.axes[:-rank], *(fixed(n) for n in v.shape[-rank:])), op.result
        )

    pool.__doc__ = f"The last {rank} axes are space."
    return pool


for _rank, _targets in SPACE.items():
    register_rule(*_targets)(_pool(_rank))


@register_rule(
    nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d, F.max_unpool1d, F.max_unpool2d, F.max_unpool3d,
)  # fmt: skip
def unpool(op: Op) -> tuple[OpenAxis, ...]:
    """The inverse of max pooling with indices, which are one for each element; channels pass."""
    x, indices = op.tensors[:2]
    rank = int((str(op.module.__class__.__name__) if op.module else op.name)[-2])
    op.pin(*x.axes[-rank:], *indices.axes[-rank:], why="pools over it")
    for mine, theirs in zip(x.axes[:-rank], indices.axes[:-rank], strict=True):
        op.unify(mine, theirs)
    return (*(resolve(a) for a in x.axes[:-rank]), *(fixed(n) for n in op.result.shape[-rank:]))


@register_rule(
    nn.FractionalMaxPool2d, nn.FractionalMaxPool3d, F.fractional_max_pool2d, F.fractional_max_pool3d,
    F.fractional_max_pool2d_with_indices, F.fractional_max_pool3d_with_indices,
)  # fmt: skip
def fractional(op: Op) -> Any:
    """Fractional pooling draws where to pool for every channel, in eval mode too."""
    raise NoRule("draws random numbers for every channel, so the base would draw others")


@register_rule(
    F.interpolate, F.upsample, F.upsample_nearest, F.upsample_bilinear,
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
)  # fmt: skip
def interpolate(op: Op) -> tuple[OpenAxis, ...]:
    """All axes behind the channels are space."""
    x = op.tensors[0]
    op.pin(*x.axes[2:], why="resamples it")
    return (*x.axes[:2], *(fixed(n) for n in op.result.shape[2:]))


@register_rule(F.grid_sample, torch.grid_sampler)
def grid_sample(op: Op) -> tuple[OpenAxis, ...]:
    """Every channel is sampled at the same points."""
    x, grid = op.tensors
    op.unify(x.axes[0], grid.axes[0])
    op.pin(*x.axes[2:], *grid.axes[1:], why="resamples it")
    return (*x.axes[:2], *(fixed(n) for n in op.result.shape[2:]))


@register_rule(F.affine_grid, torch.affine_grid_generator)
def affine_grid(op: Op) -> tuple[OpenAxis, ...]:
    """The points of an image; the number of channels in the size that is asked for is of no account."""
    theta = op.tensors[0]
    op.pin(*theta.axes[1:], why="takes it for a matrix")
    return (theta.axes[0], *(fixed(n) for n in op.result.shape[1:]))


PAD = ("input", "pad", "mode", "value")


@register_rule(F.pad, torch._C._nn.pad)
def pad(op: Op) -> tuple[OpenAxis, ...]:
    """What a constant pads channels with are segments of their own, which grow with what they meet.

    Any other padding of an elastic axis pins it.
    """
    a = op.bind(*PAD, mode="constant", value=None)
    x, amounts, mode = a["input"], [int(n) for n in a["pad"]], a["mode"]
    axes = list(x.axes)
    at = op.path("pad", *PAD)

    def beside(k: int, axis: OpenAxis) -> OpenAxis:
        if amounts[k]:
            return op.growing((*at, k), amounts[k], beside=axis)
        op.number((*at, k))
        return ()

    for i in range(len(amounts) // 2):
        sides = (2 * i, 2 * i + 1)
        axis = axes[-1 - i]
        constant = mode == "constant" and all(amounts[k] >= 0 for k in sides)
        if elastic(axis) and constant:
            first, last = (beside(k, axis) for k in sides)
            axes[-1 - i] = (*first, *axis, *last)
            continue
        for k in sides:
            op.number((*at, k))
        if any(amounts[k] for k in sides):
            op.pin(axis, why="pads it")
            axes[-1 - i] = fixed(op.result.shape[-1 - i])
    return tuple(axes)


@register_rule(
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
def pad_module(op: Op) -> tuple[OpenAxis, ...]:
    """Padding modules pad space alone; those that pad with a constant are traced through."""
    x = op.tensors[0]
    same = [n == x.value.shape[i] for i, n in enumerate(op.result.shape)]
    for axis, keep in zip(x.axes, same, strict=True):
        if not keep:
            op.pin(axis, why="pads it")
    return tuple(
        axis if keep else fixed(n)
        for axis, keep, n in zip(x.axes, same, op.result.shape, strict=True)
    )
