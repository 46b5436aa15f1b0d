"""A graph that holds at every config, and what it is bound to at one: tensors, sizes, modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from itertools import count as count_up
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..axes import Axis, size
from ..errors import GuardError
from ..infer import Typing
from ..plan import Config
from ..rules import (
    RECURRENT,
    with_tensors,
)
from ..storage import Group, Source, Sources, eager
from ..trace import Guard, Traced

_numbers = count_up()
# A group's gradients wait for its last one, in elements of the largest config: more wait longer, fewer cost more calls.
TOGETHER = 2**20


@dataclass(frozen=True)
class Site:
    """A Parameter or buffer that the graph reads: its name, and whether the graph may write to what it gets."""

    name: str
    private: bool = False


@dataclass
class Program:
    """A traced graph, rewritten.

    Args (fields):
        traced, typing: The graph of the base and its channel types.
        graph: The rewritten graph; `run(bound, *inputs)` is its code.
        sites: What `tensor(bound, i)` reads; `sizes`: the axes whose lengths `count(bound, i)` returns;
            `modules`: the paths that `submodule(bound, i)` calls; `reads`: what `checked(bound, value, i)` looks for.
        groups: Sites whose tensors are put together at once: neighbours, of `TOGETHER` elements at most.
    """

    traced: Traced
    typing: Typing
    graph: fx.Graph
    sites: list[Site] = field(default_factory=list)
    sizes: list[Axis] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    reads: list[Guard] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    run: Callable[..., Any] = lambda *_: None

    def own_run(self) -> Callable[..., Any]:
        """Return `run` as a function of its own: torch.compile keeps what it compiles, and its limits, per code."""
        known: Any = self.run
        name = f"subnet_{next(_numbers)}"
        f = known.__func__
        own = FunctionType(f.__code__.replace(co_name=name, co_qualname=name), f.__globals__, name)
        return MethodType(own, known.__self__)


class Bound:
    """A config bound to a program, a base and its blocks: what a rewritten graph's first placeholder is.

    Layouts and counts are worked out once; tensors are read anew at every pass.
    """

    def __init__(
        self,
        program: Program,
        sources: Sources,
        config: Config,
        statistics: Mapping[str, Tensor] | None = None,
    ) -> None:
        layout = sources.at(config)
        self.counts = [size(axis, config) for axis in program.sizes]
        self.modules = [sources.module(path) for path in program.modules]
        self.constants, self.reads = program.traced.constants, program.reads
        self.device = next((p.device for p in sources.base.parameters()), torch.device("cpu"))
        own = statistics or {}
        self.groups: dict[int, Group] = {}
        for sites in program.groups:
            group = layout.group((i, program.sites[i].name) for i in sites)
            self.groups.update(dict.fromkeys(group.items, group))
        self.sources: dict[int, Source] = {}
        for i, site in enumerate(program.sites):
            if site.name in own:
                self.groups.pop(i, None)
            if i not in self.groups:
                source = layout.source(site.name)
                if site.name in own:
                    source = partial(own.get, site.name)
                self.sources[i] = partial(_copy, source) if site.private else source
        self.made: dict[int, Tensor] | None = None
        self.run = program.own_run()

    def begin(self) -> Bound:
        """Return this for one pass, in which the tensors of a group are put together when the first is read."""
        one = copy(self)
        one.made = {}
        return one

    def tensor(self, i: int) -> Tensor | None:
        """Return the Parameter or buffer of site `i` at this config."""
        if i in self.sources:
            return self.sources[i]()
        if self.made is None or not eager():
            return self.groups[i].alone(i)
        if i not in self.made:
            self.made.update(self.groups[i].together())
        return self.made.get(i)


def _copy(source: Source) -> Tensor | None:
    value = source()
    return None if value is None else value.clone()


def tensor(bound: Bound, i: int) -> Tensor | None:
    """A Parameter or buffer at the config."""
    return bound.tensor(i)


def count(bound: Bound, i: int, original: Any) -> int:
    """A channel count at the config, where `original` stood."""
    return bound.counts[i]


def scaled(bound: Bound, i: int, base: int, original: int) -> int:
    """A length of which a channel count is one factor, at the config: `base` is that length where it was traced."""
    return original * bound.counts[i] // base


def constant(bound: Bound, name: str) -> Tensor:
    """A tensor that the forward made while it was traced."""
    return bound.constants[name].to(bound.device)


def checked(bound: Bound, value: Any, i: int) -> None:
    """Refuse data on which Python would read something else than it read while the graph was traced.

    Raises:
        GuardError: It would.
    """
    guard = bound.reads[i]
    if not guard.holds(value):
        known = getattr(guard.value, "__name__", guard.value)
        made = f"The subnets' graph was made where Python reads {known} at {guard.source}; "
        if guard.by_data:
            raise GuardError(
                f"{made}on these data it would read something else. Move that line into the submodule whose result it "
                "reads, which is kept as it is and run anew on all data; what is inside it stays at its base size."
            )
        raise GuardError(
            f"{made}under autocast it would read something else. Write it without asking for the dtype, or run what it "
            "asks about outside of autocast."
        )


def nothing(bound: Bound) -> None:
    """The running statistics of a batch norm in training, which a subnet neither reads nor writes."""


def submodule(bound: Bound, i: int, *args: Any, **kwargs: Any) -> Any:
    """A module without Parameters of its own; its hooks belong to the base and are not run."""
    return bound.modules[i].forward(*args, **kwargs)


def opaque(bound: Bound, i: int, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """A module called as it is, but for the given tensors, on copies of its buffers."""
    module = bound.modules[i]
    if type(module) in RECURRENT:
        return with_tensors(module, tensors).forward(*args, **kwargs)
    copies = {name: b.clone() for name, b in module.named_buffers()}
    return torch.func.functional_call(module, {**copies, **tensors}, args, kwargs)


def called_as_it_is(module: nn.Module) -> bool:
    """Return whether a module that a subnet calls is called with its hooks: it has a state that is its own."""
    state = any(True for t in (module.parameters(), module.buffers()) for _ in t)
    return state and type(module) not in RECURRENT
