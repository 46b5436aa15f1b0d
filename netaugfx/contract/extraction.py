"""The way out: the base as it came, and any subnet as a network of plain modules."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..axes import size
from ..copies import deep_copy
from ..errors import ExtractError, NetAugFXError
from ..infer import where
from ..model import WideModel
from ..parts import WideParts, share
from ..plan import Config, Plan
from ..programs import same_values
from ..rewrite import Program, contract, replace_argument
from ..rules import BATCH_NORM, is_leaf, layer_of, resize
from ..trace import Applied, compute, in_mode, meta_copy, substitute, trace, without_caches
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
    network = without_caches(_resized(wide.base, _values(wide, config), programs[0], config))
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
    for graph in graphs:
        _with_modules(graph, network)
    texts = [_numbered(graph) for graph in graphs]
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
    _guard(graphs[chosen], programs[chosen], wide.plan, config)
    return _module(network, programs[chosen], graphs[chosen])


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
        network = _resized(program.traced.root, _sized(wide.plan, config), program, config)
        _with_modules(contract(program, config, wide.plan), network)
        module = _module(network, program, copy.deepcopy(graph))
        inputs = [torch.empty_like(t, device="meta") for t in program.traced.inputs.tensors]
        try:
            traced = trace(
                module,
                tuple(inputs),
                is_leaf=is_leaf,
                opaque=program.traced.opaque,
                device=program.traced.device,
            )
        except (NetAugFXError, RuntimeError):
            return False
        if _numbered(traced.graph) != text:
            return False
    return True


def _guard(graph: fx.Graph, program: Program, plan: Plan, config: Config) -> None:
    """Let `graph` refuse inputs at which the forward would have taken another way.

    What Python read while tracing is compared with what it would read; what depends on channel counts, and so
    differs at this config, is left out.
    """
    inputs = [torch.empty_like(t, device="meta") for t in program.traced.inputs.tensors]
    sized = _module(
        _resized(program.traced.root, _sized(plan, config), program, config),
        program,
        contract(program, config, plan),
    )
    seen = _numbers(sized.to("meta"), inputs, program.traced.device)
    named = {n.name: n for n in graph.nodes}
    for guard in program.traced.guards:
        known: Any = guard.value
        node = named.get(guard.node.name)
        value = seen.get(guard.node.name)
        plain = isinstance(guard.value, bool | int | float) and isinstance(
            value, bool | int | float
        )
        if node is None or not plain or not guard.holds(value):
            continue
        with graph.inserting_after(node):
            read = node
            if isinstance(guard.value, bool) and not isinstance(value, bool):
                # not truth(), which torch.fx cannot read anew from a pickle
                read = graph.call_function(operator.ne, (node, 0))
        with graph.inserting_after(read):
            same = graph.call_function(operator.eq, (read, known))
        with graph.inserting_after(same):
            text = f"extracted for inputs at which this is {guard.value} ({guard.source}); extract anew"
            graph.call_function(torch._assert, (same, text))


def _numbers(
    module: fx.GraphModule, inputs: Sequence[Tensor], device: torch.device
) -> dict[str, bool | int | float]:
    """Return the numbers that a graph computes from `inputs` on the meta device, by node name."""
    values: dict[fx.Node, Any] = {}
    tensors = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(tensors)
        elif node.op != "output":
            args, kwargs = substitute((node.args, node.kwargs), values.__getitem__)
            called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(called, nn.modules.batchnorm._BatchNorm):  # it may read how often it ran
                values[node] = torch.empty_like(args[0])
            else:
                values[node] = compute(module, device, node.op, node.target, args, kwargs)
    return {n.name: v for n, v in values.items() if isinstance(v, bool | int | float)}


def _numbered(graph: fx.Graph) -> list[str]:
    """Return the nodes as text, one naming another by its number; what Python alone read is left out."""
    live: dict[fx.Node, None] = {}
    for n in reversed(graph.nodes):
        python = getattr(n.target, "__module__", "") in ("_operator", "builtins", "math")
        value = n.meta.get("val")
        if not python or value is None or isinstance(value, Tensor) or live.keys() & n.users.keys():
            live[n] = None
    order = [n for n in reversed(live) if n.op != "get_attr"]  # read anywhere, it is the same
    number = {n: i for i, n in enumerate(order)}

    def named(n: fx.Node) -> tuple[str, Any]:
        return ("get", n.target) if n.op == "get_attr" else ("node", number[n])

    return [f"{n.op} {n.target} {fx.node.map_arg((n.args, dict(n.kwargs)), named)}" for n in order]


OF_SIZE = {torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _with_modules(graph: fx.Graph, network: nn.Module) -> None:
    """Turn batch norm and dropout functions of `graph` into modules, which know train from eval mode.

    Where the batch norm's tensors are those of one module of `network`, a plain batch norm takes its place.
    """
    for node in list(graph.nodes):
        if node.target in OF_SIZE and (
            len(node.args) > 1 or (node.args and isinstance(node.args[0], int))
        ):
            node.args = (node.args,)  # torch.fx reads a pickled graph anew, where zeros(n, 4) fails
        if node.target is F.dropout:
            given = {**dict(zip(("input", "p"), node.args, strict=False)), **node.kwargs}
            name = f"dropout_of_{node.name}"
            network.add_module(name, nn.Dropout(given.get("p", 0.5)))
            network._modules[name].training = network.training  # type: ignore[union-attr]
            _replaced(graph, node, name, given["input"])
        if node.target is F.batch_norm:
            given = {**dict(zip(BATCH_NORM, node.args, strict=False)), **node.kwargs}
            read = {k: given.get(k) for k in BATCH_NORM[1:5]}
            paths = {
                str(n.target).rpartition(".")[0] if str(n.target).rpartition(".")[2] == k else None
                for k, n in read.items()
                if isinstance(n, fx.Node)
            }
            path = paths.pop() if len(paths) == 1 else None
            if path is None or any(
                isinstance(n, fx.Node) and n.op != "get_attr" for n in read.values()
            ):
                continue
            _place_norm(network, path, node.meta["val"].dim(), given)
            _replaced(graph, node, path, given["input"])
    for node in reversed(list(graph.nodes)):
        counter = node.op == "get_attr" and str(node.target).endswith("num_batches_tracked")
        if counter and all(user.target == "add_" and not user.users for user in node.users):
            for user in list(node.users):
                graph.erase_node(user)
            graph.erase_node(node)
        elif node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _replaced(graph: fx.Graph, node: fx.Node, path: str, source: Any) -> None:
    with graph.inserting_before(node):
        new = graph.call_module(path, (source,))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _place_norm(network: nn.Module, path: str, rank: int, given: Mapping[str, Any]) -> None:
    old = network.get_submodule(path)
    if type(old) in NORMS.values():
        return
    tracked, affine = given["running_mean"] is not None, given.get("weight") is not None
    n = next(
        len(t)
        for t in (*old._parameters.values(), *old._buffers.values())
        if t is not None and t.dim()
    )
    new = NORMS[rank](n, given.get("eps", 1e-5), given.get("momentum", 0.1), affine, tracked)
    new._parameters.update({k: p for k, p in old._parameters.items() if k in new._parameters})
    new._buffers.update({k: b for k, b in old._buffers.items() if k in new._buffers})
    for name, child in old.named_children():
        new.add_module(name, child)
    new.training = old.training
    owner, _, leaf = path.rpartition(".")
    network.get_submodule(owner)._modules[leaf] = new


def _module(network: nn.Module, program: Program, graph: fx.Graph) -> fx.GraphModule:
    for name, t in program.traced.constants.items():
        network.register_buffer(name, t.clone(), persistent=False)
    _by_class(graph, network)
    module = fx.GraphModule(network, graph)
    flags = {path: m.training for path, m in network.named_modules()}
    for path, m in module.named_modules():
        m.training = flags.get(path, network.training)
    return module


def _by_class(graph: fx.Graph, network: nn.Module) -> None:
    """Let `graph` find every `torch.autograd.Function` in `network`, which is pickled with the name of its class."""
    for node in list(graph.nodes):
        if isinstance(node.target, Applied):
            function: Any = node.target.function
            name = function.__name__
            while getattr(network, name, function) is not function:
                name = f"_{name}"
            setattr(network, name, function)
            with graph.inserting_before(node):
                found = graph.get_attr(name)
                made = graph.call_method("apply", (found, *node.args), node.kwargs)
            made.meta.update(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)


def both_modes(wide: WideModel) -> list[Program]:
    """Return the programs of the example at the flags that stand now, and at those of the other mode."""
    args, kwargs = wide.example
    here, _ = wide.program(args, kwargs)
    other = in_mode(meta_copy(wide.base), not wide.base.training)
    there, _ = wide.program(args, kwargs, other, here.traced.device)
    return [here, there]


def _values(wide: WideModel, config: Config) -> Callable[[str, Tensor], Tensor]:
    """Return what stands in a subnet for a tensor of the base: a copy of what `wide.at(config)` uses."""
    layout = wide._sources.at(config)
    statistics = wide.statistics.get(config, {})

    def value(name: str, t: Tensor) -> Tensor:
        made = statistics.get(name)
        if made is None:
            with torch.no_grad():
                made = layout.source(name)()
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


def _resized(
    root: nn.Module, value: Callable[[str, Tensor], Tensor], program: Program, config: Config
) -> nn.Module:
    """Return a copy of `root` with other tensors, and with the numbers of its layers set to their shapes."""
    memo: dict[int, Any] = {}
    for name, p in root.named_parameters():
        memo[id(p)] = nn.Parameter(value(name, p), requires_grad=p.requires_grad)
    for name, b in root.named_buffers():
        memo[id(b)] = value(name, b)
    made = deep_copy(root, memo)
    for m in made.modules():
        resize(m)
    for (
        node,
        call,
    ) in program.typing.calls.items():  # shapes do not tell more groups from wider ones
        path = str(node.target)
        layer = layer_of(made.get_submodule(path))
        if layer is not None and layer.groups is not None:
            name, at = layer.groups
            axis = call.counts.get((at,))
            n = getattr(root.get_submodule(path), name) if axis is None else size(axis, config)
            setattr(made.get_submodule(path), name, n)
            resize(made.get_submodule(path))
    return made


def _differs(program: Program, wide: WideModel, config: Config) -> str | None:
    """Return why the model's own class, with wider layers, would not compute the subnet; None where it does."""
    inputs = program.traced.inputs
    args, kwargs = inputs.rebuild([torch.empty_like(t, device="meta") for t in inputs.tensors])
    resized = _resized(program.traced.root, _sized(wide.plan, config), program, config)
    constants = program.traced.constants
    for name in constants:  # the class makes them itself
        delattr(resized, name)
    try:
        traced = trace(
            resized,
            args,
            kwargs,
            is_leaf=is_leaf,
            opaque=program.traced.opaque,
            device=program.traced.device,
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
