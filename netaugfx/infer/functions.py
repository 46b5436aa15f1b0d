"""A `torch.autograd.Function` by what its own `forward` does: the rules read the graph of that.

At run time the Function is called as it is, on whatever shapes reach it. So nothing in it can be replaced, as counts of
channels are elsewhere: where it would not compute by itself what the rules say, the channels that reach it are pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..rules import SUBNET_FORMS, Path, Typed, draws_noise, drops
from ..trace import Traced, forward_of
from ..unify import OpenAxis, Var, length_at, pin, resolve, variables
from .lengths import at_other_sizes, axes_read, number_at


class Solver(Protocol):
    """What reads the graph of a Function, node by node: see `solve`."""

    claims: list[Claim]

    def _node(
        self, node: fx.Node, value: Any, typed: Any, typing: Any, traced: Traced
    ) -> tuple[Any, dict[Path, Any]]: ...

    @staticmethod
    def _pin(tensors: Iterable[Typed], reason: str) -> None: ...

    @staticmethod
    def _typed(tree: Any) -> list[Typed]: ...


SAME_ANYWHERE = {
    *(
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_leaf",
        "is_contiguous",
        "is_cuda",
        "is_cpu",
    ),
    *("is_floating_point", "is_complex", "is_sparse", "is_quantized", "get_device"),
}


@dataclass
class Claim:
    """What must hold at every size, else `axes` are pinned: `holds` is asked with sizes of the variables."""

    axes: list[OpenAxis]
    holds: Callable[[Mapping[Var, int]], bool]
    why: str


@dataclass
class Reading:
    """One node of a Function while its forward is read.

    Args (fields):
        where: The Function and the user's line.
        typed: Node of the Function's graph -> its value with its channels.
        typing: What the rules found out about that graph.
        claims: What has to hold once it is known which channels grow.
    """

    where: str
    typed: dict[fx.Node, Any]
    typing: Any
    claims: list[Claim] = field(default_factory=list)


def read_function(
    solver: Solver,
    node: fx.Node,
    where: str,
    inputs: list[Typed],
    outer: Mapping[fx.Node, Any],
    typing: Any,
    device: torch.device,
) -> Any:
    """Type the result of a Function's node by the Function's own forward; None where its inputs are pinned."""
    found = forward_of(node, device)
    if isinstance(found, str):
        solver._pin(inputs, f"{where} {found}")
        return None
    here = Reading(where, {}, type(typing)())
    sources = iter(inputs)
    result: Any = None
    for n in found.graph.nodes:
        value = n.meta["val"]
        if n.op == "placeholder":
            here.typed[n] = replace(next(sources), value=value)
        elif n.op == "output":
            result = map_arg(n.args[0], lambda m: here.typed[m])
        else:
            _read(solver, here, n, value, found)
    reason = _unlike(found, here, node.meta["val"], result)
    if reason is not None:
        solver._pin(inputs, f"{where} {reason}")
        return None
    for m in node.all_input_nodes:
        if isinstance(m.meta["val"], int | float | torch.Size):
            here.claims.append(_same(m, m.meta["val"], outer, f"{where} is given a length"))
    solver.claims += here.claims
    typing.mixing.setdefault(node, []).extend(
        a for axes in here.typing.mixing.values() for a in axes
    )
    return _result(node.meta["val"], result)


def _read(solver: Solver, here: Reading, node: fx.Node, value: Any, traced: Traced) -> None:
    """Type one node of the Function's graph, and note what has to hold for it."""
    typed = here.typed
    typed[node], counts = solver._node(node, value, typed, here.typing, traced)
    for path, axis in counts.items():
        given = _at(node, path)
        axes = [axis, *(axes_read(given, typed) if isinstance(given, fx.Node) else ())]

        def holds(sizes: Mapping[Var, int], given: Any = given, axis: OpenAxis = axis) -> bool:
            return bool(number_at(given, typed, sizes) == length_at(axis, sizes))

        here.claims.append(
            Claim(axes, holds, f"{here.where} holds a count of channels ({_line(node)})")
        )
    for path, (kept, read, unless) in here.typing.numbers.get(node, {}).items():
        given = _at(node, path)
        claim = _same(given, kept, typed, f"{here.where} computes with a length ({_line(node)})")
        here.claims.append(replace(claim, axes=read, holds=_or_grows(claim.holds, unless)))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    own = solver._typed(typed[node])
    axes = [axis for t in own for axis in t.axes]
    if draws_noise(node, traced.root) or (node.op.startswith("call") and drops(node.target)):
        here.claims.append(
            Claim(axes, lambda _: False, f"{here.where} draws numbers for channels ({_line(node)})")
        )
    if node.target in SUBNET_FORMS or here.typing.extra.get(node):
        solver._pin(
            [typed[n] for n in node.all_input_nodes if isinstance(typed[n], Typed)],
            f"{here.where} calls {name}(), which subnets call otherwise ({_line(node)})",
        )


def _unlike(found: Traced, here: Reading, value: Any, result: Any) -> str | None:
    """Return why the graph of a forward does not stand for it at other sizes, None where it does."""
    for guard in found.guards:
        node: Any = guard.node
        name = node.args[1] if node.target is getattr else node.target
        if name not in SAME_ANYWHERE and axes_read(node, here.typed):
            return f"decides by a length ({guard.source})"
    given = value if isinstance(value, tuple) else (value,)
    made = result if isinstance(result, tuple | list) else (result,)
    if len(given) != len(made):
        return "gives another number of results than its forward"
    for v, t in zip(given, made, strict=True):
        if isinstance(v, Tensor) and not (isinstance(t, Typed) and t.value.shape == v.shape):
            return "gives other results than its forward"
    return None


def _result(value: Any, result: Any) -> Any:
    if isinstance(value, Tensor):
        one: Any = result[0] if isinstance(result, tuple | list) else result
        return Typed(value, one.axes)
    if isinstance(value, tuple):
        return tuple(
            Typed(v, t.axes) if isinstance(v, Tensor) else v
            for v, t in zip(value, result, strict=True)
        )
    return value


def _same(given: Any, value: Any, typed: Mapping[fx.Node, Any], why: str) -> Claim:
    """A number stays what it is in the base."""
    read = axes_read(given, typed) if isinstance(given, fx.Node) else []
    return Claim(read, lambda sizes: bool(number_at(given, typed, sizes) == value), why)


def _or_grows(
    holds: Callable[[Mapping[Var, int]], bool], unless: OpenAxis
) -> Callable[[Mapping[Var, int]], bool]:
    return lambda sizes: any(v in sizes for v in variables(resolve(unless))) or holds(sizes)


def _at(node: fx.Node, path: Path) -> Any:
    """Return what stands at `path` among the arguments; None where nothing is given there."""
    found: Any = node.args if isinstance(path[0], int) else node.kwargs
    for step in path:
        try:
            found = getattr(found, str(step)) if isinstance(found, slice) else found[step]
        except (IndexError, KeyError, TypeError):
            return None
    return found


def _line(node: fx.Node) -> str:
    return str(node.meta.get("source", "unknown source"))


def pin_claims(solver: Solver) -> None:
    """Pin the channels at whose other sizes a Function would not compute what the rules say of it."""
    again = True
    while again:
        again = False
        for claim in solver.claims:
            read = (v for axis in claim.axes for v in variables(resolve(axis)))
            growing = list(dict.fromkeys(v for v in read if v.reason is None))
            if growing and not at_other_sizes(growing, claim.holds):
                again = True
                for axis in claim.axes:
                    pin(axis, claim.why)
