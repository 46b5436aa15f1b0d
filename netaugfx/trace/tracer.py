"""Module + inputs -> a torch.fx graph whose every node carries its value on the meta device."""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.amp import autocast_mode
from torch.fx.node import base_types
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from ..errors import InputError, NetAugFXError, TraceError
from .meta import (
    META,
    Remembered,
    compute,
    meta_copy,
    on_meta,
    random_states,
    random_states_differ,
    random_states_kept,
    real_copy,
    substitute,
    to_meta,
    to_real,
)
from .proxy import Guard, Recorder, Untraceable, origin_of, source_of, updated_attribute
from .written_out import WRITTEN_OUT

__all__ = ["Guard", "Inputs", "Traced", "is_torch_leaf", "trace"]

_FACTORIES = (
    *("arange", "as_tensor", "bartlett_window", "blackman_window", "eye", "full", "hamming_window"),
    *("hann_window", "linspace", "logspace", "ones", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
)
_RANDOM = ("empty", "normal", "rand", "randint", "randn", "randperm")
_MATH = ("cos", "exp", "log", "log10", "log2", "pow", "sin", "sqrt")
_CHECKPOINT_OPTIONS = {
    *("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug"),
    *("early_stop", "respect_saved_tensors_hooks"),
}


@dataclass(frozen=True, eq=False)
class Inputs:
    """How call arguments map to placeholders: tensor leaves become them, others are constants.

    `key` holds structure, constants and every tensor's shape, strides, dtype and device;
    `structure` the same without sizes. `tensors` are in the order of the placeholders, `names`.
    """

    names: tuple[str, ...]
    tensors: list[Tensor]
    key: Hashable
    structure: Hashable
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]

    @staticmethod
    def of(
        model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Inputs:
        """Bind a call to the signature of `model.forward`: `f(x)` and `f(input=x)` are the same.

        Raises:
            InputError: the arguments do not fit the signature, or hold no tensor.
        """
        name = type(model).__name__
        try:
            bound = inspect.signature(model.forward).bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise InputError(f"The inputs do not fit {name}.forward: {error}.") from None
        bound.apply_defaults()
        pairs, spec = pytree.tree_flatten_with_path(dict(bound.arguments))
        leaves = [leaf for _, leaf in pairs]
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        tensors: list[Tensor] = [leaves[i] for i in places]
        if not tensors:
            raise InputError(f"The inputs of {name}.forward hold no tensor: pass at least one.")
        constants = [_hashable(leaf) for leaf in leaves if not isinstance(leaf, Tensor)]

        def rebuild(values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            filled = dict(enumerate(leaves)) | dict(zip(places, values, strict=True))
            arguments = pytree.tree_unflatten(list(filled.values()), spec)
            call = inspect.BoundArguments(bound.signature, arguments)
            return call.args, call.kwargs

        tree = (str(spec), tuple(places), tuple(constants))
        sizes = ((tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors)
        return Inputs(
            names=tuple("_".join(str(_entry(key)) for key in pairs[i][0]) for i in places),
            tensors=tensors,
            key=(tree, tuple(sizes)),
            structure=(tree, tuple((t.ndim, t.dtype) for t in tensors)),
            rebuild=rebuild,
        )


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph, and what it holds for.

    Attributes:
        graph: every node's meta has "val" (its value, tensors on the meta device), "path" (the
            module whose forward made it, '' for the root) and "source" ("file.py:41").
        root: the copy of the model on the meta device that targets refer to.
        inputs: the example inputs.
        guards: the values that Python read while tracing.
        opaque: module path -> reason, modules that are leaves as they cannot be traced through.
        constants: get_attr targets that the user's model does not have -> their true tensors.
        device: what `x.device` answered.
    """

    graph: fx.Graph
    root: nn.Module
    inputs: Inputs
    guards: tuple[Guard, ...]
    opaque: Mapping[str, str]
    constants: Mapping[str, Tensor]
    device: torch.device

    def matches(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> bool:
        """Whether these inputs take the same path through the user's Python."""
        inputs = Inputs.of(self.root, args, kwargs)
        if inputs.structure != self.inputs.structure:
            return False
        if not self.guards or inputs.key == self.inputs.key:
            return True
        needed = {guard.node for guard in self.guards}
        for node in reversed(self.graph.nodes):
            needed.update(node.all_input_nodes if node in needed else ())
        device = next((t.device for t in inputs.tensors if t.device != META), self.device)
        tensors = iter([to_meta(t) for t in inputs.tensors])
        values: dict[fx.Node, Any] = {}
        try:
            with random_states_kept():
                for node in self.graph.nodes:
                    if node.op == "placeholder":
                        values[node] = next(tensors)
                    elif node in needed:
                        call = substitute((node.args, node.kwargs), values.__getitem__)
                        values[node] = compute(self.root, device, node.op, node.target, *call)
            return all(guard.holds(values[guard.node]) for guard in self.guards)
        except Exception:
            return False  # an operator, or an opaque module, that refuses these shapes


def is_torch_leaf(module: nn.Module, path: str) -> bool:
    """The default for `is_leaf`: layers defined in torch.nn, and parametrised ones."""
    defined = type(module).__module__.startswith(("torch.nn.", "torch.ao.nn."))
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return parametrize.is_parametrized(module) or (defined and not isinstance(module, containers))


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    is_leaf: Callable[[nn.Module, str], bool] | None = None,
    opaque: Mapping[str, str] | None = None,
    remembered: Remembered | None = None,
) -> Traced:
    """Trace the forward of a copy of `model` on the meta device, in the mode that it is in.

    Python's control flow over sizes is followed, and what it read is recorded as guards. A module
    that cannot be traced through (it reads tensor data, say) becomes a leaf and is named in
    `opaque`, the smallest such module first.

    Args:
        model: any module. It is not touched, nor are the global random states.
        args: example inputs, on any device.
        kwargs: likewise, by name.
        is_leaf: `(module, path) -> bool`, which modules to keep as one `call_module` node.
        opaque: module path -> reason, further modules to keep as leaves.
        remembered: the shapes that another trace has worked out.

    Raises:
        InputError: the model does not accept these inputs.
        TraceError: the model cannot be copied, or its own forward cannot be traced.
    """
    inputs = Inputs.of(model, args, kwargs)
    leaves = {**_computed_by_hooks(model), **(opaque or {})}
    remembered = remembered or Remembered()
    with random_states_kept():
        while True:
            tracer = _Tracer(model, inputs, is_leaf or is_torch_leaf, leaves, remembered)
            try:
                return tracer.trace_root()
            except _Again as again:
                leaves[again.path] = again.reason
            finally:
                tracer.close()


class _Again(BaseException):
    """A module found to be opaque after a first call of it was traced through."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason


class _Tracer(Recorder):
    """The walk over modules: which are traced through, which are leaves, which become opaque."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        is_leaf: Callable[[nn.Module, str], bool],
        opaque: Mapping[str, str],
        remembered: Remembered,
    ) -> None:
        tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
        device = next((t.device for t in tensors if t.device.type != "meta"), META)
        super().__init__(meta_copy(model), device, remembered)
        self.model, self.inputs, self.is_leaf, self.opaque = model, inputs, is_leaf, dict(opaque)
        self.module_paths = {id(module): path for path, module in self.root.named_modules()}
        self.traced: set[str] = set()
        self.draws = random_states()
        self.plain_error: BaseException | None = None

    def trace_root(self) -> Traced:
        meta = {"path": "", "source": origin_of(self.root.forward)}
        proxies = []
        for name, tensor in zip(self.inputs.names, self.inputs.tensors, strict=True):
            node = self.graph.placeholder(name)
            node.meta.update(meta, val=to_meta(tensor))
            proxies.append(self.proxy(node))
        args, kwargs = self.inputs.rebuild(proxies)
        try:
            with _tracing(self):
                output = self.create_arg(self.root.forward(*args, **kwargs))
                self.check_draws("")
        except NetAugFXError:
            raise
        except (Untraceable, Exception) as error:
            name, reason = type(self.model).__name__, self.diagnose(error)
            raise TraceError(
                f"Cannot trace {name}: its own forward {reason}. "
                "Move these lines into a submodule, which is then kept as it is, or let them "
                "depend on shapes only."
            ) from error
        value = substitute(output, lambda node: node.meta["val"])
        self.graph.output(output).meta.update(meta, val=value)
        guards = tuple(self.guards.values())
        return Traced(
            self.graph, self.root, self.inputs, guards, self.opaque, self.constants, self.device
        )

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        module = getattr(module, "_orig_mod", module)  # of torch.compile
        path = self.module_paths.get(id(module))
        if path is None:  # made in a forward: a slice of a Sequential, or a layer without state
            state = [*module.parameters(), *module.buffers()]
            if any(id(tensor) not in self.tensor_paths for tensor in state):
                raise Untraceable(f"makes a {type(module).__name__} at {self.source()}")
            return module.forward(*args, **kwargs)
        if path and (path in self.opaque or self.is_leaf(module, path)):
            return self.create_proxy("call_module", path, args, kwargs)
        last, guards, opaque = next(reversed(self.graph.nodes)), dict(self.guards), self.opaque
        self.opaque = dict(opaque)
        self.stack.append(path)
        try:
            result = module.forward(*args, **kwargs)
            self.check_draws(path)
            self.traced.add(path)
            return result
        except NetAugFXError:
            raise
        except (Untraceable, Exception) as error:
            reason = self.diagnose(error)
        finally:
            self.stack.pop()
        if not path:
            raise Untraceable(reason)
        if path in self.traced:
            raise _Again(path, reason)
        for node in reversed(self.graph.nodes):
            if node is last:
                break
            self.graph.erase_node(node)
        self.guards, self.opaque, kept = guards, opaque | {path: reason}, set(self.graph.nodes)
        self.attributes = {name: node for name, node in self.attributes.items() if node in kept}
        return self.create_proxy("call_module", path, args, kwargs)

    def value_of(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind != "call_module":
            return super().value_of(kind, target, args, kwargs)
        with ExitStack() as stack:
            if not is_torch_leaf(self.root.get_submodule(target), target):
                stack.enter_context(random_states_kept())  # it may draw in every forward
            try:
                return super().value_of(kind, target, args, kwargs)
            except Exception as error:
                if target not in self.opaque and not _about_meta(error):
                    raise
            # It reads data: run a real copy of it on random data.
            device = torch.device("cpu") if self.device == META else self.device
            generator = torch.Generator().manual_seed(0)
            stack.enter_context(random_states_kept())
            stack.enter_context(self.phase("real"))
            args, kwargs = pytree.tree_map_only(
                Tensor, lambda t: to_real(t, generator, device), (args, kwargs)
            )
            try:
                return on_meta(real_copy(self.model.get_submodule(target), device)(*args, **kwargs))
            except Exception as error:
                reason = self.opaque.get(target, f"calls '{target}' at {self.source()}")
                raise Untraceable(f"{reason} (and '{target}' fails alone: {error})") from error

    def check_draws(self, path: str) -> None:
        if random_states_differ(random_states(), self.draws):
            what = f"module '{path}'" if path else "its own forward"
            raise TraceError(
                f"Cannot trace {type(self.model).__name__}: {what} "
                f"({type(self.root.get_submodule(path)).__name__}) draws random "
                "numbers in Python, in numpy or into a constant, and such a draw would be frozen "
                "into the graph. Draw with torch.rand, or name a module that does so in opaque=."
            )

    def diagnose(self, error: BaseException) -> str:
        """Why a forward failed; raises InputError where it fails without tracing as well."""
        if isinstance(error, Untraceable):
            return error.reason
        source, name = source_of(error.__traceback__), type(self.model).__name__
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        if not _about_meta(error):
            self.plain_error = self.plain_error or self.run_plain()
            if repr(self.plain_error) == repr(error):
                pairs = zip(self.inputs.names, self.inputs.tensors, strict=True)
                shapes = ", ".join(f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in pairs)
                raise InputError(
                    f"{name} does not accept inputs of shape {shapes}: {text} ({source}). "
                    "Pass example inputs that the model itself runs on."
                ) from error
        return f"fails under tracing at {source}: {text}"

    def run_plain(self) -> BaseException:
        """What the model raises when it runs on the meta device without tracing."""
        with self.phase("meta"), random_states_kept(), META:
            try:
                args, kwargs = self.inputs.rebuild([to_meta(t) for t in self.inputs.tensors])
                meta_copy(self.model).forward(*args, **kwargs)
            except Exception as error:
                return error
        return TraceError("nothing")


class _Mode(TorchFunctionMode):
    """Turns torch functions over proxies, or over the copy's own tensors, into nodes."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tracer = kwargs or {}, self.tracer
        own = tracer.tensor_paths
        if not tracer.recording():
            return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            func(*args)
            tracer.create_proxy("call_function", func, args, kwargs)
            return None
        if not _any_leaf((args, kwargs), lambda a: isinstance(a, fx.Proxy) or id(a) in own):
            return func(*args, **kwargs)
        if func in WRITTEN_OUT:
            with self:
                result = WRITTEN_OUT[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if getattr(func, "__name__", "") == "__get__":
            return getattr(tracer.proxy(tracer.create_arg(args[0])), func.__self__.__name__)
        if is_tensor_method_or_property(func):
            return tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return tracer.create_proxy("call_function", func, args, kwargs)


@contextmanager
def _tracing(tracer: _Tracer) -> Iterator[None]:
    """Replace what hides from proxies, for this thread and until the end of the trace."""
    module_call, module_get, module_set = (
        nn.Module.__dict__[name] for name in ("__call__", "__getattr__", "__setattr__")
    )
    with META:  # fill torch's own tables of functions before they are replaced
        is_tensor_method_or_property(torch.empty(0).add)
    apply: Any = inspect.getattr_static(torch.autograd.Function, "apply")
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__
    fastpath = torch.backends.mha.get_fastpath_enabled
    plain = (*base_types, fx.Proxy, type(None))

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tracer.recording():
            return tracer.call_module(module, args, kwargs)
        if threading.get_ident() == tracer.thread:
            return module.forward(*args, **kwargs)  # without global hooks
        return module_call(module, *args, **kwargs)

    def get(module: nn.Module, name: str) -> Any:
        value = module_get(module, name)
        if tracer.recording() and isinstance(value, Tensor) and id(value) in tracer.tensor_paths:
            return tracer.proxy(tracer.create_arg(value))
        return value

    def set_(module: nn.Module, name: str, value: Any) -> None:
        if tracer.recording() and (name in module._buffers or name in module._parameters):
            own = module._buffers.get(name, module._parameters.get(name))
            path = updated_attribute(value.node) if isinstance(value, fx.Proxy) else None
            if path is None or path != tracer.tensor_paths.get(id(own)):
                raise Untraceable(f"assigns to parameter or buffer '{name}' at {tracer.source()}")
            return
        module_set(module, name, value)

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.recording() and has_proxy((args, kwargs)):
            raise Untraceable(f"has a backward of its own ({cls.__name__}) at {tracer.source()}")
        return apply.__get__(None, cls)(*args, **kwargs)

    def entered(context: Any) -> Any:
        result = enter(context)  # type: ignore[no-untyped-call]
        if tracer.recording():
            options = (context.device, context.fast_dtype, context._enabled, context._cache_enabled)
            function = autocast_mode._enter_autocast
            context._proxy = tracer.create_proxy("call_function", function, options, {})
        return result

    def left(context: Any, *error: Any) -> Any:
        if tracer.recording() and error[0] is None:
            arguments = (context._proxy,)
            tracer.create_proxy("call_function", autocast_mode._exit_autocast, arguments, {})
        return leave(context, *error)

    def fused() -> bool:  # one kernel for a whole transformer layer in eval mode
        return not tracer.recording() and fastpath()

    def has_proxy(tree: Any) -> bool:
        return _any_leaf(tree, lambda a: isinstance(a, fx.Proxy))

    def factory(function: Any) -> Any:
        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            if not tracer.recording():
                return function(*args, **kwargs)
            if not _any_leaf((args, kwargs), lambda a: not isinstance(a, plain)):
                return tracer.create_proxy("call_function", function, args, kwargs)
            if function.__name__ in _RANDOM or has_proxy((args, kwargs)):
                raise Untraceable(
                    f"calls torch.{function.__name__} at {tracer.source()} with arguments that a "
                    "graph cannot hold"
                )
            return function(*args, **kwargs)

        return made

    def over_numbers(function: Any) -> Any:
        @functools.wraps(function)
        def computed(*args: Any) -> Any:
            if tracer.recording() and has_proxy(args):
                return tracer.create_proxy("call_function", function, args, {})
            return function(*args)

        return computed

    def limits(function: Any) -> Any:
        def read(a: Any) -> Any:
            return tracer.read(a, lambda value: value) if isinstance(a, fx.Proxy) else a

        return lambda *args: function(*map(read, args))

    with ExitStack() as stack:
        patch = functools.partial(_patch, stack)
        patch(nn.Module, "__call__", call)
        patch(nn.Module, "__getattr__", get)
        patch(nn.Module, "__setattr__", set_)
        patch(torch.autograd.Function, "apply", classmethod(applied))
        patch(torch.autocast, "__enter__", entered)
        patch(torch.autocast, "__exit__", left)
        patch(torch.backends.mha, "get_fastpath_enabled", fused)
        patch(
            torch.utils.checkpoint,
            "_checkpoint_impl",
            lambda f, args, kwargs, **_: f(*args, **kwargs),
        )
        # What torch._disable_dynamo would call: also reached where it was imported by name.
        patch(
            inspect.unwrap(torch.utils.checkpoint.checkpoint), "__dynamo_disable", _uncheckpointed
        )
        for name in (*_FACTORIES, *_RANDOM):
            patch(torch, name, factory(getattr(torch, name)))
        for name in _MATH:
            patch(math, name, over_numbers(getattr(math, name)))
        for name in ("finfo", "iinfo"):
            patch(torch, name, limits(getattr(torch, name)))
        stack.enter_context(_Mode(tracer))
        yield


def _patch(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    if name in owner.__dict__:
        stack.callback(setattr, owner, name, owner.__dict__[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, new)


def _uncheckpointed(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    if function is None:
        return lambda decorated: decorated
    return function(*args, **{k: v for k, v in kwargs.items() if k not in _CHECKPOINT_OPTIONS})


def _computed_by_hooks(model: nn.Module) -> dict[str, str]:
    """Modules whose weights old-style hooks of torch.nn.utils compute: path -> reason."""
    return {
        path: f"its weights are computed by the hook {type(hook).__name__}"
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if path and type(hook).__module__.startswith("torch.nn.utils.")
    }


def _about_meta(error: BaseException) -> bool:
    """Whether an operator failed as it has no data, or no kernel, on the meta device."""
    return isinstance(error, NotImplementedError) or "meta" in str(error).lower()


def _any_leaf(tree: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a leaf of an argument passes `test`; without reading proxies, as pytree would."""
    if type(tree) in (tuple, list, torch.Size):
        return any(_any_leaf(item, test) for item in tree)
    if type(tree) is dict:
        return any(_any_leaf(item, test) for item in tree.values())
    if type(tree) is slice:
        return any(_any_leaf(item, test) for item in (tree.start, tree.stop, tree.step))
    return test(tree)


def _entry(key: Any) -> object:
    return next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return type(value), repr(value)
    return type(value), value
