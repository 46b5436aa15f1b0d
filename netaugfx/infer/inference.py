"""Graph and rules -> Plan: every tensor axis gets a channel type, as type inference does. Reads only.

What an operator has no rule for gets the integers that it has, which pins the widths that reach it. Pinning everything
always solves the system, because the base runs; so inference never fails, it only widens less and says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..errors import PlanError
from ..plan import Plan, Width
from ..trace import Traced
from ..unify import Var, pin, resolve, variables
from .flow import flow
from .functions import pin_claims
from .naming import kinds_of, name_axis, name_typing, names_of, share_of, spans_of
from .settle import (
    choose_factors,
    pin_asserted,
    pin_beside,
    pin_kept,
    pin_noise,
    pin_numbers,
    pin_opaque,
    pin_unmade,
    refuse_pins,
)
from .solve import Solver, Typing


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
    pin_opaque(solver, traces)
    pin_noise(solver, traces, typings)
    pin_unmade(solver)
    if plan is not None:
        pin_numbers(solver)
        pin_asserted(solver)
        pin_claims(solver)
        refuse_pins(solver)
        names = {v: name for name, v in solver.parameters.seeds.items()}
        return plan, [name_typing(typing, names) for typing in typings]
    choose_factors(solver)
    pin_numbers(solver)
    pin_asserted(solver)
    pin_claims(solver)
    pin_kept(solver, keep, traces[0].root)
    names = names_of(solver)
    by_name = {name: v for v, name in names.items()}
    for name, reason in pins.items():
        if name not in by_name:
            raise PlanError(f"Cannot pin {name!r}: no width has this name.")
        pin(((by_name[name],),), reason)
    pin_beside(solver)
    kinds = kinds_of(solver)
    opaque = {path: reason for traced in traces for path, reason in traced.opaque.items()}
    opaque |= solver.opaque
    share, counted = share_of(solver, opaque)
    layers = spans_of(solver, names)
    awkward = {
        f.order
        for axes in solver.parameters.axes.values()
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
            name: tuple(name_axis(axis, names) for axis in axes)
            for name, axes in solver.parameters.axes.items()
            if any(v.reason is None for axis in axes for v in variables(resolve(axis)))
        },
        contracted={name: tuple(sorted(axes)) for name, axes in solver.summed.items()},
        fills=solver.fills,
        opaque=opaque,
        elastic_share=share,
        counted=counted,
        flow=flow(traces, [typing.axes for typing in typings], names),
    )
    return made, [name_typing(typing, names) for typing in typings]
