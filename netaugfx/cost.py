"""What a forward costs: multiply-accumulates (MACs) as a polynomial of the widths.

Every call that `torch.utils.flop_counter` has a formula for costs a constant times a product of channel axes, and an
axis is a sum of widths. Which axes multiply, and the constant, are read off shapes alone: the rewritten graph runs on
the meta device at the base's sizes and at arbitrary ones, and the product that agrees with every count is the term.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, combinations_with_replacement
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from .axes import Axis, size, widths_of
from .plan import Plan
from .rewrite import Bound, Program, checked, count, opaque, scaled, submodule, tensor
from .rules import SUBNET_BATCH_NORMS
from .trace import META, on_random_data, random_states_kept, real_copy

PROBES = 3  # runs at arbitrary sizes; each rules out a wrong product but for 1 in thousands
LARGEST = 5_000  # channels of a width in a probe
DEGREE = 6  # axes in a product at most


@dataclass(frozen=True)
class Term:
    """`coefficient` MACs times the lengths of `axes`."""

    coefficient: Fraction
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Cost:
    """The MACs of one forward: the sum of its terms."""

    terms: tuple[Term, ...]

    def macs(self, sizes: Mapping[str, int]) -> int:
        """Return the MACs where every width has the size that `sizes` gives it."""
        known: dict[Axis, int] = {}
        for term in self.terms:
            for axis in term.axes:
                if axis not in known:
                    known[axis] = size(axis, sizes)
        return int(sum(t.coefficient * prod(known[axis] for axis in t.axes) for t in self.terms))

    def renamed(self, name: Callable[[str], str]) -> Cost:
        """Return the same costs with another name for every width."""

        def axis(old: Axis) -> Axis:
            return tuple(tuple(name(f) if isinstance(f, str) else f for f in s) for s in old)

        return Cost(tuple(Term(t.coefficient, tuple(map(axis, t.axes))) for t in self.terms))


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of `costs`."""
    terms: dict[tuple[Axis, ...], Fraction] = {}
    for term in chain.from_iterable(c.terms for c in costs):
        terms[term.axes] = terms.get(term.axes, Fraction(0)) + term.coefficient
    return Cost(tuple(Term(n, axes) for axes, n in terms.items()))


def cost(program: Program, plan: Plan, inputs: Sequence[Tensor]) -> Cost | None:
    """Return the MACs of `program` as a polynomial of the widths of `plan`.

    Args:
        program: The graph.
        plan: Its plan.
        inputs: The graph's inputs; only their shapes count.

    Returns:
        The polynomial; None where some call costs no product of channel counts, so that only `counted` is right.
    """
    drawn = random.Random(0)
    sizes: list[dict[str, int]] = [dict(plan.base_config)]
    sizes += [
        {w.name: drawn.randint(2, LARGEST) for w in plan.widths}
        for _ in range(PROBES if plan.widths else 0)
    ]
    runs = [_calls(program, plan, s, inputs) for s in sizes]
    if len({tuple(node for node, _ in run) for run in runs}) > 1:
        return None
    terms: list[Term] = []
    candidates: dict[fx.Node, list[Axis]] = {}
    for calls in zip(*runs, strict=True):
        node = calls[0][0]
        if node not in candidates:
            candidates[node] = list(dict.fromkeys(_axes(node, program, plan)))
        term = _term([macs for _, macs in calls], candidates[node], sizes)
        if term is None:
            return None
        terms.append(term)
    return total([Cost(tuple(terms))])


def counted(
    program: Program, plan: Plan, sizes: Mapping[str, int], inputs: Sequence[Tensor]
) -> int:
    """Return the MACs of one forward at `sizes` by running the graph on the meta device."""
    return sum(macs for _, macs in _calls(program, plan, sizes, inputs))


def output_shapes(program: Program, plan: Plan, inputs: Sequence[Tensor]) -> list[torch.Size]:
    """Return the shapes of the tensors that the base gives for these inputs."""
    output, _ = _run(program, plan, plan.base_config, inputs)
    return [t.shape for t in tree_leaves(output) if isinstance(t, Tensor)]


def _term(
    macs: Sequence[int], candidates: Sequence[Axis], sizes: Sequence[Mapping[str, int]]
) -> Term | None:
    """Return the product of the fewest axes that agrees with the count of every run."""
    lengths = {axis: [size(axis, s) for s in sizes] for axis in candidates}
    for degree in range(DEGREE + 1):
        for axes in combinations_with_replacement(candidates, degree):
            products = [prod(lengths[axis][i] for axis in axes) for i in range(len(sizes))]
            if all(
                m * products[0] == macs[0] * p for m, p in zip(macs, products, strict=True)
            ) and (products[0] or not any(macs)):
                return Term(Fraction(macs[0], products[0] or 1), axes)
    return None


def _axes(node: fx.Node, program: Program, plan: Plan) -> Iterator[Axis]:
    """Yield the elastic axes of what a node of the rewritten graph reads and gives."""
    for n in (node, *node.all_input_nodes):
        origin = n.meta.get("origin")
        if n.target is tensor:
            found: Any = plan.axes.get(program.sites[int(n.args[1])].name)  # type: ignore[arg-type]
        elif n.target in (count, scaled):
            found = (program.sizes[int(n.args[1])],)  # type: ignore[arg-type]
        elif origin is not None:
            found = program.typing.axes.get(origin)
        else:  # a function inside a lowered layer, such as padding
            found = None
            if n is not node:
                yield from _axes(n, program, plan)
        yield from _elastic(found)


def _elastic(tree: Any) -> Iterator[Axis]:
    """Yield the axes in a tree of shapes that hold a width."""
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if not isinstance(tree, tuple | list):
        return
    if _is_axis(tree):
        axis = tuple(tree)
        names = list(widths_of(axis))
        if len(names) > 1 == len(axis):  # a product of widths: these multiply, too
            yield from (((name,),) for name in names)
        elif names:
            yield axis
        return
    for part in tree:
        yield from _elastic(part)


def _is_axis(x: Sequence[Any]) -> bool:
    return bool(x) and all(
        isinstance(s, tuple) and bool(s) and all(isinstance(f, int | str) for f in s) for s in x
    )


# ------------------------------------------------------------------------------------------------ by running


class _Shapes(Bound):
    """What a rewritten graph reads at arbitrary sizes: shapes on the meta device."""

    def __init__(self, program: Program, plan: Plan, sizes: Mapping[str, int]) -> None:
        root = program.traced.root
        self.counts = [size(axis, sizes) for axis in program.sizes]
        self.modules = [root.get_submodule(path) for path in program.modules]
        self.constants = {name: _on_meta(t) for name, t in program.traced.constants.items()}
        self.device = META
        self.sources = {
            i: partial(_shaped, root, plan, sizes, site.name)
            for i, site in enumerate(program.sites)
        }


def _shaped(root: nn.Module, plan: Plan, sizes: Mapping[str, int], name: str) -> Tensor | None:
    path, _, leaf = name.rpartition(".")
    owner = root.get_submodule(path)
    t = owner._parameters[leaf] if leaf in owner._parameters else owner._buffers[leaf]
    axes = plan.axes.get(name)
    if t is None or axes is None:
        return t
    return torch.empty([size(axis, sizes) for axis in axes], dtype=t.dtype, device=META)


def _on_meta(t: Any) -> Any:
    return torch.empty_like(t, device=META) if isinstance(t, Tensor) else t


def _off_device(t: Tensor) -> Tensor:
    return t if t.device == META else torch.empty_like(t, device=META)


def _deformable(x: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    """Return what a deformable convolution costs, without finding the values between pixels."""
    return 2 * out_val.numel() * weight[0].numel()


FORMULAS: Mapping[str, Any] = {
    "torchvision::deform_conv2d": _deformable
}  # what PyTorch has none for


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lists the floating-point operations of every call that PyTorch has a formula for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        packet = func.overloadpacket
        formula: Any = flop_registry.get(packet) or FORMULAS.get(packet._qualified_op_name)
        if formula is not None:
            self.flops.append(formula(*args, **kwargs, out_val=result))
        return result


class _Counter(fx.Interpreter):
    """Runs a rewritten graph, and lists each counted call with its node."""

    def __init__(self, program: Program) -> None:
        super().__init__(fx.GraphModule(nn.Module(), program.graph), garbage_collect_values=True)
        self.twins = dict(zip(self.module.graph.nodes, program.graph.nodes, strict=True))  # type: ignore[union-attr, arg-type]
        self.calls: list[tuple[fx.Node, int]] = []

    def run_node(self, n: fx.Node) -> Any:
        if n.target is checked:  # the data are none
            return None
        if n.target in SUBNET_BATCH_NORMS:  # costs none, and would refuse one value per channel
            return torch.empty_like(self.fetch_args_kwargs_from_env(n)[0][0])
        with _Flops() as counter:
            try:
                result = super().run_node(n)
            except Exception:
                if n.target not in (opaque, submodule):
                    raise
                counter.flops.clear()
                result = self._run_real(n)
        result = tree_map_only(Tensor, _off_device, result)  # some lay in an object that was given
        self.calls += [(self.twins[n], flops // 2) for flops in counter.flops]
        return result

    def _run_real(self, n: fx.Node) -> Any:
        """Run a module that reads data on random data."""
        (bound, i, *given), kwargs = self.fetch_args_kwargs_from_env(n)
        cpu = torch.device("cpu")
        modules = SimpleNamespace(modules={i: real_copy(bound.modules[i], cpu)})
        call: Any = n.target
        with cpu:
            return on_random_data(partial(call, modules, i), tuple(given), kwargs, cpu)


def _calls(
    program: Program, plan: Plan, sizes: Mapping[str, int], inputs: Sequence[Tensor]
) -> list[tuple[fx.Node, int]]:
    return _run(program, plan, sizes, inputs)[1]


def _run(
    program: Program, plan: Plan, sizes: Mapping[str, int], inputs: Sequence[Tensor]
) -> tuple[Any, list[tuple[fx.Node, int]]]:
    """Return what the graph gives at `sizes`, on the meta device, and its counted calls."""
    counter = _Counter(program)
    with (
        torch.no_grad(),
        META,
        random_states_kept(),
    ):  # tensors that the forward makes are made there, too
        output = counter.run(_Shapes(program, plan, sizes), *map(_on_meta, inputs))
    return output, counter.calls
