"""Law 4 on one graph: the base channels of every tensor of a subnet are what the base computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..axes import Axis, Extent, extent, widths_of
from ..copies import deep_copy
from ..plan import Config, Plan
from ..rewrite import Bound, Program
from ..rules import draws_noise, drops
from ..trace import Applied, random_states_kept, set_random_states

# the difference that is none, relative to the largest entry
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
UNWRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


def first_spoilt(
    program: Program,
    base: nn.Module,
    bound: Bound,
    inputs: list[Tensor],
    plan: Plan,
    config: Config,
    tolerance: float,
) -> fx.Node | None:
    """Return the first node of the traced graph whose base channels differ in the subnet, None if there is none.

    Operators that mix channels are restricted to base channels; dropout is left out; a training graph that draws
    noise for elastic channels is passed over, since base and subnet cannot draw the same.

    Args:
        program: The graph.
        base: What runs it; its buffers are as before afterwards.
        bound: The subnet; the blocks that carry new inputs into base outputs must be zero.
        inputs: The graph's inputs.
        plan: The plan of `bound`.
        config: The config of `bound`.
        tolerance: The difference that is none, relative to the node's largest entry, or to 1 if that is smaller.
    """
    if program.traced.root.training and _noisy(program):
        return None
    _hold_constants(program, base)
    kept = [(t, t.detach().clone()) for t in _written_to(base)]
    set_random_states(0)
    apart = deep_copy(base, {id(p): p for p in base.parameters()})  # its buffers move on
    subnet = _Subnet(
        program,
        _Base(apart, program.traced.graph, [t.clone() for t in inputs]),
        base,
        plan,
        config,
        tolerance,
    )
    try:
        subnet.run(bound, *inputs)
    except _Spoilt as found:
        return found.node
    finally:
        _put_back(kept)  # operators that mix channels have run on it
    return None


def run_traced(program: Program, base: nn.Module, inputs: list[Tensor]) -> Any:
    """Return what the graph that `program` was made from computes on `base`, whose buffers it may update."""
    _hold_constants(program, base)
    return fx.Interpreter(base, graph=program.traced.graph).run(*inputs)


def _hold_constants(program: Program, base: nn.Module) -> None:
    for name, t in program.traced.constants.items():
        base.register_buffer(name, t.clone(), persistent=False)  # of the same name in both modes


def _written_to(base: nn.Module) -> Iterator[Tensor]:
    """Yield what a forward may write to: buffers, and tensors that are plain attributes."""
    yield from base.buffers()
    for m in base.modules():
        yield from (t for t in vars(m).values() if isinstance(t, Tensor))


def _put_back(kept: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for t, before in kept:
            if not torch.equal(t, before):  # what is expanded cannot be written to
                t.copy_(before)


class _Spoilt(Exception):  # noqa: N818 - it carries the node out of the run
    def __init__(self, node: fx.Node) -> None:
        super().__init__(node.name)
        self.node = node


class _Graph(fx.Interpreter):
    """A graph run without dropout, and with zeros in memory as yet unwritten."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)  # it is read, so nothing is compiled

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if drops(target):
            return args[0] if args else kwargs["input"]
        return _written(target, super().call_function(target, args, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _written(target, super().call_method(target, args, kwargs))


def _written(target: Any, value: Any) -> Any:
    """Return the value of an operator, zeros where nobody has written to it yet."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return value.zero_() if name in UNWRITTEN else value


class _Base(_Graph):
    """The base's graph, run up to the node that is asked for; `values` are kept until the last node that reads them.

    A value is compared before anything can write to it; buffers, which are read again later, are kept as they were.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, inputs: list[Tensor]) -> None:
        super().__init__(module, graph)
        self.args_iter = iter(inputs)
        self.values: dict[fx.Node, Any] = {}
        self.waiting = iter(self.graph.nodes)
        self.idle: list[fx.Node] = []  # read by no node from here on

    def advance(self, origin: fx.Node) -> None:
        """Run up to `origin`; what it draws at random is drawn again by whoever runs next."""
        while origin not in self.values:
            for read in self.idle:
                del self.values[read], self.env[read]
            n = next(self.waiting)
            with random_states_kept():
                self.env[n] = self.run_node(n)
            self.idle = [*self.user_to_last_uses.get(n, ()), *([] if n.users else [n])]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        written = n.op == "get_attr" and not isinstance(value, nn.Parameter)
        self.values[n] = value.clone() if written and isinstance(value, Tensor) else value
        return value


class _Subnet(_Graph):
    """The rewritten graph, compared node by node with the base's; `again` runs single operators of the base anew."""

    def __init__(
        self,
        program: Program,
        base: _Base,
        again: nn.Module,
        plan: Plan,
        config: Config,
        tolerance: float,
    ) -> None:
        super().__init__(nn.Module(), program.graph)
        self.axes, self.mixed = program.typing.axes, program.typing.mixed
        self.base, self.plan, self.config, self.tolerance = base, plan, config, tolerance
        self.again = _Graph(again, program.traced.graph)
        self.cache: dict[Axis, Extent] = {}
        self.made: dict[fx.Node, fx.Node] = {}  # node of the traced graph -> node here

    def run_node(self, n: fx.Node) -> Any:
        origin: Any = n.meta.get("origin")
        if origin is not None:
            self.base.advance(origin)
        own = self._restricted(origin) if origin in self.mixed else None
        # what writes to its input has to be asked first
        early = None
        if origin is not None and own is None and _writes(origin, self.again):
            early = self._restricted(origin)
        value = super().run_node(n)
        if origin is None:
            return value
        self.made[origin] = n
        axes = self.axes.get(origin)
        if own is not None and isinstance(value, tuple) and axes is not None:  # values and indices
            parts = zip(value, own, axes, strict=True)
            made = [
                _put(v, o, _places(a, self.plan, self.config, self.cache)) if a is not None else v
                for v, o, a in parts
            ]
            return type(value)(made)
        if not isinstance(value, Tensor) or axes is None or origin.op == "get_attr":
            return value
        if own is not None:
            return _put(value, own, _places(axes, self.plan, self.config, self.cache))
        part = base_part(value, axes, self.plan, self.config, self.cache)
        if not close(part, self.base.values[origin], self.tolerance):
            # Batch norms of a map of one pixel magnify rounding by several hundred each: does this operator, on the
            # base channels that reach it, keep them apart?
            here = self._restricted(origin) if early is None else early
            if not isinstance(here, Tensor) or not close(part, here, self.tolerance):
                raise _Spoilt(origin)
        return value

    def _restricted(self, origin: fx.Node) -> Any:
        """Return what the base's operator makes of the base channels that reach it here."""

        def part(t: Any, axes: Any, base: Any) -> Any:
            if isinstance(t, tuple | list) and axes is not None:  # what split() and topk() return
                return tuple(part(*one) for one in zip(t, axes, base, strict=True))
            if not isinstance(t, Tensor) or axes is None:
                return base.clone() if isinstance(base, Tensor) else base
            own = base_part(t, axes, self.plan, self.config, self.cache)
            return own.clone() if own is t else own

        def argument(n: fx.Node) -> Any:
            made = n in self.made and n.op != "get_attr"
            t = self.env.get(self.made[n]) if made else None
            return part(t, self.axes.get(n), self.base.values[n])

        args, kwargs = fx.node.map_arg((origin.args, dict(origin.kwargs)), argument)
        with random_states_kept():  # what the operator draws here, it draws again in the subnet
            return getattr(self.again, origin.op)(origin.target, args, kwargs)


def _writes(node: fx.Node, base: fx.Interpreter) -> bool:
    """Return whether an operator may write to its input."""
    if node.op == "call_module":
        return bool(getattr(base.fetch_attr(str(node.target)), "inplace", False))
    target: Any = node.target
    if isinstance(target, Applied):
        return True
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    augmented = getattr(target, "__module__", "") == "_operator" and name[:1] == "i"
    return name.endswith("_") or augmented or name == "setitem" or bool(node.kwargs.get("inplace"))


def _noisy(program: Program) -> bool:
    for node in program.traced.graph.nodes:
        axes = program.typing.axes.get(node)
        if not isinstance(axes, tuple) or not draws_noise(node, program.traced.root):
            continue
        if any(any(widths_of(a)) for a in axes):
            return True
    return False


def _places(
    axes: tuple[Axis, ...], plan: Plan, config: Mapping[str, int], cache: dict[Axis, Extent]
) -> list[tuple[int, Extent]]:
    """Return the elastic dimensions and their extents."""
    found = []
    for i, axis in enumerate(axes):
        if any(widths_of(axis)):
            if axis not in cache:
                cache[axis] = extent(axis, plan.base_config, config, plan.max_config)
            found.append((i, cache[axis]))
    return found


def _put(value: Tensor, part: Tensor, places: list[tuple[int, Extent]]) -> Tensor:
    """Return `value` with `part` on its base channels."""
    if not places:
        return part
    index = [torch.arange(n, device=value.device) for n in value.shape]
    for i, e in places:
        index[i] = torch.tensor(e.base_positions(), device=value.device)
    return value.index_put(torch.meshgrid(*index, indexing="ij"), part)


def base_part(
    t: Tensor,
    axes: tuple[Axis, ...],
    plan: Plan,
    config: Mapping[str, int],
    cache: dict[Axis, Extent],
) -> Tensor:
    """Return the base channels of a subnet's tensor, in base order.

    Raises:
        ValueError: An axis has another length than planned.
    """
    for i, e in _places(axes, plan, config, cache):
        if e.length != t.shape[i]:
            raise ValueError(f"axis {i} has {t.shape[i]} channels where {e.length} were planned")
        t = t.index_select(i, torch.tensor(e.base_positions(), device=t.device))
    return t


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return whether two tensors are the same but for rounding; relative to the largest entry, or to 1 below it."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or a.numel() == 0:
        return bool(torch.equal(a, b))
    apart = (a != b) & ~(a.isnan() & b.isnan())  # not so for two infinities of a mask
    finite = b[b.isfinite()]
    largest = max(1.0, finite.abs().max().item()) if len(finite) else 1.0
    tolerance = max(tolerance, TOLERANCE.get(a.dtype, 0.0))  # a forward may leave float64
    return not apart.any() or bool((a - b)[apart].abs().max() <= tolerance * largest)
