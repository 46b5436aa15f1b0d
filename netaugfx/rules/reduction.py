"""Operators along axes: means, norms and sums, softmax, running sums, rankings, similarities, losses, transforms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..unify import OpenAxis, elastic, fixed, free
from .op import NoRule, Op, Typed
from .registry import everywhere, register_rule

MEANS = """
    mean sum nanmean nansum amax amin logsumexp prod all any count_nonzero aminmax
""".split()  # noqa: SIM905 - it is read as a list of words
SPREADS = ["var", "std", "var_mean", "std_mean"]


@register_rule(*everywhere(MEANS))
def reduction(op: Op) -> Any:
    """The axes that are reduced are dropped; a result over channels mixes them."""
    return _reduced(op, "input", "dim", "keepdim")


@register_rule(*everywhere(SPREADS))
def spread(op: Op) -> Any:
    """A variance, alone or with the mean."""
    third = op.args[2:3]
    old = bool(third) and isinstance(third[0], bool) and len(op.args) > 3
    return _reduced(op, "input", "dim", *(["unbiased"] if old or third else []), "keepdim")


@register_rule(*everywhere(["norm"]), torch.functional.norm)
def norm(op: Op) -> Any:
    """A norm: the exponent comes before the axes."""
    return _reduced(op, "input", "p", "dim", "keepdim")


@register_rule(torch.linalg.norm, torch.linalg.vector_norm)
def vector_norm(op: Op) -> Any:
    """A norm of vectors, of matrices where `ord` says so."""
    return _reduced(op, "input", "ord", "dim", "keepdim")


def _reduced(op: Op, *names: str) -> Any:
    a = op.bind(*names, keepdim=False)
    x, dim = op.tensors[0], a["dim"]
    if op.kwargs.get("out") is not None or not (dim is None or isinstance(dim, int | tuple | list)):
        raise NoRule
    if isinstance(dim, bool):  # x.var(False)
        dim = None
    dims = _dims(x, dim)
    op.mixed(*(x.axes[d] for d in dims))
    keep = bool(a["keepdim"])
    axes = tuple(
        fixed(1) if d in dims else axis for d, axis in enumerate(x.axes) if keep or d not in dims
    )
    return axes if isinstance(op.result, Tensor) else tuple(axes for _ in op.result)


def _dims(x: Typed, dim: Any) -> set[int]:
    rank = len(x.axes)
    given: Iterable[int] = (dim,) if isinstance(dim, int) else dim or range(rank)
    return {d % rank for d in given}


@register_rule(*everywhere(["max", "min", "median", "nanmedian", "maximum", "minimum"]))
def extreme(op: Op) -> Any:
    """Along an axis (values and indices, which rank its elements), of two tensors, or of all elements."""
    if isinstance(op.result, Tensor):
        if len(op.tensors) == 2:
            return op.broadcast(*op.tensors)
        op.mixed(*op.tensors[0].axes)
        return ()
    if 1 in op.used:
        x = op.tensors[0]
        dims = _dims(x, op.bind("input", "dim")["dim"])
        op.pin(*(x.axes[d] for d in dims), why="ranks its elements")
    return _reduced(op, "input", "dim", "keepdim")


@register_rule(*everywhere(["softmax", "log_softmax", "softmin"]))
def softmax(op: Op) -> tuple[OpenAxis, ...]:
    """A softmax along an axis; along channels it mixes them."""
    a = op.bind("input", "dim")
    if not isinstance(a["dim"], int):
        raise NoRule("is not told its dim")
    op.mixed(a["input"].axes[a["dim"]])
    return tuple(a["input"].axes)


@register_rule(nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
def softmax_module(op: Op) -> tuple[OpenAxis, ...]:
    """A softmax along an axis; along channels it mixes them."""
    x = op.tensors[0]
    dim = -3 if isinstance(op.module, nn.Softmax2d) else getattr(op.module, "dim", None)
    if not isinstance(dim, int):
        raise NoRule("is not told its dim")
    op.mixed(x.axes[dim])
    return tuple(x.axes)


@register_rule(*everywhere(["cumsum", "cumprod", "logcumsumexp"]))
def running(op: Op) -> tuple[OpenAxis, ...]:
    """Every element with those before it: new channels come last, or between those of a concatenation."""
    a = op.bind("input", "dim")
    x, dim = a["input"], a["dim"]
    op.mixed(x.axes[dim])
    op.ordered(x.axes[dim])
    return tuple(x.axes)


@register_rule(*everywhere(["diff"]))
def difference(op: Op) -> tuple[OpenAxis, ...]:
    """Every element less the one before it: the first has none, so the rest of the axis is what grows."""
    a = op.bind("input", "n", "dim", "prepend", "append", n=1, dim=-1)
    x, dim = a["input"], a["dim"] % len(op.tensors[0].axes)
    if len(op.tensors) > 1 or a["n"] != 1:
        raise NoRule
    axis, rest = x.axes[dim], fixed(op.result.shape[dim])
    if elastic(axis):
        rest = free(op.result.shape[dim])
        first = free(1)
        op.unify(axis, (*first, *rest))
        op.pin(first, why="begins with its first element")
        op.mixed(axis)
        op.ordered(axis)
    return (*x.axes[:dim], rest, *x.axes[dim + 1 :])


@register_rule(*everywhere(["flip", "cummax", "cummin"]))
def along(op: Op) -> Any:
    """An operator along some axes, which must not grow; the others pass."""
    a = op.bind("input", "dim")
    x = a["input"]
    dims = a["dim"] if a["dim"] is not None else a.get("dims")
    if isinstance(op.args[1:2] and op.args[1], int):
        dims = [d for d in op.args[1:] if isinstance(d, int)]
    for d in _dims(x, dims):
        op.pin(x.axes[d], why="runs along it")
    axes = tuple(x.axes)
    return axes if isinstance(op.result, Tensor) else tuple(axes for _ in op.result)


@register_rule(
    *everywhere(
        ["topk", "sort", "argsort", "msort", "argmax", "argmin", "kthvalue", "mode", "quantile"]
    )
)
def ranked(op: Op) -> Any:
    """A ranking along an axis, which must not grow: new elements would change the ranks."""
    x = op.tensors[0]
    second = op.name in ("topk", "kthvalue", "quantile")
    a = op.bind("input", *(["k"] if second else []), "dim", dim=-1)
    dim = 0 if op.name == "msort" else a["dim"]
    if len(op.tensors) > 1 or (
        op.name in ("argmax", "argmin", "quantile") and not _told(op, second)
    ):
        op.pin(*x.axes, why="ranks its elements")
        return op.plain()
    dim %= len(x.axes)
    op.pin(x.axes[dim], why="ranks its elements")

    def axes(value: Tensor) -> tuple[OpenAxis, ...]:
        kept = value.dim() == len(x.axes)
        return (*x.axes[:dim], *((fixed(value.shape[dim]),) if kept else ()), *x.axes[dim + 1 :])

    if isinstance(op.result, Tensor):
        return axes(op.result)
    return tuple(axes(value) for value in op.result)


def _told(op: Op, second: bool) -> bool:
    """Return whether a ranking is along one axis; without one it is of all elements."""
    given = op.bind("input", *(["k"] if second else []), "dim")["dim"]
    return given is not None


@register_rule(*everywhere(["renorm"]))
def renorm(op: Op) -> tuple[OpenAxis, ...]:
    """Vectors along `dim` scaled down to a largest norm, which all other axes are in (max-norm constraints)."""
    a = op.bind("input", "p", "dim", "maxnorm")
    x = a["input"]
    op.mixed(*(axis for d, axis in enumerate(x.axes) if d != a["dim"] % len(x.axes)))
    return tuple(x.axes)


@register_rule(F.normalize)
def normalize(op: Op) -> tuple[OpenAxis, ...]:
    """Divided by the norm along some axes."""
    a = op.bind("input", "p", "dim", dim=1)
    dims = (a["dim"],) if isinstance(a["dim"], int) else a["dim"]
    op.mixed(*(a["input"].axes[d] for d in dims))
    return tuple(a["input"].axes)


@register_rule(torch.cosine_similarity, F.cosine_similarity, nn.CosineSimilarity)
def cosine_similarity(op: Op) -> tuple[OpenAxis, ...]:
    """Of two tensors along an axis, which is dropped."""
    dim: Any = getattr(op.module, "dim", None)
    if dim is None:
        dim = op.bind("x1", "x2", "dim", dim=1)["dim"]
    axes = list(op.broadcast(*op.tensors))
    op.mixed(axes.pop(dim))
    return tuple(axes)


@register_rule(torch.pairwise_distance, F.pairwise_distance, nn.PairwiseDistance)
def pairwise_distance(op: Op) -> tuple[OpenAxis, ...]:
    """Of two tensors along the last axis."""
    *axes, last = op.broadcast(*op.tensors)
    op.mixed(last)
    return (*axes, fixed(1)) if len(op.result.shape) > len(axes) else tuple(axes)


@register_rule(torch.cdist, torch.functional.cdist)
def cdist(op: Op) -> tuple[OpenAxis, ...]:
    """(..., n, c) and (..., m, c) -> (..., n, m)."""
    x, y = op.tensors
    if len(x.axes) != len(y.axes):
        raise NoRule
    for a, b in zip(x.axes[:-2], y.axes[:-2], strict=True):
        op.unify(a, b)
    op.unify(x.axes[-1], y.axes[-1])
    op.mixed(x.axes[-1])
    return (*x.axes[:-1], y.axes[-2])


LOSSES = """
    mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy binary_cross_entropy_with_logits
    soft_margin_loss
""".split()  # noqa: SIM905 - it is read as a list of words


@register_rule(
    *everywhere(LOSSES), nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.KLDivLoss, nn.SoftMarginLoss
)  # fmt: skip
def loss(op: Op) -> tuple[OpenAxis, ...]:
    """Of two tensors element by element, or one number for all of them."""
    axes = op.broadcast(*op.tensors)
    if op.result.dim() == len(axes):
        return axes
    op.mixed(*axes)
    return ()


FOURIER = [
    f"{kind}{form}"
    for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
    for form in ("", "2", "n")
]


@register_rule(*(getattr(torch.fft, name) for name in FOURIER))
def fourier(op: Op) -> tuple[OpenAxis, ...]:
    """A Fourier transform along some axes, which must not grow; the others pass."""
    form = op.name[-1] if op.name[-1] in "2n" else ""
    lengths = "s" if form else "n"
    a = op.bind("input", lengths, "dim", "norm", dim={"": -1, "2": (-2, -1), "n": None}[form])
    x, dims = a["input"], a["dim"]
    if dims is None and a[lengths] is not None:
        dims = range(-len(a[lengths]), 0)
    return _transformed(op, x, _dims(x, dims))


@register_rule(torch.fft.fftshift, torch.fft.ifftshift)
def shifted(op: Op) -> tuple[OpenAxis, ...]:
    """The halves of some axes change places; they must not grow."""
    a = op.bind("input", "dim")
    return _transformed(op, a["input"], _dims(a["input"], a["dim"]))


def _transformed(op: Op, x: Typed, dims: set[int]) -> tuple[OpenAxis, ...]:
    op.pin(*(x.axes[d] for d in dims), why="transforms it")
    for path in op.derived:
        op.number(path)
    return tuple(fixed(op.result.shape[d]) if d in dims else a for d, a in enumerate(x.axes))
