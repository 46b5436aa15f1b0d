"""Features by name: what modules and graph nodes of a network compute, base and subnets alike.

A name is a module path (`blocks.1`: its output; `head:input`: what it is given), or a node of the
traced graph (`blocks.0.add`: the first addition that the forward of `blocks.0` itself makes,
`blocks.0.add_1` the second).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

import netaugfx
from netaugfx.rules import is_leaf
from netaugfx.trace import Traced, trace
from recipes.errors import DistillError, near

INPUT = ":input"


@dataclass
class Pass:
    """A forward pass that was watched: at which config (None: the base), what came out, and where."""

    config: netaugfx.Config | None
    output: Any = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.features[name]
        except KeyError:
            raise DistillError(
                f"There are no features at {name!r}: it did not run in this pass, or its value is "
                "no tensor. Name a module that every forward calls."
            ) from None


class Watch:
    """A context in which every forward pass of a model is watched.

        with Watch(model, ["blocks.1", "head:input"]) as watch:
            model(x)
        watch.passes[0]["blocks.1"]

    Features are copies, so that an activation that works in place does not change them; gradients
    pass through. Of a module that runs more than once, the last run counts. The model is left as
    it was.

    Args:
        model: any module, or one that is or wraps a WideModel, whose subnets are watched too.
        names: see the file's docstring.

    Raises:
        DistillError: the model has no such place; near names are listed. A name that is no module
            is looked up when the first pass runs.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] = ()):
        self.model, self.names = model, tuple(dict.fromkeys(names))
        self.wide = wide_in(model)
        self.base = _unwrapped(model) if self.wide is None else self.wide.base
        self.passes: list[Pass] = []
        self.graphs: list[tuple[tuple[bool, ...], Traced]] = []
        modules = dict(self.base.named_modules())
        self.modules = {
            name: modules[path_of(name)] for name in self.names if path_of(name) in modules
        }
        self.nodes = tuple(name for name in self.names if name not in self.modules)
        self.open: Pass | None = None
        self.undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Watch:
        self.passes = []
        self._attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()
        self.open = None

    def _attach(self) -> None:
        base = self.base
        self.undo = [
            base.register_forward_pre_hook(lambda *_: self._begin(None)).remove,
            base.register_forward_hook(lambda _module, _inputs, output: self._end(output)).remove,
        ]
        if self.nodes:  # then the graph runs, and containers are not called

            @functools.wraps(base.forward)
            def forward(*args: Any, **kwargs: Any) -> Any:
                return self._run_base(*args, **kwargs)

            self._replace(base, "forward", forward)
        else:
            for name, module in self.modules.items():
                if name.endswith(INPUT):
                    hook = functools.partial(self._take_input, name)
                    self.undo.append(module.register_forward_pre_hook(hook).remove)
                else:
                    hook = functools.partial(self._take, name)
                    self.undo.append(module.register_forward_hook(hook).remove)
        if self.wide is not None:
            self._replace(self.wide, "run", self._run)

    def _detach(self) -> None:
        for undo in reversed(self.undo):
            undo()
        self.undo = []

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        """The model as it was found: a trace copies it, hooks and all."""
        self._detach()
        try:
            yield
        finally:
            self._attach()

    def _replace(self, owner: nn.Module, name: str, value: Any) -> None:
        before = owner.__dict__.get(name)
        owner.__dict__[name] = value
        self.undo.append(
            lambda: (
                owner.__dict__.pop(name)
                if before is None
                else owner.__dict__.__setitem__(name, before)
            )
        )

    def _begin(self, config: netaugfx.Config | None) -> None:
        self.open = Pass(config)
        self.passes.append(self.open)

    def _end(self, output: Any) -> None:
        if self.open is not None:
            self.open.output = output
        self.open = None

    def _keep(self, name: str, value: Any) -> None:
        if self.open is not None and isinstance(value, Tensor):
            self.open.features[name] = value.clone()

    def _take(self, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._keep(name, output)

    def _take_input(self, name: str, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._keep(name, inputs[0] if inputs else None)

    def _run_base(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward as its graph, for names that only the graph has."""
        base = self.base
        with self._as_it_is():
            traced = self._graph(args, kwargs)
            inputs = type(traced.inputs).of(base, args, kwargs)
        places = places_in(traced.graph)
        wanted = _by_node(self.names, places)
        return _Reader(base, traced, wanted, self._keep).run(*inputs.tensors)

    def _graph(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Traced:
        flags = tuple(module.training for module in self.base.modules())
        for known, traced in self.graphs:
            if known == flags and traced.matches(args, kwargs):
                return traced
        traced = trace(self.base, args, kwargs, is_leaf=is_leaf)
        self.graphs.append((flags, traced))
        return traced

    def _run(
        self, config: netaugfx.Config, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """WideModel.run, which every subnet goes through."""
        wide = self.wide
        assert wide is not None
        if config == wide.base_config:
            return self.base(*args, **kwargs)
        self._begin(config)
        if self.names:
            with self._as_it_is():
                program, inputs = wide.program(args, kwargs)
            places = places_in(program.graph)
            wanted = _by_node(self.names, places)
            bound = wide.bound(program, config)
            output = _Reader(wide.base, None, wanted, self._keep, program.graph).run(
                bound, *inputs.tensors
            )
        else:
            with self._as_it_is():
                output = wide.run(config, args, kwargs)
        self._end(output)
        return output


class _Reader(fx.Interpreter):
    """Runs a graph and hands out the values of some nodes."""

    def __init__(
        self,
        root: nn.Module,
        traced: Traced | None,
        wanted: Mapping[fx.Node, Sequence[str]],
        keep: Callable[[str, Any], None],
        graph: fx.Graph | None = None,
    ):
        super().__init__(root, graph=graph if traced is None else traced.graph)
        self.constants = {} if traced is None else traced.constants
        self.wanted, self.keep = wanted, keep

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for name in self.wanted.get(n, ()):
            self.keep(name, value)
        return value

    def fetch_attr(self, target: str) -> Any:
        if target in self.constants:
            device = next((p.device for p in self.module.parameters()), None)
            return self.constants[target].to(device)
        return super().fetch_attr(target)


def path_of(name: str) -> str:
    """The module path in a name.

    >>> path_of("head:input")
    'head'
    """
    return name.removesuffix(INPUT)


def places_in(graph: fx.Graph) -> dict[str, fx.Node]:
    """Every name that a traced graph, or one rewritten from it, has a value for.

    A module's output is taken to be the last value that its forward makes, and its input what the
    first one is made of.
    """
    places: dict[str, fx.Node] = {}
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        origin = node.meta.get("origin", node)
        if origin is node and "path" not in node.meta:
            continue  # a count, or a tensor read: rewrite added it
        made[origin] = node
        path = origin.meta["path"]
        if origin.op == "call_module":
            name = path = str(origin.target)
        elif origin.op in ("call_function", "call_method"):
            target = origin.target
            called = target if isinstance(target, str) else getattr(target, "__name__", str(target))
            name = f"{path}.{called}".lstrip(".")
            repeated = 1
            while name in places:
                name, repeated = f"{path}.{called}_{repeated}".lstrip("."), repeated + 1
        else:
            continue
        given = next((each for each in origin.all_input_nodes if each.op != "get_attr"), None)
        places[name] = node
        while path:
            places[path] = node  # the last one stays
            if given in made:
                places.setdefault(path + INPUT, made[given])  # of the first one
            path = path.rpartition(".")[0]
    return places


def find(name: str, places: Mapping[str, fx.Node]) -> fx.Node:
    """The node at `name`.

    Raises:
        DistillError: there is none; near names are listed.
    """
    if name not in places:
        raise DistillError(f"There are no features named {name!r}. {near(name, list(places))}")
    return places[name]


def _by_node(names: Iterable[str], places: Mapping[str, fx.Node]) -> dict[fx.Node, list[str]]:
    wanted: dict[fx.Node, list[str]] = {}
    for name in names:
        wanted.setdefault(find(name, places), []).append(name)
    return wanted


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DistributedDataParallel and torch.compile around it."""
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, DistributedDataParallel) else model._orig_mod
    return model


def wide_in(model: nn.Module) -> netaugfx.WideModel | None:
    """The WideModel that `model` is or wraps, if there is one."""
    return next((m for m in model.modules() if isinstance(m, netaugfx.WideModel)), None)


@torch.no_grad()
def look(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of the features at each name, from a pass in eval mode that changes nothing.

    Raises:
        DistillError: a name leads nowhere, or to no tensor.
    """
    watch = Watch(model, names)
    known = [name for name, module in watch.base.named_modules() if name and _runs(module)]
    with eval_mode(model), watch:
        try:
            watch.base(images)
        except netaugfx.TraceError as error:
            unknown = ", ".join(map(repr, watch.nodes))
            raise DistillError(
                f"{type(watch.base).__name__} has no module {unknown}, and no graph to look for a "
                f"node in ({error}). {near(watch.nodes[0], known)}"
            ) from error
    return {name: tuple(watch.passes[0][name].shape) for name in names}


@torch.no_grad()
def base_features_in_graph(
    wide: netaugfx.WideModel, names: Sequence[str], images: Tensor
) -> dict[str, Tensor]:
    """The base's features as they are found in the graph that subnets run, in eval mode."""
    found: dict[str, Any] = {}
    program, inputs = wide.program((images,), {})
    wanted = _by_node(names, places_in(program.graph))
    bound = wide.bound(program, wide.base_config)
    reader = _Reader(wide.base, None, wanted, found.__setitem__, program.graph)
    reader.run(bound, *inputs.tensors)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _runs(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


class eval_mode:  # noqa: N801 (a context, used like a function)
    """Inside, `model` is in eval mode; afterwards every module is in the mode it was in."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __enter__(self) -> None:
        self.flags = [(module, module.training) for module in self.model.modules()]
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        for module, flag in self.flags:
            module.training = flag


@torch.no_grad()
def usual_places(model: nn.Module, images: Tensor) -> dict[str, str]:
    """Where features are taken if nothing is named, found in one pass.

    Returns:
        "map": the last module whose output is (N, C, H, W) with more than one place; "embedding":
        the input of the last linear layer, else the map. What a model does not have is left out.
    """
    base = Watch(model).base
    maps: list[str] = []
    linear: list[str] = []

    def note(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            maps.append(name)
        if isinstance(module, nn.Linear):
            linear.append(name)

    hooks = [
        module.register_forward_hook(functools.partial(note, name))
        for name, module in base.named_modules()
        if name
    ]
    try:
        with eval_mode(model):
            base(images)
    finally:
        for hook in hooks:
            hook.remove()
    places = {"map": maps[-1]} if maps else {}
    if linear:
        places["embedding"] = linear[-1] + INPUT
    elif maps:
        places["embedding"] = maps[-1]
    return places
