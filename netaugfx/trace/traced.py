"""What a trace is made from, and what it makes: the inputs of a call, and a graph with what it holds for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
import torch.utils.checkpoint
from torch import Tensor, fx, nn

from ..errors import InputError, TraceError
from .attributes import Attribute
from .guards import Guard
from .meta import (
    META,
    compute,
    substitute,
    to_meta,
)
from .surroundings import random_states_kept

# Module path, and whether it was called on other data -> call by call: what it gave, and what it gives of yet others.
Data = dict[tuple[str, bool], list[tuple[Any, Any]]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """How call arguments map to placeholders: tensor leaves become them, others are constants.

    `key` holds structure, constants, every tensor's shape, strides, dtype, device and requires_grad, and whether
    gradients and autocast are on; `structure` the same without sizes and gradients. `tensors` are in the order of the
    placeholders, `names`.
    """

    names: tuple[str, ...]
    tensors: list[Tensor]
    key: Hashable
    structure: Hashable
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]

    @staticmethod
    def of(
        model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Inputs:
        """Bind a call to the signature of `model.forward`: `f(x)` and `f(input=x)` are the same.

        Raises:
            InputError: the arguments do not fit the signature, or hold no tensor.
            TraceError: the forward has no signature.
        """
        name = type(model).__name__
        try:
            signature = inspect.signature(model.forward)
        except ValueError:
            raise TraceError(
                f"Cannot trace {name}: its forward has no signature, as that of a TorchScript module, which has no "
                "Python to trace. Give the module that it was made from."
            ) from None
        try:
            bound = signature.bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise InputError(f"The inputs do not fit {name}.forward: {error}.") from None
        given = {key: key in (kwargs or {}) for key in bound.arguments}
        bound.apply_defaults()
        pairs, spec = pytree.tree_flatten_with_path(dict(bound.arguments))
        leaves = [leaf for _, leaf in pairs]
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: list[Tensor] = [leaves[i] for i in places]
        if not tensors:
            came = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
            raise InputError(
                f"The inputs of {name}.forward hold no tensor: pass at least one; {came} came."
            )
        constants = [_hashable(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]

        def rebuild(values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            filled = dict(enumerate(leaves)) | dict(zip(places, values, strict=True))
            arguments = pytree.tree_unflatten(list(filled.values()), spec)
            return _call(bound.signature, arguments, given)

        tree = (str(spec), tuple(places), tuple(constants))
        kinds = dict.fromkeys(t.device.type for t in tensors if t.device != META)
        cast = tuple(torch.get_autocast_dtype(k) for k in kinds if torch.is_autocast_enabled(k))
        sizes = ((tuple(t.shape), t.stride(), t.dtype, t.device, t.requires_grad) for t in tensors)
        return Inputs(
            names=tuple("_".join(str(_entry(key)) for key in pairs[i][0]) for i in places),
            tensors=tensors,
            key=(tree, tuple(sizes), cast, torch.is_grad_enabled()),
            structure=(tree, tuple((t.ndim, t.dtype) for t in tensors), cast),
            rebuild=rebuild,
        )


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph, and what it holds for.

    Attributes:
        graph: every node's meta has "val" (its value, tensors on the meta device), "path" (the
            module whose forward made it, '' for the root) and "source" ("file.py:41").
        root: the copy of the model on the meta device that targets refer to.
        inputs: the example inputs.
        guards: the values that Python read while tracing.
        opaque: module path -> reason, modules that are leaves as they cannot be traced through.
        constants: get_attr targets that the user's model does not have -> their true tensors.
        device: what `x.device` answered.
        read: module path and name of what the forward read of its modules before it set it.
        written: likewise, of what it set. `root` has again what it had.
        data: what the modules gave that read data.
    """

    graph: fx.Graph
    root: nn.Module
    inputs: Inputs
    guards: tuple[Guard, ...]
    opaque: Mapping[str, str]
    constants: Mapping[str, Tensor]
    device: torch.device
    read: tuple[Attribute, ...] = ()
    written: frozenset[Attribute] = frozenset()
    data: Data = field(default_factory=dict)

    def matches(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> bool:
        """Whether these inputs take the same path through the user's Python."""
        inputs = Inputs.of(self.root, args, kwargs)
        if inputs.structure != self.inputs.structure:
            return False
        if not self.guards or inputs.key == self.inputs.key:
            return True
        needed = {guard.node for guard in self.guards}
        for node in reversed(self.graph.nodes):
            needed.update(node.all_input_nodes if node in needed else ())
        device = next((t.device for t in inputs.tensors if t.device != META), self.device)
        tensors = iter([to_meta(t) for t in inputs.tensors])
        values: dict[fx.Node, Any] = {}
        try:
            with random_states_kept():
                for node in self.graph.nodes:
                    if node.op == "placeholder":
                        values[node] = next(tensors)
                    elif node in needed:
                        call = substitute((node.args, node.kwargs), values.__getitem__)
                        values[node] = compute(self.root, device, node.op, node.target, *call)
            return all(guard.holds(values[guard.node]) for guard in self.guards)
        except Exception:
            return False  # an operator, or an opaque module, that refuses these shapes


def _call(
    signature: inspect.Signature, arguments: Mapping[str, Any], given: Mapping[str, bool]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call as the user wrote it: what wraps a forward may look for what is given by name, or left out.

    Args:
        signature: Of the forward.
        arguments: By name, defaults included.
        given: Those that the call gives -> whether by keyword.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for key, parameter in signature.parameters.items():
        value, kind = arguments[key], parameter.kind
        if kind is parameter.VAR_POSITIONAL:
            args += value
        elif kind is parameter.VAR_KEYWORD:
            kwargs |= value
        elif given.get(key) is False or kind is parameter.POSITIONAL_ONLY:
            args.append(value)
        elif key in given or pytree.tree_any(
            lambda leaf: isinstance(leaf, Tensor | fx.Proxy), value
        ):
            kwargs[key] = value
    return tuple(args), kwargs


def _entry(key: Any) -> object:
    return next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return type(value), repr(value)
    return type(value), value
