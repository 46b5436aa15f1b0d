"""The graph of what a `torch.autograd.Function` does in its own `forward`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.utils._pytree import tree_map

from ..errors import NetAugFXError
from .guards import Untraceable
from .meta import substitute
from .traced import Inputs, Traced
from .tracer import trace

_known: WeakKeyDictionary[fx.Graph, dict[Hashable, Traced]] = WeakKeyDictionary()


class _Forward(nn.Module):
    """A Function's `forward` as that of a module, with a context that keeps what it is given."""

    def __init__(self, function: type[Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        function: Any = self.function
        classes = function.__mro__[: function.__mro__.index(Function)]
        if any("setup_context" in vars(cls) for cls in classes):
            return function.forward(*args, **kwargs)
        context: Any = FunctionCtx()
        context.needs_input_grad = tuple(isinstance(a, Tensor) for a in args)
        return function.forward(context, *args, **kwargs)


def forward_of(node: fx.Node, device: torch.device) -> Traced | str:
    """Return the graph of a Function's own forward at the values of a node's arguments, or why there is none.

    Its placeholders are the tensors among the arguments, in order; numbers among them are constants.
    """
    target: Any = node.target
    values = substitute((node.args, node.kwargs), lambda n: n.meta["val"])
    args, kwargs = tree_map(lambda a: a.detach() if isinstance(a, Tensor) else a, values)
    forward = _Forward(target.function)
    known = _known.setdefault(node.graph, {})
    try:
        key = (target, Inputs.of(forward, args, kwargs).key)
        if key not in known:
            with torch.no_grad():
                known[key] = trace(forward, args, kwargs, device=device)
        return known[key]
    except NetAugFXError as error:
        cause = error.__cause__
        told = cause.reason if isinstance(cause, Untraceable) else str(error)
        return f"cannot be read: its forward {told}"
