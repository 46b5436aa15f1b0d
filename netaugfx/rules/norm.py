"""Norms: per channel (batch, instance), over groups of channels, and over channels (layer, RMS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules._functions import SyncBatchNorm

from ..unify import OpenAxis, Var, elastic, resolve
from .op import Call, NoRule, Op, Ref, Typed
from .registry import layer, register_rule

BATCH_NORM = (
    "input",
    "running_mean",
    "running_var",
    "weight",
    "bias",
    "training",
    "momentum",
    "eps",
)


def sync_batch_norm(
    input: Tensor,  # noqa: A002 - F.batch_norm's own name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` that in training normalises by the batches of all processes, as `nn.SyncBatchNorm` does."""
    several = training and dist.is_available() and dist.is_initialized()
    world = dist.get_world_size() if several else 1
    if world == 1:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    synchronised: Tensor = SyncBatchNorm.apply(
        *(input, weight, bias, running_mean, running_var, eps, momentum, dist.group.WORLD, world)
    )
    return synchronised


@register_rule(F.batch_norm, sync_batch_norm)
def batch_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Scale, shift and statistics have one element per channel; new ones of the statistics are 0 and 1."""
    a = op.bind(*BATCH_NORM)
    x = a["input"]
    for name in BATCH_NORM[1:5]:
        if a[name] is not None:
            op.unify(x.axes[1], a[name].axes[0])
    if a["training"] or a["running_mean"] is None:  # of a weight, say, whose inputs can grow
        op.mixed(x.axes[0], *x.axes[2:])
    op.fill(a["running_mean"], 0.0)
    op.fill(a["running_var"], 1.0)
    return tuple(x.axes)


def subnet_batch_norm(
    input: Tensor,  # noqa: A002 - F.batch_norm's own name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` for a subnet: in training it normalises by the batch and leaves the base's statistics alone."""
    if training:
        running_mean = running_var = None
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def subnet_sync_batch_norm(
    input: Tensor,  # noqa: A002 - F.batch_norm's own name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *others: Any,
) -> Tensor:
    """`sync_batch_norm` for a subnet, which is in training: it leaves the base's statistics alone."""
    return sync_batch_norm(input, None, None, *others)


def _resize_batch_norm(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    m.num_features = next((len(t) for t in tensors.values() if t.dim()), m.num_features)


@layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, resize=_resize_batch_norm)
def lower_batch_norm(m: Any, x: Typed) -> Call:
    """A batch norm without running statistics always normalises by the batch."""
    training = m.training or (m.running_mean is None and m.running_var is None)
    mean, var, weight, bias = map(Ref, BATCH_NORM[1:5])
    return Call(F.batch_norm, (x, mean, var, weight, bias, training, m.momentum or 0.0, m.eps))


@layer(nn.SyncBatchNorm, resize=_resize_batch_norm)
def lower_sync_batch_norm(m: Any, x: Typed) -> Call:
    """A synchronised batch norm is one in eval mode, and in training one over the batches of all processes."""
    call = lower_batch_norm(m, x)
    if m.training:
        if m.process_group is not None:
            raise NoRule("has a process group of its own")
        call.target = sync_batch_norm
    return call


LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")


@register_rule(F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
def layer_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Normalised over the last axes; scale and shift have those axes."""
    a = op.bind(*LAYER_NORM)
    x, shape = a["input"], a["normalized_shape"]
    last = x.axes[-len(shape) :]
    for t in (a["weight"], a["bias"]):
        if isinstance(t, Typed):
            for mine, theirs in zip(t.axes, last, strict=True):
                op.unify(theirs, mine)
    at = op.path("normalized_shape", *LAYER_NORM)
    for i, axis in enumerate(last):
        op.count((*at, i), axis)
    op.mixed(*last)
    return tuple(x.axes)


def _resize_layer_norm(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        m.normalized_shape = tuple(tensors["weight"].shape)


@layer(nn.LayerNorm, resize=_resize_layer_norm)
def lower_layer_norm(m: Any, x: Typed) -> Call:
    """A layer norm is `F.layer_norm`."""
    return Call(F.layer_norm, (x, tuple(m.normalized_shape), Ref("weight"), Ref("bias"), m.eps))


@layer(nn.RMSNorm, resize=_resize_layer_norm)
def lower_rms_norm(m: Any, x: Typed) -> Call:
    """An RMS norm is `F.rms_norm`."""
    return Call(F.rms_norm, (x, tuple(m.normalized_shape), Ref("weight"), m.eps))


GROUP_NORM = ("input", "num_groups", "weight", "bias", "eps")


@register_rule(F.group_norm, torch.group_norm)
def group_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Several groups: their number grows, so that base groups see base channels alone; else they mix, as one does."""
    a = op.bind(*GROUP_NORM)
    x, groups = a["input"], int(a["num_groups"])
    channels = x.axes[1]
    for t in (a["weight"], a["bias"]):
        if isinstance(t, Typed):
            op.unify(channels, t.axes[0])
    op.mixed(*x.axes[2:])
    if groups == 1:
        op.mixed(channels)
    elif elastic(channels):
        number, width = Var(groups), Var(x.value.shape[1] // groups, literal=True)
        op.unify(channels, ((number, width),))
        op.mixed(((width,),))
        op.count(op.path("num_groups", *GROUP_NORM), ((number,),))
    return (x.axes[0], resolve(channels), *x.axes[2:])


def _resize_group_norm(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        channels = tensors["weight"].shape[0]
        m.num_groups = channels // (m.num_channels // m.num_groups) if m.num_groups > 1 else 1
        m.num_channels = channels


@layer(nn.GroupNorm, resize=_resize_group_norm, groups=("num_groups", 1))
def lower_group_norm(m: Any, x: Typed) -> Call:
    """A group norm is `F.group_norm`."""
    return Call(F.group_norm, (x, m.num_groups, Ref("weight"), Ref("bias"), m.eps))


INSTANCE_NORM = (*BATCH_NORM[:5], "use_input_stats", "momentum", "eps")


@register_rule(F.instance_norm)
def instance_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Statistics per sample and channel; running ones, if any, grow as a batch norm's do."""
    a = op.bind(*INSTANCE_NORM, use_input_stats=True)
    x = a["input"]
    for name in INSTANCE_NORM[1:5]:
        if a[name] is not None:
            op.unify(x.axes[1], a[name].axes[0])
    if a["use_input_stats"]:
        op.mixed(*x.axes[2:])
    op.fill(a["running_mean"], 0.0)
    op.fill(a["running_var"], 1.0)
    return tuple(x.axes)


def subnet_instance_norm(
    input: Tensor,  # noqa: A002 - F.instance_norm's own name
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.instance_norm` for a subnet: it leaves the base's running statistics alone."""
    if use_input_stats:
        running_mean = running_var = None
    return F.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


@layer(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, resize=_resize_batch_norm)
def lower_instance_norm(m: Any, x: Typed) -> Call:
    """An instance norm is `F.instance_norm`."""
    from_input = m.training or not m.track_running_stats
    mean, var, weight, bias = map(Ref, BATCH_NORM[1:5])
    return Call(F.instance_norm, (x, mean, var, weight, bias, from_input, m.momentum or 0.0, m.eps))


# what stands in a subnet for operators that would write to the base's buffers
SUBNET_BATCH_NORMS: dict[Any, Any] = {
    subnet_batch_norm: F.batch_norm,
    subnet_sync_batch_norm: sync_batch_norm,
}
SUBNET_FORMS: dict[Any, Any] = {
    **{plain: form for form, plain in SUBNET_BATCH_NORMS.items()},
    F.instance_norm: subnet_instance_norm,
}


@register_rule(F.local_response_norm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
def local_response_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Divided by the norm over neighbouring channels."""
    x = op.tensors[0]
    op.mixed(x.axes[1])
    op.ordered(x.axes[1])
    return tuple(x.axes)


@register_rule(torch._weight_norm)
def weight_norm(op: Op) -> tuple[OpenAxis, ...]:
    """A weight g * v / |v|, the norm over all axes but one, or over all."""
    a = op.bind("v", "g", "dim", dim=0)
    v, g = a["v"], a["g"]
    kept = a["dim"] % len(v.axes) if a["dim"] not in (None, -1) else None
    for i, theirs in enumerate(g.axes):
        if i == kept:
            op.unify(v.axes[i], theirs)
        else:
            op.settle(theirs)
    op.mixed(*(axis for i, axis in enumerate(v.axes) if i != kept))
    return tuple(resolve(axis) for axis in v.axes)
