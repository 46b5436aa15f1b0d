"""`type(x)` in the user's files, which would tell that a proxy is one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import GenericAlias
from typing import Any

from torch import fx, nn


class _AsType(type):
    """Makes a class that is `type` to who calls it, subscripts it, or asks what is an instance of it."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], fx.Proxy):
            return type(args[0].node.meta["val"])
        return type(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, type)

    def __getitem__(cls, item: Any) -> Any:
        return GenericAlias(type, item)


class _Type(type, metaclass=_AsType):
    pass


@contextmanager
def types_answered(root: nn.Module) -> Iterator[None]:
    """Let `type` answer from the value of a proxy, in the files that define the modules of `root`."""
    files = {cls.__module__ for m in root.modules() for cls in type(m).__mro__}
    rooms = [
        vars(sys.modules[file])
        for file in files
        if file in sys.modules and file != "builtins" and file.partition(".")[0] != "torch"
    ]
    rooms = [room for room in rooms if "type" not in room]
    for room in rooms:
        room["type"] = _Type
    try:
        yield
    finally:
        for room in rooms:
            room.pop("type", None)
