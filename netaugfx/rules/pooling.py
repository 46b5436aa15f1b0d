"""Pooling, reductions and resampling over space; channels pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..axes import OpenAxis, elastic, fixed
from .registry import NoRule, Op, everywhere, register_rule

SPACE = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.LPPool1d, F.max_pool1d,
        F.avg_pool1d, F.adaptive_avg_pool1d, F.adaptive_max_pool1d, torch.max_pool1d, torch.avg_pool1d,
        torch.adaptive_avg_pool1d, F.lp_pool1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d, F.max_pool2d,
        F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d, F.lp_pool2d,
        torch._C._nn.avg_pool2d, torch._C._nn.adaptive_avg_pool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.LPPool3d, F.max_pool3d,
        F.avg_pool3d, F.adaptive_avg_pool3d, F.adaptive_max_pool3d, torch.max_pool3d,
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


@register_rule(F.interpolate, nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def interpolate(op: Op) -> tuple[OpenAxis, ...]:
    """All axes behind the channels are space."""
    x = op.tensors[0]
    op.pin(*x.axes[2:], why="resamples it")
    return (*x.axes[:2], *(fixed(n) for n in op.result.shape[2:]))


REDUCE = ("input", "dim", "keepdim")


@register_rule(
    *everywhere(
        [
            "mean",
            "sum",
            "amax",
            "amin",
            "logsumexp",
            "var",
            "std",
            "norm",
            "prod",
            "all",
            "any",
            "std_mean",
            "var_mean",
        ]
    )
)
def reduction(op: Op) -> Any:
    """The axes that are reduced are dropped; a result over channels mixes them."""
    names = ("input", "p", "dim", "keepdim") if op.where.startswith("norm(") else REDUCE
    a = op.bind(*names, keepdim=False)
    if isinstance(a["dim"], bool) or not isinstance(op.result, Tensor):
        raise NoRule  # unbiased= by position; a pair of results
    x, rank = a["input"], len(op.tensors[0].axes)
    dims = a["dim"] if a["dim"] is not None else range(rank)
    dims = {d % rank for d in ((dims,) if isinstance(dims, int) else dims)}
    op.mixed(*(x.axes[d] for d in dims))
    if a["keepdim"]:
        return tuple(fixed(1) if i in dims else axis for i, axis in enumerate(x.axes))
    return tuple(axis for i, axis in enumerate(x.axes) if i not in dims)


@register_rule(*everywhere(["max", "min", "median", "maximum", "minimum"]))
def extreme(op: Op) -> Any:
    """Along an axis (values and indices), of two tensors, or of all elements."""
    if isinstance(op.result, Tensor):
        if len(op.tensors) == 2:
            return op.broadcast(*op.tensors)
        op.mixed(*op.tensors[0].axes)
        return ()
    a = op.bind("input", "dim", "keepdim", keepdim=False)
    x = a["input"]
    dim = a["dim"] % len(x.axes)
    op.mixed(x.axes[dim])
    rest = (*x.axes[:dim], *((fixed(1),) if a["keepdim"] else ()), *x.axes[dim + 1 :])
    return tuple(rest for _ in op.result)


PAD = ("input", "pad", "mode", "value")


@register_rule(F.pad, torch._C._nn.pad)
def pad(op: Op) -> tuple[OpenAxis, ...]:
    """Zeros beside channels are segments of their own; any other padding of an elastic axis pins it."""
    a = op.bind(*PAD, mode="constant", value=None)
    x, amounts, mode = a["input"], [int(n) for n in a["pad"]], a["mode"]
    axes = list(x.axes)
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i], amounts[2 * i + 1]
        axis = axes[-1 - i]
        if before == after == 0:
            continue
        if not elastic(axis) or mode != "constant" or before < 0 or after < 0:
            op.pin(axis, why="pads it")
            axes[-1 - i] = fixed(op.result.shape[-1 - i])
        else:
            axes[-1 - i] = (
                *(fixed(before) if before else ()),
                *axis,
                *(fixed(after) if after else ()),
            )
    return tuple(axes)


@register_rule(
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
    nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
    nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
)  # fmt: skip
def pad_module(op: Op) -> tuple[OpenAxis, ...]:
    """Padding modules pad space alone."""
    x = op.tensors[0]
    same = [n == x.value.shape[i] for i, n in enumerate(op.result.shape)]
    for axis, keep in zip(x.axes, same, strict=True):
        if not keep:
            op.pin(axis, why="pads it")
    return tuple(
        axis if keep else fixed(n)
        for axis, keep, n in zip(x.axes, same, op.result.shape, strict=True)
    )


SOFTMAX = everywhere(["softmax", "log_softmax", "softmin"])


@register_rule(*SOFTMAX)
def softmax(op: Op) -> tuple[OpenAxis, ...]:
    """A softmax along an axis; along channels it mixes them."""
    a = op.bind("input", "dim")
    if not isinstance(a["dim"], int):
        raise NoRule
    op.mixed(a["input"].axes[a["dim"]])
    return tuple(a["input"].axes)


@register_rule(*everywhere(["cumsum", "flip", "cumprod"]))
def along(op: Op) -> tuple[OpenAxis, ...]:
    """An operator along some axes, which must not grow; the others pass."""
    a = op.bind("input", "dim")
    x, rank = a["input"], len(op.tensors[0].axes)
    if not isinstance(op.result, Tensor):
        raise NoRule
    dims = a["dim"] if a["dim"] is not None else a.get("dims")
    dims = range(rank) if dims is None else (dims,) if isinstance(dims, int) else dims
    for d in dims:
        op.pin(x.axes[d % rank], why="runs along it")
    return tuple(x.axes)


@register_rule(nn.Softmax, nn.LogSoftmax, nn.Softmin)
def softmax_module(op: Op) -> tuple[OpenAxis, ...]:
    """A softmax along an axis; along channels it mixes them."""
    x = op.tensors[0]
    dim = op.module.dim if op.module is not None else None
    if not isinstance(dim, int):
        raise NoRule
    op.mixed(x.axes[dim])
    return tuple(x.axes)
