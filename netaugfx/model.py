"""WideModel: the base as itself, its blocks beside it, and a rewritten graph for wider subnets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.utils._pytree import tree_map_only

from .checks import check_state, shape_of
from .copies import deep_copy
from .cost import Cost
from .entered import Entered
from .errors import ConfigError, InputError
from .examples import Example, arguments
from .graphs import Graphs
from .plan import KINDS, Config, Plan, Width
from .rewrite import BatchStatistics, Bound, Program, averages
from .sampling import Sampler, checked
from .shell import Shell
from .storage import Layout, Rooms, parent, permute
from .trace import Inputs

step_over = partial(_disable_dynamo, recursive=False)  # torch.compile compiles what it calls
CACHES = ("_graphs", "_sampler", "_subnets", "_one_pass", "_entered")


class WideModel(Shell):
    """A model whose widths can grow, made by `widen`.

    At rest it is the base: `wide(x)` runs the base's own forward, with its hooks, and has its attributes.
    `wide.at(config)(x)` runs the subnet at a config. The base's Parameters keep their names; what wider subnets
    add lies in one child, `augmented`.

    Attributes:
        base: The base, a copy of the user's model of the same class; it shares all of its Parameters with this.
        example: Positional and keyword arguments of a forward, on the meta device: the shapes that were planned for.
        plan: What grows; `widths` and `pinned` are its widths by name, and the reasons of those that do not grow.
    """

    plan: Plan
    example: Example
    statistics: dict[Config, dict[str, Tensor]]
    _seed: int
    _graphs: Graphs
    _sampler: Sampler
    _subnets: WeakValueDictionary[Config, Subnet]
    _entered: Entered
    _generator_state: Tensor

    def __init__(
        self, base: nn.Module, plan: Plan, rooms: Rooms, example: Example, seed: int
    ) -> None:
        super().__init__(base, rooms)
        self.__dict__.update(
            plan=plan,
            example=example,
            _seed=seed,
            statistics={},
            _generator_state=torch.Generator().manual_seed(seed).get_state(),
        )
        self._forget()

    # ------------------------------------------------------------------------------------------- at rest

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the base, or the subnet of the `with wide.at(config)` block that this call stands in."""
        if self._entered.configs:
            return self._run_entered(args, kwargs)
        return self.base(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WideModel:
        """Let the example follow the weights where `.to()`, `.half()` and the like change their dtype."""
        before = _dtype(self.base)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for found in self.statistics.values():
            found.update({name: fn(t) for name, t in found.items()})
        self._graphs.forget()
        after = _dtype(self.base)
        if before != after:
            self._map_examples(lambda t: t.to(after) if t.dtype == before else t)
        return self

    def _map_examples(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.__dict__["example"] = tree_map_only(Tensor, fn, self.example)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        for name in CACHES:
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> WideModel:
        made: WideModel = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(deep_copy(self.__getstate__(), memo))
        return made

    def _forget(self) -> None:
        self.__dict__.update(
            _graphs=Graphs(self.base, self.plan, self.rooms),
            _sampler=Sampler(self.plan, self._seed, self._polynomial),
            _subnets=WeakValueDictionary(),
            _entered=Entered(),
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._forget_statistics()

    def _forget_statistics(self) -> None:
        """Drop what `recalibrate` found: the weights are others now."""
        if self.statistics:
            self.statistics.clear()
            self._graphs.forget()

    def load_base(self, state_dict: Mapping[str, Any]) -> None:
        """Load the base's Parameters and buffers from a checkpoint of the user's model, strictly.

        Raises:
            StateError: Missing, unexpected or misshapen entries. Nothing has been loaded then.
        """
        check_state(self.base, state_dict)
        self.base.load_state_dict(state_dict, strict=True)
        self._forget_statistics()

    # ------------------------------------------------------------------------------------------ the plan

    @property
    def widths(self) -> Mapping[str, Width]:
        """The elastic widths by name."""
        return self.plan.by_name

    @property
    def pinned(self) -> Mapping[str, str]:
        """The widths that stay at their base size, with the reasons."""
        return self.plan.pinned

    @property
    def elastic_share(self) -> float:
        """Elastic output channels of convolution and linear layers over all, network outputs left out."""
        return self.plan.elastic_share

    @property
    def base_config(self) -> Config:
        """Every width at its base size."""
        return self.plan.base_config

    @property
    def max_config(self) -> Config:
        """Every width at its largest choice."""
        return self.plan.max_config

    def named_base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the base's Parameters with the names that they have in the user's model."""
        return self.base.named_parameters()

    def base_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the base's Parameters."""
        return self.base.parameters()

    def named_augmented_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the blocks, which extraction drops, with their names in this module."""
        return self.rooms.named_parameters(prefix=self.room)

    def augmented_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the blocks, which extraction drops."""
        return self.rooms.parameters()

    @property
    def no_weight_decay(self) -> Callable[[], set[str]]:
        """Parameters that no weight decay is for, as timm asks a model: those that the base names, and their blocks."""
        own: Any = self.base.no_weight_decay

        def names() -> set[str]:
            said = set(own())
            return said | {block for block, name in self.names_of_blocks() if name in said}

        return names

    def names_of_blocks(self) -> Iterator[tuple[str, str]]:
        """Yield the name of every block, with that of the base's Parameter that it adds to."""
        for name, _ in self.rooms.named_parameters():
            yield f"{self.room}.{name}", parent(name)

    # ----------------------------------------------------------------------------------------- subnets

    def at(self, config: Mapping[str, int]) -> Subnet:
        """Return the subnet at `config`, a callable that shares the weights; widths left out are at base size.

        Also a context manager, `with wide.at(config): ddp(x)`: a forward that is entered inside runs the subnet.

        Raises:
            ConfigError: An unknown width, or a size that is not one of its choices.
        """
        whole = self.plan.config(config)
        subnet = self._subnets.get(whole)
        if subnet is None:
            subnet = self._subnets[whole] = Subnet(self, whole)
        return subnet

    def sample(
        self,
        generator: torch.Generator | None = None,
        kinds: str | Iterable[str] = KINDS,
        budget: float | None = None,
        pool: int | None = None,
    ) -> Config:
        """Draw a config: every width of `kinds` uniformly among its choices, the others at base size.

        Args:
            generator: Where randomness comes from; without one, the model's own, seeded by `widen`. The global
                random state is not used.
            kinds: `stream`, `inner`, or both.
            budget: Draw uniformly among the configs whose MACs are at most `budget` times the base's, by a Markov
                chain (`netaugfx.sampling.Within`). MACs are those of eval mode, at the example's shapes.
            pool: Draw uniformly among so many configs, the same ones always for a model and its seed; they are
                distinct, wider than the base, and drawn themselves as `kinds` and `budget` say.

        Raises:
            ConfigError: An argument that is none of these, or fewer configs than the pool should have.
            PlanError: A budget, but the MACs are no polynomial of the widths.
        """
        kinds = checked(generator, kinds, budget, pool)
        own = generator is None
        if generator is None:
            generator = torch.Generator()
            generator.set_state(self._generator_state)
        config = self._sampler.draw(kinds, budget, pool)(generator)
        if own:
            self._generator_state = generator.get_state()
        return config

    def _polynomial(self) -> Cost:
        """Return the MACs of one forward at the example's shapes, as a polynomial of the widths.

        Raises:
            PlanError: Some operator costs no product of channel counts.
        """
        args, kwargs = self.example
        return self._graphs.polynomial(args, kwargs)

    @step_over
    def run(self, config: Config, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the subnet at a whole config on the arguments of a forward."""
        if config == self.plan.base_config:
            return self.base(*args, **kwargs)
        bound, tensors = self.prepared(config, args, kwargs)
        return bound.run(bound.begin(), *tensors)

    @step_over
    def _run_entered(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        config = self._entered.here()
        if config is None:
            return self.base(*args, **kwargs)
        return self.run(config, args, kwargs)

    @_disable_dynamo
    def prepared(
        self, config: Config, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Bound, list[Tensor]]:
        """Return the graph of a config that is not the base's, ready to run, and its inputs."""
        program, inputs = self.program(args, kwargs)
        return self.bound(program, config), inputs.tensors

    def layout(self, config: Config) -> Layout:
        """Return where the tensors of the subnet at `config` come from."""
        return self._graphs.sources.at(config)

    def bound(self, program: Program, config: Config) -> Bound:
        """Return the layouts of `config` for a program, from the cache where they are."""
        return self._graphs.bound(program, config, self.statistics.get(config), self._subnets)

    def program(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: nn.Module | None = None,
        device: torch.device | None = None,
    ) -> tuple[Program, Inputs]:
        """Return the rewritten graph for these inputs, the train and eval flags and the attributes as they stand.

        A graph is traced once, and again where a value that Python read while tracing has changed.

        Args:
            args: Positional arguments of a forward.
            kwargs: Keyword arguments.
            model: A copy of the base as it is now, in the mode that is meant; the base itself if None.
            device: What `x.device` answers; that of the model and the inputs if None.

        Raises:
            InputError: The inputs do not fit the model.
            GuardError: The new graph couples channels otherwise than the plan.
        """
        return self._graphs.program(args, kwargs, model, device)

    def recalibrate(self, config: Mapping[str, int], batches: Iterable[Any]) -> None:
        """Give the subnet at `config` batch-norm statistics of its own, the mean over `batches`.

        They are used by `wide.at(config)` in eval mode, and by `extract`, until other weights are loaded or the same
        config is recalibrated again. The base's statistics are not touched. Copies and pickles keep them; a
        `state_dict` holds what is trained, and not these.

        Args:
            config: The subnet's config.
            batches: Inputs of the forward: a tensor, a tuple of positional arguments, or a dict of keyword ones.

        Raises:
            ConfigError: As `at`; no batches.
        """
        config = self.plan.config(config)
        if isinstance(batches, Tensor) or not isinstance(batches, Iterable):
            raise ConfigError(
                f"recalibrate: batches must be a list of inputs, or a loader of them; {type(batches).__name__} came."
            )
        if config == self.plan.base_config:
            raise ConfigError(
                "recalibrate: the base's own statistics are not replaced; train the base instead."
            )
        flags = [m.training for m in self.base.modules()]
        self.eval()
        try:
            runs: dict[int, BatchStatistics] = {}
            for batch in batches:
                try:
                    program, inputs = self.program(*arguments(batch))
                except InputError as error:
                    if not isinstance(batch, tuple | list):
                        raise
                    raise InputError(
                        f"recalibrate: a batch is a forward's positional arguments, {len(batch)} here: {error} "
                        "Where a loader gives labels too, leave them out: [images for images, _ in loader]."
                    ) from None
                if id(program) not in runs:
                    runs[id(program)] = BatchStatistics(program)
                runs[id(program)].add(Bound(program, self._graphs.sources, config), inputs.tensors)
        finally:
            for m, flag in zip(self.base.modules(), flags, strict=True):
                m.training = flag
            self.training = self.base.training
        if not runs:
            raise ConfigError("recalibrate: no batches came; give at least one.")
        found = averages(runs.values())
        broken = next((name for name, t in found.items() if not t.isfinite().all()), None)
        if broken is not None:
            raise ConfigError(
                f"recalibrate: {broken!r} is not finite on these batches; look at the images and the weights. Nothing "
                "was changed."
            )
        self.statistics[config] = found
        self._graphs.forget(config)

    def uncalibrate(self, config: Mapping[str, int]) -> None:
        """Drop what `recalibrate` gave to the subnet at `config`; nothing happens where it gave nothing.

        Raises:
            ConfigError: As `at`.
        """
        config = self.plan.config(config)
        if self.statistics.pop(config, None) is not None:
            self._graphs.forget(config)

    def permute(
        self,
        orders: Mapping[str, Sequence[int]],
        optimizer: torch.optim.Optimizer | None = None,
        ema: nn.Module | None = None,
    ) -> None:
        """Reorder the channels of whole widths, in place; the widest subnet computes what it did, the base does not.

        Running statistics of batch norm belong to the base: its new channels start from mean 0 and variance 1, to be
        refreshed by `torch.optim.swa_utils.update_bn`. So in eval mode the widest subnet computes what it did only if
        it has been recalibrated: its own statistics go along. Those of other subnets are dropped.

        Args:
            orders: Width name -> a permutation of the channels of its largest size: channel i is what was `order[i]`.
            optimizer: Its values per element (momentum) go along; counters (Adam's step) stay with their Parameters.
            ema: An average of this model or of its base, which goes along. In one of the base alone, a channel that
                was not in the base has its present values.

        Raises:
            ConfigError: A width that cannot be permuted (`Width.permutable`), no permutation, or an optimiser or an
                average that cannot follow. Nothing has been changed then.
        """
        self.statistics = permute(
            self.plan, self.base, self.rooms, orders, self.statistics, optimizer, ema
        )
        self._graphs.forget()

    def macs(self, config: Mapping[str, int], input_shape: tuple[int, ...] | None = None) -> int:
        """Return the multiply-accumulates of one forward at `config`, as `torch.utils.flop_counter` counts them.

        They are those of eval mode. Nothing is run: they are read off the shapes of the plan.

        Args:
            config: The subnet's config.
            input_shape: The shape of the input, batch included, for a model with one tensor input; else the
                example's, with a batch of one where its first axis is a batch: where the first axis of an
                output follows it.

        Raises:
            ConfigError: As `at`. InputError: The model takes no input of this shape, or several tensors.
        """
        config = self.plan.config(config)
        if input_shape is None:
            return self._graphs.macs(config, *self._graphs.one_sample(self.example))
        input_shape = shape_of(input_shape)
        several = len(Inputs.of(self.base, *self.example).tensors)
        if several > 1:
            raise InputError(
                f"macs: {type(self.base).__name__} takes {several} tensors, so that one input_shape says too "
                "little; leave it out, and widen with example_inputs of the shapes that you mean."
            )
        example = tree_map_only(
            Tensor, lambda t: torch.empty(input_shape, dtype=t.dtype, device="meta"), self.example
        )
        try:
            return self._graphs.macs(config, *example)
        except RuntimeError as error:
            raise InputError(
                f"macs: {type(self.base).__name__} does not take an input of shape {input_shape}: "
                f"{str(error).splitlines()[0]}."
            ) from error


def _dtype(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


class Subnet:
    """The subnet of a WideModel at one config, fixed when it was made; it shares the weights."""

    def __init__(self, wide: WideModel, config: Config) -> None:
        self.wide = wide
        self.config = config

    @step_over
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wide.run(self.config, args, kwargs)

    def __enter__(self) -> Subnet:
        self.wide._entered.enter(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        self.wide._entered.leave()

    def __repr__(self) -> str:
        return f"Subnet({self.config})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"A subnet has no {name!r}: it is a call that shares the weights and the mode of `wide`. "
            f"Use wide.{name}, which is the base's, or netaugfx.extract(wide, config) for a module of its own."
        )
