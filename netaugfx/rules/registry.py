"""The registry of channel rules, and `Op`, what a rule sees of the operator that it describes.

A rule reads the axes of the tensors that go in, says which must be the same (`op.unify`), and returns the axes of what
comes out. It may also say which number among the arguments was a channel count (`op.count`), which axes are summed
over (`op.contracted`), and what may not grow (`op.pin`). An operator without a rule is pinned as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..axes import OpenAxis, elastic, fixed, pin, resolve, settle, unify
from ..errors import RuleError

Path = tuple[
    str | int, ...
]  # where an argument stands: (position,), (keyword,), (position, index) ...
Rule = Callable[["Op"], Any]


@dataclass(frozen=True)
class Typed:
    """A tensor with its channel type: one axis per dimension; `name` if it is a Parameter or buffer of the model."""

    value: Tensor
    axes: tuple[OpenAxis, ...]
    name: str | None = None


@dataclass(frozen=True)
class Ref:
    """In a lowered module: the module's own Parameter or buffer of this name."""

    name: str


@dataclass(eq=False)
class Call:
    """A function with arguments, which may hold `Ref`s and further calls; `counts` is what inference found out.

    A module with Parameters is lowered to one, so that there is one rule for `nn.Conv2d` and `F.conv2d` alike.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    counts: dict[Path, Any] = field(default_factory=dict)  # Path -> open axis, then named


Lowering = Callable[..., Call]
Resizing = Callable[[nn.Module, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Layer:
    """How a module with Parameters is written as a function of them, and how its own numbers follow their shapes."""

    lower: Lowering
    resize: Resizing


class NoRule(Exception):  # noqa: N818 - no error: the operator is pinned
    """Raised by a rule for a form of its operator that it does not describe; the operator is then pinned."""


_rules: dict[Any, Rule] = {}
_layers: dict[type[nn.Module], Layer] = {}


def register_rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Teach an operator: a function, a `torch.Tensor` method, a module class, or a module class's dotted name.

    Args:
        targets: What the rule describes. A later registration for the same target wins.

    Returns:
        A decorator for a function from `Op` to the axes of the result: a tuple with an axis per dimension, or a
        tuple or list of such tuples where the operator returns several tensors.

    Raises:
        RuleError: A target that is none of these.

    Example:
        >>> import torch, netaugfx
        >>> @netaugfx.register_rule(torch.special.entr)
        ... def entr(op):
        ...     return op.tensors[0].axes
    """

    def register(rule: Rule) -> Rule:
        for target in targets:
            _rules[_key(target)] = rule
        return rule

    return register


def layer(*classes: type[nn.Module], resize: Resizing) -> Callable[[Lowering], Lowering]:
    """Teach a module class with Parameters by a function `lower(module, *args) -> Call`."""

    def register(lower: Lowering) -> Lowering:
        for cls in classes:
            _layers[cls] = Layer(lower, resize)
        return lower

    return register


def rule_of(target: Any) -> Rule | None:
    """Return the rule for a function, a method's name (as text) or a module, or None."""
    if isinstance(target, nn.Module):
        cls = type(target)
        return _rules.get(cls) or _rules.get(f"{cls.__module__}.{cls.__qualname__}")
    if isinstance(target, str):
        return _rules.get(("method", target))
    try:
        return _rules.get(target)
    except TypeError:  # not hashable
        return None


def layer_of(module: nn.Module) -> Layer | None:
    """Return how `module` is lowered, if its class is a known layer."""
    return _layers.get(type(module))


def resize(module: nn.Module) -> None:
    """Set the numbers of a layer, or of a subclass of one (`in_channels`, `num_features`), to its tensors' shapes."""
    found = next((_layers[cls] for cls in type(module).__mro__ if cls in _layers), None)
    if found is not None:
        tensors = {**module._parameters, **module._buffers}
        found.resize(module, {name: t for name, t in tensors.items() if t is not None})


def is_leaf(module: nn.Module, path: str) -> bool:
    """Return whether the tracer keeps `module` as one node: torch's own layers, and what has a rule."""
    if rule_of(module) or layer_of(module):
        return True
    mine = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return mine and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _key(target: Any) -> Any:
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    if isinstance(target, str) and "." in target:
        return target
    name = getattr(target, "__name__", None)
    if name and getattr(torch.Tensor, name, None) is target:
        return ("method", name)
    if callable(target):
        return target
    raise RuleError(
        f"register_rule: {target!r} is no function, torch.Tensor method, module class or dotted class name."
    )


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


class Op:
    """One operator of the graph, as its rule sees it: arguments with channel types, and what the rule says of them."""

    def __init__(
        self,
        where: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        *,
        module: nn.Module | None = None,
        parameter: Callable[[str], Typed | None] | None = None,
        derived: frozenset[Path] = frozenset(),
        computed: frozenset[Path] = frozenset(),
    ) -> None:
        self.where = where  # the operator and the user's source line, for reasons
        self.args = args
        self.kwargs = dict(kwargs)
        self.result = result  # the value of the result in the base, on the meta device
        self.module = module
        self.derived = derived  # arguments that the graph computes, as opposed to literals
        self.computed = computed  # those of them that are arithmetic, not a length of some tensor
        self.counts: dict[Path, OpenAxis] = {}
        self.summed: list[tuple[str, int]] = []
        self.filled: dict[str, float] = {}
        self.layers: list[tuple[str | None, OpenAxis]] = []
        self.mixes = False
        self.in_order: list[OpenAxis] = []
        self.extra: dict[str, Any] = {}
        self._parameter = parameter

    @property
    def tensors(self) -> list[Typed]:
        """Every tensor among the arguments, in order."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda x: isinstance(x, Typed))
        return [x for x in leaves if isinstance(x, Typed)]

    def parameter(self, name: str) -> Typed | None:
        """Return the module's own Parameter or buffer of this name, None where it has none."""
        return self._parameter(name) if self._parameter else None

    def bind(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """Return the arguments by name, positions counted along `names`."""
        bound: dict[str, Any] = {**dict.fromkeys(names), **defaults}
        bound.update(zip(names, self.args, strict=False))
        bound.update(self.kwargs)
        return bound

    def path(self, name: str, *names: str) -> Path:
        """Return where the argument `name` of the signature `names` stands."""
        return (name,) if name in self.kwargs else (names.index(name),)

    def unify(self, a: OpenAxis, b: OpenAxis) -> None:
        """Say that `a` and `b` are the same channels."""
        unify(a, b, f"{self.where} mixes it with channels that cannot grow likewise")

    def pin(self, *axes: OpenAxis, why: str = "") -> None:
        """Say that `axes` cannot grow."""
        for axis in axes:
            pin(axis, f"{self.where}{' ' + why if why else ''}")

    def settle(self, *axes: OpenAxis) -> None:
        """Say that `axes` of a Parameter are no widths at all, such as the extent of a kernel."""
        for axis in axes:
            settle(axis)

    def follow(self, axis: OpenAxis, of: OpenAxis) -> None:
        """Say that `axis` of a Parameter takes in the channels `of` a tensor; it is no width where they cannot grow."""
        if elastic(of):
            self.unify(of, axis)
        else:
            pin(axis, f"{self.where} takes in channels that cannot grow")
            unify(of, axis, "")

    def count(self, path: Path, axis: OpenAxis) -> None:
        """Say that the argument at `path` is the length of `axis`, to be replaced where it grows.

        A length inside an argument that the graph computes whole (`x.shape`) follows by itself.
        """
        if not any(path[:n] in self.derived for n in range(1, len(path))):
            self.counts[path] = axis

    def contracted(self, tensor: Typed, axis: int) -> None:
        """Say that the result sums over this axis of a Parameter."""
        if tensor.name is not None:
            self.summed.append((tensor.name, axis))
        else:  # no block of a weight that is computed from others can be told apart
            self.mixed(tensor.axes[axis])

    def fill(self, tensor: Typed | None, value: float) -> None:
        """Say which value new elements of a buffer have."""
        if tensor is not None and tensor.name is not None:
            self.filled[tensor.name] = value

    def layer(self, weight: Typed, axis: int = 0) -> None:
        """Say that this is a convolution or linear layer with output channels on this axis of `weight`."""
        self.layers.append((weight.name, weight.axes[axis]))

    def mixed(self, *axes: OpenAxis) -> None:
        """Say that every element of the result depends on all elements of these axes, new ones included.

        Law 4 then holds for the operator restricted to base channels (a mean or a norm over channels, say).
        """
        if any(elastic(axis) for axis in axes):
            self.mixes = True

    def ordered(self, axis: OpenAxis) -> None:
        """Say that the order of the channels along `axis` matters: each is combined with its neighbours."""
        self.in_order.append(axis)

    def keyword(self, name: str, value: Any) -> None:
        """Say that subnets call the operator with this keyword argument, which the base leaves at its default."""
        self.extra[name] = value

    def plain(self) -> Any:
        """Return the axes of the result with nothing elastic in them."""
        return tree_map(
            lambda v: tuple(fixed(n) for n in v.shape) if isinstance(v, Tensor) else None,
            self.result,
        )

    def broadcast(self, *tensors: Typed) -> tuple[OpenAxis, ...]:
        """Unify tensors that are combined element by element; an axis of length 1 that is repeated couples nothing."""
        rank = max((len(t.axes) for t in tensors), default=0)
        axes: list[OpenAxis] = []
        for i in range(-rank, 0):
            here = [t.axes[i] for t in tensors if len(t.axes) >= -i]
            lengths = [t.value.shape[i] for t in tensors if len(t.axes) >= -i]
            widest = max(lengths)
            same = [a for a, n in zip(here, lengths, strict=True) if n == widest]
            for a, n in zip(here, lengths, strict=True):
                if n != widest:
                    self.pin(a, why="repeats it along the channels of another tensor")
            for a in same[1:]:
                self.unify(same[0], a)
            axes.append(resolve(same[0]))
        return tuple(axes)
