"""Module + inputs -> a torch.fx graph whose every node carries its value on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.utils import parametrize

from ..errors import InputError, NetAugFXError, TraceError
from .draws import Draws
from .guards import Untraceable
from .lines import UNKNOWN, origin_of, source_of
from .meta import (
    META,
    Remembered,
    meta_copy,
    substitute,
    to_meta,
)
from .on_data import OnData
from .patches import watched
from .reasons import about_meta, first_line, reason_of
from .recorder import SAME, Recorder
from .surroundings import (
    ONE_AT_A_TIME,
    by_itself,
    random_states_kept,
)
from .traced import Data, Inputs, Traced


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
    device: torch.device | None = None,
    real: nn.Module | None = None,
    data: Data | None = None,
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
        device: what `x.device` answers; that of the model and the inputs if None.
        real: has the modules that read data, with the weights that they run with; the model itself if None.
        data: what those gave in another trace, which is what they give in this one; they are run if None.

    Raises:
        InputError: the model does not accept these inputs.
        TraceError: the model cannot be copied, or its own forward cannot be traced.
    """
    inputs = Inputs.of(model, args, kwargs)
    leaves = {**_computed_by_hooks(model), **(opaque or {})}
    remembered = remembered or Remembered()
    with ONE_AT_A_TIME, (draws := Draws()).kept(), by_itself():
        while True:
            walk = is_leaf or is_torch_leaf
            source = real or model, data or {}, draws
            tracer = _Tracer(model, inputs, walk, leaves, remembered, device, *source)
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
        device: torch.device | None,
        real: nn.Module,
        data: Data,
        draws: Draws,
    ) -> None:
        if device is None:
            tensors = [*model.parameters(), *model.buffers(), *inputs.tensors]
            device = next((t.device for t in tensors if t.device.type != "meta"), META)
        super().__init__(meta_copy(model), device, remembered, draws)
        self.model, self.inputs = model, inputs
        self.is_leaf, self.opaque = is_leaf, dict(opaque)
        self.module_paths = {id(module): path for path, module in self.root.named_modules()}
        self.traced: set[str] = set()
        # only what is opaque gives the same at other widths
        known = {key: values for key, values in data.items() if key[0] in self.opaque}
        self.on_data = OnData(self.root, real, inputs, self.device, known)
        self.plain_error: BaseException | None = None
        draws.since()  # what counts begins here

    def trace_root(self) -> Traced:
        meta = {"path": "", "source": origin_of(self.root.forward)}
        proxies = []
        for name, tensor in zip(self.inputs.names, self.inputs.tensors, strict=True):
            node = self.graph.placeholder(name)
            node.meta.update(meta, val=to_meta(tensor))
            proxies.append(self.proxy(node))
        args, kwargs = self.inputs.rebuild(proxies)
        try:
            with watched(self, self.call_module):
                output = self.create_arg(self.root.forward(*args, **kwargs))
                self.check_draws()
                self.check_reads()
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
            *(self.graph, self.root, self.inputs, guards, self.opaque, self.constants, self.device),
            read=self.state.read,
            data=self.on_data.data,
            written=self.state.restore(),
        )

    def call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        module = module._modules.get("_orig_mod") or module  # of torch.compile
        path = self.module_paths.get(id(module))
        if path is None:  # made in a forward: a slice of a Sequential, or a layer without state
            state = [*module.parameters(), *module.buffers()]
            if any(id(tensor) not in self.tensor_paths for tensor in state):
                raise Untraceable(f"makes a {type(module).__name__} at {self.source()}")
            return module.forward(*args, **kwargs)
        with self.phase("leaf"):
            leaf = path and (path in self.opaque or self.is_leaf(module, path))
        if leaf:
            return self.create_proxy("call_module", path, args, kwargs)
        self.check_draws()  # of the caller's own lines
        last, guards, opaque = next(reversed(self.graph.nodes)), dict(self.guards), self.opaque
        self.opaque, mark = dict(opaque), self.state.mark()
        self.stack.append(path)
        try:
            result = module.forward(*args, **kwargs)
            self.check_draws()
            self.check_reads()
            self.traced.add(path)
            return result
        except NetAugFXError:
            raise
        except (Untraceable, Exception) as error:
            here = error.__traceback__
            if isinstance(error, TypeError) and here is not None and here.tb_next is None:
                raise  # the arguments do not fit: the caller may try others
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
        self.state.forget(mark)
        self.guards, self.opaque, kept = guards, opaque | {path: reason}, set(self.graph.nodes)
        self.attributes = {name: node for name, node in self.attributes.items() if node in kept}
        return self.create_proxy("call_module", path, args, kwargs)

    def value_of(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind != "call_module":
            return super().value_of(kind, target, args, kwargs)
        with ExitStack() as stack:
            with self.phase("leaf"):
                torch_own = is_torch_leaf(self.root.get_submodule(target), target)
            if not torch_own:
                stack.enter_context(random_states_kept())  # it may draw in every forward
            try:
                return super().value_of(kind, target, args, kwargs)
            except Exception as error:
                if target not in self.opaque and not about_meta(error):
                    raise
            value, other = self.value_on_data(target, args, kwargs)
            self.redrawn = (
                SAME if torch_own else other
            )  # a layer's lengths are those of what it is given
            return value

    def value_on_data(self, path: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return what a module that reads data makes of the example's, and what it makes of other data."""
        with self.phase("real"):
            try:
                return self.on_data.values(path, args, kwargs, self.on_others)
            except Exception as error:
                reason = self.opaque.get(path, f"calls '{path}' at {self.source()}")
                raise Untraceable(f"{reason} (and '{path}' fails alone: {error})") from error

    def check_draws(self) -> None:
        if self.draws.since():
            raise Untraceable(
                "draws random numbers in Python, in numpy or into a constant, which a graph would "
                "repeat for ever; torch.rand would do"
            )

    def diagnose(self, error: BaseException) -> str:
        """Why a forward failed; raises InputError where it fails without tracing as well."""
        if isinstance(error, Untraceable):
            return error.reason
        source = source_of(error.__traceback__)
        if source == UNKNOWN:  # a module of torch's own failed, called from here
            source = self.source()
        name = type(self.model).__name__
        text = first_line(error)
        if not about_meta(error):
            self.plain_error = self.plain_error or self.run_plain()
            same = repr(self.plain_error) == repr(error)
            if same and _hooked(self.model, self.root):
                return f"fails without hooks, which tracing does not run, at {source}: {text}"
            if same and self.runs_on_data():  # it is only the meta device that has none
                return f"reads tensor data at {source}"
            if same:
                pairs = zip(self.inputs.names, self.inputs.tensors, strict=True)
                shapes = ", ".join(f"{name}: {tuple(t.shape)} {t.dtype}" for name, t in pairs)
                raise InputError(
                    f"{name} does not run on inputs of shape {shapes}: {text} ({source}). "
                    "Give inputs that the model itself runs on."
                ) from error
        return reason_of(error, source)

    def run_plain(self) -> BaseException:
        """What the model raises when it runs on the meta device without tracing."""
        with self.phase("meta"), random_states_kept(), META:
            try:
                args, kwargs = self.inputs.rebuild([to_meta(t) for t in self.inputs.tensors])
                meta_copy(self.model).forward(*args, **kwargs)
            except Exception as error:
                return error
        return TraceError("nothing")

    def runs_on_data(self) -> bool:
        """Whether the model runs where there are data; not tried where its weights are none."""
        if self.device == META:
            return False
        with self.phase("real"):
            return self.on_data.model_runs()


def _computed_by_hooks(model: nn.Module) -> dict[str, str]:
    """Modules whose weights old-style hooks of torch.nn.utils compute: path -> reason."""
    return {
        path: f"its weights are computed by the hook {type(hook).__name__}"
        for path, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if path and type(hook).__module__.startswith("torch.nn.utils.")
    }


def _hooked(*models: nn.Module) -> bool:
    """Whether any module has hooks of its forward; a forward may also register them on a copy."""
    modules = (module for model in models for module in model.modules())
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
