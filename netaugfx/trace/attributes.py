"""The Python attributes of a model that is traced: what its forward reads of them, and what it leaves there."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from types import FrameType
from typing import Any

from torch import Tensor, nn

from .meta import PLAIN

_HERE = os.path.dirname(os.path.dirname(__file__)) + os.sep
OWN = frozenset((*vars(nn.Module()), "__dict__", "__class__"))  # what torch itself keeps there
_ATOMS = (bool, int, float, complex, str, type(None), Tensor, nn.Module)

Attribute = tuple[str, str]  # module path and name


class Attributes:
    """What the modules of a copy hold when a trace begins, and what is read and written from then on."""

    def __init__(self, root: nn.Module) -> None:
        self.paths = {id(m): path for path, m in root.named_modules()}
        self.before = [
            (m, dict(vars(m)), dict(m._buffers), dict(m._modules)) for m in root.modules()
        ]
        self._read: dict[tuple[int, str], None] = {}
        self._written: set[tuple[int, str]] = set()
        self._undo: list[tuple[nn.Module, str, bool, dict[str, Any], dict[str, Any]]] = []
        memo: dict[int, Any] = {id(m): m for m, *_ in self.before}
        memo |= {id(t): t for t in [*root.parameters(), *root.buffers()]}
        others: list[dict[str, Any]] = []
        for _, attributes, *_ in self.before:
            kept = {k: v for k, v in attributes.items() if k not in OWN}
            memo |= {id(v): v for v in kept.values() if isinstance(v, Tensor)}
            others.append({k: v for k, v in kept.items() if not isinstance(v, _ATOMS)})
        self.others = copy.deepcopy(others, memo)  # a forward may write into lists and dictionaries

    def note(self, module: nn.Module, name: str, reader: FrameType) -> None:
        """Record that a forward reads what was there when it began."""
        key = (id(module), name)
        if key in self._read or key in self._written or name.startswith("__"):
            return
        if not reader.f_code.co_filename.startswith(_HERE):
            self._read[key] = None

    def write(self, module: nn.Module, name: str) -> None:
        """Record that a forward sets an attribute; a plain tensor is none of the model's buffers any more."""
        key, rooms = (id(module), name), (vars(module), module._buffers)
        there, buffer = ({k: room[k] for k in (name,) if k in room} for room in rooms)
        self._undo.append((module, name, key in self._written, there, buffer))
        self._written.add(key)
        if name in vars(module).get(PLAIN, ()):
            module._buffers.pop(name, None)

    def mark(self) -> tuple[int, int]:
        """Return what `forget` takes to go back to here."""
        return len(self._read), len(self._undo)

    def forget(self, mark: tuple[int, int]) -> None:
        """Take back what a failed forward has read and set since `mark`."""
        for key in list(self._read)[mark[0] :]:
            del self._read[key]
        while len(self._undo) > mark[1]:
            module, name, written, there, buffer = self._undo.pop()
            vars(module).pop(name, None)
            vars(module).update(there)
            module._buffers.update(buffer)
            if not written:
                self._written.discard((id(module), name))

    @property
    def read(self) -> tuple[Attribute, ...]:
        """What a forward read before it wrote to it, or without writing to it."""
        return tuple((self.paths[i], name) for i, name in self._read if i in self.paths)

    def restore(self) -> frozenset[Attribute]:
        """Put everything back as it was, new buffers of the trace aside, and return what had been set."""
        written = {(self.paths[i], name) for i, name in self._written if i in self.paths}
        for entry, others in zip(self.before, self.others, strict=True):
            m, before = entry[:2]
            names = before.keys() | vars(m).keys()
            path = self.paths[id(m)]
            missing = object()
            written |= {
                (path, k)
                for k in names - OWN
                if before.get(k, missing) is not vars(m).get(k, missing)
            }
            _put_back(*entry, others)
        return frozenset(written)


def _put_back(
    module: nn.Module,
    attributes: Mapping[str, Any],
    buffers: Mapping[str, Any],
    children: Mapping[str, Any],
    others: Mapping[str, Any],
) -> None:
    room = vars(module)
    room.clear()
    room.update(attributes)
    room.update(others)
    room["_non_persistent_buffers_set"] |= room.get(PLAIN, set())
    for there, whole in (
        (module._buffers, {**buffers, **module._buffers, **buffers}),
        (module._modules, children),
    ):
        there.clear()
        there.update(whole)
