"""Shell: a module that looks like the one inside it, and holds one child more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from torch import nn

from .errors import InputError
from .storage import Rooms

_STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


class Shell(nn.Module):
    """A base with rooms beside it: it has the base's children, Parameters, buffers and attributes under their names.

    Attributes:
        base: What is inside; what is set on this as a child is set on the base.
        rooms: The child more.
        room: Its name here, `augmented` where the base has nothing of that name.
    """

    base: nn.Module
    rooms: Rooms

    def __init__(self, base: nn.Module, rooms: Rooms) -> None:
        super().__init__()
        self.room = next(
            name for name in _reserved() if name not in base._modules and not hasattr(base, name)
        )
        # into __dict__: the base may have children of these names, which are then found on `base` alone
        self.__dict__.update(base=base, rooms=rooms, training=base.training)
        self.__dict__.update({name: getattr(base, name) for name in (*_STATE_HOOKS, "_version")})
        # the same dictionaries, so that .to(), load_state_dict() and the like reach the base
        self._parameters = base._parameters
        self._buffers = base._buffers
        self._non_persistent_buffers_set = base._non_persistent_buffers_set
        self.__dict__["_modules"] = {**base._modules, self.room: rooms}

    @property
    def _modules(self) -> dict[str, nn.Module | None]:
        """The base's children as they are now, and the blocks: what stands in a child's place may change."""
        own: dict[str, nn.Module | None] = self.__dict__["_modules"]
        base = self.__dict__.get("base")
        if base is None or own is base._modules:
            return own
        now = {**base._modules, self.room: self.rooms}
        if len(own) != len(now) or any(own.get(name) is not m for name, m in now.items()):
            own.clear()
            own.update(now)
        return own

    @_modules.setter
    def _modules(self, modules: dict[str, nn.Module | None]) -> None:
        self.__dict__["_modules"] = modules

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("base")
        child = isinstance(value, nn.Module) or (base is not None and name in base._modules)
        if base is not None and (child or self._is_of_base(name)) and name != self.room:
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def _is_of_base(self, name: str) -> bool:
        """Return whether an attribute is found on the base alone: a threshold that its forward reads, say."""
        own = name in self.__dict__ or hasattr(type(self), name)
        return not own and (name in vars(self.base) or hasattr(type(self.base), name))

    def __delattr__(self, name: str) -> None:
        if name in self.base._modules:
            delattr(self.base, name)
        else:
            super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child to the base."""
        if name != self.room:
            self.base.add_module(name, module)

    def get_submodule(self, target: str) -> nn.Module:
        """Return what lies at a path: a child of the base, also where this has an attribute of its name."""
        first, _, rest = target.partition(".")
        if not first:
            return self
        return (
            self.rooms.get_submodule(rest)
            if first == self.room
            else self.base.get_submodule(target)
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save what the base's root holds, as its class does: an extra state, too."""
        self.base._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        """Load what the base's root holds, as its class does; it does not know of the room."""
        known = len(unexpected)
        self.base._load_from_state_dict(
            state_dict, prefix, metadata, strict, missing, unexpected, errors
        )
        found = unexpected[known:]
        unexpected[known:] = [key for key in found if not key.startswith(f"{prefix}{self.room}.")]

    def _replicate_for_data_parallel(self) -> Self:
        raise InputError(
            "torch.nn.DataParallel would give all devices one base. Use "
            "torch.nn.parallel.DistributedDataParallel, with a process for each device."
        )

    def __getattr__(self, name: str) -> Any:
        if "base" in self.__dict__:
            _ = self._modules  # as they are now
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("base")
            if base is None:
                raise
            return getattr(base, name)

    def __getitem__(self, key: Any) -> Any:
        """Return what the base has at `key`: the layer of a Sequential, say; iterating over a Sequential works so."""
        return self.base[key]  # type: ignore[index]

    def __len__(self) -> int:
        """Return how many the base holds."""
        return len(self.base)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def train(self, mode: bool = True) -> Self:
        """Set training mode as the base's own `train` does."""
        self.base.train(mode)
        self.rooms.train(mode)
        self.training = self.base.training
        return self


def _reserved() -> Iterator[str]:
    name = "augmented"
    while True:
        yield name
        name += "_"
