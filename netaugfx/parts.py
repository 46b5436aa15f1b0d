"""Models whose root cannot be traced (detectors): their traceable children are widened, each with its ports pinned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .checks import check_state
from .copies import deep_copy
from .cost import Cost, total
from .errors import ConfigError, InputError, NetAugFXError, TraceError
from .examples import Example, on_meta, with_values
from .infer import OUTPUT, out_channels
from .model import WideModel
from .plan import Config, Layer, Plan
from .storage import Rooms, checked
from .trace import random_states_kept

PORT = "it leaves '{}', which is traced apart, since the model around it cannot be traced"


class WideParts(WideModel):
    """A WideModel whose base runs as itself at every config; the children at `plan.parts` are WideModels in it.

    Args:
        base: A copy of the user's model with WideModels in place of these children.
        plan: The joint plan of the parts.
        example: Arguments of a forward, with their values where such were given: the base may look at them.
        calls: What reaches each part, call by call, in one forward on the example; without values.
        seed: Of `sample`.
    """

    calls: dict[str, list[Example]]
    _one_pass: RLock

    def __init__(
        self,
        base: nn.Module,
        plan: Plan,
        example: Example,
        calls: Mapping[str, list[Example]],
        seed: int,
    ) -> None:
        super().__init__(base, plan, Rooms(), example, seed)
        self.__dict__.update(_modules=base._modules, calls=dict(calls))

    def _forget(self) -> None:
        super()._forget()
        self.__dict__["_one_pass"] = RLock()  # the configs of the parts belong to one pass

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base, or the subnet of the `with wide.at(config)` block; passes in other threads wait."""
        with self._one_pass:
            return super().forward(*args, **kwargs)

    def _map_examples(self, fn: Callable[[Tensor], Tensor]) -> None:
        super()._map_examples(fn)
        self.__dict__["calls"] = tree_map_only(Tensor, fn, self.calls)

    @property
    def wides(self) -> dict[str, WideModel]:
        """The parts by path."""
        found = {}
        for path in self.plan.parts:
            part = self.base.get_submodule(path)
            assert isinstance(part, WideModel)
            found[path] = part
        return found

    def run(self, config: Config, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the base's own forward with every part at its share of the config; its buffers stay as they are."""
        shares = {path: share(config, path) for path in self.plan.parts}
        parts = self.wides
        grown = [path for path, part in parts.items() if shares[path] != part.base_config]
        with ExitStack() as stack:
            stack.enter_context(self._one_pass)
            if grown:
                stack.enter_context(_buffers_put_back(self.base, grown))
            for path, part in parts.items():
                stack.enter_context(part.at(shares[path]))
            return self.base(*args, **kwargs)

    def load_base(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint of the user's model, strictly."""
        check_state(self.base, state_dict, self._names_of_blocks())
        self.base.load_state_dict(state_dict, strict=False)

    def named_base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the base's Parameters with the names that they have in the user's model."""
        blocks = self._names_of_blocks()
        return (pair for pair in self.base.named_parameters() if pair[0] not in blocks)

    def _names_of_blocks(self) -> set[str]:
        """Return what the blocks are called in a state_dict; a part may stand in several places."""
        rooms = tuple(
            f"{path}.{m.room}."
            for path, m in self.base.named_modules(remove_duplicate=False)
            if isinstance(m, WideModel)
        )
        return {name for name in self.base.state_dict(keep_vars=True) if name.startswith(rooms)}

    def base_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the base's Parameters."""
        return (p for _, p in self.named_base_parameters())

    def named_augmented_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the blocks, with their names in this module."""
        for path, part in self.wides.items():
            for name, p in part.named_augmented_parameters():
                yield f"{path}.{name}", p

    def names_of_blocks(self) -> Iterator[tuple[str, str]]:
        """Yield the name of every block, with that of the base's Parameter that it adds to."""
        for path, part in self.wides.items():
            for block, name in part.names_of_blocks():
                yield f"{path}.{block}", f"{path}.{name}"

    def augmented_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the blocks."""
        return (p for _, p in self.named_augmented_parameters())

    def recalibrate(self, config: Mapping[str, int], batches: Any) -> None:
        """Not for a model in parts: recalibrate its parts, or train with frozen norms."""
        raise ConfigError(
            "recalibrate: the root of this model cannot be traced, so what reaches its parts is not known; "
            "use extract(wide, config) and update its batch norms on batches of your own."
        )

    def permute(
        self,
        orders: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
        ema: nn.Module | None = None,
    ) -> None:
        """Reorder the channels of widths in the parts, one part after another; without an average."""
        if ema is not None:
            raise ConfigError(
                "permute: an average of a model in parts cannot follow; leave out ema."
            )
        whole = checked(self.plan, orders)
        for path, part in self.wides.items():
            mine = {
                name[len(path) + 1 :]: o for name, o in whole.items() if name.startswith(f"{path}.")
            }
            if mine:
                part.permute(mine, optimizer)

    def macs(self, config: Mapping[str, int], input_shape: tuple[int, ...] | None = None) -> int:
        """Return the multiply-accumulates of the parts in one forward on the example, every call of each counted.

        What stands around the parts is not counted: what the base does is not known.

        Raises:
            ConfigError: As `at`. InputError: `input_shape` is given.
        """
        if input_shape is not None:
            raise InputError(
                "macs: what reaches the parts of this model at another input_shape is not known; leave it out, and "
                "widen with example_inputs of the shapes that you mean."
            )
        whole = self.plan.config(config)
        return sum(
            part._graphs.macs(share(whole, path), args, kwargs)
            for path, part, (args, kwargs) in self._each_call()
        )

    def _polynomial(self) -> Cost:
        """Return the MACs of the parts in one forward on the example."""
        return total(
            part._graphs.polynomial(args, kwargs).renamed(partial(under, path))
            for path, part, (args, kwargs) in self._each_call()
        )

    def _each_call(self) -> Iterator[tuple[str, WideModel, Example]]:
        """Yield the calls of all parts, but for those on no sample, which cost nothing."""
        for path, part in self.wides.items():
            for call in self.calls[path]:
                if all(t.numel() for t in tree_leaves(call) if isinstance(t, Tensor)):
                    yield path, part, call


@contextmanager
def _buffers_put_back(base: nn.Module, parts: Iterable[str]) -> Iterator[None]:
    """Give the modules outside these parts copies of their buffers meanwhile: a batch norm's running statistics, say.

    Copies, since a buffer that is written back to would be one that a backward pass finds changed.
    """
    around = [
        (m, dict(m._buffers))
        for path, m in base.named_modules()
        if m._buffers and not any(path == p or path.startswith(f"{p}.") for p in parts)
    ]
    clones: dict[int, Tensor] = {}  # one of each, under all of its names
    for m, own in around:
        for name, b in own.items():
            if b is not None:
                m._buffers[name] = clones.setdefault(id(b), b.clone())
    try:
        yield
    finally:
        for m, own in around:
            m._buffers.clear()
            m._buffers.update(own)


def under(path: str, name: str) -> str:
    """Return what a name in the part at `path` is called in the whole."""
    return f"{path}.{name}"


def share(config: Mapping[str, int], path: str) -> dict[str, int]:
    """Return what a joint config says of the part at `path`, in the part's own names."""
    start = f"{path}."
    return {name[len(start) :]: n for name, n in config.items() if name.startswith(start)}


def join(model: nn.Module, plans: Mapping[str, Plan], why: str) -> Plan:
    """Return the joint plan of the children of `model` that were traced apart, names prefixed by their paths.

    Those in which something grows are its parts; of the others it has the pins alone.
    """

    def axes(path: str, plan: Plan) -> dict[str, Any]:
        return {
            under(path, name): tuple(
                tuple(tuple(under(path, f) if isinstance(f, str) else f for f in s) for s in axis)
                for axis in whole
            )
            for name, whole in plan.axes.items()
        }

    items = plans.items()
    grown = {path: plan for path, plan in items if plan.widths}
    rest = sum(
        out_channels(m)
        for path, m in model.named_modules()
        if not any(path.startswith(f"{p}.") for p in grown)
    )
    total = rest + sum(p.counted for p in grown.values())
    return Plan(
        widths=tuple(
            replace(w, name=under(p, w.name), layers=tuple(under(p, x) for x in w.layers))
            for p, plan in items
            for w in plan.widths
        ),
        pinned={
            under(p, k): PORT.format(p) if v == OUTPUT else v
            for p, plan in items
            for k, v in plan.pinned.items()
        },
        axes={k: v for p, plan in items for k, v in axes(p, plan).items()},
        contracted={under(p, k): v for p, plan in items for k, v in plan.contracted.items()},
        fills={under(p, k): v for p, plan in items for k, v in plan.fills.items()},
        opaque={"": why, **{under(p, k): v for p, plan in items for k, v in plan.opaque.items()}},
        elastic_share=sum(p.elastic_share * p.counted for p in grown.values()) / total
        if total
        else 1.0,
        counted=total,
        parts=tuple(grown),
        flow=tuple(_renamed(x, partial(under, p)) for p, plan in grown.items() for x in plan.flow),
    )


def _renamed(layer: Layer, name: Callable[[str], str]) -> Layer:
    return Layer(
        name(layer.name),
        layer.type,
        layer.is_join,
        tuple(map(name, layer.widths)),
        tuple(map(name, layer.inputs)),
    )


def part_of(plan: Plan, path: str) -> Plan:
    """Return the plan of the part at `path` out of a joint plan."""
    start = f"{path}."

    def cut(name: str) -> str:
        return name[len(start) :]

    def mine(table: Mapping[str, Any]) -> dict[str, Any]:
        return {cut(k): v for k, v in table.items() if k.startswith(start)}

    return replace(
        plan,
        widths=tuple(
            replace(w, name=cut(w.name), layers=tuple(map(cut, w.layers)))
            for w in plan.widths
            if w.name.startswith(start)
        ),
        pinned=mine(plan.pinned),
        axes={
            name: tuple(
                tuple(tuple(cut(f) if isinstance(f, str) else f for f in s) for s in axis)
                for axis in whole
            )
            for name, whole in mine(plan.axes).items()
        },
        contracted=mine(plan.contracted),
        fills=mine(plan.fills),
        opaque=mine(plan.opaque),
        parts=(),
        flow=tuple(_renamed(x, cut) for x in plan.flow if x.name.startswith(start)),
    )


def calls_of(model: nn.Module, example: Example) -> dict[str, list[Example]]:
    """Run a copy of `model` once in eval mode, and return what reached each of its modules, call by call.

    Args:
        model: On a real device.
        example: Arguments; tensors without values (on the meta device) are filled with noise.

    Raises:
        TraceError: The forward fails on the example.
    """
    copied = deep_copy(model).eval()
    args, kwargs = with_values(example, copied)
    seen: dict[str, list[Example]] = {}
    for path, m in copied.named_modules():

        def look(_: nn.Module, a: Any, k: Any, path: str = path) -> None:
            if any(isinstance(t, Tensor) for t in tree_leaves((a, k))):
                seen.setdefault(path, []).append(on_meta((a, k)))

        m.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad(), random_states_kept():
        try:
            copied(*args, **kwargs)
        except NetAugFXError:
            raise
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} cannot be traced, and running it on the example fails, so its "
                f"children cannot be widened either: {type(error).__name__}: {error}. Give example_inputs "
                "that its forward takes in eval mode."
            ) from error
    return seen


def to_plan_for(call: Example) -> Example:
    """Return a call of a part with two samples at least: none tell no shape, and a norm cannot train on one."""

    def more(t: Tensor) -> Tensor:
        shape = [2 if n == 0 else n for n in t.shape]
        if len(shape) > 1:
            shape[0] = max(2, shape[0])
        return t if list(t.shape) == shape else torch.empty(shape, dtype=t.dtype, device="meta")

    made: Example = tree_map_only(Tensor, more, call)
    return made
