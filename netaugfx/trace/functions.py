"""A `torch.autograd.Function` as one node of a graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import BuiltinMethodType
from typing import Any

from torch import nn
from torch.autograd import Function


class Applied:
    """`function.apply` as the target of a node: its name says whose it is."""

    def __init__(self, function: type[Function]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = f"{function.__name__}.apply"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function.apply(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Applied) and other.function is self.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __repr__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}.apply"

    def __deepcopy__(self, memo: Any) -> Applied:
        return self


def applied(value: object) -> Applied | None:
    """Return what stands for a `Fn.apply` that was kept under some name; None for any other value."""
    if type(value) is not BuiltinMethodType or value.__name__ != "apply":
        return None
    owner = value.__self__
    return Applied(owner) if isinstance(owner, type) and issubclass(owner, Function) else None


def kept(root: nn.Module) -> Iterator[tuple[Any, str, Applied]]:
    """Yield where a `Fn.apply` is kept: in the classes of a model, and in the files of these and of all Functions."""
    owners: list[Any] = list(dict.fromkeys(type(m) for m in root.modules()))
    functions: list[Any] = [Function]
    for function in functions:
        functions += function.__subclasses__()
    files = dict.fromkeys(cls.__module__ for cls in (*owners, *functions))
    owners += [sys.modules[name] for name in files if name in sys.modules]
    for owner in owners:
        held = [item for item in vars(owner).items() if type(item[1]) is BuiltinMethodType]
        for name, value in held:
            stand_in = applied(value)
            if stand_in is not None:
                yield owner, name, stand_in
