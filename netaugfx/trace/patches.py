"""What of Python and torch is replaced while a model is traced, so that nothing hides from proxies."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.amp import autocast_mode
from torch.fx.node import base_types
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from .attributes import OWN
from .entrances import FACTORIES, RANDOM, Legacy, entrances, numbers_guarded
from .guards import Untraceable
from .meta import META, is_plain
from .recorder import Recorder, updated_attribute
from .type_calls import types_answered
from .written_out import WRITTEN_OUT

_MATH = ("cos", "exp", "log", "log10", "log2", "pow", "sin", "sqrt")
_CHECKPOINT_OPTIONS = {
    *("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug"),
    *("early_stop", "respect_saved_tensors_hooks"),
}


class _Mode(TorchFunctionMode):
    """Turns torch functions over proxies, or over the copy's own tensors, into nodes."""

    def __init__(self, tracer: Recorder) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tracer = kwargs or {}, self.tracer
        own = tracer.tensor_paths
        args = tuple(a.original if isinstance(a, Legacy) else a for a in args)
        if not tracer.recording():
            return func(*args, **kwargs)
        if not _any_leaf((args, kwargs), lambda a: isinstance(a, fx.Proxy) or id(a) in own):
            return tracer.draws.of_torch(func, args, kwargs)
        if func in WRITTEN_OUT:
            with self:
                result = WRITTEN_OUT[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if getattr(func, "__name__", "") == "__get__":
            return getattr(tracer.proxy(tracer.create_arg(args[0])), func.__self__.__name__)
        tracer.parsed(sys._getframe(1))
        if is_tensor_method_or_property(func):
            return tracer.create_proxy("call_method", func.__name__, args, kwargs)
        return tracer.create_proxy("call_function", func, args, kwargs)


@contextmanager
def watched(tracer: Recorder, call_module: Callable[..., Any]) -> Iterator[None]:
    """Replace what hides from proxies, for this thread and until the end of the trace.

    Args:
        tracer: who records.
        call_module: (module, args, kwargs) -> what a call of a module gives while it records.
    """
    module_call, module_get, module_set = (
        nn.Module.__dict__[name] for name in ("__call__", "__getattr__", "__setattr__")
    )
    importlib.import_module("torch._dynamo")  # imported by the first sum of two tensors otherwise
    found: Any = nn.Module.__getattribute__
    with META:  # fill torch's own tables of functions before they are replaced
        is_tensor_method_or_property(torch.empty(0).add)
    grad_enabled, set_grad = torch.is_grad_enabled, torch._C._set_grad_enabled
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__
    fastpath = torch.backends.mha.get_fastpath_enabled
    plain = (*base_types, fx.Proxy, type(None))

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if tracer.recording():
            return call_module(module, args, kwargs)
        if threading.get_ident() == tracer.thread:
            return module.forward(*args, **kwargs)  # without global hooks
        return module_call(module, *args, **kwargs)

    def get(module: nn.Module, name: str) -> Any:
        value = module_get(module, name)
        if tracer.recording() and isinstance(value, Tensor) and id(value) in tracer.tensor_paths:
            return tracer.proxy(tracer.create_arg(value))
        return value

    def look(module: nn.Module, name: str) -> Any:
        if name not in OWN and tracer.recording():
            tracer.state.note(module, name, sys._getframe(1))
        return found(module, name)

    def set_(module: nn.Module, name: str, value: Any) -> None:
        if not tracer.recording():
            module_set(module, name, value)
            return
        if name in module._buffers or name in module._parameters:
            own = module._buffers.get(name, module._parameters.get(name))
            path = updated_attribute(value.node) if isinstance(value, fx.Proxy) else None
            if path is not None and path == tracer.tensor_paths.get(id(own)):
                return
            if not is_plain(module, name):
                raise Untraceable(f"assigns to parameter or buffer '{name}' at {tracer.source()}")
        tracer.state.write(module, name)
        if isinstance(value, Tensor) and type(value) is not nn.Parameter:
            object.__setattr__(module, name, value)
        else:
            module_set(module, name, value)

    def grad_is_enabled() -> Any:  # what a `with torch.no_grad()` puts back is that of the pass
        if not tracer.recording():
            return grad_enabled()
        return tracer.create_proxy("call_function", grad_enabled, (), {})

    def grad_set(mode: Any) -> None:
        with torch._C.DisableTorchFunction():  # it tells the mode of functions, too
            set_grad(mode.node.meta["val"] if isinstance(mode, fx.Proxy) else mode)
        if tracer.recording():
            tracer.create_proxy("call_function", set_grad, (mode,), {})

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
            if function.__name__ in RANDOM or has_proxy((args, kwargs)):
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

    with ExitStack() as stack:
        patch = functools.partial(_patch, stack)
        patch(nn.Module, "__call__", call)
        patch(nn.Module, "__getattribute__", look)
        patch(nn.Module, "__getattr__", get)
        patch(nn.Module, "__setattr__", set_)
        for replaced in list(entrances(tracer, has_proxy)):
            patch(*replaced)
        patch(torch, "is_grad_enabled", grad_is_enabled)
        patch(torch._C, "_set_grad_enabled", grad_set)
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
        patch(torch.distributions.Distribution, "_validate_args", False)  # it reads data
        for name in (*FACTORIES, *RANDOM):
            patch(torch, name, factory(getattr(torch, name)))
        for name in _MATH:
            patch(math, name, over_numbers(getattr(math, name)))
        for replaced in tracer.draws.replacements():
            patch(*replaced)
        for name in ("finfo", "iinfo"):
            patch(torch, name, over_numbers(getattr(torch, name)))
        stack.enter_context(types_answered(tracer.root))
        stack.enter_context(numbers_guarded(tracer))
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


def _any_leaf(tree: Any, test: Callable[[Any], bool]) -> bool:
    """Whether a leaf of an argument passes `test`; without reading proxies, as pytree would."""
    if type(tree) in (tuple, list, torch.Size):
        return any(_any_leaf(item, test) for item in tree)
    if type(tree) is dict:
        return any(_any_leaf(item, test) for item in tree.values())
    if type(tree) is slice:
        return any(_any_leaf(item, test) for item in (tree.start, tree.stop, tree.step))
    return test(tree)
