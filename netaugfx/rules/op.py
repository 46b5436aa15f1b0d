"""`Op`, what a rule sees of the operator that it describes: arguments with channel types, and what can be said of them.

A rule reads the axes of the tensors that go in, says which must be the same (`op.unify`), and returns the axes of what
comes out. It may also say which number among the arguments was a channel count (`op.count`), which axes are summed
over (`op.contracted`), and what may not grow (`op.pin`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..unify import OpenAxis, elastic, fixed, free, pin, resolve, same_length, settle, unify, why

Path = tuple[
    str | int, ...
]  # where an argument stands: (position,), (keyword,), (position, index) ...

NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input"}  # what torch takes as well


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


class NoRule(Exception):  # noqa: N818 - no error: the operator is pinned
    """Raised by a rule for a form of its operator that it does not describe: what reaches it is pinned.

    Its text, where it has one, says why behind the operator's name: `NoRule("writes to its out= argument")`.
    """


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
        lengths: Mapping[Path, OpenAxis] = {},
        used: frozenset[int] = frozenset(),
    ) -> None:
        self.where = where  # the operator and the user's source line, for reasons
        self.args = args
        self.kwargs = dict(kwargs)
        self.result = result  # the value of the result in the base, on the meta device
        self.module = module
        self.derived = derived  # arguments that the graph computes, as opposed to literals
        self.computed = computed  # those of them that are arithmetic, not a length of some tensor
        self.lengths = lengths  # arguments that are the length of one axis of some tensor
        self.used = used  # which of several results something reads
        self.counts: dict[Path, OpenAxis] = {}
        self.numbers: dict[Path, OpenAxis] = {}
        self.places: dict[Path, tuple[OpenAxis, OpenAxis]] = {}
        self.summed: list[tuple[str, int, OpenAxis | None]] = []
        self.filled: dict[str, float] = {}
        self.layers: list[tuple[str | None, OpenAxis]] = []
        self.mixing: list[OpenAxis] = []
        self.in_order: list[OpenAxis] = []
        self.taken: list[OpenAxis] = []
        self.beside: list[tuple[OpenAxis, OpenAxis]] = []
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

    @property
    def name(self) -> str:
        """The name of the function or method."""
        return self.where.partition("(")[0]

    def bind(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """Return the arguments by name, positions counted along `names`; numpy's names are understood."""
        bound: dict[str, Any] = {**dict.fromkeys(names), **defaults}
        bound.update(zip(names, self.args, strict=False))
        for key, value in self.kwargs.items():
            other = NUMPY.get(key, key)
            bound[key if key in names or other not in names else other] = value
        return bound

    def sizes(self, keyword: str) -> tuple[list[Any], list[Path]]:
        """Return lengths given one by one, as a sequence or by `keyword` behind a tensor, and where each stands."""
        given = list(self.args[1:])
        if keyword in self.kwargs:
            given = list(self.kwargs[keyword])
            return given, [(keyword, i) for i in range(len(given))]
        if len(given) == 1 and isinstance(given[0], Sequence):
            given = list(given[0])
            return given, [(1, i) for i in range(len(given))]
        return given, [(1 + i,) for i in range(len(given))]

    def path(self, name: str, *names: str) -> Path:
        """Return where the argument `name` of the signature `names` stands."""
        return (name,) if name in self.kwargs else (names.index(name),)

    def unify(
        self, a: OpenAxis, b: OpenAxis, why: str = "combines it with channels in other groups"
    ) -> None:
        """Say that `a` and `b` are the same channels; `why` is said of those that cannot be, though both can grow."""
        a, b = resolve(a), resolve(b)
        if a == b:
            return
        fault = _fault(a, b)
        text = f"{self.where} {why if fault is None else f'combines it with {fault}'}"
        _, again, cause = text.partition(f", since {self.where} ")
        unify(a, b, f"{self.where} {cause}" if again else text)

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
            self.taken.append(axis)
        else:
            pin(axis, f"{self.where} takes in {_stiff(of)}")
            unify(of, axis, "")

    def count(self, path: Path, axis: OpenAxis) -> None:
        """Say that the argument at `path` is the length of `axis`, to be replaced where it grows.

        A length inside an argument that the graph computes whole (`x.shape`) follows by itself: where the axis that it
        is read of could grow by another number, they are the same.
        """
        if not self._within_computed(path):
            self.counts[path] = axis
        elif path in self.lengths and not same_length(self.lengths[path], axis):
            self.unify(self.lengths[path], axis)

    def place(self, path: Path, before: OpenAxis, of: OpenAxis) -> None:
        """Say that the argument at `path` is the place in the axis `of` behind `before`, maybe counted from its end."""
        self.count(path, before)
        self.places[path] = (before, of)

    def _within_computed(self, path: Path) -> bool:
        return any(path[:n] in self.derived for n in range(1, len(path)))

    def number(self, path: Path, unless: OpenAxis = ()) -> None:
        """Say that the argument at `path` is a number that elements are computed with, or a length that stays.

        Where it was computed from channel counts (`q / math.sqrt(q.shape[-1])`), subnets keep the base's number;
        not so where it is the length of an axis that grows, `unless`.
        """
        if path in self.derived and not self._within_computed(path):
            self.numbers[path] = unless

    def made(self, paths: Sequence[Path]) -> list[OpenAxis]:
        """Return axes that the operator makes with the lengths at `paths`: they follow the axes that they are read of.

        Any other length stays, also one that is computed from channel counts.
        """
        axes = []
        for path, n in zip(paths, self.result.shape, strict=True):
            axes.append(self.lengths.get(path, fixed(n)))
            if path not in self.lengths:
                self.number(path)
        return axes

    def growing(self, path: Path, n: int, beside: OpenAxis | None = None) -> OpenAxis:
        """Return an axis of `n` new elements, as the argument at `path` says: it grows with what it meets.

        It follows the axis that the length is read of, where it is; where the length cannot be replaced, it stays.
        Where it is laid `beside` another axis, it grows only if something there does.
        """
        if path in self.lengths:
            return self.lengths[path]
        if self._within_computed(path):
            return fixed(n)
        axis = free(n)
        self.count(path, axis)
        self.number(path, unless=axis)
        if beside is not None:
            self.beside.append((axis, beside))
        return axis

    def contracted(self, tensor: Typed, axis: int, of: OpenAxis | None = None) -> None:
        """Say that the result sums over this axis of a Parameter; over the factor `of` it alone, where given."""
        if tensor.name is not None:
            self.summed.append((tensor.name, axis, of))
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
        self.mixing += axes

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


def _fault(a: OpenAxis, b: OpenAxis) -> str | None:
    """Return what keeps one of two axes, which ought to be the same, from growing; None where nothing is known to."""
    stiff = b if elastic(a) else a
    if elastic(stiff) and why(a) is None and why(b) is None:
        return None
    return _stiff(a if elastic(stiff) and why(a) else stiff)


def _stiff(axis: OpenAxis) -> str:
    """Return why `axis` cannot grow, down to the first cause."""
    reason = why(axis)
    if reason is None:
        return "channels that no layer makes: an input, a constant or a literal length"
    return f"channels that cannot grow, since {reason.rpartition(', since ')[2]}"
