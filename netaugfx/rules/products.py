"""Products of tensors: matmul, einsum, attention, bilinear forms. Axes with the same letter are the same."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unify import OpenAxis, elastic, length, resolve
from .op import Call, NoRule, Op, Ref, Typed
from .registry import everywhere, layer, register_rule

ASCII = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _product(op: Op, tensors: list[Typed], inputs: list[str], output: str) -> tuple[OpenAxis, ...]:
    """Unify the axes of tensors that share a letter; a letter that the output lacks is summed over."""
    axes: dict[str, OpenAxis] = {}
    lengths: dict[str, int] = {}
    for t, letters in zip(tensors, inputs, strict=True):
        for letter, axis, n in zip(letters, t.axes, t.value.shape, strict=True):
            if letter not in axes or (lengths[letter] == 1 and n != 1):
                if letter in axes:
                    op.pin(axes[letter], why="repeats it")
                axes[letter], lengths[letter] = axis, n
            elif n == 1 and lengths[letter] != 1:
                op.pin(axis, why="repeats it")
            else:
                op.unify(axes[letter], axis)
    summed = [letter for letter in axes if letter not in output]
    for t, letters in zip(tensors, inputs, strict=True):
        for i, letter in enumerate(letters):
            if letter in summed and t.name is not None:
                op.contracted(t, i)
                summed.remove(letter)
    op.mixed(*(axes[letter] for letter in summed))
    return tuple(resolve(axes[letter]) for letter in output)


@register_rule(
    *everywhere(["matmul", "bmm", "mm", "mv", "dot", "vdot"]), operator.matmul, torch.linalg.matmul
)
def matmul(op: Op) -> tuple[OpenAxis, ...]:
    """(..., n, k) @ (..., k, m): k is summed over; leading axes broadcast."""
    first = op.bind("input")["input"]
    second = next((t for t in op.tensors if t is not first), first)
    return _matmul(op, first, second)


def _matmul(op: Op, a: Typed, b: Typed) -> tuple[OpenAxis, ...]:
    ranks = len(a.axes), len(b.axes)
    batch = "abcdefgh"[: max(ranks) - 2] if max(ranks) > 2 else ""
    first = "k" if ranks[0] == 1 else batch[len(batch) - (ranks[0] - 2) :] + "nk"
    second = "k" if ranks[1] == 1 else batch[len(batch) - (ranks[1] - 2) :] + "km"
    output = batch + ("n" if ranks[0] > 1 else "") + ("m" if ranks[1] > 1 else "")
    return _product(op, [a, b], [first, second], output)


@register_rule(torch.einsum, torch.functional.einsum)
def einsum(op: Op) -> tuple[OpenAxis, ...]:
    """Axes with the same letter are the same; letters that the output lacks are summed over."""
    equation = op.args[0]
    if not isinstance(equation, str):
        raise NoRule("is not given its equation as text")
    left, _, right = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if "->" not in equation:
        letters = "".join(inputs).replace(".", "")
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        right = f"...{right}" if "..." in left else right
    ranks = [
        len(t.axes) - len(i.replace("...", "")) for t, i in zip(op.tensors, inputs, strict=True)
    ]
    unused = "".join(c for c in ASCII if c not in equation)[: max(ranks, default=0)]
    inputs = [
        i.replace("...", unused[len(unused) - n :]) for i, n in zip(inputs, ranks, strict=True)
    ]
    if any(len(set(i)) != len(i) for i in inputs):
        raise NoRule("takes a diagonal")
    return _product(op, op.tensors, inputs, right.replace("...", unused))


@register_rule(*everywhere(["addmm", "addbmm", "baddbmm", "addmv", "addr"]))
def added(op: Op) -> tuple[OpenAxis, ...]:
    """A tensor plus the product of two others."""
    x, a, b = op.tensors
    if op.name == "addbmm":
        axes = _product(op, [a, b], ["bnk", "bkm"], "nm")
    elif op.name == "addr":
        axes = _product(op, [a, b], ["n", "m"], "nm")
    else:
        axes = _matmul(op, a, b)
    return op.broadcast(Typed(op.result, axes), x)


@register_rule(*everywhere(["outer", "ger", "inner"]))
def outer(op: Op) -> tuple[OpenAxis, ...]:
    """Every element of one with every element of the other; `inner` sums over the last axes."""
    a, b = op.tensors
    if op.name != "inner":
        return _product(op, [a, b], ["n", "m"], "nm")
    left, right = ASCII[: len(a.axes) - 1], ASCII[26 : 26 + len(b.axes) - 1]
    return _product(op, [a, b], [f"{left}z", f"{right}z"], left + right)


@register_rule(*everywhere(["tensordot"]), torch.functional.tensordot)
def tensordot(op: Op) -> tuple[OpenAxis, ...]:
    """Sums over the last axes of one and the first of the other, or over pairs of axes."""
    a, b = op.tensors
    dims: Any = op.bind("a", "b", "dims", dims=2)["dims"]
    ranks = len(a.axes), len(b.axes)
    if isinstance(dims, int):
        pairs = [(ranks[0] - dims + i, i) for i in range(dims)]
    elif isinstance(dims, Sequence):
        first, second = ([d] if isinstance(d, int) else list(d) for d in dims)
        pairs = [(i % ranks[0], j % ranks[1]) for i, j in zip(first, second, strict=True)]
    else:
        raise NoRule
    left, right = list(ASCII[: ranks[0]]), list(ASCII[26 : 26 + ranks[1]])
    for i, j in pairs:
        right[j] = left[i]
    output = [c for i, c in enumerate(left) if i not in {i for i, _ in pairs}]
    output += [c for j, c in enumerate(right) if j not in {j for _, j in pairs}]
    return _product(op, [a, b], ["".join(left), "".join(right)], "".join(output))


BILINEAR = ("input1", "input2", "weight", "bias")


@register_rule(F.bilinear, torch.bilinear)
def bilinear(op: Op) -> tuple[OpenAxis, ...]:
    """Sums x W y for every output: axes 1 and 2 of the weight are those of the two inputs."""
    a = op.bind(*BILINEAR)
    x, y, weight, bias = (a[name] for name in BILINEAR)
    for i, t in ((1, x), (2, y)):
        op.follow(weight.axes[i], t.axes[-1])
        op.contracted(weight, i)
    if bias is not None:
        op.unify(weight.axes[0], bias.axes[0])
    op.layer(weight)
    for mine, theirs in zip(x.axes[:-1], y.axes[:-1], strict=True):
        op.unify(mine, theirs)
    return (*(resolve(axis) for axis in x.axes[:-1]), resolve(weight.axes[0]))


def _resize_bilinear(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    if "weight" in tensors:
        m.out_features, m.in1_features, m.in2_features = tensors["weight"].shape


@layer(nn.Bilinear, resize=_resize_bilinear)
def lower_bilinear(m: Any, x: Typed, y: Typed) -> Call:
    """A bilinear layer is `F.bilinear`."""
    return Call(F.bilinear, (x, y, Ref("weight"), Ref("bias")))


ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")


@register_rule(F.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention)
def attention(op: Op) -> tuple[OpenAxis, ...]:
    """softmax(q k^T * scale) v; subnets keep the scale of the base."""
    a = op.bind(*ATTENTION)
    q, k, v, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if op.kwargs.get("enable_gqa"):
        raise NoRule
    if a["scale"] is None and elastic(q.axes[-1]):
        op.keyword("scale", q.value.shape[-1] ** -0.5)
    batch = "abcdefgh"[: len(q.axes) - 2]
    op.unify(k.axes[-2], v.axes[-2])
    op.mixed(q.axes[-1], k.axes[-2])
    scores = _product(op, [q, k], [f"{batch}nd", f"{batch}md"], f"{batch}nm")
    if isinstance(mask, Typed):
        op.broadcast(
            Typed(torch.empty([*q.value.shape[:-1], k.value.shape[-2]], device="meta"), scores),
            mask,
        )
    return _product(
        op, [Typed(torch.empty([length(s) for s in scores], device="meta"), scores), v],
        [f"{batch}nm", f"{batch}mv"], f"{batch}nv",
    )  # fmt: skip
