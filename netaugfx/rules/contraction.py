"""Convolution and linear layers: one axis is summed over, another made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unify import OpenAxis, Var, elastic, fixed, free, length, resolve, times
from .op import Call, Op, Path, Ref, Typed
from .registry import layer, register_rule, resizing

CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@register_rule(torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d)
def convolution(op: Op) -> tuple[OpenAxis, ...]:
    """Dense: axis 1 of the weight is the input's channels. Depthwise: axis 0 is the input's channels times m.

    Grouped: inputs are groups x a, outputs groups x b, and axis 1 of the weight is a. The number of groups grows, or,
    where something else fixes it, a and b do.
    """
    a = op.bind(*CONV, groups=1)
    x, weight, bias, groups = a["input"], a["weight"], a["bias"], int(a["groups"])
    rank = len(weight.axes) - 2
    channel = len(x.axes) - rank - 1
    made = _contracted(op, x.axes[channel], weight, bias, groups, op.path("groups", *CONV))
    return (*x.axes[:channel], made, *_slide(op, x, channel + 1))


def _contracted(
    op: Op, channels: OpenAxis, weight: Typed, bias: Typed | None, groups: int, at: Path
) -> OpenAxis:
    """Return the channels that a convolution makes of `channels`; its number of groups stands at `at`."""
    inputs, outputs = length(channels), weight.value.shape[0]
    op.settle(*weight.axes[2:])
    if groups == 1:
        op.follow(weight.axes[1], channels)
        op.contracted(weight, 1)
        op.number(at)
    elif weight.value.shape[1] == 1:
        op.unify(times(1, channels, outputs // inputs), weight.axes[0])
        op.settle(weight.axes[1])
        op.count(at, channels)
    else:
        number, first, second = _groups(groups, inputs // groups, outputs // groups)
        op.unify(channels, ((*number[0], *first[0]),))
        op.unify(weight.axes[0], ((*number[0], *second[0]),))
        op.unify(first, weight.axes[1])
        op.contracted(weight, 1)
        op.count(at, number)
    if bias is not None:
        op.unify(weight.axes[0], bias.axes[0])
    op.layer(weight)
    return resolve(weight.axes[0])


@register_rule("torchvision::deform_conv2d")
def deformable(op: Op) -> tuple[OpenAxis, ...]:
    """A convolution that reads its input at places of its own, which are the same for the channels of one part of it.

    The offsets and masks are numbers per place and no channels; there are as many parts as there are sets of them.
    """
    x, weight, offset, mask, bias = op.args[:5]
    groups, parts = (int(n) for n in op.args[11:13])
    op.pin(
        *offset.axes[1:], *mask.axes[1:], why="takes it for places to read at, one after the other"
    )
    op.pin(*x.axes[2:], why="slides over it")
    if parts > 1:
        op.unify(x.axes[1], times(parts, free(x.value.shape[1] // parts), 1))
    made = _contracted(op, resolve(x.axes[1]), weight, bias, groups, (11,))
    return (x.axes[0], made, *(fixed(n) for n in op.result.shape[2:]))


def _groups(number: int, *each: int) -> tuple[OpenAxis, OpenAxis, OpenAxis]:
    """Return the number of groups, which had better grow, and their widths in and out; a width of 1 stays."""
    first, second = (((Var(n, literal=True),),) if n > 1 else fixed(1) for n in each)
    return free(number), first, second


def _slide(op: Op, x: Typed, first: int) -> list[OpenAxis]:
    """Return the axes that a kernel slides over; channels may be among them where their number stays."""
    space = []
    for axis, before, after in zip(
        x.axes[first:], x.value.shape[first:], op.result.shape[first:], strict=True
    ):
        if before == after and elastic(axis):
            op.mixed(axis)
            op.ordered(axis)
            space.append(axis)
        else:
            op.pin(axis, why="slides over it")
            space.append(fixed(after))
    return space


LINEAR = ("input", "weight", "bias")


@register_rule(F.linear, torch._C._nn.linear)
def linear(op: Op) -> tuple[OpenAxis, ...]:
    """The last axis of the input is axis 1 of the weight; the last of the result is axis 0."""
    a = op.bind(*LINEAR)
    x, weight, bias = a["input"], a["weight"], a["bias"]
    op.follow(weight.axes[-1], x.axes[-1])
    op.contracted(weight, len(weight.axes) - 1)
    if bias is not None:
        op.unify(weight.axes[0], bias.axes[0])
    op.layer(weight)
    return (*x.axes[:-1], *(resolve(axis) for axis in weight.axes[:-1]))


def _resize_convolution(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" not in tensors:
        return
    outputs, inputs = tensors["weight"].shape[:2]
    if m.groups > 1 and inputs == m.in_channels // m.groups:  # groups keep their width
        m.groups = outputs // (m.out_channels // m.groups)
    m.out_channels, m.in_channels = outputs, inputs * m.groups


resizing("torchvision.ops.deform_conv.DeformConv2d", _resize_convolution)


@layer(nn.Conv1d, nn.Conv2d, nn.Conv3d, resize=_resize_convolution, groups=("groups", 6))
def lower_convolution(m: Any, x: Typed) -> Call:
    """Padding other than with zeros is an operator of its own."""
    function = (F.conv1d, F.conv2d, F.conv3d)[len(m.kernel_size) - 1]
    padding: Any = m.padding
    source: Any = x
    if m.padding_mode != "zeros":
        source = Call(F.pad, (x, list(m._reversed_padding_repeated_twice), m.padding_mode))
        padding = (0,) * len(m.kernel_size)
    return Call(
        function, (source, Ref("weight"), Ref("bias"), m.stride, padding, m.dilation, m.groups)
    )


def _resize_linear(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        m.out_features, m.in_features = tensors["weight"].shape


@layer(nn.Linear, resize=_resize_linear)
def lower_linear(m: Any, x: Typed) -> Call:
    """A linear layer is `F.linear`."""
    return Call(F.linear, (x, Ref("weight"), Ref("bias")))


TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)


CONV_TRANSPOSE = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def transposed_to(
    input: Tensor,  # noqa: A002 - F.conv_transpose2d's own name
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_size: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """A transposed convolution whose result has the last lengths of `output_size`, as `nn.ConvTranspose2d` gives it."""
    rank = weight.dim() - 2
    spans = zip(
        *(output_size[-rank:], input.shape[-rank:], stride, padding, dilation, weight.shape[2:]),
        strict=True,
    )
    extra = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, s, p, d, k in spans]
    made: Tensor = CONV_TRANSPOSE[rank - 1](
        input, weight, bias, stride, padding, extra, groups, dilation
    )
    return made


@register_rule(
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d, *CONV_TRANSPOSE,
    transposed_to,
)  # fmt: skip
def transposed_convolution(op: Op) -> tuple[OpenAxis, ...]:
    """Axis 0 of the weight is the input's channels, axis 1 the output's of one group."""
    a = op.bind(*TRANSPOSED, groups=1)
    x, weight, bias, groups = a["input"], a["weight"], a["bias"], int(a["groups"])
    rank = len(weight.axes) - 2
    channel = len(x.axes) - rank - 1
    inputs, each = weight.value.shape[:2]
    op.pin(*x.axes[channel + 1 :], why="slides over it")
    op.settle(*weight.axes[2:])
    at = op.path("groups", *TRANSPOSED)
    if groups == 1:
        op.follow(weight.axes[0], x.axes[channel])
        op.contracted(weight, 0)
        outputs = weight.axes[1]
        op.layer(weight, 1)
    else:
        number, first, second = _groups(groups, inputs // groups, each)
        op.unify(x.axes[channel], ((*number[0], *first[0]),))
        op.unify(x.axes[channel], weight.axes[0])
        op.unify(second, weight.axes[1])
        op.contracted(weight, 0, of=first)
        op.count(at, number)
        outputs = ((*number[0], *second[0]),)
    if bias is not None:
        op.unify(outputs, bias.axes[0])
    space = tuple(fixed(n) for n in op.result.shape[channel + 1 :])
    return (*x.axes[:channel], resolve(outputs), *space)


def _resize_transposed(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        inputs, each = tensors["weight"].shape[:2]
        if m.groups > 1 and each == m.out_channels // m.groups:
            m.groups = inputs // (m.in_channels // m.groups)
        m.in_channels, m.out_channels = inputs, each * m.groups


@layer(
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    resize=_resize_transposed,
    groups=("groups", 6),
)
def lower_transposed(m: Any, x: Typed, output_size: Any = None) -> Call:
    """A transposed convolution is `F.conv_transpose*`; to an `output_size`, it finds its padding as it runs."""
    function: Any = CONV_TRANSPOSE[len(m.kernel_size) - 1]
    last = m.output_padding
    if output_size is not None:
        function, last = transposed_to, output_size
    return Call(
        function, (x, Ref("weight"), Ref("bias"), m.stride, m.padding, last, m.groups, m.dilation)
    )
