"""The registry of channel rules: operator -> rule, layer -> the functions that it stands for.

An operator without a rule is pinned as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch.nn.utils import parametrizations, parametrize

from ..copies import deep_copy
from ..errors import RuleError
from ..trace import Applied
from .op import Call, Op

Rule = Callable[[Op], Any]
Lowering = Callable[..., Call]
Resizing = Callable[[nn.Module, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Layer:
    """How a module with Parameters is written as a function of them, and how its own numbers follow their shapes.

    Args (fields):
        lower: Module and arguments -> the call that it stands for.
        resize: Sets the module's numbers to its tensors' shapes.
        groups: The module's attribute that is its number of groups, and which argument of the call that is.
    """

    lower: Lowering
    resize: Resizing
    groups: tuple[str, int] | None = None


_rules: dict[Any, Rule] = {}
_layers: dict[type[nn.Module], Layer] = {}
_resizings: dict[str, Resizing] = {}  # of classes that are traced through, by dotted name


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Teach an operator: a function, a `torch.Tensor` method, a module class, or the name of what is not imported here.

    That is a module class's dotted name, or the name of an operator in `torch.ops` (`"torchvision::deform_conv2d"`).
    What `torch.library.custom_op` makes is such an operator.

    Args:
        targets: What the rule describes; also a `torch.autograd.Function`, which is otherwise read by its own
            forward. A later registration for the same target wins.

    Returns:
        A decorator for a function from `Op` to the axes of the result: a tuple with an axis per dimension, or a
        tuple or list of such tuples where the operator returns several tensors.

    Raises:
        RuleError: A target that is none of these, or a Python function of your own, which is traced through.

    Example:
        >>> import torch, netaugfx
        >>> @netaugfx.register_rule(torch.special.entr)
        ... def entr(op):
        ...     return op.tensors[0].axes
    """
    if not targets:
        raise RuleError(
            "register_rule: give what the rule describes, as in @register_rule(torch.special.entr)."
        )
    keys = [_key(target) for target in targets]

    def register(rule: Rule) -> Rule:
        _rules.update(dict.fromkeys(keys, rule))
        return rule

    return register


def layer(
    *classes: type[nn.Module], resize: Resizing, groups: tuple[str, int] | None = None
) -> Callable[[Lowering], Lowering]:
    """Teach a module class with Parameters by a function `lower(module, *args) -> Call`."""

    def register(lower: Lowering) -> Lowering:
        for cls in classes:
            _layers[cls] = Layer(lower, resize, groups)
        return lower

    return register


def resizing(name: str, resize: Resizing) -> None:
    """Teach how the numbers of a class that is traced through follow its tensors' shapes."""
    _resizings[name] = resize


def rule_of(target: Any) -> Rule | None:
    """Return the rule for a function, a method's name (as text) or a module, or None."""
    if isinstance(target, nn.Module):
        cls = type(target)
        return _rules.get(cls) or _rules.get(f"{cls.__module__}.{cls.__qualname__}")
    if isinstance(target, str):
        return _rules.get(("method", target))
    if isinstance(target, Applied):
        return _rules.get(target.function) or _rules.get(target.function.apply)
    try:
        return _rules.get(target) or _rules.get(_op_name(target))
    except TypeError:  # not hashable
        return None


def layer_of(module: nn.Module) -> Layer | None:
    """Return how `module` is lowered, if its class is a known layer."""
    return _layers.get(type(module))


def resize(module: nn.Module) -> None:
    """Set the numbers of a layer, or of a subclass of one (`in_channels`, `num_features`), to its tensors' shapes."""
    found = next((r for cls in type(module).__mro__ if (r := _resizing_of(cls))), None)
    if found is not None:
        tensors: dict[str, Any] = {**module._parameters, **module._buffers}
        if parametrize.is_parametrized(module):
            asked: Any = deep_copy(module)  # a look at the weight may move a state (spectral_norm)
            with torch.no_grad():
                tensors |= {name: getattr(asked, name) for name in asked.parametrizations}
        found(module, {name: t for name, t in tensors.items() if t is not None})


def _resizing_of(cls: type) -> Resizing | None:
    known = _layers.get(cls)
    return known.resize if known else _resizings.get(f"{cls.__module__}.{cls.__qualname__}")


HOLDERS = (
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder,
    nn.TransformerDecoder, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, parametrize.ParametrizationList,
    parametrizations._WeightNorm, nn.Unflatten, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d,
)  # fmt: skip
STATEFUL = (parametrizations._SpectralNorm, parametrizations._Orthogonal)


def is_leaf(module: nn.Module, path: str) -> bool:
    """Return whether the tracer keeps `module` as one node: torch's own layers, and what has a rule.

    What holds others or lengths alone is traced through, and so are layers whose weight is computed from Parameters,
    unless that takes iterations whose state belongs to the base.
    """
    if rule_of(module) or layer_of(module):
        return True
    if parametrize.is_parametrized(module):
        lists: Any = module.parametrizations
        return any(isinstance(p, STATEFUL) for several in lists.values() for p in several)
    mine = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return mine and not isinstance(module, HOLDERS)


def _key(target: Any) -> Any:
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    if isinstance(target, nn.Module):
        raise RuleError(
            f"register_rule: {type(target).__name__}(...) is one module; give its class, {type(target).__qualname__}."
        )
    if isinstance(target, str) and ("." in target or "::" in target):
        return target
    op_name = _op_name(target)
    if op_name is not None:
        return op_name
    if isinstance(target, FunctionType) and not _dispatched(target):
        raise RuleError(
            f"register_rule: {target.__name__}() is a Python function, which is traced through, so that a rule for it "
            "would not be used; register the class of a module that calls it, or make it an operator with "
            "torch.library.custom_op."
        )
    name = getattr(target, "__name__", None)
    if name and getattr(torch.Tensor, name, None) is target:
        return ("method", name)
    if callable(target):
        return target
    raise RuleError(
        f"register_rule: {target!r} is no function, torch.Tensor method, module class or dotted class name."
    )


def _dispatched(function: FunctionType) -> bool:
    """Return whether a function lets tensors decide what it does, as torch's own do, or is what a layer stands for."""
    room = f"{function.__module__}."
    return (
        room.startswith(("torch.", f"{__package__}."))
        or "handle_torch_function" in function.__code__.co_names
    )


def _op_name(target: Any) -> str | None:
    """Return the name that an operator has in `torch.ops` ("library::name"), whichever of its forms is given."""
    if isinstance(target, CustomOpDef):
        target = target._opoverload
    packet = getattr(target, "_overloadpacket", target)
    name: str | None = getattr(packet, "_qualified_op_name", None)
    return name


def everywhere(names: Iterable[str]) -> list[Any]:
    """Return every form that torch and operator have of these names: function, method, in-place method."""
    found: list[Any] = []
    for name in names:
        for room in (torch, torch.nn.functional, torch.special, torch._C._nn, operator):
            for form in (name, f"{name}_", f"i{name}" if room is operator else name):
                found += [getattr(room, form)] if callable(getattr(room, form, None)) else []
        found += [
            getattr(Tensor, f) for f in (name, f"{name}_") if callable(getattr(Tensor, f, None))
        ]
    return found
