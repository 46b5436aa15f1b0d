"""Solved variables -> what a plan says of them: names, kinds, the layers that they span, and axes in these names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..axes import Axis
from ..rules import Call, Path
from ..unify import ONE_FACTOR, OpenAxis, Var, resolve, variables
from .solve import OUTPUT, Solver, Typing

FEW = 16  # segments; a pinned axis of more of them is listed as one


def names_of(solver: Solver) -> dict[Var, str]:
    """Name every variable after the first layer that has it, with an index where that layer has several."""
    names: dict[Var, str] = {}
    taken: set[str] = set()
    for parameter, axes in solver.parameters.axes.items():
        owner = parameter.rpartition(".")[0] or parameter
        for i, axis in enumerate(axes):
            axis = resolve(axis)
            distinct = list(dict.fromkeys(variables(axis)))
            taken_in = i in solver.summed.get(parameter, ())
            if len(distinct) > 1 or taken_in:  # the factors that stay are no width of this layer
                alone = {one[0] for s in axis if len(one := variables((s,))) == 1}
                distinct = [v for v in distinct if not _stays(v, alone)]
            if len(distinct) > FEW and all(v.reason for v in distinct):
                distinct = distinct[:1]  # an axis that slices cut to pieces and something pinned
            new = [v for v in distinct if v not in names]
            for v in new:
                whole = len(distinct) == 1 or len(axis) == len(new) == 1  # or times what has a name
                name = owner if whole else f"{owner}[{distinct.index(v)}]"
                if name in taken:
                    name = f"{parameter}:{i}" + (
                        f"[{distinct.index(v)}]" if len(distinct) > 1 else ""
                    )
                names[v] = name
                taken.add(name)
    touched = dict.fromkeys(axis for _, axis in solver.touched)
    touching = {v for axis in touched for v in variables(resolve(axis))}
    return {v: n for v, n in names.items() if v in touching or v.reason is None}


def kinds_of(solver: Solver) -> dict[Var, str]:
    """Tell for every variable whether it lies wholly within one block."""
    places: dict[Var, list[str] | None] = {}
    cache: dict[OpenAxis, list[Var]] = {}
    for path, axis in solver.touched:
        if axis not in cache:
            cache[axis] = variables(resolve(axis))
        for v in cache[axis]:
            parts = path.split(".") if path else []
            old = places.get(v)
            places[v] = parts if old is None else _common(old, parts)
    kinds: dict[Var, str] = {}
    for axes in solver.parameters.axes.values():
        for axis in axes:
            for v in variables(resolve(axis)):
                parts = list(places.get(v) or [])
                while parts and _container(solver.parameters.modules[".".join(parts)]):
                    parts.pop()
                kinds[v] = "inner" if parts else "stream"
    return kinds


def share_of(solver: Solver, opaque: Iterable[str]) -> tuple[float, int]:
    """Return the elastic output channels of convolution and linear layers over all, and how many there are."""
    elastic = 0
    within = {m for path in opaque for m in solver.parameters.root.get_submodule(path).modules()}
    total = sum(
        out_channels(m)
        for m in within
        if solver.parameters.first.get(id(getattr(m, "weight", None))) not in solver.weights
    )
    for axis in solver.weights.values():
        for segment in resolve(axis):
            n = 1
            for f in segment:
                n *= f if isinstance(f, int) else f.size
            inside = [f for f in segment if isinstance(f, Var)]
            if any(v.reason == OUTPUT for v in inside):
                continue
            total += n
            elastic += n if any(v.reason is None for v in inside) else 0
    return (elastic / total if total else 1.0), total


def out_channels(module: nn.Module) -> int:
    """Return the output channels of a convolution or linear layer, 0 of any other module."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.modules.conv._ConvNd) else 0


def spans_of(solver: Solver, names: Mapping[Var, str]) -> dict[Var, tuple[str, ...]]:
    """Return the layers one of whose axes each variable spans."""
    layers: dict[Var, dict[str, None]] = {v: {} for v in names}
    for parameter, axes in solver.parameters.axes.items():
        owner = parameter.rpartition(".")[0] or parameter
        for axis in axes:
            for v in variables(resolve(axis)):
                if v in layers:
                    layers[v][owner] = None
    return {v: tuple(found) for v, found in layers.items()}


def name_axis(axis: OpenAxis, names: Mapping[Var, str]) -> Axis:
    """Return `axis` with names for its free variables and numbers for the pinned ones."""
    found: list[tuple[int | str, ...]] = []
    for segment in resolve(axis):
        factors: list[int | str] = []
        for f in segment:
            g: int | str = (
                int(f) if isinstance(f, int) else names[f] if f.reason is None else f.size
            )
            if isinstance(g, int) and factors and isinstance(factors[-1], int):
                factors[-1] = int(factors[-1]) * g
            elif g != 1 or not factors:
                factors.append(g)
        if len(factors) > 1 and factors[0] == 1:
            factors.pop(0)
        if found and len(factors) == 1 == len(found[-1]):
            last, this = found[-1][0], factors[0]
            if isinstance(last, int) and isinstance(this, int):
                found[-1] = (last + this,)
                continue
        found.append(tuple(factors))
    return tuple(found)


def name_typing(typing: Typing, names: Mapping[Var, str]) -> Typing:
    """Return what was found out about a graph, with names for its free variables and numbers for the pinned ones."""
    cache: dict[Any, Axis] = {}

    def cached(axis: OpenAxis) -> Axis:
        if axis not in cache:
            cache[axis] = name_axis(axis, names)
        return cache[axis]

    def tree(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: tree(v) for k, v in x.items()}
        if x is None or not isinstance(x, tuple | list):
            return None
        if x and _is_axis(x[0]):
            return tuple(cached(axis) for axis in x)
        return tuple(tree(v) for v in x)

    def elastic(counts: Mapping[Path, Any]) -> dict[Path, Axis]:
        named = {path: cached(axis) for path, axis in counts.items()}
        return {p: a for p, a in named.items() if any(isinstance(f, str) for s in a for f in s)}

    def widths(axis: OpenAxis) -> bool:
        return any(isinstance(f, str) for s in cached(axis) for f in s)

    def numbers(found: Mapping[Path, Any]) -> dict[Path, Any]:
        return {
            path: value
            for path, (value, axes, unless) in found.items()
            if any(widths(axis) for axis in axes) and not widths(unless)
        }

    def call(c: Call) -> Call:
        args = tuple(call(a) if isinstance(a, Call) else a for a in c.args)
        return Call(c.target, args, dict(c.kwargs), elastic(c.counts))

    return Typing(
        axes={node: tree(axes) for node, axes in typing.axes.items()},
        counts={n: e for n, counts in typing.counts.items() if (e := elastic(counts))},
        calls={node: call(c) for node, c in typing.calls.items()},
        mixed={n for n, axes in typing.mixing.items() if any(widths(axis) for axis in axes)},
        extra=dict(typing.extra),
        scaled=dict(typing.scaled),
        numbers={node: kept for node, n in typing.numbers.items() if (kept := numbers(n))},
    )


def _is_axis(x: Any) -> bool:
    """Return whether `x` is an axis, as opposed to a tuple of axes: a tuple of tuples of factors."""
    return (
        isinstance(x, tuple)
        and bool(x)
        and all(
            isinstance(s, tuple) and bool(s) and all(isinstance(f, int | Var) for f in s) for s in x
        )
    )


def _common(a: list[str], b: list[str]) -> list[str]:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def _container(module: nn.Module) -> bool:
    forward = type(module).forward
    return forward is nn.Sequential.forward or forward is nn.Module.forward


def _stays(v: Var, alone: set[Var]) -> bool:
    """Return whether `v` is a factor of a product whose width is another factor's; `alone` are those of no product."""
    return v.reason == ONE_FACTOR or (v.reason is not None and v.size == 1 and v not in alone)
