"""Graph and rules -> Plan: every tensor axis gets a channel type, as type inference does. Reads only.

What an operator has no rule for gets the integers that it has, which pins the widths that reach it. Pinning everything
always solves the system, because the base runs; so inference never fails, it only widens less and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .axes import (
    Axis,
    OpenAxis,
    Var,
    pin,
    resolve,
    variables,
)
from .errors import PlanError
from .flow import flow
from .plan import Plan, Width
from .rules import Call, Path
from .solve import Solver, Typing
from .trace import Traced


def infer(
    traces: Sequence[Traced],
    *,
    keep: Iterable[str] = (),
    pins: Mapping[str, str] = {},
    plan: Plan | None = None,
) -> tuple[Plan, list[Typing]]:
    """Infer the widths of a model from its graphs (of train and of eval mode, say), jointly.

    Args:
        traces: Graphs of one model; they share its Parameters.
        keep: Globs of module names whose widths stay.
        pins: Width name -> why it is pinned on top of what inference pins.
        plan: Where given, its widths are taken as they are, and it is an error if the graphs need others.

    Returns:
        The plan, every width with its base size as the only choice (or `plan` itself), and what was found out
        about each graph.

    Raises:
        PlanError: A glob of `keep` matches no module, or a name in `pins` is no width.
        GuardError: The graphs couple channels otherwise than `plan`.
    """
    solver = Solver(traces[0].root, plan)
    typings = [solver.graph(traced) for traced in traces]
    if plan is not None:
        solver.keep_numbers()
        solver.check()
        names = {v: name for name, v in solver.seeds.items()}
        return plan, [_named(typing, names) for typing in typings]
    solver.require_makers()
    solver.choose()
    solver.keep_numbers()
    solver.keep(keep, traces[0].root)
    names = solver.names()
    by_name = {name: v for v, name in names.items()}
    for name, reason in pins.items():
        if name not in by_name:
            raise PlanError(f"Cannot pin {name!r}: no width has this name.")
        pin(((by_name[name],),), reason)
    kinds = solver.kinds(traces)
    share, counted = solver.share()
    layers = solver.spans(names)
    opaque = {path: reason for traced in traces for path, reason in traced.opaque.items()}
    opaque |= solver.opaque
    awkward = {
        f.order
        for axes in solver.parameters.values()
        for axis in axes
        for segment in resolve(axis)
        for f in segment[1:]
        if isinstance(f, Var)
    }
    awkward |= {v.order for axis in solver.ordered for v in variables(resolve(axis))}
    made = Plan(
        widths=tuple(
            Width(name, v.size, (v.size,), kinds[v], v.order not in awkward, layers[v])
            for v, name in names.items()
            if v.reason is None
        ),
        pinned={name: v.reason for v, name in names.items() if v.reason is not None},
        axes={
            name: tuple(_name(axis, names) for axis in axes)
            for name, axes in solver.parameters.items()
            if any(v.reason is None for axis in axes for v in variables(resolve(axis)))
        },
        contracted={name: tuple(sorted(axes)) for name, axes in solver.summed.items()},
        fills=solver.fills,
        opaque=opaque,
        elastic_share=share,
        counted=counted,
        flow=flow(traces, [typing.axes for typing in typings], names),
    )
    return made, [_named(typing, names) for typing in typings]


def _name(axis: OpenAxis, names: Mapping[Var, str]) -> Axis:
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


def _named(typing: Typing, names: Mapping[Var, str]) -> Typing:
    cache: dict[Any, Axis] = {}

    def name(axis: OpenAxis) -> Axis:
        if axis not in cache:
            cache[axis] = _name(axis, names)
        return cache[axis]

    def tree(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: tree(v) for k, v in x.items()}
        if x is None or not isinstance(x, tuple | list):
            return None
        if x and _is_axis(x[0]):
            return tuple(name(axis) for axis in x)
        return tuple(tree(v) for v in x)

    def elastic(counts: Mapping[Path, Any]) -> dict[Path, Axis]:
        named = {path: name(axis) for path, axis in counts.items()}
        return {p: a for p, a in named.items() if any(isinstance(f, str) for s in a for f in s)}

    def widths(axis: OpenAxis) -> bool:
        return any(isinstance(f, str) for s in name(axis) for f in s)

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
