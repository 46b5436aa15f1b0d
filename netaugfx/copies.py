"""Deep copies of modules that keep what a forward computed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class _Detached(TorchFunctionMode):
    """Lets copy.deepcopy take tensors that have a graph, wherever they lie: the copy has the values alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def deep_copy(value: T, memo: dict[int, Any] | None = None) -> T:
    """Return `copy.deepcopy(value, memo)`; tensors computed with a gradient are detached, not refused."""
    with _Detached():
        return copy.deepcopy(value, memo)
