"""The way out: the base as it came, and any subnet as a network of plain modules."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..axes import size
from ..copies import deep_copy
from ..errors import ExtractError, NetAugFXError
from ..infer import where
from ..model import WideModel
from ..parts import WideParts, share
from ..plan import Config
from ..programs import same_values
from ..rewrite import Program, called_as_it_is, contract, replace_argument
from ..rules import is_leaf
from ..trace import in_mode, meta_copy, trace, without_caches
from .graphs import add_guards, lines_of, network_of, with_modules
from .resized import shapes_at, values_at, with_sizes
from .whole import keep_whole

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
    if not isinstance(model, nn.Module):
        raise ExtractError(
            f"extract_base expects what widen() returned, or a module around it; {model!r} came."
        )
    inner = unwrap(model)
    if isinstance(inner, WideModel) and not isinstance(inner, WideParts):
        return deep_copy(inner.base)
    memo: dict[int, Any] = {}
    for m in list(inner.modules()):
        if isinstance(m, WideModel) and not isinstance(m, WideParts):
            memo[id(m)] = deep_copy(m.base, memo)
    for m in list(inner.modules()):
        if isinstance(m, WideParts):
            memo[id(m)] = deep_copy(m.base, memo)
    if isinstance(inner, WideParts):
        found: nn.Module = memo[id(inner)]
        return found
    if not memo:
        raise ExtractError(
            f"extract_base: {type(model).__name__} holds no WideModel; "
            "give what widen() returned, or a module around it."
        )
    return deep_copy(inner, memo)


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
    it anew; where its forward holds channel counts, it is a `torch.fx.GraphModule`, which follows the way that the
    forward took at the example's shapes and raises AssertionError where Python would have taken another. Hooks stay
    with the base.

    Raises:
        ConfigError: An unknown width, or a size that is not one of its choices.
        ExtractError: A GraphModule is needed, but the graph differs between train and eval mode.
    """
    if not isinstance(wide, WideModel):
        raise ExtractError(f"extract expects what widen() returned; {type(wide).__name__} came.")
    config = wide.plan.config(config)
    if config == wide.plan.base_config:
        return extract_base(wide)
    if isinstance(wide, WideParts):
        memo = {id(p): extract(p, share(config, path)) for path, p in wide.wides.items()}
        return deep_copy(wide.base, memo)
    programs = both_modes(wide)
    why = next((found for p in programs if (found := _differs(p, wide, config))), None)
    network = without_caches(with_sizes(wide.base, values_at(wide, config), programs[0], config))
    drop_hooks(network, programs[0])
    if why is None:
        return network
    graphs = [contract(p, config, wide.plan) for p in programs]
    for graph in graphs:
        with_modules(graph, network)
    texts = [lines_of(graph) for graph in graphs]
    clash = _clash(programs)
    chosen: int | None = 0 if clash is None else None
    if clash is None and texts[0] != texts[1]:
        chosen = keep_whole(
            graphs,
            programs,
            partial(_holds, texts=texts, programs=programs, wide=wide, config=config),
        )
    if chosen is None:
        line = clash or next((a for a, b in zip(*texts, strict=False) if a != b), "its end")
        raise ExtractError(
            "Cannot extract a network of plain modules: the model's own class does not run at this "
            f"config, since {why}; nor can a graph stand for it, since it differs between train and "
            f"eval mode at {line}."
        )
    program = programs[chosen]
    shapes = with_sizes(program.traced.root, shapes_at(wide.plan, config), program, config)
    plain = network_of(shapes, program, contract(program, config, wide.plan))
    add_guards(graphs[chosen], program, plain)
    return network_of(network, program, graphs[chosen])


def drop_hooks(network: nn.Module, program: Program) -> list[str]:
    """Take from `network` the hooks that no subnet runs; return the paths of the modules that had some.

    Hooks stay at modules that are called as they are.
    """
    kept = {p for p in program.modules if called_as_it_is(network.get_submodule(p))}
    had = []
    for path, m in network.named_modules():
        if any(path == p or path.startswith(f"{p}.") for p in kept):
            continue
        if any(getattr(m, room) for room in HOOKS):
            had.append(path)
        for room in HOOKS:
            getattr(m, room).clear()
    return had


def _clash(programs: Sequence[Program]) -> str | None:
    """Return the name of a constant whose value depends on the mode, if there is one."""
    a, b = (p.traced.constants for p in programs)
    return next((name for name in a if name in b and not same_values(a[name], b[name])), None)


def _holds(
    graph: fx.Graph,
    texts: list[list[str]],
    programs: list[Program],
    wide: WideModel,
    config: Config,
) -> bool:
    """Return whether `graph`, traced anew in the mode of each program, gives the text of that program's graph."""
    for text, program in zip(texts, programs, strict=True):
        network = with_sizes(program.traced.root, shapes_at(wide.plan, config), program, config)
        with_modules(contract(program, config, wide.plan), network)
        module = network_of(network, program, copy.deepcopy(graph))
        inputs = [torch.empty_like(t, device="meta") for t in program.traced.inputs.tensors]
        try:
            traced = trace(
                module,
                tuple(inputs),
                is_leaf=is_leaf,
                opaque=program.traced.opaque,
                device=program.traced.device,
                data=program.traced.data,
            )
        except (NetAugFXError, RuntimeError):
            return False
        if lines_of(traced.graph) != text:
            return False
    return True


def both_modes(wide: WideModel) -> list[Program]:
    """Return the programs of the example at the flags that stand now, and at those of the other mode."""
    args, kwargs = wide.example
    here, _ = wide.program(args, kwargs)
    other = in_mode(meta_copy(wide.base), not wide.base.training)
    there, _ = wide.program(args, kwargs, other, here.traced.device)
    return [here, there]


def _differs(program: Program, wide: WideModel, config: Config) -> str | None:
    """Return why the model's own class, with wider layers, would not compute the subnet; None where it does."""
    inputs = program.traced.inputs
    args, kwargs = inputs.rebuild([torch.empty_like(t, device="meta") for t in inputs.tensors])
    sized = with_sizes(program.traced.root, shapes_at(wide.plan, config), program, config)
    constants = program.traced.constants
    for name in constants:  # the class makes them itself
        delattr(sized, name)
    try:
        traced = trace(
            sized,
            args,
            kwargs,
            is_leaf=is_leaf,
            opaque=program.traced.opaque,
            device=program.traced.device,
            data=program.traced.data,
        )
    except (NetAugFXError, RuntimeError) as error:
        return f"tracing it fails: {str(error).splitlines()[0]}"
    old, new = list(program.traced.graph.nodes), list(traced.graph.nodes)
    if len(old) != len(new):
        return f"it then has {len(new)} operators instead of {len(old)}"
    number = {n: i for nodes in (old, new) for i, n in enumerate(nodes)}
    for a, b in zip(old, new, strict=True):
        if (a.op, a.target) != (b.op, b.target):
            return f"{where(b)} then stands in place of {where(a)}"
        if a.op == "get_attr" and (a.target in constants or b.target in traced.constants):
            own, other = constants.get(str(a.target)), traced.constants.get(str(b.target))
            if own is None or other is None or not same_values(own, other):
                return f"{where(b)} would then be another constant"
        left, right = (a.args, dict(a.kwargs)), (b.args, dict(b.kwargs))
        for path, axis in program.typing.counts.get(a, {}).items():
            found: list[Any] = []
            left = replace_argument(*left, path, lambda _: "count")
            right = replace_argument(*right, path, partial(_keep, found, "count"))
            n = found[0].meta["val"] if isinstance(found[0], fx.Node) else found[0]
            if n != size(axis, config):
                return f"{where(b)} would take {n} channels instead of {size(axis, config)}"
        for path, kept in program.typing.numbers.get(a, {}).items():
            found = []
            left = replace_argument(*left, path, lambda _: "number")
            right = replace_argument(*right, path, partial(_keep, found, "number"))
            n = found[0].meta["val"] if isinstance(found[0], fx.Node) else found[0]
            if n != kept:
                return f"{where(b)} would compute with {n:.6g} instead of the base's {kept:.6g}"
        extra = program.typing.extra.get(a, {})
        if extra.items() - right[1].items():
            return f"{where(b)} needs {extra}"
        left, right = fx.node.map_arg((left, right), lambda n: ("node", number[n]))
        if str(left) != str(right):
            return f"{where(b)} then has other arguments"
        value, axes = b.meta.get("val"), program.typing.axes.get(a)
        if isinstance(value, Tensor) and axes is not None:
            shape = tuple(size(axis, config) for axis in axes)
            if shape != tuple(value.shape):
                return f"{where(b)} gives {tuple(value.shape)} instead of {shape}"
    return None


def _keep(found: list[Any], text: str, argument: Any) -> str:
    found.append(argument)
    return text
