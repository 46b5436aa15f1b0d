"""The recorder of a trace: makes nodes with their values, answers what proxies ask, and notes what Python read."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import TraceError
from .attributes import Attributes
from .draws import Draws
from .guards import Guard, Untraceable, itself, type_of
from .lines import running_source
from .meta import META, Remembered, compute, substitute, to_meta
from .proxy import OPERATORS, Number, Value

SAME = object()  # the value on other data of what data cannot change
_READS = ("item", "tolist", "numpy", "__array__")
# methods that change the shape of what they are called on
_RESHAPES = {"squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_", "swapdims_"}
_IN_PLACE = {f"i{name}" for name in OPERATORS}


def updated_attribute(node: fx.Node) -> object:
    """The target of the `get_attr` node that `node` is a chain of in-place updates of, or None."""
    while node.args and node.op.startswith("call") and isinstance(node.args[0], fx.Node):
        method = node.op == "call_method" and str(node.target).endswith("_")
        if not method and getattr(node.target, "__name__", "") not in _IN_PLACE:
            return None
        node = node.args[0]
    return node.target if node.op == "get_attr" else None


class Recorder(fx.proxy.TracerBase):
    """Makes nodes that carry their value ("val"), module ("path") and user line ("source")."""

    alive, _phase = True, "trace"

    def __init__(
        self, root: nn.Module, device: torch.device, remembered: Remembered, draws: Draws
    ) -> None:
        self.root, self.device, self.graph, self.draws = root, device, fx.Graph(), draws
        self.remembered = remembered
        self.state = Attributes(root)
        self.tensor_paths = {id(tensor): path for path, tensor in _named_tensors(root)}
        self.attributes: dict[str, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.guards: dict[tuple[fx.Node, str], Guard] = {}
        self.others: dict[fx.Node, Any] = {}  # what data may change -> its value on other data
        self.redrawn: Any = SAME  # likewise of the value that was computed last
        self.on_others = False  # whether a value on other data is what is computed now
        self.indexed: list[tuple[int, int, tuple[fx.Node, str]]] = []  # frame, instruction, guard
        self.stack = [""]
        self.thread = threading.get_ident()
        self._inference = torch.is_inference_mode_enabled()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What Python does now: "trace", ask for a "leaf", or compute with "meta" or "real" tensors."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def close(self) -> None:
        """End the trace and let go of the model: proxies may live on in caches of the user's."""
        vars(self).clear()
        self.alive = False

    def recording(self) -> bool:
        """Whether this thread is running user code that is being traced."""
        return self.alive and self._phase == "trace" and threading.get_ident() == self.thread

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *_: Any, **__: Any
    ) -> Any:
        """A new node as a proxy; None where its value is None, as Python tests that by identity."""
        if not self.alive:
            raise TraceError(
                "A proxy of a finished trace is in use: a forward kept it outside of the model. "
                "Clear the cache that it is in."
            )
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        value = node.meta["val"]
        if node in self.others and _taken_out(node):
            self.read_of(node, type_of)
            if isinstance(value, bool):
                return self.read_of(node, bool)  # Python tests these by identity, too
        if kind == "call_method" and target in _RESHAPES and isinstance(args[0], fx.Proxy):
            same = args[0]
            same.node = node  # from here on it is read in its new shape
            return same
        return None if value is None else self.proxy(node)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, *_: Any
    ) -> fx.Node:
        """A new node at the end of the graph, with its meta."""
        if torch.is_inference_mode_enabled() != self._inference:
            raise Untraceable(f"switches inference_mode at {self.source()}")
        if kind == "call_method" and target in _READS:
            raise Untraceable(f"reads tensor data ({target}) at {self.source()}")
        values = substitute((args, kwargs), lambda node: node.meta["val"])
        self.redrawn = SAME
        try:
            value = self.value_of(kind, target, *values)
        except (KeyError, IndexError):  # which the user may catch
            if target is operator.getitem and args[0] in self.others:
                self.read_of(args[0], tuple if isinstance(values[0][0], Mapping) else len)
            raise
        other = self.redrawn
        if self.others:
            other = self._on_other_data(kind, target, args, kwargs, value, other)
        node = self.graph.create_node(kind, target, args, kwargs, name)
        node.meta.update(val=value, path=self.stack[-1], source=self.source())
        if other is not SAME:
            self.others[node] = other
        return node

    def _on_other_data(
        self, kind: str, target: Any, args: Any, kwargs: Any, value: Any, other: Any
    ) -> Any:
        """Return a node's value on other data: `other`, but for what its arguments change."""
        changed = []

        def of(node: fx.Node) -> Any:
            if node in self.others:
                changed.append(node)
                return self.others[node]
            known = node.meta["val"]
            return copy(known) if isinstance(known, list | dict) else known

        others = substitute((args, kwargs), of)
        if not changed:
            return other
        self.on_others = True
        try:
            return self.value_of(kind, target, *others)
        except Exception:  # it does not go on with these sizes
            return value
        finally:
            self.on_others = False

    def value_of(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Compute a node's value from the values of its arguments, whose shapes stay as they are."""
        with self.phase("meta"):
            if kind == "call_method" and target in _RESHAPES:
                args = (torch.ops.aten.alias(args[0]), *args[1:])
            return compute(self.root, self.device, kind, target, args, kwargs, self.remembered)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node in the proxy that answers like its value."""
        atoms = (int, float, complex, torch.dtype, torch.device)
        return (Number if isinstance(node.meta["val"], atoms) else Value)(node, self)

    def read(
        self, proxy: Any, convert: Callable[[Any], Any], reader: FrameType | None = None
    ) -> Any:
        """What Python reads from `proxy`, recorded as a guard.

        The instruction of `reader` may turn out to be a call of torch: see `parsed`.
        """
        value = proxy.node.meta["val"]
        if isinstance(value, Tensor) and convert is not len:
            raise Untraceable(f"reads tensor data ({convert.__name__}) at {self.source()}")
        if not self.alive:
            return convert(value)
        known = len(self.guards)
        result = self.read_of(proxy.node, convert)
        if reader is not None and len(self.guards) > known:
            self.indexed.append((id(reader), reader.f_lasti, next(reversed(self.guards))))
        return result

    def read_of(self, node: fx.Node, convert: Callable[[Any], Any]) -> Any:
        """What Python gets from a node's value by `convert`, recorded as a guard."""
        result = convert(node.meta["val"])
        key = (node, f"{type(result)} {result}")
        if key not in self.guards:
            by_data = node in self.others
            self.guards[key] = Guard(node, result, self.source(), convert, by_data)
        return result

    def keys_read(self, proxy: Any) -> None:
        """Record that Python reads which keys a dictionary has, if data decide it."""
        if self.alive and proxy.node in self.others:
            self.read_of(proxy.node, tuple)

    def shown(self, proxy: Any) -> Any:
        """What Python makes text of: of a number or text, that is a read of it like any other."""
        value = proxy.node.meta["val"]
        if self.recording() and not isinstance(value, Tensor):
            lengths = isinstance(value, torch.Size) and proxy.node in self.others
            if lengths or isinstance(value, bool | int | float | str):
                return self.read(proxy, itself)
        return value

    def parsed(self, caller: FrameType) -> None:
        """Drop the guards of what only torch read: its parser of arguments tries `groups=n` as an integer.

        Args:
            caller: the frame that calls the function of torch, whose node will hold the proxies.
        """
        for frame, instruction, key in self.indexed:
            if (frame, instruction) == (id(caller), caller.f_lasti):
                del self.guards[key]
        self.indexed.clear()

    def check_reads(self) -> None:
        """Refuse what Python has read if it would read something else on other data."""
        for guard in self.guards.values() if self.others else ():
            if guard.by_data and not guard.holds(self.others[guard.node]):
                raise Untraceable(f"reads a length or value that depends on data at {guard.source}")

    def create_arg(self, a: Any) -> Any:
        """Turn an argument into what a node may hold; tensors become `get_attr` nodes."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor):
            path = self.tensor_paths.get(id(a)) or self._keep_constant(a)
            if path not in self.attributes:
                self.attributes[path] = self.create_node("get_attr", path, (), {})
            return self.attributes[path]
        if isinstance(a, torch.Size):
            return tuple(a)
        if isinstance(a, tuple) and hasattr(a, "_fields"):
            return self.create_node("call_function", type(a), tuple(map(self.create_arg, a)), {})
        if isinstance(a, dict) and any(isinstance(key, fx.Proxy) for key in a):
            a = {self.shown(k) if isinstance(k, fx.Proxy) else k: v for k, v in a.items()}
        if is_dataclass(a) and not isinstance(a, type):
            items = {f.name: self.create_arg(getattr(a, f.name)) for f in fields(a) if f.init}
            return self.create_node("call_function", type(a), (), items)
        if isinstance(a, dict) and type(a).__module__ not in ("builtins", fx.Node.__module__):
            return self.create_node("call_function", type(a), (self.create_arg(dict(a)),), {})
        return super().create_arg(a)

    def _keep_constant(self, tensor: Tensor) -> str:
        if tensor.device == META and self.device != META:
            raise Untraceable(
                f"reads what a module that is kept as it is has left behind, at {self.source()}"
            )
        path = f"_tensor_constant{len(self.constants)}"
        with self.phase("meta"):
            while hasattr(self.root, path):
                path += "_"
            self.root.register_buffer(path, to_meta(tensor), persistent=False)
        self.constants[path] = tensor
        self.tensor_paths[id(tensor)] = path
        return path

    def source(self) -> str:
        """The innermost line of user code that is running, as "file.py:41"."""
        return running_source() or type(self.root).__name__


def _taken_out(node: fx.Node) -> bool:
    """Whether a value comes as it is from what an opaque module gave, and not from an operator."""
    if node.op == "call_module":
        return True
    source: Any = node.args[0] if node.args else None
    held = isinstance(source, fx.Node) and not isinstance(source.meta["val"], Tensor | torch.Size)
    return held and (node.op == "call_method" or node.target in (operator.getitem, getattr))


def _named_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers (each under its first name), after tensors in plain attributes."""
    for path, module in root.named_modules():
        for name, tensor in module.__dict__.items():
            if isinstance(tensor, Tensor):
                yield f"{path}.{name}".lstrip("."), tensor
    yield from root.named_buffers()
    yield from root.named_parameters()
