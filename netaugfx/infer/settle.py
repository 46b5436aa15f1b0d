"""After the graphs are read: what the widths have to respect beyond the operators' rules, and which factors grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import fx, nn

from ..errors import GuardError, PlanError
from ..rules import Path, draws_noise
from ..trace import Traced
from ..unify import OpenAxis, Var, choose, elastic, length_at, pin, resolve, variables, why
from .lengths import argument, at_other_sizes, axes_read, number_at
from .solve import Solver, Typing, where


def pin_opaque(solver: Solver, traces: Iterable[Traced]) -> None:
    """Pin what lies in a module that another graph could trace: where it is opaque, it runs as it is."""
    for traced in traces:
        for path in traced.opaque:
            mode = "train" if traced.root.get_submodule(path).training else "eval"
            for name in solver.parameters.inside(path):
                if name in solver.parameters.axes or solver.parameters.plan is not None:
                    typed = solver.parameters.typed(name)
                    for axis in typed.axes if typed else ():
                        pin(axis, f"module '{path}' could not be traced in {mode} mode")


def pin_noise(solver: Solver, traces: Iterable[Traced], typings: Iterable[Typing]) -> None:
    """Pin the channels that get random numbers in eval mode: no subnet can draw for them what the base draws."""
    for traced, typing in zip(traces, typings, strict=True):
        if traced.root.training:
            continue
        for node in traced.graph.nodes:
            axes = typing.axes.get(node)
            if isinstance(axes, tuple) and draws_noise(node, traced.root):
                for axis in axes:
                    pin(axis, f"{where(node)} draws random numbers for it in eval mode")


def pin_unmade(solver: Solver) -> None:
    """Pin what only buffers, sums and constants have: a width needs a Parameter that makes its channels."""
    made = set(solver.parameters.seeds.values()) | {
        v
        for name, axes in solver.parameters.axes.items()
        if isinstance(solver.parameters.tensor(name), nn.Parameter)
        for i, axis in enumerate(axes)
        if i not in solver.summed.get(name, ())
        for v in variables(resolve(axis))
    }
    here = [axis for axes in solver.parameters.axes.values() for axis in axes]
    for axis in (*here, *dict.fromkeys(axis for _, axis in solver.touched)):
        for v in variables(resolve(axis)):
            if v not in made and v.reason is None:
                v.reason = "no Parameter makes these channels"


def choose_factors(solver: Solver) -> None:
    """Let one factor of every product grow, or those that are the channels of layers by themselves."""
    here = [axis for axes in solver.parameters.axes.values() for axis in axes]
    choose([*here, *dict.fromkeys(axis for _, axis in solver.touched)], _alone(solver))
    for name, axis, of in solver.summed_factors:
        if elastic(of):
            solver.summed.setdefault(name, set()).add(axis)


def _alone(solver: Solver) -> set[Var]:
    """Return the variables that alone are channels which a layer makes or takes in, or a part of them."""
    made = [
        axis
        for name, axes in solver.parameters.axes.items()
        for i, axis in enumerate(axes)
        if i not in solver.summed.get(name, ())
    ]
    return {
        factors[0]
        for axis in (*made, *solver.taken)
        for segment in resolve(axis)
        if len(factors := variables((segment,))) == 1
    }


def pin_numbers(solver: Solver) -> None:
    """Pin what is computed with as a number together with lengths that are not channel counts.

    A number of channel counts alone stays the base's; of an image's size, it must follow. A length such as
    `B * C * H` follows by itself where it is computed from the widths of its own axis, and is no number then;
    with a literal C it is scaled.
    """
    for node, typing, path, typed in solver.computed:
        source = argument(node, path)
        read = axes_read(source, typed)
        counts: dict[Path, Any] = typing.counts.get(node, {})
        axis: OpenAxis = resolve(counts[path]) if path in counts else ()
        own = {v for v in variables(axis) if v.reason is None}
        if not own:
            continue
        plain = [one for one in map(resolve, read) if not variables(one)]
        others = {v for one in read for v in variables(resolve(one)) if v.reason is None}
        if plain and not others and len(axis) == 1:  # also B * C where B is 1 as yet
            typing.scaled.setdefault(node, set()).add(path)
        elif all(len(segment) == 1 for segment in axis):
            if plain and _follows(source, typed, axis):  # B * C, traced where B is 1
                del counts[path]
        elif others == own:
            del counts[path]
        elif plain:
            for one in (axis, *read):
                pin(
                    one,
                    f"{where(node)} computes its length from that of other channels and an image's size",
                )
    for here, axes, unless in solver.numbers:
        if (
            not elastic(unless)
            and any(elastic(a) for a in axes)
            and any(not variables(resolve(a)) for a in axes)
        ):
            for axis in axes:
                pin(axis, f"{here} computes with its length and that of another axis at once")


def _follows(source: fx.Node, typed: Mapping[fx.Node, Any], axis: OpenAxis) -> bool:
    """Return whether a number that the forward computes is the length of `axis` at other sizes, too."""
    growing = [v for v in variables(axis) if v.reason is None]
    return at_other_sizes(
        growing, lambda sizes: number_at(source, typed, sizes) == length_at(axis, sizes)
    )


def pin_asserted(solver: Solver) -> None:
    """Pin the widths that would break what the forward asserts of its lengths (`torch._assert(C % 32 == 0)`)."""
    for node, typed in solver.asserted:
        condition: Any = node.args[0] if node.args else node.kwargs["condition"]
        read = [] if not isinstance(condition, fx.Node) else axes_read(condition, typed)
        read_by = (v for axis in read for v in variables(resolve(axis)))
        growing = list(dict.fromkeys(v for v in read_by if v.reason is None))
        for step in (1, 2, 3):  # no two widths grow by the same
            sizes = {v: v.size + step + 3 * i for i, v in enumerate(growing)}
            if growing and not number_at(condition, typed, sizes):
                for axis in read:
                    pin(axis, f"{where(node)} does not hold at other sizes")
                break


def pin_beside(solver: Solver) -> None:
    """Pin what channels are padded with where these turned out not to grow: a pass of the plan would find no width."""
    while True:
        late = [
            (here, new, axis)
            for here, new, axis in solver.beside
            if elastic(new) and not elastic(axis)
        ]
        if not late:
            return
        for here, new, axis in late:
            pin(
                new,
                f"{here} pads channels that cannot grow, since {why(axis) or 'they are fixed'}",
            )


def names_kept(globs: Iterable[str], root: nn.Module) -> dict[str, set[str]]:
    """Return for each glob the paths of the modules that it matches.

    Raises:
        PlanError: It matches none.
    """
    paths = [path for path, _ in root.named_modules() if path]
    found = {}
    for glob in (globs,) if isinstance(globs, str) else globs:
        found[glob] = {p for p in paths if fnmatchcase(p, glob)}
        if not found[glob]:
            raise PlanError(
                f"keep: no module matches {glob!r}; modules are {', '.join(paths[:8])} ..."
            )
    return found


def pin_kept(solver: Solver, globs: Iterable[str], root: nn.Module) -> None:
    """Pin the widths of every Parameter whose module matches one of `globs`."""
    for glob, under in names_kept(globs, root).items():
        for name, axes in solver.parameters.axes.items():
            owner = name.rpartition(".")[0]
            if any(owner == p or owner.startswith(f"{p}.") for p in under):
                for axis in axes:
                    pin(axis, f"it is kept by keep={glob!r}")


def refuse_pins(solver: Solver) -> None:
    """Raise if a width of the given plan had to be bound or pinned."""
    for name, v in solver.parameters.seeds.items():
        if v.reason is not None or v.bound is not None:
            why = v.reason or "its channels fall apart otherwise"
            raise GuardError(
                f"The plan does not fit this graph: width {name!r} cannot grow here, since {why}. The graph "
                "depends on the inputs or on train and eval flags, or a module has taken another's place; plan with "
                f"example_inputs like these, keep the layers of {name!r}, or change the model first and widen it then."
            )
