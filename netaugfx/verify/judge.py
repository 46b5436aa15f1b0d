"""One model, its base and its subnets, judged by each law in float64, say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..contract import both_modes, drop_hooks, extract
from ..copies import deep_copy
from ..errors import ExtractError, NetAugFXError
from ..examples import copied, on_meta
from ..infer import where
from ..model import WideModel
from ..plan import Config, Plan
from ..rewrite import Program
from ..trace import Inputs, set_random_states, without_caches
from .containment import TOLERANCE, base_part, close, first_spoilt, run_traced

SIDES = {4: 64, 5: 32}  # dimensions of a batch of maps -> pixels


class Judge:
    """A copy of a wide model in float64, say, without dropout, and inputs for it."""

    def __init__(self, wide: WideModel, seed: int, dtype: torch.dtype) -> None:
        self.dtype, self.tolerance = dtype, TOLERANCE[dtype]
        self.wide = deep_copy(wide).to(dtype)
        without_caches(self.wide.base)  # of another dtype
        for m in self.wide.modules():
            if isinstance(m, nn.modules.dropout._DropoutNd):
                m.p = 0.0
            for name in ("drop_prob", "p"):
                if type(m).__name__ in ("DropPath", "StochasticDepth") and hasattr(m, name):
                    setattr(m, name, 0.0)
        self.paths = {path for path, _ in self.wide.base.named_modules()}
        device = next((p.device for p in wide.parameters()), torch.device("cpu"))
        self.generator = torch.Generator().manual_seed(seed)

        def fresh(t: Any, sides: Mapping[int, int]) -> Any:
            if not isinstance(t, Tensor):
                return t
            shape = list(t.shape)
            if t.dim() in sides:
                shape[2:] = [min(n, sides[t.dim()]) for n in shape[2:]]
            if not t.is_floating_point():
                known = t.device.type != "meta" and list(t.shape) == shape
                return t.to(device) if known else torch.zeros(shape, dtype=t.dtype, device=device)
            made = torch.randn(shape, generator=self.generator, dtype=dtype, device="cpu")
            return made.to(device)

        # a smaller image where the model takes one: the laws do not depend on it
        for sides in (SIDES, {}):
            self.args, self.kwargs = tree_map(lambda t, sides=sides: fresh(t, sides), wide.example)
            self.wide.__dict__["example"] = on_meta((self.args, self.kwargs))
            try:
                self.programs = self.both_modes()
                break
            except (NetAugFXError, RuntimeError):
                if not sides:
                    raise
        floats = [
            t for t in tree_leaves(wide.example) if isinstance(t, Tensor) and t.is_floating_point()
        ]
        finite = self.finite()
        if finite is None and all(t.device.type != "meta" for t in floats):

            def own(t: Any) -> Any:
                floating = isinstance(t, Tensor) and t.is_floating_point()
                return t.to(device, dtype) if floating else fresh(t, {})

            self.args, self.kwargs = tree_map(own, wide.example)
            self.wide.__dict__["example"] = on_meta((self.args, self.kwargs))
            self.programs = self.both_modes()
            finite = self.finite()
        if finite is False:  # a logarithm of its input, say
            self.args, self.kwargs = tree_map(_positive, (self.args, self.kwargs))

    def both_modes(self) -> tuple[Program, ...]:
        """Return the graphs as they are without gradients, as all passes run here but `step`."""
        with torch.no_grad():
            return tuple(both_modes(self.wide))

    def finite(self) -> bool | None:
        """Return whether the base's outputs are numbers; None where it does not run: it may want other data."""
        try:
            return all(bool(t.isfinite().all()) for t in self.outputs(deep_copy(self.wide.base)))
        except Exception:
            return None

    def faults(self, configs: tuple[Config, ...]) -> tuple[dict[int, str], dict[int, str]]:
        """Check every law at every config until it fails; return what breaks each, and why each was not checked.

        Raises:
            MemoryError: Memory is short.
        """
        failures: dict[int, str] = {}
        unchecked: dict[int, str] = {}
        for law, check_base in ((4, self.changed_by_hooks), (2, self.base_graphs)):
            with suppress(Exception):  # the base does not run: law 2 says so
                if wrong := check_base():
                    return {law: wrong}, {}
        for law, check in ((2, self.law_2), (3, self.law_3), (4, self.law_4)):  # 4 zeroes blocks
            for config in configs:
                if law not in failures:
                    try:
                        found = check(config)
                    except ExtractError as error:
                        found = None if law == 3 else str(error)
                        if law == 3:
                            unchecked.setdefault(law, str(error))
                    except Exception as error:  # whatever the network raises, the base does not
                        if short_of_memory(error):
                            raise MemoryError(said(error)) from None
                        found = said(error)
                    if found:
                        failures[law] = found
        return failures, unchecked

    def base_runs(self) -> bool:
        """Return whether the base itself takes inputs of this dtype, in both modes."""
        return self.base_fails(lambda: self.outputs(self.wide)) is None

    def base_fails(self, run: Callable[[], object]) -> str | None:
        """Return what the base itself raises in `run`, in either mode; None where it runs."""
        try:
            with self.modes() as programs:
                for _ in programs:
                    run()
        except Exception as error:
            return said(error)
        return None

    def backward_fails(self) -> str | None:
        """Return what the base itself raises in its backward pass; None where it runs."""
        return self.base_fails(lambda: self.step(self.wide, self.wide.base))

    @contextmanager
    def modes(self) -> Iterator[Iterator[Program]]:
        """Give the programs of both modes, with the flags of the wide model set to theirs, and put the flags back."""
        modules = list(self.wide.base.modules())
        flags = [m.training for m in modules]

        def each() -> Iterator[Program]:
            for program in self.programs:
                _set_flags(self.wide.base, program)
                self.wide.training = self.wide.base.training
                yield program

        yield each()
        for m, flag in zip(modules, flags, strict=True):
            m.training = flag
        self.wide.training = self.wide.base.training

    def base_graphs(self) -> str | None:
        """Return why the graph that subnets are made from is not the base's own forward, None where it is."""
        with self.modes() as programs:
            for program in programs:
                if self.wide.training:  # the two need not draw the same for dropout
                    continue
                inputs = self.inputs()
                base = deep_copy(self.wide.base)
                drop_hooks(base, program)
                found = self.outputs(
                    lambda *_, b=base, i=inputs, p=program, **__: run_traced(p, b, i)
                )
                own = self.outputs(self.wide)
                alike = len(found) == len(own) and all(
                    close(a, b, self.tolerance) for a, b in zip(found, own, strict=True)
                )
                if not alike and self.repeats():
                    lines = {g.source: None for g in program.traced.guards if g.by_data}
                    data = ", ".join(lines)
                    return (
                        "the operators found by tracing do not compute what the forward does; it depends on what a "
                        "graph does not hold"
                        + (f": what data decide, which Python reads at {data}" if data else "")
                    )
        return None

    def repeats(self) -> bool:
        """Return whether the base computes the same twice; a generator or a count of its own would let it differ."""
        pairs = zip(self.outputs(self.wide), self.outputs(self.wide), strict=True)
        return all(same(a, b) for a, b in pairs)

    def law_2(self, config: Config) -> str | None:
        with self.modes() as programs:
            for _ in programs:
                if not self.wide.training:
                    before = self.outputs(self.wide)
                buffers = {n: b.clone() for n, b in self.wide.base.named_buffers()}
                self.outputs(self.wide.at(config))
                for name, b in self.wide.base.named_buffers():
                    if not torch.equal(b, buffers[name]):
                        return (
                            f"a pass at {short(config, self.wide.plan)} changes the buffer '{name}'"
                        )
                if not self.wide.training and self.repeats():
                    for a, b in zip(before, self.outputs(self.wide), strict=True):
                        if not same(a, b):
                            return "the base computes something else after a subnet ran"
        return None

    def law_3(self, config: Config) -> str | None:
        plain = extract(self.wide, config)
        graph = isinstance(plain, fx.GraphModule)
        with self.modes() as programs:
            for program in programs:
                flags = {path: m.training for path, m in program.traced.root.named_modules()}
                for path, m in plain.named_modules():
                    if not graph or path in self.paths:
                        m.training = flags.get(path, program.traced.root.training)
                    elif path.startswith("dropout_of_"):
                        m.training = program.traced.root.training
                mine = self.step(self.wide.at(config), self.wide.base)
                kept = {n: b.clone() for n, b in plain.named_buffers()}
                theirs = self.step(plain, plain)
                for n, b in plain.named_buffers():
                    b.copy_(kept[n])
                mode = "train" if program.traced.root.training else "eval"
                for a, b in zip(mine[0], theirs[0], strict=True):
                    if not close(a, b, self.tolerance):
                        return (
                            f"in {mode} mode the subnet at {short(config, self.wide.plan)} is not "
                            "what extract gives"
                        )
                largest = max(
                    (g.abs().max().item() for g in theirs[1].values() if g.numel()), default=0.0
                )
                for name, g in mine[1].items():
                    other = self.base_part(name, theirs[1].get(name), config)
                    if other is not None and (g - other).abs().max() > self.tolerance * max(
                        largest, 1e-30
                    ):
                        return f"in {mode} mode the gradient of '{name}' is not that of the extracted network"
        return None

    def base_part(self, name: str, t: Tensor | None, config: Config) -> Tensor | None:
        axes = self.wide.plan.axes.get(name)
        return t if t is None or axes is None else base_part(t, axes, self.wide.plan, config, {})

    def changed_by_hooks(self) -> str | None:
        """Return what is wrong where hooks that no subnet runs change what the base computes."""
        for program in self.programs:
            base, plain = deep_copy(self.wide.base), deep_copy(self.wide.base)
            hooked = drop_hooks(plain, program)
            if not hooked:
                return None
            for m in (base, plain):
                _set_flags(m, program)
            pairs = zip(self.outputs(base), self.outputs(plain), strict=True)
            if not all(close(a, b, self.tolerance) for a, b in pairs):
                return hooks_change_the_base(hooked)
        return None

    def law_4(self, config: Config) -> str | None:
        wide, plan = self.wide, self.wide.plan
        for known in list(
            wide.statistics
        ):  # a recalibrated subnet normalises base channels otherwise
            wide.uncalibrate(known)
        base = deep_copy(wide.base)  # its graph may update its buffers
        with torch.no_grad(), self.modes() as programs:
            for name, summed in plan.contracted.items():
                path, _, leaf = name.rpartition(".")
                for axis in summed:
                    room, key = wide.rooms.room(path), f"{leaf}_axis{axis}"
                    block = room._parameters.get(key, room._buffers.get(key))
                    if block is not None:
                        block.zero_()
            drop_hooks(base, self.programs[0])
            for program in programs:
                _set_flags(base, program)
                inputs = self.inputs()
                bound = wide.bound(program, config)
                node = first_spoilt(program, base, bound, inputs, plan, config, self.tolerance)
                if node is not None:
                    mode = "train" if program.traced.root.training else "eval"
                    return (
                        f"in {mode} mode the base channels of {where(node)} at {short(config, plan)} "
                        "are not what the base computes"
                    )
        return None

    def inputs(self) -> list[Tensor]:
        """Return the tensors of one pass of the base."""
        return Inputs.of(self.wide.base, *copied((self.args, self.kwargs))).tensors

    def outputs(self, run: Callable[..., Any]) -> list[Tensor]:
        set_random_states(0)
        args, kwargs = copied((self.args, self.kwargs))
        with torch.no_grad():
            return output_tensors(run(*args, **kwargs))

    def step(
        self, run: Callable[..., Any], owner: nn.Module
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return outputs and gradients of a random linear function of them."""
        set_random_states(0)
        named = {n: p for n, p in owner.named_parameters() if p.requires_grad}
        args, kwargs = copied((self.args, self.kwargs))
        with torch.enable_grad():
            found = output_tensors(run(*args, **kwargs))
            generator = torch.Generator().manual_seed(1)
            weights = [
                torch.randn(t.shape, generator=generator, dtype=self.dtype, device="cpu").to(
                    t.device
                )
                for t in found
            ]
            terms = [(t * w).sum() for t, w in zip(found, weights, strict=True) if t.requires_grad]
            if not terms or not named:
                return found, {}
            loss = torch.stack([t.double() for t in terms]).sum()
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        pairs = zip(named, gradients, strict=True)
        return [t.detach() for t in found], {n: g for n, g in pairs if g is not None}


def output_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in what a forward returns, those in a dataclass too."""
    if hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, name) for name in value.__dataclass_fields__]
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def _positive(value: Any) -> Any:
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


def _set_flags(model: nn.Module, program: Program) -> None:
    """Give `model` the train and eval flags that the program was traced at."""
    for path, m in program.traced.root.named_modules():
        model.get_submodule(path).training = m.training


def same(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are the same, bit by bit; one NaN is the same as another."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def hooks_change_the_base(hooked: Iterable[str]) -> str:
    """Return what a report says of hooks at the modules of these paths."""
    names = ", ".join(repr(path) if path else "of the whole" for path in hooked)
    return (
        f"hooks ({names}) change what the base computes, and wider subnets do not run them; write what "
        "they do into a forward, or take them off before widen"
    )


def short(config: Config, plan: Plan) -> str:
    """Return a config as a report says it."""
    if config == plan.max_config:
        return "the largest config"
    grown = {name: n for name, n in config.items() if n != plan.base_config[name]}
    return str(grown) if len(grown) < 4 else f"a config with {len(grown)} widths grown"


def short_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is short."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in text for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def said(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
