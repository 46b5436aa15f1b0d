"""The rewritten graphs of one wide model, and what has been worked out for them: layouts of configs, and costs."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .cost import Cost, cost, counted, output_shapes
from .errors import NetAugFXError, PlanError
from .examples import Example, with_batch
from .infer import infer
from .plan import Config, Plan
from .programs import Programs
from .rewrite import Bound, Program, rewrite
from .rules import is_leaf
from .storage import Rooms, Sources
from .trace import ONE_AT_A_TIME, Inputs, in_mode, meta_copy, trace

BOUND_CONFIGS = 64  # how many configs keep their layouts, beside those that are held


class Graphs:
    """Finds or makes the graph for some inputs, the layouts of a config for a graph, and what a forward costs.

    Args:
        base: The base; its flags and attributes may change at any time.
        plan: Its plan.
        rooms: The blocks.
    """

    def __init__(self, base: nn.Module, plan: Plan, rooms: Rooms) -> None:
        self.base, self.plan, self.rooms = base, plan, rooms
        self.programs = Programs(base, self._renewed, self._dropped)
        self.sources = Sources(plan, base, rooms)
        self.layouts: dict[tuple[int, Config], Bound] = {}
        self.costs: dict[Any, tuple[Cost | None, Program]] = {}
        self.sample: tuple[Example, Example] | None = None  # an example, and one sample of it

    def program(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        model: nn.Module | None = None,
        device: torch.device | None = None,
    ) -> tuple[Program, Inputs]:
        """Return the graph for these inputs, and the inputs: see `WideModel.program`."""
        model = self.base if model is None else model
        inputs = Inputs.of(self.base, args, kwargs)
        program = self.programs.find(model, inputs)
        if program is not None:
            return program, inputs
        with ONE_AT_A_TIME:
            program = self.programs.find(model, inputs)  # another thread's
            if program is None:
                traced = trace(model, args, kwargs, is_leaf=is_leaf, device=device, real=self.base)
                _, (typing,) = infer([traced], plan=self.plan)
                program = self.programs.add(model, inputs, rewrite(traced, typing, self.plan))
        return program, inputs

    def bound(
        self,
        program: Program,
        config: Config,
        statistics: Mapping[str, Tensor] | None = None,
        held: Container[Config] = (),
    ) -> Bound:
        """Return the layouts of `config` for a program, from the cache where they are.

        Args:
            program: The graph.
            config: A whole config.
            statistics: What stands in for the running statistics; the same ones until `forget`.
            held: Configs whose layouts stay in the cache when it is full.
        """
        key = (id(program), config)
        found = self.layouts.get(key)
        if found is None:
            if len(self.layouts) >= BOUND_CONFIGS:
                idle = next((k for k in self.layouts if k[1] not in held), None)
                if idle is not None:
                    del self.layouts[idle]
            found = self.layouts[key] = Bound(program, self.sources, config, statistics)
        return found

    def forget(self, config: Config | None = None) -> None:
        """Drop the layouts of a config, or of all: their tensors or statistics are others now."""
        kept = () if config is None else self.layouts.items()
        self.layouts = {key: b for key, b in kept if key[1] != config}

    def cost(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Cost | None, Program, Inputs]:
        """Return the polynomial for these inputs in eval mode, if there is one, with what it was read off."""
        inputs = Inputs.of(self.base, args, kwargs)
        known = self.costs.get(inputs.key)
        if known is None or not self.programs.valid(known[1]):
            program, _ = self._in_eval(args, kwargs)
            self.costs[inputs.key] = cost(program, self.plan, inputs.tensors), program
        return *self.costs[inputs.key], inputs

    def polynomial(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cost:
        """Return the MACs of one forward on these inputs in eval mode, as a polynomial of the widths.

        Raises:
            PlanError: Some operator costs no product of channel counts.
        """
        found = self.cost(args, kwargs)[0]
        if found is None:
            raise PlanError(
                "The MACs of this model are no polynomial of its widths, which a budget needs; draw "
                "without one, and look at wide.macs(config)."
            )
        return found

    def one_sample(self, example: Example) -> Example:
        """Return an example without values, with a batch of one where its first axis is a batch.

        It is one if the first axis of an output follows it, and nothing else of the outputs does.
        """
        if self.sample is None or self.sample[0] is not example:
            self.sample = example, self._one_sample(example)
        return self.sample[1]

    def _one_sample(self, example: Example) -> Example:
        one, many = (with_batch(example, n) for n in (1, 8))  # where data decide, some of 8 remain
        try:
            first, second = (self._output_shapes(*sized) for sized in (one, many))
        except (NetAugFXError, RuntimeError):  # no length of one
            return with_batch(example, None)
        changed = [(x, y) for x, y in zip(first, second, strict=True) if x != y]
        follows = changed and all(x[1:] == y[1:] for x, y in changed)
        return one if follows else with_batch(example, None)

    def _output_shapes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Size]:
        program, inputs = self._in_eval(args, kwargs)
        return output_shapes(program, self.plan, inputs.tensors)

    def _in_eval(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Program, Inputs]:
        """Return the graph of eval mode for these inputs, on the meta device, and the inputs."""
        device = next((p.device for p in self.base.parameters()), None)
        return self.program(args, kwargs, in_mode(meta_copy(self.base), False), device)

    def macs(
        self, config: Mapping[str, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> int:
        """Return the MACs of one forward on these inputs at a whole config, in eval mode."""
        found, program, inputs = self.cost(args, kwargs)
        if found is not None:
            return found.macs(config)
        return counted(program, self.plan, config, inputs.tensors)

    def _renewed(self) -> None:
        """Look at the base's modules anew: another stands in the place of one."""
        self.sources = Sources(self.plan, self.base, self.rooms)
        self.layouts = {}

    def _dropped(self, program: Program) -> None:
        self.layouts = {key: b for key, b in self.layouts.items() if key[0] != id(program)}
