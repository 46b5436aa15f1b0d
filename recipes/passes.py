"""Several passes on one batch: each of them sees it as it came, whatever a forward does to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from netaugfx.errors import InputError
from netaugfx.examples import copied


def call(module: nn.Module, inputs: Any) -> Any:
    """Call a module; a tuple is its positional inputs."""
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


class SameInput:
    """Calls networks so that every pass on a batch sees the same input.

    A network's first pass gets a copy, which tells whether the forward writes to its input in place, as `x -= mean`
    does: if so, every later pass gets a copy too, and else none. In evaluation it may differ from training in that.
    """

    def __init__(self) -> None:
        self.writes: dict[tuple[type, bool], bool] = {}  # network and whether it trains -> does it

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        """What `module` gives for `inputs`, which stay as they are.

        Raises:
            InputError: it has written to its input, and did not in its first pass.
        """
        if any(each.is_inference() for each in _tensors(inputs)):  # they have no versions
            return call(module, copied(inputs))
        key = type(module), module.training
        writes = self.writes.get(key)
        given = inputs if writes is False else copied(inputs)
        before = _versions(given)
        output = call(module, given)
        wrote = _versions(given) != before
        if wrote and writes is False:
            raise InputError(
                f"The forward of {type(module).__name__} has written to its input in place, which it did not do in its "
                "first pass, so that the other networks of this step would see another input. Let it compute a new "
                "tensor (x = x - mean, nn.ReLU(inplace=False))."
            )
        self.writes[key] = bool(writes) or wrote
        return output


def _tensors(inputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _versions(inputs: Any) -> list[int]:
    """How often each tensor has been written to."""
    return [tensor._version for tensor in _tensors(inputs)]
