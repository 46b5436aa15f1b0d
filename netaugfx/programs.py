"""The rewritten graphs of one base, found again where nothing has changed that their traces have read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, fx, nn

from .rewrite import Program
from .trace import Attribute, Inputs

MOST = 8  # programs that differ by attributes alone, and are kept
STATES = 64  # of the attributes, in which a program is known to hold
_NOTHING = object()
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
_CONTAINERS = (tuple, list, set, frozenset, dict)


class Watch:
    """Attributes of a base's modules as they are when this is made.

    Numbers, texts and containers of such are compared by value, tensors by shape and dtype (a graph reads their values
    at every pass), everything else by identity.
    """

    def __init__(self, base: nn.Module, attributes: Iterable[Attribute]) -> None:
        modules = dict(base.named_modules())
        self.values: dict[Attribute, Any] = {}
        for path, name in attributes:
            value = _of(modules[path], name)
            if not _elsewhere(modules[path], name, value):
                self.values[path, name] = _kept(value)
        self.bind(base)

    def bind(self, base: nn.Module) -> None:
        """Look at the modules that are in `base` now."""
        modules = dict(base.named_modules())
        self._plain: list[tuple[Callable[[Any], Any], Mapping[str, Any], Any]] = []
        self._rest: list[tuple[nn.Module, str, Any]] = []
        rooms: dict[str, list[str]] = {}
        for (path, name), value in self.values.items():
            owner = modules.get(path, base)
            if _is_plain(value) and name in vars(owner):
                rooms.setdefault(path, []).append(name)
            else:
                self._rest.append((owner, name, value))
        for path, names in rooms.items():
            values = tuple(self.values[path, name] for name in names)
            get = itemgetter(
                *names, names[0]
            )  # always a tuple, whose comparison looks for identity first
            self._plain.append((get, vars(modules.get(path, base)), (*values, values[0])))

    def holds(self) -> bool:
        """Whether all are as they were."""
        try:
            for get, room, values in self._plain:
                if get(room) != values:
                    return False
            return all(_same(_of(owner, name), value) for owner, name, value in self._rest)
        except (KeyError, RuntimeError, ValueError):  # one is gone, or is an array now
            return False

    def changed(self, base: nn.Module) -> frozenset[Attribute]:
        """Return those that are not as they were."""
        modules = dict(base.named_modules())
        return frozenset(
            key
            for key, value in self.values.items()
            if key[0] not in modules or not _same(_of(modules[key[0]], key[1]), value)
        )

    def without(self, attributes: Iterable[Attribute], base: nn.Module) -> None:
        """Look at some of them no longer."""
        for key in attributes:
            self.values.pop(key, None)
        self.bind(base)


class Kept:
    """A program, and the states of Python attributes in which it is known to hold."""

    def __init__(self, program: Program, watch: Watch) -> None:
        self.program, self.watches = program, [watch]

    def holds(self) -> bool:
        """Whether one of these states is the present one."""
        return any(watch.holds() for watch in self.watches)


class Programs:
    """What is kept of one base: programs by its modules and their flags, and what was found for inputs before.

    Args:
        base: The base, whose Python attributes may change at any time.
        renewed: Called when another module stands in the place of one.
        dropped: Called with a program that is kept no longer.
    """

    def __init__(
        self,
        base: nn.Module,
        renewed: Callable[[], None],
        dropped: Callable[[Program], None],
    ) -> None:
        self.base, self.renewed, self.dropped = base, renewed, dropped
        self.modules: list[nn.Module] = []
        self.types: list[type] = []
        self.structure = -1
        self.structures: dict[Hashable, int] = {}
        self.kept: dict[Hashable, list[Kept]] = {}
        self.found: dict[Hashable, list[Kept]] = {}
        self.evidence: list[frozenset[Attribute]] = []  # changes that gave another graph
        self.warned: set[str] = set()
        self.again = 0

    def find(self, model: nn.Module, inputs: Inputs) -> Program | None:
        """Return the program for these inputs and the flags of `model`, the base or a copy of it as it is now."""
        here = self._place(model)
        known = self.found.setdefault((here, inputs.key), [])
        for kept in known:
            if kept.holds():
                return kept.program
        for kept in self._fitting(here, inputs):
            if kept.holds():
                known.append(kept)
                return kept.program
        return None

    def valid(self, program: Program) -> bool:
        """Whether a program holds still, at the flags that it was traced at."""
        kept = self.kept.get(self._place(program.traced.root), ())
        return any(k.program is program and k.holds() for k in kept)

    def add(self, model: nn.Module, inputs: Inputs, program: Program) -> Program:
        """Keep a program that was traced just now; or return one that is kept and has the same graph."""
        here = self._place(model)
        traced = program.traced
        watch = Watch(self.base, [*traced.read, *self._lowered(program)])
        rivals = self._fitting(here, inputs)
        changes = [rival.watches[-1].changed(self.base) for rival in rivals]
        for rival, changed in zip(rivals, changes, strict=True):
            if not _same_graph(rival.program, program):
                continue
            blamed = any(some <= changed for some in self.evidence)
            if changed and changed <= traced.written and not blamed:
                steering = [key for key in changed if isinstance(watch.values.get(key), _PLAIN)]
                for known in (*rival.watches, watch):
                    known.without(changed, self.base)
                if steering:  # and no list that is logged to, say
                    self._tell(
                        f"{self._named(steering)} changes in the forward itself, and the graph stayed the same: wider "
                        "subnets run that graph from now on, whatever the value."
                    )
            rival.watches = [*rival.watches, watch][-STATES:]
            self._count(changed)
            self.found.setdefault((here, inputs.key), []).append(rival)
            return rival.program
        self.evidence += [
            changed for changed in changes if changed and changed not in self.evidence
        ]
        if changes:
            self._count(changes[-1])
        for rival in rivals[: max(0, len(rivals) + 1 - MOST)]:
            self._drop(rival)
        kept = Kept(program, watch)
        self.kept.setdefault(here, []).append(kept)
        self.found.setdefault((here, inputs.key), []).append(kept)
        return program

    def _fitting(self, here: Hashable, inputs: Inputs) -> list[Kept]:
        """Return what was traced for such inputs, whatever the attributes."""
        args, kwargs = inputs.rebuild(inputs.tensors)
        return [k for k in self.kept.get(here, ()) if k.program.traced.matches(args, kwargs)]

    def _place(self, model: nn.Module) -> Hashable:
        modules = modules_of(self.base)
        types = list(map(type, modules))
        if modules != self.modules or types != self.types:
            if self.modules:
                self.renewed()
                for kept in [k for some in self.kept.values() for k in some]:
                    for watch in kept.watches:
                        watch.bind(self.base)
            self.modules, self.types = modules, types
            shape = tuple((path, type(m)) for path, m in self.base.named_modules())
            self.structure = self.structures.setdefault(shape, len(self.structures))
        if model is not self.base:
            modules = modules_of(model)
        return self.structure, tuple([m.training for m in modules])

    def _lowered(self, program: Program) -> list[Attribute]:
        """Return the attributes of layers that the graph has turned into operators, with their numbers in it."""
        paths = dict.fromkeys(str(node.target) for node in program.typing.calls)
        modules = dict(self.base.named_modules())
        return [
            (path, name)
            for path in paths
            if path in modules
            for name, value in vars(modules[path]).items()
            if name != "training" and not name.startswith("_") and _is_plain(value)
        ]

    def _drop(self, kept: Kept) -> None:
        for some in (*self.kept.values(), *self.found.values()):
            if kept in some:
                some.remove(kept)
        self.dropped(kept.program)

    def _count(self, changed: frozenset[Attribute]) -> None:
        """Say it once if attributes have had the base traced anew again and again."""
        self.again += bool(changed)
        if self.again == MOST:
            self._tell(
                f"{self._named(changed)} has changed, and wider subnets were traced anew for such a change {MOST} "
                "times; each takes as long as a plan. What changes often is better kept in a buffer."
            )

    def _named(self, attributes: Iterable[Attribute]) -> str:
        names = sorted(f"'{f'{path}.{name}' if path else name}'" for path, name in attributes)
        return f"{type(self.base).__name__}: {', '.join(names)}"

    def _tell(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(text, stacklevel=2)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return all modules, each once, in an order of their own; faster than `model.modules()`."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        m = waiting.pop()
        if m is not None and m not in found:
            found[m] = None
            children = m._modules
            if children:
                waiting.extend(children.values())
    return list(found)


def _of(owner: nn.Module, name: str) -> Any:
    """Return what a module or its class has under a name, without running anything."""
    for room in (vars(owner), owner._buffers, owner._parameters, owner._modules):
        if name in room:
            return room[name]
    return getattr(type(owner), name, _NOTHING)


def _elsewhere(owner: nn.Module, name: str, value: Any) -> bool:
    """Whether a name stands for what is looked at otherwise, or stays: modules, Parameters, statistics, methods."""
    if isinstance(value, nn.Module | nn.Parameter) or name in owner._parameters:
        return True
    if isinstance(owner, nn.modules.batchnorm._NormBase) and name in owner._buffers:
        return True
    return name not in vars(owner) and hasattr(type(getattr(type(owner), name, None)), "__get__")


def _kept(value: Any) -> Any:
    """Return what a value is compared with later."""
    if isinstance(value, Tensor):
        return _Like(value)
    return copy.deepcopy(value) if _is_plain(value) and not isinstance(value, tuple) else value


class _Like:
    """A tensor's shape and dtype."""

    def __init__(self, t: Tensor) -> None:
        self.shape, self.dtype = t.shape, t.dtype


def _same(value: Any, kept: Any) -> bool:
    if value is kept:
        return True
    if isinstance(kept, _Like):
        return isinstance(value, Tensor) and value.shape == kept.shape and value.dtype == kept.dtype
    return _is_plain(kept) and _is_plain(value) and bool(value == kept)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None or a container of such."""
    if isinstance(value, _PLAIN):
        return True
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return isinstance(value, _CONTAINERS) and all(map(_is_plain, value))


def _same_graph(first: Program, second: Program) -> bool:
    """Whether two programs compute the same."""
    a, b = first.traced.constants, second.traced.constants
    return (
        (first.sites, first.sizes, first.modules) == (second.sites, second.sizes, second.modules)
        and _text(first.graph) == _text(second.graph)
        and first.traced.device == second.traced.device
        and a.keys() == b.keys()
        and all(same_values(a[name], b[name]) for name in a)
    )


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal; those without values are so only if they are one."""
    if a is b:
        return True
    if a.device != b.device or a.device.type == "meta" or a.dtype != b.dtype:
        return False
    return a.shape == b.shape and bool(torch.equal(a, b))


def _text(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """Return the nodes as text, one naming another by its number, without the numbers that nobody reads."""
    live: dict[fx.Node, None] = {}
    for n in reversed(graph.nodes):
        python = getattr(n.target, "__module__", "") in ("_operator", "builtins", "math")
        value = _value(n)
        if not python or value is None or isinstance(value, Tensor) or live.keys() & n.users.keys():
            live[n] = None
    number = {n: i for i, n in enumerate(reversed(live))}

    def named(n: fx.Node) -> Any:
        return ("node", number[n])

    return [
        (n.op, str(n.target), str(fx.node.map_arg((n.args, dict(n.kwargs)), named)))
        for n in reversed(live)
    ]


def _value(node: fx.Node) -> Any:
    origin = node.meta.get("origin")
    return None if origin is None else origin.meta.get("val")
