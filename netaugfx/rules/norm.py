"""Batch norm: one number per channel, and running statistics that belong to the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import OpenAxis
from .registry import Call, Op, Ref, Typed, layer, register_rule

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


@register_rule(F.batch_norm)
def batch_norm(op: Op) -> tuple[OpenAxis, ...]:
    """Scale, shift and statistics have one element per channel; new ones of the statistics are 0 and 1."""
    a = op.bind(*BATCH_NORM)
    x = a["input"]
    for name in BATCH_NORM[1:5]:
        if a[name] is not None:
            op.unify(x.axes[1], a[name].axes[0])
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


def _resize_batch_norm(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    m.num_features = next((len(t) for t in tensors.values() if t.dim()), m.num_features)


@layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, resize=_resize_batch_norm)
def lower_batch_norm(m: Any, x: Typed) -> Call:
    """A batch norm without running statistics always normalises by the batch."""
    training = m.training or (m.running_mean is None and m.running_var is None)
    mean, var, weight, bias = map(Ref, BATCH_NORM[1:5])
    return Call(F.batch_norm, (x, mean, var, weight, bias, training, m.momentum or 0.0, m.eps))


SUBNET_FORMS: dict[Any, Any] = {F.batch_norm: subnet_batch_norm}
