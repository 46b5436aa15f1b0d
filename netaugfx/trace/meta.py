"""Models, tensors and operators on the meta device: shapes without memory, for tracing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from ..copies import deep_copy
from ..errors import TraceError
from .functions import Applied, applied
from .surroundings import random_states_kept

META = torch.device("meta")
PLAIN = "_netaugfx_plain_tensors"  # attribute of modules of a meta copy: names
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")
_GRAD = torch.is_grad_enabled
_CONTEXTS = (
    torch._C._set_grad_enabled,
    torch.amp.autocast_mode._enter_autocast,
    torch.amp.autocast_mode._exit_autocast,
)


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a model deeply onto the meta device, without hooks; nothing large is allocated.

    Plain tensor attributes become buffers of the copy, so that reading them can be recorded. What a forward has
    computed and left there is one like any other, but for what its class forgets in its own `train()`.

    Raises:
        TraceError: the model cannot be deep-copied, or is lazy and has no shapes yet.
    """
    memo: dict[int, Any] = _hookless(model)
    plain: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"Cannot copy module '{path}' ({type(module).__name__}): TorchScript has no Python "
                "to follow. Plan the model before torch.jit.script or torch.jit.trace."
            )
        tensors = {**module._parameters, **module._buffers}
        for name, value in module.__dict__.items():
            if isinstance(value, Tensor):
                tensors[name] = value
                if not hasattr(type(module), name):
                    plain.append((path, name))
        for name, tensor in tensors.items():
            if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                raise TraceError(
                    f"Cannot copy module '{path}' ({type(module).__name__}): it is lazy and its "
                    f"'{name}' has no shape yet. Run the model once first."
                )
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = to_meta(tensor)
    try:
        root = deep_copy(model, memo)
    except Exception as error:
        raise TraceError(
            f"Cannot copy {type(model).__name__}: copy.deepcopy says '{error}'. Keep what cannot "
            "be copied out of the model's attributes, or define __deepcopy__ for it."
        ) from error
    without_caches(root)
    for module in root.modules():
        for name, value in vars(module).items():
            vars(module)[name] = applied(value) or value
    for path, name in plain:
        module = root.get_submodule(path)
        if not isinstance(module.__dict__.get(name), Tensor):
            continue
        module._buffers[name] = module.__dict__.pop(name)
        module._non_persistent_buffers_set.add(name)
        vars(module).setdefault(PLAIN, set()).add(name)
    return root


def without_caches(model: nn.Module) -> nn.Module:
    """Return a model without what its forwards cached: a class that caches in eval mode forgets it in `train()`."""
    if any(type(m).train is not nn.Module.train for m in model.modules()):
        flags = {m: m.training for m in model.modules()}
        in_mode(model, model.training)
        for m, training in flags.items():
            m.training = training
    return model


def in_mode(model: nn.Module, training: bool) -> nn.Module:
    """Return a copy of the user's model in another mode, as its own `train()` says where that needs no data."""
    try:
        model.train(training)
    except Exception:
        for m in model.modules():
            m.training = training
    return model


def is_plain(module: nn.Module, name: str) -> bool:
    """Whether a buffer of a meta copy is a plain tensor attribute of the user's module: a constant, which stays."""
    return name in vars(module).get(PLAIN, ())


def real_copy(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a module with its weights, without hooks; weights on the meta device become ones."""
    module = deep_copy(module, _hookless(module))
    if any(t.device.type == "meta" for t in [*module.parameters(), *module.buffers()]):
        module.to_empty(device=device)
        for tensor in [*module.parameters(), *module.buffers()]:
            nn.init.ones_(tensor)
    return module


def _hookless(model: nn.Module) -> dict[int, Any]:
    """A memo for copy.deepcopy in which every table of hooks is empty."""
    return {
        id(table): type(table)()
        for module in model.modules()
        for name, table in module.__dict__.items()
        if name.endswith(_HOOKS) and isinstance(table, dict)
    }


def to_meta(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape, strides, dtype and requires_grad (detached)."""
    try:
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)
    except RuntimeError:  # a layout without strides
        meta = tensor.detach().to(META)
    if isinstance(tensor, nn.Parameter):
        parameter = nn.Parameter(meta, requires_grad=tensor.requires_grad)
        parameter.__dict__.update(tensor.__dict__)
        return parameter
    return meta.requires_grad_(tensor.requires_grad)


def on_random_data(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    device: torch.device,
    seed: int = 0,
    factor: float = 1.0,
) -> Any:
    """Return what `call` makes of random data in the place of tensors on the meta device.

    Args:
        call: Reads data, and so cannot run on the meta device.
        args: Its arguments: tensors become normal numbers times `factor`; where they are not floating, zeros, and with
            a `factor` other than 1 zeros and ones.
        kwargs: Likewise, by name.
        device: Where the data are.
        seed: Of the data. The global random states are left alone.
        factor: See `args`.
    """
    generator = torch.Generator().manual_seed(seed)

    def real(t: Tensor) -> Tensor:
        if not t.dtype.is_floating_point:
            flags = torch.randint(0, 2, t.shape, generator=generator, device="cpu")
            return (flags * (factor != 1.0)).to(device, t.dtype)
        drawn = factor * torch.randn(t.shape, generator=generator, device="cpu")
        drawn = drawn.to(device, t.dtype)
        return drawn.requires_grad_().clone() if t.requires_grad else drawn  # see on_meta

    args, kwargs = pytree.tree_map_only(Tensor, real, (args, dict(kwargs)))
    with random_states_kept():
        return call(*args, **kwargs)


class Remembered(TorchFunctionMode):
    """Answers functions of tensors on the meta device as it did before, where all shapes are the same.

    Torch works many of them out in Python, slowly, and a network calls them with the same shapes again and again.
    Only answers that share no memory with an argument are kept, and arguments that were written to and returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Hashable, Any] = {}
        self.passed: set[Any] = set()  # functions that do not return a tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.passed:
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        key: tuple[Any, ...] | None
        try:
            key = (func, _shapes((args, kwargs), tensors), torch.is_grad_enabled())
            known = self.known.get(key)
        except _Unlike:
            key = known = None
        if key is None or not tensors or torch.is_autocast_enabled() or known is False:
            return func(*args, **kwargs)
        if known is None:
            value = func(*args, **kwargs)
            if not isinstance(value, Tensor):
                self.passed.add(func)
            else:
                same = key[1] == _shapes((args, kwargs), [])  # it may change what it is given
                self.known[key] = same and _answer(value, tensors)
            return value
        if isinstance(known, int):
            return tensors[known]
        shape, strides, dtype, grad = known
        value = torch.empty_strided(shape, strides, dtype=dtype, device=META, requires_grad=grad)
        return value.clone() if grad else value  # a result, not a leaf


class _Unlike(Exception):  # noqa: N818 - it says that a call is like no other
    pass


_PLAIN = (
    bool,
    int,
    float,
    complex,
    str,
    type(None),
    torch.dtype,
    torch.device,
    torch.memory_format,
)


def _shapes(tree: Any, tensors: list[Tensor]) -> Hashable:
    """What a call is like, for its answer's shape; the tensors are added to `tensors`.

    Raises:
        _Unlike: something in it is neither plain nor a tensor on the meta device.
    """
    if isinstance(tree, Tensor):
        if tree.device != META or tree.layout != torch.strided:
            raise _Unlike
        tensors.append(tree)
        kind = (tree.requires_grad, tree.is_leaf, tree._is_view())
        return tree.shape, tree.stride(), tree.dtype, kind
    if isinstance(tree, _PLAIN):
        return type(tree), tree
    if isinstance(tree, tuple | list):
        return type(tree), tuple([_shapes(item, tensors) for item in tree])
    if isinstance(tree, dict):
        return tuple([(key, _shapes(item, tensors)) for key, item in tree.items()])
    raise _Unlike


def _answer(value: Tensor, tensors: list[Tensor]) -> Any:
    """What to keep of a function's value: which argument it is, or what a new tensor must be like, or False."""
    for i, t in enumerate(tensors):
        if value is t:
            return i
        if value.untyped_storage()._cdata == t.untyped_storage()._cdata:
            return False
    if type(value) is not Tensor or value.layout != torch.strided or value.device != META:
        return False
    if value.requires_grad and value.is_leaf:
        return False
    return value.shape, value.stride(), value.dtype, value.requires_grad


NORMAL = torch.normal  # asks for no default device
# what fills with a number: that number's place among the arguments; a tensor of one element has none on meta
FILLS: dict[Any, int] = {"new_full": 2, torch.full: 1, torch.full_like: 1}


def compute(
    root: nn.Module,
    device: torch.device,
    kind: str,
    target: Any,
    args: Any,
    kwargs: Any,
    remembered: Remembered | None = None,
) -> Any:
    """The value of one fx node from the values of its arguments.

    Args:
        root: where `call_module` and `get_attr` targets are found, on the meta device.
        device: what `x.device` answers.
        kind: the node's op.
        target: the node's target.
        args: the node's arguments, with values in the place of nodes.
        kwargs: likewise.
        remembered: what was computed before.
    """
    if kind == "get_attr":
        return functools.reduce(getattr, target.split("."), root)
    if target is _GRAD:
        return _GRAD()
    if target in _CONTEXTS:
        return "context"
    if target is getattr and isinstance(args[0], Tensor):
        if args[1] == "device":
            return device
        if args[1] in ("is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu"):
            return args[1] == f"is_{device.type}"
    if getattr(target, "__module__", "") in ("_operator", "builtins", "math"):
        return target(*args, **kwargs)
    if kind == "call_method" and isinstance(args[0], torch.Size):
        return getattr(args[0], target)(*args[1:], **kwargs)
    if kind == "call_method" and target in ("cpu", "cuda") and isinstance(args[0], Tensor):
        return args[0]
    args, kwargs = map_aggregate(
        (args, kwargs), lambda a: META if isinstance(a, torch.device) else a
    )
    args, kwargs = list(args), dict(kwargs)
    if isinstance(kwargs.get("device"), (str, int)):
        kwargs["device"] = META
    if kind == "call_method" and target == "to" and isinstance(args[1:] and args[1], (str, int)):
        args[1] = META
    if target is NORMAL and not any(isinstance(a, Tensor) for a in args):
        kwargs["device"] = META
    place = FILLS.get(target)
    if place is not None and isinstance(args[place:] and args[place], Tensor):
        args[place] = 1.0 if args[place].is_floating_point() else 1
    draws = random_states_kept() if isinstance(target, Applied) or target == "apply" else None
    with META, remembered or nullcontext(), draws or nullcontext():  # factories without a device
        module = root.get_submodule(target) if kind == "call_module" else None
        if isinstance(module, nn.SyncBatchNorm):  # which takes none on meta among several processes
            value = torch.empty_like(args[0] if args else kwargs["input"])
        elif module is not None:
            value = module(*args, **kwargs)
        elif kind == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            value = target(*args, **kwargs)
    return on_meta(value)


def on_meta(value: Any) -> Any:
    """The value with every tensor on the meta device."""
    if isinstance(value, Tensor):
        if value.device.type == "meta":
            return value
        meta = to_meta(value)
        computed = value.requires_grad and not value.is_leaf
        return (
            meta.clone() if computed else meta
        )  # in-place operators may write to what was computed
    if isinstance(value, (tuple, list, dict)) and not isinstance(value, torch.Size):
        return pytree.tree_map_only(Tensor, on_meta, value)
    return value


def substitute(tree: Any, value: Callable[[fx.Node], Any]) -> Any:
    """The arguments of a node with each node replaced by its value, in plain containers."""
    if isinstance(tree, fx.Node):
        return value(tree)
    if isinstance(tree, (tuple, list)):
        items = [substitute(item, value) for item in tree]
        return tuple(items) if isinstance(tree, tuple) else items
    if isinstance(tree, dict):
        return {key: substitute(item, value) for key, item in tree.items()}
    if isinstance(tree, (slice, range)):
        return type(tree)(*(substitute(i, value) for i in (tree.start, tree.stop, tree.step)))
    return tree
