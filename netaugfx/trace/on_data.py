"""What modules that read data give: on the example's own data, and on data that might come instead."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from .meta import META, on_meta, on_random_data, real_copy
from .surroundings import random_states_kept
from .traced import Data, Inputs

# Seeds and factors of the random data on which modules run that read data. The second is the first with other signs,
# so that even one row that a threshold keeps is dropped.
DRAWS = ((0, 1.0), (0, -1.0), (1, 3.0), (2, 0.5))


class OnData:
    """Runs modules, and the model around them, with their weights.

    Args:
        root: Whose modules have the modes that are meant.
        real: The same model with its weights.
        inputs: The example.
        device: Where the data are.
        known: What the modules gave in another trace, call by call; they are run where it says nothing.

    Attributes:
        data: What they gave in this one.
    """

    def __init__(
        self, root: nn.Module, real: nn.Module, inputs: Inputs, device: torch.device, known: Data
    ) -> None:
        self.root, self.real, self.inputs = root, real, inputs
        self.device = torch.device("cpu") if device == META else device
        self.known = {key: list(values) for key, values in known.items()}
        self.data: Data = {}
        self.given: dict[str, list[Any]] = {}  # what modules will get of the example, call by call

    def values(self, path: str, args: Any, kwargs: Any, on_others: bool) -> tuple[Any, Any]:
        """Return what a module makes of the example's data, and the unlikest of what it makes of random data.

        Args:
            path: Of the module.
            args: Its arguments, on the meta device.
            kwargs: Likewise, by name.
            on_others: Whether these are what it is given on other data than the example's.

        Raises:
            Exception: What the module raises, where it takes none of these data.
        """
        key = (path, on_others)
        known = self.known.get(key)
        values = known.pop(0) if known else self._run(path, args, kwargs, on_others)
        self.data.setdefault(key, []).append(pytree.tree_map(lambda leaf: leaf, values))
        return values

    def _run(self, path: str, args: Any, kwargs: Any, on_others: bool) -> tuple[Any, Any]:
        found = []
        errors: list[Exception] = []
        own = None if on_others else self._on_example(path, (args, kwargs))
        if own is not None:
            with suppress(Exception), random_states_kept():
                found.append(on_meta(self._copied(path)(*own[0], **own[1])))
        for seed, factor in DRAWS:
            try:
                given = self._copied(path), args, kwargs, self.device, seed, factor
                found.append(on_meta(on_random_data(*given)))
            except Exception as error:  # data that it does not take
                errors.append(error)
        if not found:
            raise errors[0]
        value = found[0]
        n = _elements(value)
        other = max(found, key=lambda v: (abs(_elements(v) - n), not _alike(v, value)))
        return value, other

    def _copied(self, path: str) -> nn.Module:
        """Return a copy of a module with its weights, in the modes that are meant."""
        module = real_copy(self.real.get_submodule(path), self.device)
        modes = (m.training for m in self.root.get_submodule(path).modules())
        for m, mode in zip(module.modules(), modes, strict=True):
            m.training = mode
        return module

    def _on_example(self, path: str, wanted: Any) -> Any:
        """Return what the module at `path` is given at its next call when the model runs on the example.

        None if the example has no values, or the model does not run on it.

        Args:
            path: Of the module.
            wanted: The arguments of this call, on the meta device.
        """
        if path not in self.given:
            self.given[path] = list(self._given(path))
        own = self.given[path][:1]
        del self.given[path][:1]
        if not own or not _alike(on_meta(own[0]), wanted):
            return None
        return pytree.tree_map(_as_computed, own[0], wanted)

    def _given(self, path: str) -> list[Any]:
        """Return what a module is given, call by call, when the model runs on the example."""
        seen: list[Any] = []
        if any(t.device == META for t in self.inputs.tensors):
            return seen
        with suppress(Exception), random_states_kept(), torch.no_grad():
            model = self._copied("")
            module = model.get_submodule(path)
            forward = module.forward

            def keep(*args: Any, **kwargs: Any) -> Any:
                seen.append(pytree.tree_map_only(Tensor, torch.clone, (args, kwargs)))
                return forward(*args, **kwargs)

            module.forward = keep
            args, kwargs = self._example()
            model(*args, **kwargs)
        return seen

    def model_runs(self) -> bool:
        """Whether the model runs on the example, or on random data where that has no values."""
        with suppress(Exception), random_states_kept(), torch.no_grad():
            model = self._copied("")
            args, kwargs = self._example()
            if any(t.device == META for t in self.inputs.tensors):
                on_random_data(model, args, kwargs, self.device)
            else:
                model(*args, **kwargs)
            return True
        return False

    def _example(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        return self.inputs.rebuild([t.detach().clone() for t in self.inputs.tensors])


def _alike(a: Any, b: Any) -> bool:
    """Whether two values are the same to who sees no data: shapes, types and numbers."""
    (first, tree), (second, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    return tree == other and all(
        (type(x), x.shape, x.dtype) == (type(y), y.shape, y.dtype)
        if isinstance(x, Tensor) and isinstance(y, Tensor)
        else bool(type(x) is type(y) and x == y)
        for x, y in zip(first, second, strict=True)
    )


def _as_computed(value: Any, wanted: Any) -> Any:
    graded = isinstance(value, Tensor) and wanted.requires_grad
    return value.requires_grad_().clone() if graded else value  # operators in place may write to it


def _elements(tree: Any) -> int:
    return sum(t.numel() for t in pytree.tree_leaves(tree) if isinstance(t, Tensor))
