"""The way out: the base as it came, and any subnet as a network of plain modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from .axes import Axis, Extent, size
from .blocks import Source
from .errors import ExtractError, NetAugFXError
from .infer import infer, where
from .model import WideModel
from .plan import Config, Plan
from .rewrite import Program, contract, replace_argument, rewrite
from .rules import is_leaf, resize
from .trace import trace

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip


def extract_base(model: nn.Module) -> nn.Module:
    """Return the base, trained: a copy of the class, with the names, shapes and flags that the user's model has.

    Law 1: `extract_base(widen(m))` is m.

    Args:
        model: A WideModel; or a module that holds one (the result is a copy of the whole, with plain modules in
            place); or a wrapper around either: DistributedDataParallel, torch.compile, an averaged model.

    Returns:
        A copy; `model` is not changed.

    Raises:
        ExtractError: There is no WideModel in `model`.
    """
    inner = unwrap(model)
    if isinstance(inner, WideModel):
        return copy.deepcopy(inner.base)
    memo: dict[int, Any] = {}
    for m in list(inner.modules()):
        if isinstance(m, WideModel):
            memo[id(m)] = copy.deepcopy(m.base, memo)
    if not memo:
        raise ExtractError(
            f"extract_base: {type(model).__name__} holds no WideModel; "
            "give what widen() returned, or a module around it."
        )
    return copy.deepcopy(inner, memo)


def unwrap(model: nn.Module) -> nn.Module:
    """Return what DistributedDataParallel, torch.compile or an averaged model wraps, any depth down."""
    wrappers = ("DataParallel", "DistributedDataParallel", "AveragedModel")
    while not isinstance(model, WideModel):
        inner = getattr(model, "_orig_mod", None)
        name = type(model).__name__
        if inner is None and (name in wrappers or name.startswith("ModelEma")):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def extract(wide: WideModel, config: Mapping[str, int]) -> nn.Module:
    """Return the subnet at `config` as a network of plain modules, weights copied; it needs no netaugfx.

    Law 3: it computes what `wide.at(config)` computes.

    It is the user's own class with wider layers where that class runs at these widths, which is found out by tracing
    it anew; where its forward holds channel counts, it is a `torch.fx.GraphModule`. Hooks stay with the base.

    Raises:
        ConfigError: An unknown width, or a size that is not one of its choices.
        ExtractError: A GraphModule is needed, but the graph differs between train and eval mode.
    """
    config = wide.plan.config(config)
    if config == wide.plan.base_config:
        return copy.deepcopy(wide.base)
    programs = both_modes(wide)
    why = next((found for p in programs if (found := _differs(p, wide, config))), None)
    network = _resized(wide.base, _values(wide, config))
    called = {
        p for p in programs[0].modules if any(True for _ in wide.base.get_submodule(p).buffers())
    }
    for path, m in network.named_modules():
        if not any(path == p or path.startswith(f"{p}.") for p in called):
            for room in HOOKS:
                getattr(m, room).clear()
    if why is None:
        return network
    graphs = [contract(p, config, wide.plan) for p in programs]
    texts = [[n.format_node() or "" for n in graph.nodes] for graph in graphs]
    if texts[0] != texts[1]:
        line = next((a for a, b in zip(*texts, strict=False) if a != b), "its end")
        raise ExtractError(
            f"Cannot extract a network of plain modules: the model's own class does not run at this config, since {why}; "
            f"nor can a graph stand for it, since it differs between train and eval mode at `{line}`."
        )
    return _module(network, programs[0], graphs[0])


def _module(network: nn.Module, program: Program, graph: fx.Graph) -> fx.GraphModule:
    for name, t in program.traced.constants.items():
        network.register_buffer(name, t.clone(), persistent=False)
    module = fx.GraphModule(network, graph)
    flags = {path: m.training for path, m in network.named_modules()}
    for path, m in module.named_modules():
        m.training = flags.get(path, network.training)
    return module


def both_modes(wide: WideModel) -> list[Program]:
    """Return the programs of the example at the flags that stand now, and at those of the other mode."""
    args, kwargs = wide.example
    here, _ = wide.program(args, kwargs)
    other = copy.deepcopy(here.traced.root)
    other.train(not other.training)
    traced = trace(other, args, kwargs, is_leaf=is_leaf)
    _, (typing,) = infer([traced], plan=wide.plan)
    return [here, rewrite(traced, typing, wide.plan)]


def _values(wide: WideModel, config: Config) -> Callable[[str, Tensor], Tensor]:
    """Return what stands in a subnet for a tensor of the base: a copy of what `wide.at(config)` uses."""
    cache: dict[Axis, Extent] = {}
    statistics = wide.statistics.get(config, {})

    def value(name: str, t: Tensor) -> Tensor:
        made = statistics.get(name)
        if made is None:
            with torch.no_grad():
                made = Source(name, wide.plan, config, wide.base, wide.rooms, cache)()
        assert made is not None
        return made.detach().clone(memory_format=torch.preserve_format)

    return value


def _sized(plan: Plan, config: Config) -> Callable[[str, Tensor], Tensor]:
    """Return what stands in a subnet for a tensor of the base, its shape alone."""

    def value(name: str, t: Tensor) -> Tensor:
        axes = plan.axes.get(name)
        shape = t.shape if axes is None else [size(axis, config) for axis in axes]
        return torch.empty(shape, dtype=t.dtype, device="meta")

    return value


def _resized(root: nn.Module, value: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """Return a copy of `root` with other tensors, and with the numbers of its layers set to their shapes."""
    memo: dict[int, Any] = {}
    for name, p in root.named_parameters():
        memo[id(p)] = nn.Parameter(value(name, p), requires_grad=p.requires_grad)
    for name, b in root.named_buffers():
        memo[id(b)] = value(name, b)
    made = copy.deepcopy(root, memo)
    for m in made.modules():
        resize(m)
    return made


def _differs(program: Program, wide: WideModel, config: Config) -> str | None:
    """Return why the model's own class, with wider layers, would not compute the subnet; None where it does."""
    args, kwargs = wide.example
    resized = _resized(program.traced.root, _sized(wide.plan, config))
    try:
        traced = trace(resized, args, kwargs, is_leaf=is_leaf, opaque=program.traced.opaque)
    except (NetAugFXError, RuntimeError) as error:
        return f"tracing it fails: {str(error).splitlines()[0]}"
    old, new = list(program.traced.graph.nodes), list(traced.graph.nodes)
    if len(old) != len(new):
        return f"it then has {len(new)} operators instead of {len(old)}"
    number = {n: i for nodes in (old, new) for i, n in enumerate(nodes)}
    for a, b in zip(old, new, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            return f"{where(b)} then stands in place of {where(a)}"
        left, right = (a.args, dict(a.kwargs)), (b.args, dict(b.kwargs))
        for path, axis in program.typing.counts.get(a, {}).items():
            found: list[Any] = []
            left = replace_argument(*left, path, lambda _: "count")
            right = replace_argument(*right, path, partial(_keep, found))
            n = found[0].meta["val"] if isinstance(found[0], fx.Node) else found[0]
            if n != size(axis, config):
                return f"{where(b)} would take {n} channels instead of {size(axis, config)}"
        left, right = fx.node.map_arg((left, right), lambda n: ("node", number[n]))
        if str(left) != str(right):
            return f"{where(b)} then has other arguments"
        value, axes = b.meta.get("val"), program.typing.axes.get(a)
        if isinstance(value, Tensor) and axes is not None:
            shape = tuple(size(axis, config) for axis in axes)
            if shape != tuple(value.shape):
                return f"{where(b)} gives {tuple(value.shape)} instead of {shape}"
    return None


def _keep(found: list[Any], argument: Any) -> str:
    found.append(argument)
    return "count"


def macs(wide: WideModel, config: Config, input_shape: tuple[int, ...] | None) -> int:
    """Return the multiply-accumulates of one forward at `config`, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    def empty(t: Any) -> Any:
        if not isinstance(t, Tensor):
            return t
        return torch.empty(input_shape or (1, *t.shape[1:]), dtype=t.dtype, device="meta")

    args, kwargs = tree_map(empty, wide.example)
    program, inputs = wide.program(args, kwargs)
    network = _resized(program.traced.root, _sized(wide.plan, config))
    module = _module(network, program, contract(program, config, wide.plan))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs.tensors)
    return int(counter.get_total_flops()) // 2
