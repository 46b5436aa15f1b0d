"""Module + inputs -> torch.fx graph whose every node carries its value: proxies answer Python from meta tensors."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import operator
import os
import random
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from types import TracebackType
from typing import Any

import torch
import torch.utils._pytree as pytree
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.fx.node import base_types, map_aggregate
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from netaugfx.errors import InputError, NetAugFXError, TraceError

_HERE = os.path.dirname(__file__) + os.sep
_TORCH = os.path.dirname(torch.__file__) + os.sep
_META = torch.device("meta")
_FACTORIES = [
    "arange",
    "as_tensor",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_strided",
    "eye",
    "full",
    "hamming_window",
    "hann_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
]
_MATH = ["cos", "exp", "floor", "log", "log10", "log2", "pow", "sin", "sqrt", "ceil"]
_CHECKPOINT_OPTIONS = [
    "use_reentrant",
    "preserve_rng_state",
    "context_fn",
    "determinism_check",
    "debug",
    "early_stop",
    "respect_saved_tensors_hooks",
]
_READS = ("item", "tolist", "numpy", "__array__")


@dataclass(frozen=True)
class Guard:
    """A value that Python read while tracing: the graph holds only where `node` still reads as `value`."""

    node: fx.Node
    value: object
    source: str

    def holds(self, value: Any) -> bool:
        """Whether a new `value` of the node would be read as the recorded one."""
        if isinstance(self.value, bool):
            return bool(value) == self.value
        if isinstance(self.value, int) and not isinstance(value, (int, float)):
            return len(value) == self.value
        return bool(
            type(self.value)(value) == self.value
            if isinstance(value, float)
            else value == self.value
        )


@dataclass(frozen=True, eq=False)
class Inputs:
    """How call arguments map to placeholders: tensor leaves become placeholders, other leaves are constants."""

    names: tuple[str, ...]
    tensors: list[Tensor]
    key: Hashable
    structure: Hashable
    rebuild: Callable[[list[Any]], tuple[tuple[Any, ...], dict[str, Any]]]

    @staticmethod
    def of(
        model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
    ) -> Inputs:
        """Bind a call to the signature of `model.forward`, so that `f(x)` and `f(input=x)` are the same.

        Raises:
            InputError: the arguments do not fit the signature, or hold no tensor.
        """
        try:
            bound = inspect.signature(model.forward).bind(*args, **(kwargs or {}))
        except TypeError as error:
            raise InputError(
                f"The inputs do not fit {type(model).__name__}.forward: {error}."
            ) from None
        bound.apply_defaults()
        leaves, spec = pytree.tree_flatten_with_path(dict(bound.arguments))
        places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, Tensor)]
        if not places:
            raise InputError(
                f"The inputs of {type(model).__name__}.forward hold no tensor: pass at least one example tensor."
            )
        flat = [leaf for _, leaf in leaves]
        tensors: list[Tensor] = [flat[i] for i in places]
        constants = tuple(_hashable(leaf) for i, leaf in enumerate(flat) if i not in set(places))

        def rebuild(values: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            filled = list(flat)
            for place, value in zip(places, values, strict=True):
                filled[place] = value
            call = inspect.BoundArguments(bound.signature, pytree.tree_unflatten(filled, spec))
            return call.args, call.kwargs

        shape = (str(spec), tuple(places), constants)
        return Inputs(
            names=tuple("_".join(str(_entry(key)) for key in leaves[i][0]) for i in places),
            tensors=tensors,
            key=(shape, tuple((tuple(t.shape), t.dtype, t.device) for t in tensors)),
            structure=(shape, tuple((t.ndim, t.dtype) for t in tensors)),
            rebuild=rebuild,
        )


@dataclass(frozen=True, eq=False)
class Traced:
    """A graph and what it holds for. Node meta: "val" (on the meta device), "path" (module), "source" (file:line)."""

    graph: fx.Graph
    root: nn.Module
    inputs: Inputs
    guards: tuple[Guard, ...]
    opaque: Mapping[str, str]
    constants: Mapping[str, Tensor]
    device: torch.device

    def matches(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> bool:
        """Whether tracing with these inputs would take the same path through the user's Python."""
        new = Inputs.of(self.root, args, kwargs)
        if new.structure != self.inputs.structure:
            return False
        if not self.guards or new.key == self.inputs.key:
            return True
        needed = {guard.node for guard in self.guards}
        for node in reversed(self.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        tensors = iter([_to_meta(t) for t in new.tensors])
        values: dict[fx.Node, Any] = {}
        try:
            for node in self.graph.nodes:
                if node.op == "placeholder":
                    values[node] = next(tensors)
                elif node in needed:
                    args_, kwargs_ = _substitute((node.args, node.kwargs), values.__getitem__)
                    values[node] = _compute(
                        self.root, self.device, node.op, node.target, args_, kwargs_
                    )
            return all(guard.holds(values[guard.node]) for guard in self.guards)
        except Exception:
            return False  # an operator, or a leaf, that refuses these shapes


def is_torch_leaf(module: nn.Module, path: str) -> bool:
    """The default for `is_leaf`: layers defined in torch.nn, and parametrised ones."""
    defined = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return parametrize.is_parametrized(module) or (defined and not isinstance(module, containers))


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    is_leaf: Callable[[nn.Module, str], bool] | None = None,
    opaque: Mapping[str, str] | None = None,
) -> Traced:
    """Trace the forward of a throw-away copy of `model` on the meta device, in the train/eval state it is in.

    Python control flow over sizes is followed and recorded as guards. A module that cannot be traced through (it
    reads tensor data, say) becomes a leaf and is named in `opaque`, the smallest such module first.

    Args:
        is_leaf: `(module, path) -> bool`, which modules to keep as one `call_module` node.
        opaque: module path -> reason, further modules to keep as leaves.

    Returns:
        Traced, whose graph refers to the copy. The model and the global random states are as before.

    Raises:
        InputError: the model does not accept these inputs.
        TraceError: the model cannot be copied, or its own forward (not a submodule's) cannot be traced.
    """
    inputs = Inputs.of(model, args, kwargs)
    leaves = dict(opaque or {})
    with _random_states_kept():
        while True:
            try:
                return _Tracer(model, inputs, is_leaf or is_torch_leaf, leaves).run()
            except _Retry as retry:
                leaves[retry.path] = retry.reason


class _Untraceable(BaseException):
    """Not an Exception, so that no `except Exception` in user code swallows it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Retry(BaseException):
    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason


class _Value(fx.Proxy):
    """A proxy that answers Python from the value of its node, and records what it answered."""

    tracer: _Tracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # isinstance(x, Tensor) is as it would be without tracing
        return type(self.node.meta["val"])

    def __repr__(self) -> str:
        return str(self.node.meta["val"])

    def __getattr__(self, name: str) -> Any:
        value = self.node.meta["val"]
        with self.tracer.phase("meta"):
            attribute = getattr(value, name)
        if isinstance(value, Mapping) and name in ("keys", "values", "items", "get"):
            return getattr({key: self[key] for key in value}, name)
        if callable(attribute):
            return functools.partial(self.tracer.create_proxy_method, self, name)
        result = self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return self.tracer.read(result, attribute) if isinstance(attribute, str) else result

    def __bool__(self) -> bool:
        return self.tracer.read(self, bool)

    def __int__(self) -> int:
        return self.tracer.read(self, int)

    def __float__(self) -> float:
        return self.tracer.read(self, float)

    def __index__(self) -> int:
        return self.tracer.read(self, operator.index)

    def __len__(self) -> int:
        return self.tracer.read(self, len)

    def __hash__(self) -> int:
        value = self.node.meta["val"]
        if isinstance(value, Tensor):
            return id(self)
        return hash(self.tracer.read(self, value) if self.tracer.alive else value)

    def __eq__(self, other: object) -> Any:
        if (
            not self.tracer.alive
        ):  # left behind in a cache of the user's: never equal to a later key
            return self is other
        return self.tracer.create_proxy("call_function", operator.eq, (self, other), {})

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.node.meta["val"], Mapping):
            return iter(list(self.node.meta["val"]))
        return iter([self[i] for i in range(len(self))])

    def __contains__(self, item: object) -> bool:
        return bool(self.tracer.create_proxy("call_function", operator.contains, (self, item), {}))

    def __setitem__(self, index: object, value: object) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __divmod__(self, other: Any) -> tuple[Any, Any]:
        return self // other, self % other

    def __ceil__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})

    def __trunc__(self) -> Any:
        return self.tracer.create_proxy("call_function", math.trunc, (self,), {})

    def __round__(self, digits: int | None = None) -> Any:
        return self.tracer.create_proxy("call_function", round, (self, digits), {})


class _Number(_Value):
    """A proxy of what cannot be iterated, so that `isinstance(n, Iterable)` is False."""

    __iter__ = __len__ = __contains__ = None  # type: ignore[assignment]


def _in_place(name: str) -> Callable[[_Value, Any], Any]:
    def method(self: _Value, other: Any) -> Any:
        plain = (
            "i" + name
            if isinstance(self.node.meta["val"], Tensor)
            else name.strip("_") + "_" * (name in ("and", "or"))
        )
        return self.tracer.create_proxy(
            "call_function", getattr(operator, plain), (self, other), {}
        )

    return method


for _name in [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]:
    setattr(_Value, f"__i{_name}__", _in_place(_name))


class _Tracer(fx.proxy.TracerBase):
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        is_leaf: Callable[[nn.Module, str], bool],
        opaque: Mapping[str, str],
    ) -> None:
        self.model, self.inputs, self.is_leaf, self.opaque = model, inputs, is_leaf, dict(opaque)
        self.graph = fx.Graph()
        self.root = _meta_copy(model)
        self.device = _device_of(model, inputs)
        self.module_paths = {id(module): path for path, module in self.root.named_modules()}
        self.tensor_paths = _tensor_paths(self.root)
        self.attributes: dict[str, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.guards: dict[tuple[fx.Node, str], Guard] = {}
        self.stack, self.traced = [""], set[str]()
        self.phase_now, self.thread, self.alive = "trace", threading.get_ident(), True
        self.autocast = _autocast_state()
        self.draws = _python_random_state()
        self.plain_error: BaseException | None = None

    # The walk over modules

    def run(self) -> Traced:
        metas = [_to_meta(t) for t in self.inputs.tensors]
        code = inspect.unwrap(type(self.root).forward).__code__
        origin = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
        values = []
        for name, meta in zip(self.inputs.names, metas, strict=True):
            node = self.graph.placeholder(name)
            node.meta.update(val=meta, path="", source=origin)
            values.append(self.proxy(node))
        args, kwargs = self.inputs.rebuild(values)
        try:
            with _tracing(self):
                output = self.create_arg(self.root.forward(*args, **kwargs))
                self.check_draws("")
        except NetAugFXError:
            raise
        except _Untraceable as error:
            raise TraceError(self.root_reason(error.reason)) from None
        except Exception as error:
            raise TraceError(self.root_reason(self.diagnose(error))) from error
        finally:
            self.alive = False
        node = self.graph.output(output)
        node.meta.update(val=_substitute(output, lambda n: n.meta["val"]), path="", source=origin)
        guards = tuple(self.guards.values())
        opaque = {path: reason for path, reason in self.opaque.items()}
        return Traced(
            self.graph, self.root, self.inputs, guards, opaque, self.constants, self.device
        )

    def root_reason(self, reason: str) -> str:
        name = type(self.model).__name__
        return (
            f"Cannot trace {name}: its forward {reason}. Move these lines into a submodule (it is then kept as it is), "
            "or make them depend on shapes only."
        )

    def call_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.module_paths.get(id(module))
        if path is None:  # made in a forward: a slice of a Sequential, or a layer without state
            if any(
                id(t) not in self.tensor_paths for t in [*module.parameters(), *module.buffers()]
            ):
                raise _Untraceable(
                    f"creates a {type(module).__name__} with parameters at {self.source()}"
                )
            return module.forward(*args, **kwargs)
        if path and (path in self.opaque or self.is_leaf(module, path)):
            return self.create_proxy("call_module", path, args, kwargs)
        mark = (
            next(reversed(self.graph.nodes)),
            dict(self.guards),
            dict(self.opaque),
            set(self.traced),
        )
        self.stack.append(path)
        try:
            result = module.forward(*args, **kwargs)
            self.check_draws(path)
            self.traced.add(path)
            return result
        except NetAugFXError:
            raise
        except _Untraceable as error:
            reason = error.reason
        except Exception as error:
            reason = self.diagnose(error)
        finally:
            self.stack.pop()
        if not path:
            raise _Untraceable(reason)
        if (
            path in mark[3]
        ):  # its first call was traced through: start again, so that every call is a leaf
            raise _Retry(path, reason)
        for node in reversed(self.graph.nodes):
            if node is mark[0]:
                break
            self.graph.erase_node(node)
        self.guards, self.opaque, self.traced = mark[1:]
        alive = set(self.graph.nodes)
        self.attributes = {name: node for name, node in self.attributes.items() if node in alive}
        self.opaque[path] = reason
        return self.create_proxy("call_module", path, args, kwargs)

    def check_draws(self, path: str) -> None:
        if _python_random_state() != self.draws:
            where = f"module '{path}'" if path else "the model's own forward"
            raise TraceError(
                f"Cannot trace {type(self.model).__name__}: {where} ({type(self.root.get_submodule(path)).__name__}) draws "
                "from Python's or numpy's random module, and such a draw would be frozen into the graph. Draw with "
                "torch.rand instead, or name the module in opaque=."
            )

    def diagnose(self, error: Exception) -> str:
        """Why the forward failed; raises InputError where it fails without tracing too."""
        source = _source_of(error.__traceback__)
        text = str(error).strip().split("\n")[0] or type(error).__name__
        if not isinstance(error, NotImplementedError) and "meta" not in text.lower():
            if self.plain_error is None:
                self.plain_error = self.run_plain()
            if type(self.plain_error) is type(error) and str(self.plain_error) == str(error):
                shapes = ", ".join(
                    f"{name}: {tuple(t.shape)} {t.dtype}"
                    for name, t in zip(self.inputs.names, self.inputs.tensors, strict=True)
                )
                raise InputError(
                    f"{type(self.model).__name__} does not accept inputs of shape {shapes}: {text} ({source}). "
                    "Pass example inputs that the model itself runs on."
                ) from error
        return f"fails under tracing at {source}: {text}"

    def run_plain(self) -> BaseException:
        with self.phase("meta"), _random_states_kept(), _META:
            try:
                args, kwargs = self.inputs.rebuild([_to_meta(t) for t in self.inputs.tensors])
                _meta_copy(self.model).forward(*args, **kwargs)
            except Exception as error:
                return error
        return TraceError("none")

    # Nodes and values

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before, self.phase_now = self.phase_now, name
        try:
            yield
        finally:
            self.phase_now = before

    def recording(self) -> bool:
        return self.alive and self.phase_now == "trace" and threading.get_ident() == self.thread

    def proxy(self, node: fx.Node) -> fx.Proxy:
        number = isinstance(node.meta["val"], (int, float, complex, torch.dtype, torch.device))
        return (_Number if number else _Value)(node, self)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        value = self.value_of(kind, target, args, kwargs)
        node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        node.meta.update(val=value, path=self.stack[-1], source=self.source())
        return node

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *_: Any, **__: Any
    ) -> Any:
        if not self.alive:
            raise TraceError(
                "A value left over from a finished trace is used: clear the cache that kept it."
            )
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        return None if node.meta["val"] is None else self.proxy(node)

    def create_proxy_method(self, owner: _Value, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.create_proxy("call_method", name, (owner, *args), kwargs)

    def value_of(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if _autocast_state() != self.autocast:
            raise _Untraceable(f"switches autocast at {self.source()}")
        if kind == "call_method" and target in _READS:
            raise _Untraceable(f"reads tensor data ({target}) at {self.source()}")
        args, kwargs = _substitute((args, kwargs), lambda node: node.meta["val"])
        if kind == "call_module":
            return self.value_of_leaf(target, args, kwargs)
        with self.phase("meta"):
            return _compute(self.root, self.device, kind, target, args, kwargs)

    def value_of_leaf(self, path: str, args: Any, kwargs: Any) -> Any:
        torch_leaf = is_torch_leaf(self.root.get_submodule(path), path)
        try:
            with ExitStack() as stack:
                stack.enter_context(self.phase("meta"))
                if not torch_leaf:
                    stack.enter_context(_random_states_kept())
                return _compute(self.root, self.device, "call_module", path, args, kwargs)
        except Exception as error:
            if path not in self.opaque:
                raise
            first = error
        try:  # it reads data: run a real copy on random data
            with self.phase("real"), _random_states_kept(), ExitStack() as stack:
                device = torch.device("cpu") if self.device.type == "meta" else self.device
                module = _real_copy(self.model.get_submodule(path), device)
                generator = torch.Generator().manual_seed(0)
                args, kwargs = pytree.tree_map_only(
                    Tensor, lambda t: _materialise(t, generator, device), (args, kwargs)
                )
                return pytree.tree_map_only(Tensor, _to_meta, module(*args, **kwargs))
        except Exception as error:
            raise _Untraceable(
                f"{self.opaque[path]}, and its module '{path}' does not run alone: {error}"
            ) from first

    def read(self, proxy: Any, convert: Any) -> Any:
        """What Python reads from `proxy`: recorded as a guard."""
        if not self.alive:
            return convert(proxy.node.meta["val"])
        value = proxy.node.meta["val"]
        if isinstance(value, Tensor) and convert is not len:
            raise _Untraceable(f"reads tensor data ({convert.__name__}) at {self.source()}")
        result = (
            convert(value)
            if callable(convert) and not isinstance(convert, type(value))
            else convert
        )
        guard = Guard(proxy.node, result, self.source())
        self.guards.setdefault((proxy.node, f"{type(result).__name__} {result}"), guard)
        return result

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            path = self.tensor_paths.get(id(a)) or self.keep_constant(a)
            if path not in self.attributes:
                self.attributes[path] = self.create_node("get_attr", path, (), {})
            return self.attributes[path]
        if isinstance(a, torch.Size):
            return tuple(self.create_arg(item) for item in a)
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return self.create_node("call_function", type(a), tuple(map(self.create_arg, a)), {})
        if is_dataclass(a) and not isinstance(a, type):
            items = {
                field.name: self.create_arg(getattr(a, field.name))
                for field in fields(a)
                if field.init
            }
            return self.create_node("call_function", type(a), (), items)
        if isinstance(a, dict) and type(a) not in (dict, fx.immutable_collections.immutable_dict):
            return self.create_node("call_function", type(a), (self.create_arg(dict(a)),), {})
        return super().create_arg(a)

    def keep_constant(self, tensor: Tensor) -> str:
        path = f"_tensor_constant{len(self.constants)}"
        while hasattr(self.root, path):
            path += "_"
        self.constants[path] = tensor
        meta = _to_meta(tensor)
        self.root.register_buffer(path, meta, persistent=False)
        self.tensor_paths[id(tensor)] = self.tensor_paths[id(meta)] = path
        return path

    def source(self) -> str:
        """The innermost line of user code that is running, as "file.py:41"."""
        frame, inside = sys._getframe(1), ""
        while frame is not None and frame.f_code is not _Tracer.run.__code__:
            file = frame.f_code.co_filename
            if _is_user(file):
                return f"{os.path.basename(file)}:{frame.f_lineno}"
            if file.startswith(_TORCH) and frame.f_code.co_name == "forward":
                inside = inside or f"{os.path.basename(file)}:{frame.f_lineno}"
            frame = frame.f_back  # type: ignore[assignment]
        return inside or type(self.model).__name__


class _Mode(TorchFunctionMode):
    """Turns functions of torch over proxies, or over the copy's own tensors, into nodes."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tracer = kwargs or {}, self.tracer
        if not tracer.recording():
            return func(*args, **kwargs)
        if func is torch._C._set_grad_enabled:
            func(*args)
            tracer.create_proxy("call_function", func, args, kwargs)
            return None
        if not _any_leaf(
            (args, kwargs), lambda a: isinstance(a, fx.Proxy) or id(a) in tracer.tensor_paths
        ):
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") == "__get__":
            return getattr(tracer.proxy(tracer.create_arg(args[0])), func.__self__.__name__)
        if is_tensor_method_or_property(func):
            return tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return tracer.create_proxy("call_function", func, args, kwargs)


@contextmanager
def _tracing(tracer: _Tracer) -> Iterator[None]:
    """Everything that tracing replaces, for this thread, while it runs."""
    module_call, module_getattr = nn.Module.__call__, nn.Module.__getattr__
    module_setattr = nn.Module.__setattr__
    apply = torch.autograd.Function.apply
    checkpoint = torch.utils.checkpoint

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tracer.recording():
            return tracer.call_module(module, args, kwargs)
        if threading.get_ident() == tracer.thread and tracer.alive:
            return module.forward(*args, **kwargs)  # without hooks
        return module_call(module, *args, **kwargs)

    def get(module: nn.Module, name: str) -> Any:
        value = module_getattr(module, name)
        if tracer.recording() and isinstance(value, Tensor) and id(value) in tracer.tensor_paths:
            return tracer.proxy(tracer.create_arg(value))
        return value

    def set_(module: nn.Module, name: str, value: Any) -> None:
        if tracer.recording() and (name in module._buffers or name in module._parameters):
            own = module._buffers.get(name, module._parameters.get(name))
            if isinstance(value, fx.Proxy) and _updated(value.node) == tracer.tensor_paths.get(
                id(own)
            ):
                return
            raise _Untraceable(f"assigns to the parameter or buffer '{name}' at {tracer.source()}")
        module_setattr(module, name, value)

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if tracer.recording() and _any_leaf((args, kwargs), lambda a: isinstance(a, fx.Proxy)):
            raise _Untraceable(f"has a backward of its own ({cls.__name__}) at {tracer.source()}")
        return apply.__func__(cls, *args, **kwargs)  # type: ignore[attr-defined]

    def factory(function: Any) -> Any:
        plain = (*base_types, fx.Proxy, type(None))

        @functools.wraps(function)
        def made(*args: Any, **kwargs: Any) -> Any:
            if tracer.recording() and not _any_leaf(
                (args, kwargs), lambda a: not isinstance(a, plain)
            ):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return made

    def over_numbers(function: Any) -> Any:
        def computed(*args: Any) -> Any:
            if tracer.recording() and any(isinstance(a, fx.Proxy) for a in args):
                return tracer.create_proxy("call_function", function, args, {})
            return function(*args)

        return computed

    def over_dtype(function: Any) -> Any:
        return lambda *a: function(
            *(tracer.read(i, i.node.meta["val"]) if isinstance(i, fx.Proxy) else i for i in a)
        )

    with ExitStack() as stack:
        patch = functools.partial(_patched, stack)
        patch(nn.Module, "__call__", call)
        patch(nn.Module, "__getattr__", get)
        patch(nn.Module, "__setattr__", set_)
        patch(torch.autograd.Function, "apply", classmethod(applied))
        patch(
            checkpoint,
            "_checkpoint_impl",
            lambda function, args, kwargs, **_: function(*args, **kwargs),
        )
        patch(inspect.unwrap(checkpoint.checkpoint), "__dynamo_disable", _uncheckpointed)
        for name in _FACTORIES:
            patch(torch, name, factory(getattr(torch, name)))
        for name in _MATH:
            patch(math, name, over_numbers(getattr(math, name)))
        for name in ("finfo", "iinfo"):
            patch(torch, name, over_dtype(getattr(torch, name)))
        stack.enter_context(_Mode(tracer))
        yield


def _patched(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    missing = object()
    old = owner.__dict__.get(name, missing)
    setattr(owner, name, new)
    stack.callback(
        functools.partial(delattr, owner, name)
        if old is missing
        else lambda: setattr(owner, name, old)
    )


def _uncheckpointed(function: Any = None, *args: Any, **kwargs: Any) -> Any:
    if function is None:
        return lambda decorated: decorated
    return function(*args, **{k: v for k, v in kwargs.items() if k not in _CHECKPOINT_OPTIONS})


def _compute(
    root: nn.Module, device: torch.device, kind: str, target: Any, args: Any, kwargs: Any
) -> Any:
    """The value of one node from the values of its arguments, on the meta device."""
    if kind == "get_attr":
        return functools.reduce(getattr, target.split("."), root)
    if target is getattr and isinstance(args[0], Tensor):
        if args[1] == "device":
            return device
        if args[1] in ("is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu"):
            return args[1] == f"is_{device.type}"
    if target is torch._C._set_grad_enabled:
        return None
    if kind == "call_function" and getattr(target, "__module__", "") in (
        "_operator",
        "builtins",
        "math",
    ):
        return target(*args, **kwargs)
    if kind == "call_method" and target in ("cpu", "cuda") and isinstance(args[0], Tensor):
        return args[0]
    args, kwargs = map_aggregate(
        (args, kwargs), lambda a: _META if isinstance(a, torch.device) else a
    )
    args, kwargs = list(args), dict(kwargs)
    if isinstance(kwargs.get("device"), (str, int)):
        kwargs["device"] = _META
    if (
        kind == "call_method"
        and target == "to"
        and len(args) > 1
        and isinstance(args[1], (str, int))
    ):
        args[1] = _META
    with _META:
        if kind == "call_module":
            return _on_meta(root.get_submodule(target)(*args, **kwargs))
        if kind == "call_method":
            return _on_meta(getattr(args[0], target)(*args[1:], **kwargs))
        return _on_meta(target(*args, **kwargs))


def _on_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value if value.device.type == "meta" else _to_meta(value)
    if isinstance(value, (tuple, list, dict)) and not isinstance(value, torch.Size):
        return pytree.tree_map_only(
            Tensor, lambda t: t if t.device.type == "meta" else _to_meta(t), value
        )
    return value


def _substitute(tree: Any, value: Callable[[fx.Node], Any]) -> Any:
    """The tree with each node replaced by its value; plain lists, dicts and slices again."""
    if isinstance(tree, fx.Node):
        return value(tree)
    if isinstance(tree, tuple):
        return tuple(_substitute(item, value) for item in tree)
    if isinstance(tree, list):
        return [_substitute(item, value) for item in tree]
    if isinstance(tree, dict):
        return {key: _substitute(item, value) for key, item in tree.items()}
    if isinstance(tree, (slice, range)):
        return type(tree)(
            *(_substitute(item, value) for item in (tree.start, tree.stop, tree.step))
        )
    return tree


def _any_leaf(tree: Any, test: Callable[[Any], bool]) -> bool:
    if type(tree) in (tuple, list, torch.Size):
        return any(_any_leaf(item, test) for item in tree)
    if type(tree) is dict:
        return any(_any_leaf(item, test) for item in tree.values())
    if type(tree) is slice:
        return any(_any_leaf(item, test) for item in (tree.start, tree.stop, tree.step))
    return test(tree)


def _updated(node: fx.Node) -> object:
    """The path of the attribute that `node` is an in-place update of."""
    while (
        node.op in ("call_function", "call_method")
        and node.args
        and isinstance(node.args[0], fx.Node)
    ):
        if not (
            (node.op == "call_method" and str(node.target).endswith("_"))
            or (node.op == "call_function" and getattr(node.target, "__name__", "") in _IN_PLACE)
        ):
            return None
        node = node.args[0]
    return node.target if node.op == "get_attr" else None


_IN_PLACE = {
    f"i{name}"
    for name in [
        "add",
        "sub",
        "mul",
        "truediv",
        "floordiv",
        "mod",
        "pow",
        "matmul",
        "and",
        "or",
        "xor",
        "lshift",
        "rshift",
    ]
}


# Copies


def _meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy without hooks whose tensors are on the meta device; plain tensor attributes are buffers in it."""
    memo: dict[int, Any] = _hookless(model)
    plain: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        for name, tensor in module.__dict__.items():
            if isinstance(tensor, Tensor):
                if tensor.grad_fn is not None:
                    raise TraceError(
                        f"Cannot copy {type(model).__name__}: '{name}' of module '{path}' ({type(module).__name__}) is a "
                        "computed tensor, as old-style torch.nn.utils.weight_norm leaves it, and such a model cannot "
                        "be deep-copied. Use torch.nn.utils.parametrizations.weight_norm instead."
                    )
                memo[id(tensor)] = _to_meta(tensor)
                if not hasattr(type(module), name):
                    plain.append((path, name))
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if isinstance(tensor, nn.parameter.UninitializedTensorMixin):
                raise TraceError(
                    f"Module '{path}' ({type(module).__name__}) is lazy and has no shape yet: run the model once first."
                )
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _to_meta(tensor)
    try:
        root = copy.deepcopy(model, memo)
    except Exception as error:
        raise TraceError(
            f"Cannot copy {type(model).__name__}: copy.deepcopy fails with: {error}. Make the model deep-copyable; "
            "old-style torch.nn.utils.weight_norm becomes torch.nn.utils.parametrizations.weight_norm."
        ) from error
    for path, name in plain:
        module = root.get_submodule(path)
        module._buffers[name] = module.__dict__.pop(name)
        module._non_persistent_buffers_set.add(name)
    return root


def _hookless(model: nn.Module) -> dict[int, Any]:
    """A deepcopy memo that replaces every hook table by an empty one."""
    return {
        id(table): type(table)()
        for module in model.modules()
        for name, table in module.__dict__.items()
        if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        and isinstance(table, dict)
    }


def _real_copy(module: nn.Module, device: torch.device) -> nn.Module:
    module = copy.deepcopy(module, _hookless(module))
    tensors = [*module.parameters(), *module.buffers()]
    if any(t.device.type == "meta" for t in tensors):
        module.to_empty(device=device)
        for tensor in [*module.parameters(), *module.buffers()]:
            torch.nn.init.ones_(tensor)
    return module


def _to_meta(tensor: Tensor) -> Tensor:
    try:
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    except RuntimeError:
        meta = tensor.detach().to("meta")
    if isinstance(tensor, nn.Parameter):
        meta = nn.Parameter(meta, requires_grad=tensor.requires_grad)
        meta.__dict__.update(tensor.__dict__)
        return meta
    return meta.requires_grad_(tensor.requires_grad)


def _materialise(tensor: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    if not tensor.dtype.is_floating_point:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    drawn = torch.randn(tensor.shape, generator=generator).to(device, tensor.dtype)
    return drawn.requires_grad_(tensor.requires_grad)


def _tensor_paths(root: nn.Module) -> dict[int, str]:
    paths: dict[int, str] = {}
    for path, tensor in [*root.named_parameters(), *root.named_buffers()]:
        paths.setdefault(id(tensor), path)
    for path, module in root.named_modules():
        for name, tensor in module.__dict__.items():
            if isinstance(tensor, Tensor):
                paths.setdefault(id(tensor), f"{path}.{name}".lstrip("."))
    return paths


def _device_of(model: nn.Module, inputs: Inputs) -> torch.device:
    tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
    return next((t.device for t in tensors if t.device.type != "meta"), _META)


# The state of the world


def _autocast_state() -> tuple[bool, bool]:
    return torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _python_random_state() -> Hashable:
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    return random.getstate(), drawn and (drawn[1].tobytes(), *drawn[2:])


@contextmanager
def _random_states_kept() -> Iterator[None]:
    numpy, cuda = (
        sys.modules.get("numpy"),
        torch.cuda.is_available() and torch.cuda.is_initialized(),
    )
    python, cpu = random.getstate(), torch.get_rng_state()
    drawn = numpy.random.get_state() if numpy is not None else None
    devices = torch.cuda.get_rng_state_all() if cuda else []
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.random.set_state(drawn)
        if cuda:
            torch.cuda.set_rng_state_all(devices)


def _is_user(file: str) -> bool:
    return not file.startswith((_TORCH, _HERE, "<"))


def _source_of(traceback: TracebackType | None) -> str:
    source = "an unknown line"
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if _is_user(file):
            source = f"{os.path.basename(file)}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return source


def _entry(key: Any) -> object:
    return next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return type(value), repr(value)
    return type(value), value
