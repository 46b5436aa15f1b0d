"""Operators that treat every element alike: activations, arithmetic with broadcasting, dropout, casts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..axes import OpenAxis, fixed
from .registry import Call, NoRule, Op, Ref, Typed, everywhere, layer, register_rule

ARITHMETIC = [
    "add",
    "sub",
    "mul",
    "truediv",
    "div",
    "true_divide",
    "floordiv",
    "floor_divide",
    "pow",
    "mod",
    "remainder",
    "fmod",
    "neg",
    "negative",
    "abs",
    "sqrt",
    "rsqrt",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sin",
    "cos",
    "tan",
    "tanh",
    "sigmoid",
    "erf",
    "square",
    "reciprocal",
    "sign",
    "floor",
    "ceil",
    "round",
    "trunc",
    "clamp",
    "clip",
    "clamp_min",
    "clamp_max",
    "maximum",
    "minimum",
    "where",
    "lerp",
    "addcmul",
    "addcdiv",
    "rsub",
    "subtract",
    "multiply",
    "divide",
    "atan",
    "sinh",
    "cosh",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "isnan",
    "isfinite",
    "logical_not",
    "logical_and",
    "logical_or",
    "invert",
    "masked_fill",
    "nan_to_num",
    "bitwise_not",
]
ACTIVATION = [
    "relu",
    "relu6",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "rrelu",
    "softplus",
    "softsign",
    "tanhshrink",
    "hardshrink",
    "softshrink",
    "threshold",
    "logsigmoid",
    "log_sigmoid",
    "sigmoid",
    "tanh",
    "hard_swish",
]
SAME = [
    "clone",
    "contiguous",
    "detach",
    "to",
    "float",
    "double",
    "half",
    "bfloat16",
    "type",
    "type_as",
    "cpu",
    "cuda",
    "positive",
    "dropout",
    "alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_dropout",
    "feature_alpha_dropout",
    "zeros_like",
    "ones_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "full_like",
    "bernoulli",
    "floor_",
    "requires_grad_",
    "conj",
    "real",
]


@register_rule(*everywhere(ARITHMETIC), *everywhere(ACTIVATION), *everywhere(SAME))
def elementwise(op: Op) -> tuple[OpenAxis, ...]:
    """Combined element by element, with broadcasting."""
    if not isinstance(op.result, Tensor) or "out" in op.kwargs:
        raise NoRule
    return op.broadcast(*op.tensors)


MODULES = (
    nn.ReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid,
    nn.Hardtanh, nn.LeakyReLU, nn.RReLU, nn.Softplus, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink,
    nn.Threshold, nn.LogSigmoid, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
NAMED = (  # drop path: one random number per sample
    "timm.layers.drop.DropPath",
    "torchvision.ops.stochastic_depth.StochasticDepth",
)


@register_rule(*MODULES, *NAMED)
def activation(op: Op) -> tuple[OpenAxis, ...]:
    """A module that treats every channel alike."""
    return op.broadcast(*op.tensors)


PRELU = ("input", "weight")


@register_rule(F.prelu, torch.prelu, Tensor.prelu)
def prelu(op: Op) -> tuple[OpenAxis, ...]:
    """A slope per channel, or one for all."""
    a = op.bind(*PRELU)
    x, weight = a["input"], a["weight"]
    if weight.value.numel() == 1:
        op.settle(*weight.axes)
    elif len(x.axes) > 1:
        op.unify(x.axes[1], weight.axes[0])
    return tuple(x.axes)


def _resize_prelu(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        m.num_parameters = len(tensors["weight"])


@layer(nn.PReLU, resize=_resize_prelu)
def lower_prelu(m: Any, x: Typed) -> Call:
    """A parametric ReLU is `F.prelu`."""
    return Call(F.prelu, (x, Ref("weight")))


@register_rule(
    torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn, torch.arange, torch.eye,
    torch.linspace, torch.randint, torch.randperm, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty,
    Tensor.new_full, torch.tensor, Tensor.new_tensor,
)  # fmt: skip
def creation(op: Op) -> tuple[OpenAxis, ...]:
    """A new tensor; its lengths are numbers to us, so whatever is combined with it along an axis stays as it is."""
    return tuple(fixed(n) for n in op.result.shape)
