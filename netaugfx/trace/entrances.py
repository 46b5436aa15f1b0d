"""Ways into torch's C code that pass over `__torch_function__`: there, a proxy would be taken for a tensor's memory."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType
from typing import Any

import torch
import torch._functorch.eager_transforms
import torch._functorch.predispatch
import torch.utils.dlpack
from torch import Tensor, fx
from torch.autograd import Function
from torch.autograd.function import FunctionMeta
from torch.autograd.variable import VariableMeta

from .functions import Applied, kept
from .guards import Untraceable
from .recorder import Recorder

_REFUSED: tuple[tuple[Any, str, str], ...] = (
    (torch._functorch.predispatch, "_add_batch_dim_impl", "torch.vmap"),
    (torch._functorch.eager_transforms, "_wrap_for_grad", "a transform of torch.func"),
    (torch._C, "fork", "torch.jit.fork"),
    (torch._C, "_create_function_from_trace", "torch.jit.trace"),
    (torch._C._nested, "nested_tensor", "torch.nested.nested_tensor"),  # type: ignore[attr-defined]
    *((room, "to_dlpack", "to_dlpack") for room in (torch, torch.utils.dlpack)),
)
# of torch: they make tensors of numbers, and have no tensor to tell that they are traced
FACTORIES = (
    *("arange", "as_tensor", "bartlett_window", "blackman_window", "eye", "full", "hamming_window"),
    *("hann_window", "linspace", "logspace", "ones", "scalar_tensor", "tensor", "tril_indices"),
    *("triu_indices", "zeros"),
)
RANDOM = ("empty", "normal", "rand", "randint", "randn", "randperm")
_LEGACY = [
    f"{name}Tensor"
    for name in "Float Double Half BFloat16 Long Int Short Char Byte Bool".split()  # noqa: SIM905
]
_LOCAL = threading.local()  # .tracer: who records in this thread


class Legacy:
    """What stands for `torch.FloatTensor` and its like during a trace: a call of it is seen, all else is its own."""

    def __init__(self, original: Any, call: Callable[..., Any]) -> None:
        self.original, self.call = original, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def __instancecheck__(self, x: Any) -> bool:
        if not isinstance(x, fx.Proxy):
            return isinstance(x, self.original)
        value, here = x.node.meta["val"], x.tracer.device.type == "cuda"  # type: ignore[attr-defined]
        return isinstance(value, Tensor) and (value.dtype, here) == (
            self.original.dtype,
            self.original.is_cuda,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def entrances(tracer: Recorder, has_proxy: Callable[[Any], bool]) -> Iterator[tuple[Any, str, Any]]:
    """Yield what to replace while `tracer` traces: owner, name, and what stands there instead."""

    def seen(*given: Any) -> bool:
        return tracer.recording() and has_proxy(given)

    for owner, name, called in _REFUSED:
        yield owner, name, _refused(tracer, seen, getattr(owner, name), called)
    for name in ("_make_subclass", "_make_wrapper_subclass"):
        function = getattr(Tensor, name)
        yield Tensor, name, staticmethod(_refused(tracer, seen, function, f"Tensor.{name}"))
    yield from _functions(tracer, seen)
    yield from _constructors(tracer, seen)
    yield from _scripts(tracer, seen)


def _refused(
    tracer: Recorder, seen: Callable[..., bool], function: Callable[..., Any], name: str
) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        if seen(args, kwargs):
            raise Untraceable(f"calls {name} at {tracer.source()}")
        return function(*args, **kwargs)

    return refused


def _functions(tracer: Recorder, seen: Callable[..., bool]) -> Iterator[tuple[Any, str, Any]]:
    own: Any = torch._C._FunctionBase.__dict__["apply"]
    entering = [False]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        owned = tracer.recording() and any(id(a) in tracer.tensor_paths for a in args)
        if owned or seen(args, kwargs):
            try:
                tracer.create_arg(args), tracer.create_arg(kwargs)
            except NotImplementedError as error:
                raise Untraceable(
                    f"passes to {cls.__name__}.apply what a graph cannot hold at {tracer.source()}"
                ) from error
            return tracer.create_proxy("call_function", Applied(cls), args, kwargs)
        before, entering[0] = entering[0], True
        try:
            return own.__get__(None, cls)(*args, **kwargs)
        finally:
            entering[0] = before

    def attribute(cls: Any, name: str) -> Any:  # the first that C asks for
        if name == "setup_context" and tracer.recording() and not entering[0]:
            raise Untraceable(
                f"calls {cls.__name__}.apply under another name at {tracer.source()}: "
                "call it by its own"
            )
        return type.__getattribute__(cls, name)

    yield Function, "apply", classmethod(apply)
    yield FunctionMeta, "__getattribute__", attribute
    yield from kept(tracer.root)


def _constructors(tracer: Recorder, seen: Callable[..., bool]) -> Iterator[tuple[Any, str, Any]]:
    variable = type.__call__
    new: Any = torch._C.TensorBase.__new__

    def wrapped(
        cls: Any, data: Any = None, requires_grad: Any = False, *args: Any, **kw: Any
    ) -> Any:
        if not seen(data):
            return variable(cls, data, requires_grad, *args, **kw)
        made = data.detach()
        return made.requires_grad_() if requires_grad else made

    def made(name: str, options: Any, args: Any, kwargs: Any) -> Any:
        values = [a.node.meta["val"] if isinstance(a, fx.Proxy) else a for a in args]
        if not kwargs and len(values) == 1 and isinstance(values[0], Tensor):
            return args[0][...]
        lengths = len(values) == 1 and isinstance(values[0], torch.Size)
        if not kwargs and (lengths or all(isinstance(v, int) for v in values)):
            return torch.empty(*args, **options)
        raise Untraceable(f"calls torch.{name} on computed values at {tracer.source()}")

    def tensor(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is Tensor and seen(args, kwargs):
            return made("Tensor", {}, args, kwargs)
        return new(cls, *args, **kwargs)

    def legacy(name: str, original: Any) -> Legacy:
        options = {"dtype": original.dtype} | ({"device": "cuda"} if original.is_cuda else {})

        def call(*args: Any, **kwargs: Any) -> Any:
            if seen(args, kwargs):
                return made(name, options, args, kwargs)
            return original(*args, **kwargs)

        return Legacy(original, call)

    yield VariableMeta, "__call__", wrapped
    yield Tensor, "__new__", staticmethod(tensor)
    for room in (torch, torch.cuda):
        for name in _LEGACY:
            yield room, name, legacy(name, getattr(room, name))


@contextmanager
def numbers_guarded(tracer: Recorder) -> Iterator[None]:
    """Replace the functions that take numbers: where one of them is a proxy, C reads it before it asks whose it is."""
    outer, _LOCAL.tracer = getattr(_LOCAL, "tracer", None), tracer
    replaced = []
    for room, guards in _guards().items():
        now = vars(room)
        new = {n: guard for n, (function, guard) in guards.items() if now.get(n) is function}
        replaced.append((now, {name: now[name] for name in new}))
        now.update(new)
    try:
        yield
    finally:
        for now, before in replaced:
            now.update(before)
        _LOCAL.tracer = outer


@functools.cache
def _guards() -> dict[Any, dict[str, tuple[Any, Any]]]:
    """Return by room and name the functions that take numbers, each with its guard; made once, as they are hundreds."""
    single = ("number", "float", "int", "List[int]")
    kinds = {*single, *(f"Optional[{kind}]" for kind in single)}
    known = {
        schema.name.removeprefix("aten::")
        for schema in torch._C._jit_get_all_schemas()
        if any(str(argument.type) in kinds for argument in schema.arguments)
    }
    # not torch._C: there C looks a function up that it gives to __torch_function__
    rooms = (torch, torch.nn.functional, torch.linalg, torch.special)
    return {
        room: {
            name: (function, _guarded(function))
            for name, function in vars(room).items()
            if type(function) is BuiltinFunctionType
            and function.__name__ in known
            and not name.startswith("_")
            and name not in (*FACTORIES, *RANDOM)
        }
        for room in rooms
    }


def _guarded(function: Any) -> Any:
    def is_tensor(a: Any) -> bool:
        value = a.node.meta["val"] if isinstance(a, fx.Proxy) else None
        return isinstance(value, Tensor)  # C would read one of them as a number: torch.pow(x, 2)

    def called(*args: Any, **kwargs: Any) -> Any:
        tracer: Recorder | None = getattr(_LOCAL, "tracer", None)
        if tracer and tracer.recording() and any(map(is_tensor, (*args, *kwargs.values()))):
            tracer.parsed(sys._getframe(1))
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return called


def _scripts(tracer: Recorder, seen: Callable[..., bool]) -> Iterator[tuple[Any, str, Any]]:
    for cls in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        call: Any = cls.__call__

        def scripted(script: Any, *args: Any, _call: Any = call, **kwargs: Any) -> Any:
            if not seen(args, kwargs):
                return _call(script, *args, **kwargs)
            python = getattr(script, "_torchdynamo_inline", None)
            if python is None:
                raise Untraceable(f"calls the TorchScript of '{script.name}' at {tracer.source()}")
            return python(*args, **kwargs)

        yield cls, "__call__", scripted
