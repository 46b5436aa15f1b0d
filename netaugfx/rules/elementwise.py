"""Operators that treat every element alike: activations, arithmetic with broadcasting, dropout, casts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..unify import OpenAxis, fixed
from .op import Call, NoRule, Op, Path, Ref, Typed
from .registry import everywhere, layer, register_rule

ARITHMETIC = """
    add sub mul truediv div true_divide floordiv floor_divide pow float_power mod remainder fmod neg negative abs
    absolute sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 arctan2 sinh cosh tanh
    asinh acosh atanh arcsin arccos arctan arcsinh arccosh arctanh sinc sigmoid logit erf erfc erfinv square reciprocal
    sign sgn signbit floor ceil round trunc frac clamp clip clamp_min clamp_max maximum minimum fmax fmin where lerp
    addcmul addcdiv rsub subtract multiply divide eq ne lt le gt ge greater less greater_equal less_equal not_equal
    isnan isinf isfinite isclose logical_not logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
    bitwise_not and_ or_ xor iand ior ixor invert masked_fill nan_to_num heaviside copysign hypot logaddexp logaddexp2
    xlogy ldexp rad2deg deg2rad lgamma digamma copy fix expit complex polar angle
""".split()  # noqa: SIM905 - it is read as a list of words
ACTIVATION = """
    relu relu6 elu selu celu gelu silu mish hardswish hardsigmoid hardtanh leaky_relu rrelu softplus softsign
    tanhshrink hardshrink softshrink threshold logsigmoid log_sigmoid hard_swish
""".split()  # noqa: SIM905 - it is read as a list of words
SAME = """
    clone contiguous detach to float double half bfloat16 type type_as int long bool cpu cuda positive zeros_like
    ones_like empty_like full_like requires_grad_ conj conj_physical resolve_conj real imag fill zero pos
""".split()  # noqa: SIM905 - it is read as a list of words


@register_rule(*everywhere(ARITHMETIC), *everywhere(ACTIVATION))
def elementwise(op: Op) -> tuple[OpenAxis, ...]:
    """Combined element by element, with broadcasting."""
    if "out" in op.kwargs:
        raise NoRule("writes to its out= argument")
    if not isinstance(op.result, Tensor):
        raise NoRule
    for path in op.derived:
        op.number(path)
    return op.broadcast(*op.tensors)


@register_rule(*everywhere(SAME))
def same(op: Op) -> tuple[OpenAxis, ...]:
    """As the first tensor, element by element; of a cast, the other says a dtype and a device alone."""
    if not isinstance(op.result, Tensor):
        raise NoRule
    for path in op.derived:
        op.number(path)
    return op.broadcast(*(op.tensors[:1] if op.name in ("to", "type_as") else op.tensors))


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
    torch.zeros, torch.ones, torch.empty, torch.full, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty,
    Tensor.new_full,
)  # fmt: skip
def creation(op: Op) -> tuple[OpenAxis, ...]:
    """A new tensor, the same everywhere; its lengths follow what they are read of, or grow with what they meet."""
    return created(op)


def created(op: Op, noise: bool = False) -> tuple[OpenAxis, ...]:
    """Return the axes of a new tensor, whose lengths are arguments: several, or one sequence of them.

    An axis of length 1 is there to be repeated; of noise also where it was computed (a drop path's mask).
    """
    inside = next((i for i, a in enumerate(op.args) if isinstance(a, Sequence)), None)
    first = inside or int(bool(op.args) and isinstance(op.args[0], Typed))
    keyword = "size" if "size" in op.kwargs else ""
    paths: list[Path] = [
        (keyword, i) if keyword else (first, i) if inside is not None else (first + i,)
        for i in range(len(op.result.shape))
    ]
    grows = op.lengths if noise else op.derived
    return tuple(
        fixed(1) if n == 1 and path not in grows else op.growing(path, n)
        for path, n in zip(paths, op.result.shape, strict=True)
    )


@register_rule(torch.arange, torch.eye, torch.linspace, torch.randperm)
def values(op: Op) -> tuple[OpenAxis, ...]:
    """New values; their number is a number to us, so whatever is combined with them along an axis stays as it is."""
    for t in op.tensors:
        op.pin(*t.axes, why="makes new values of it")
    return tuple(fixed(n) for n in op.result.shape)


@register_rule(torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
def converted(op: Op) -> tuple[OpenAxis, ...]:
    """A tensor made of a tensor is as that one; one made of numbers has new values."""
    data = op.bind("self", "data")["data"] if op.name == "new_tensor" else next(iter(op.args), None)
    if data is None:
        data = next((op.kwargs[k] for k in ("data", "obj") if k in op.kwargs), None)
    if isinstance(data, Typed):
        return tuple(data.axes)
    for t in tree_leaves(data, is_leaf=lambda x: isinstance(x, Typed)):
        if isinstance(t, Typed):
            op.pin(*t.axes, why="makes new values of it")
    return tuple(fixed(n) for n in op.result.shape)
