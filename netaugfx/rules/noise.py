"""Operators that draw random numbers, and which of them give every channel numbers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..unify import OpenAxis, fixed
from .elementwise import created
from .op import NoRule, Op, Typed
from .registry import everywhere, register_rule

DROPOUT = [
    *("dropout", "dropout1d", "dropout2d", "dropout3d"),
    *("alpha_dropout", "feature_dropout", "feature_alpha_dropout"),
]
FILLED = [
    "bernoulli_",
    "cauchy_",
    "exponential_",
    "geometric_",
    "log_normal_",
    "normal_",
    "random_",
    "uniform_",
]
LIKE = ["bernoulli", "binomial", "poisson", "rand_like", "randint_like", "randn_like"]
OF_SIZE = ["normal", "rand", "randint", "randn"]
NOISE = {*FILLED, *LIKE, *OF_SIZE, "gumbel_softmax"}


def draws_noise(node: fx.Node, root: nn.Module) -> bool:
    """Return whether a node draws a number for every element of its result; dropout is apart.

    Args:
        node: Of the graph of a model.
        root: Where its modules are found, in the mode of the graph.
    """
    if not node.op.startswith("call"):
        return False
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, nn.RReLU) and module.training
    name = _name(node.target)
    if name in ("rrelu", "rrelu_"):
        return bool(node.kwargs.get("training", node.args[3] if len(node.args) > 3 else False))
    return name in NOISE


def drops(target: Any) -> bool:
    """Return whether an operator (a function or a method's name) is a dropout."""
    return _name(target).removesuffix("_") in DROPOUT


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


@register_rule(*everywhere(DROPOUT), *everywhere(LIKE), *(getattr(Tensor, name) for name in FILLED))
def like(op: Op) -> tuple[OpenAxis, ...]:
    """Numbers for every element of the tensors, which are broadcast."""
    if not isinstance(op.result, Tensor):
        raise NoRule
    for path in op.derived:
        op.number(path)
    return op.broadcast(*op.tensors)


@register_rule(*(getattr(torch, name) for name in OF_SIZE))
def of_size(op: Op) -> tuple[OpenAxis, ...]:
    """A new tensor of numbers, or one with the mean or the deviation of others."""
    sized = "size" in op.kwargs or any(isinstance(a, Sequence) for a in op.args)
    return created(op, noise=True) if sized or op.name != "normal" else like(op)


@register_rule(F.gumbel_softmax)
def gumbel_softmax(op: Op) -> tuple[OpenAxis, ...]:
    """A softmax of noisy logits; the hard one takes the first of the largest, which new channels would be among."""
    a = op.bind("logits", "tau", "hard", "eps", "dim", tau=1.0, hard=False, dim=-1)
    logits = a["logits"]
    if not isinstance(logits, Typed):
        raise NoRule
    if a["hard"]:
        op.pin(logits.axes[a["dim"]], why="takes the largest of it (hard)")
        return tuple(logits.axes)
    op.mixed(logits.axes[a["dim"]])
    return tuple(logits.axes)


@register_rule(*everywhere(["multinomial"]))
def multinomial(op: Op) -> tuple[OpenAxis, ...]:
    """Categories, drawn by their weights."""
    x = op.tensors[0]
    op.pin(x.axes[-1], why="draws categories of it")
    return (*x.axes[:-1], fixed(op.result.shape[-1]))
