"""Proxies that answer Python from the value of their node."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from .guards import Untraceable, itself

OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "lshift", "rshift"),
)


class Value(fx.Proxy):
    """A proxy that answers Python from the value of its node, and records what it answered."""

    tracer: Any  # the Recorder that makes it

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(x, Tensor) is as it would be without tracing
        return type(self.node.meta["val"])

    def __repr__(self) -> str:
        return format(self.tracer.shown(self))

    def __format__(self, spec: str) -> str:
        return format(self.tracer.shown(self), spec)

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta["val"]
        with self.tracer.phase("meta"):
            attribute = getattr(value, name)
        if isinstance(value, Mapping) and name in ("keys", "values", "items", "get"):
            self.tracer.keys_read(self)
            return getattr({key: self.record(operator.getitem, key) for key in value}, name)
        if callable(attribute):

            def method(*args: Any, **kwargs: Any) -> Any:
                return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

            return method
        result = self.record(getattr, name)
        read = isinstance(attribute, bool | str)  # Python may test these by identity
        return self.tracer.read(result, itself) if read else result

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data" and self.tracer.alive:
            raise Untraceable(f"assigns to .data at {self.tracer.source()}")
        super().__setattr__(name, value)

    def record(self, function: Callable[..., Any], *args: Any) -> Any:
        """Apply a function of Python's to the proxy, as a node."""
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    def __bool__(self) -> bool:
        return bool(self.tracer.read(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.read(self, int))

    def __float__(self) -> float:
        return float(self.tracer.read(self, float))

    def __index__(self) -> int:
        return int(self.tracer.read(self, operator.index, sys._getframe(1)))

    def __len__(self) -> int:
        return int(self.tracer.read(self, len))

    def __hash__(self) -> int:
        if isinstance(self.node.meta["val"], Tensor):
            return id(self)
        return hash(self.tracer.read(self, itself))

    def __eq__(self, other: object) -> Any:
        # A key left behind in a cache of the user's equals no later key.
        return self.record(operator.eq, other) if self.tracer.alive else self is other

    def __iter__(self) -> Iterator[Any]:
        value = self.node.meta["val"]
        keys = value if isinstance(value, Mapping) else None
        if keys is not None:
            self.tracer.keys_read(self)
        return iter(keys or [self.record(operator.getitem, i) for i in range(len(self))])

    def __contains__(self, item: object) -> bool:
        return bool(self.record(operator.contains, item))

    def __setitem__(self, index: object, value: object) -> None:
        self.record(operator.setitem, index, value)

    def __add__(self, other: Any) -> Any:
        # tuples of lengths are joined at once: which length each number is stays plain to see
        return (*self, *other) if _are_tuples(self, other) else self.record(operator.add, other)

    def __radd__(self, other: Any) -> Any:
        if _are_tuples(self, other):
            return (*other, *self)
        return self.tracer.create_proxy("call_function", operator.add, (other, self), {})

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self.record(operator.floordiv, other), self.record(operator.mod, other)

    def __ceil__(self) -> Any:
        return self.record(math.ceil)

    def __floor__(self) -> Any:
        return self.record(math.floor)

    def __trunc__(self) -> Any:
        return self.record(math.trunc)

    def __round__(self, *digits: int) -> Any:
        return self.record(round, *digits)


class Number(Value):
    """A proxy of what cannot be iterated, so that `isinstance(n, Iterable)` is False."""

    __iter__ = __len__ = __contains__ = None  # type: ignore[assignment]


def _in_place(name: str) -> Callable[[Value, Any], Any]:
    out_of_place = getattr(operator, f"__{name}__")
    in_place = getattr(operator, f"__i{name}__")

    def method(self: Value, other: Any) -> Any:
        is_tensor = isinstance(self.node.meta["val"], Tensor)
        return self.record(in_place if is_tensor else out_of_place, other)

    return method


for _name in OPERATORS:
    setattr(Value, f"__i{_name}__", _in_place(_name))


def _are_tuples(*values: Any) -> bool:
    return all(isinstance(value, tuple) for value in values)
