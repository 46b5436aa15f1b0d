"""Recurrent layers: what they take in can grow, their states cannot."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..unify import length, times
from .op import NoRule, Op, Typed
from .registry import register_rule, resizing

RECURRENT = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
FIRST = ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")  # these take in the input


@register_rule(*RECURRENT)
def recurrent(op: Op) -> Any:
    """The last axis of the input is axis 1 of the first weights; states stay, with the gates stacked in the others."""
    m: Any = op.module
    x = op.bind("input")["input"]
    if not isinstance(x, Typed) or not isinstance(m, RECURRENT):
        raise NoRule
    why = "computes its state from itself" + (
        "" if isinstance(m, nn.RNN | nn.RNNCell) else ", its gates stacked in one axis"
    )
    taken: list[Typed] = []
    for name in m._parameters:
        weight = op.parameter(name)
        if weight is not None:
            taken += [weight] if name in FIRST else []
            op.pin(*(weight.axes[:1] if name in FIRST else weight.axes), why=why)
    for t in op.tensors:
        op.pin(*(t.axes[:-1] if t is x else t.axes), why=why)
    for weight in taken:
        op.follow(weight.axes[1], x.axes[-1])
        op.contracted(weight, 1)
    state = op.parameter("weight_hh") or op.parameter("weight_hh_l0")
    axes = op.plain()
    if state is None:
        return axes
    several = not isinstance(op.result, Tensor)
    out = axes[0] if several else axes
    out = (*out[:-1], times(length(out[-1]) // length(state.axes[1]), state.axes[1], 1))
    return (out, *axes[1:]) if several else out


def _resize(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    m: Any = module
    m.input_size = next((tensors[n].shape[1] for n in FIRST if n in tensors), m.input_size)


for _cls in RECURRENT:
    resizing(f"{_cls.__module__}.{_cls.__qualname__}", _resize)


def with_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a recurrent layer that computes with other tensors; the one given keeps its own, and its list of them."""
    made: Any = object.__new__(type(module))
    made.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, **tensors}}
    names = getattr(module, "_flat_weights_names", None)
    if names is not None:
        weights = [made._parameters[name] for name in names]
        made.__dict__["_flat_weights"] = weights
        made.__dict__["_flat_weight_refs"] = [
            None if w is None else weakref.ref(w) for w in weights
        ]
    _resize(made, made._parameters)
    layer: nn.Module = made
    return layer
