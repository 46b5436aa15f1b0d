"""What Python has read while a model was traced: the graph holds where it would read the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx


@dataclass(frozen=True)
class Guard:
    """A value that Python read while tracing: the graph holds where `node` reads the same.

    `read` is how Python got `value` from the node's value. `by_data` tells that more than the shapes of the inputs may
    change it: what an opaque module made of its data.
    """

    node: fx.Node
    value: object
    source: str
    read: Callable[[Any], Any]
    by_data: bool = False

    def holds(self, value: Any) -> bool:
        """Whether Python would read the recorded value from a new `value` of the node."""
        try:
            return bool(self.read(value) == self.value)
        except TypeError:  # of another type, from which it cannot be read
            return False


def itself(value: Any) -> Any:
    """A number or text, read as it is."""
    return value


def type_of(value: Any) -> type:
    """What `isinstance`, `is None` and the like ask for."""
    return Tensor if isinstance(value, Tensor) else type(value)


class Untraceable(BaseException):
    """Why a forward cannot be traced. Not an Exception: no `except` of the user's swallows it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
