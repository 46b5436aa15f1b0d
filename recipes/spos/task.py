"""Supernet training: each step trains one uniformly sampled subnet.

Source: Z. Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling", ECCV
2020, section 3. Deviations: the choices are the sizes of widths; the ceiling draws uniformly among
the subnets within it (by a Markov chain) instead of rejecting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.task import TrainingTask, resolve_classification_loss
from torch import Tensor, nn

import netaugfx
from netaugfx.errors import InputError, PlanError
from netaugfx.plan import KINDS, Config
from recipes.netaug import refuse_several, wide_in
from recipes.passes import call
from recipes.spos.budget import Ceiling


class SinglePathTask(TrainingTask):
    """The loss of one sampled subnet: L([W_t, W_c]), c uniform over the configs, sampled anew each step.

        task = SinglePathTask(netaugfx.widen(model), criterion, ceiling="3.0x")
        result = task(input, target)
        result["loss"].backward()

    The prior is fixed, not learned. The base is no more than one of the subnets: its batch norms
    need new statistics before it is evaluated (`torch.optim.swa_utils.update_bn`).

    Args:
        wide: a WideModel, or a module that wraps one (DistributedDataParallel).
        criterion: (output, target) -> scalar loss; timm's classification loss if None.
        ceiling: a `Budget`, "3.0x", a number (times the base's MACs) or a function; None: no ceiling.
        path_dropout: with this probability a width stays at its base size in a step, whatever was
            drawn for it; may be changed between steps.
        kinds: which kinds of widths are sampled; the others stay at their base size.
        generator: a CPU generator for sampling; made from `seed` if None.
        seed: seed of the generator if none is given.

    Raises:
        InputError: `wide` contains no WideModel.
        PlanError: no width of the given kinds can grow.
        SearchError: not even the base is within the ceiling.

    Source: path dropout: G. Bender et al., "Understanding and Simplifying One-Shot Architecture
    Search", ICML 2018, section 3.2. Deviation: what is dropped is a width's growth, as the base is
    part of every path.
    """

    def __init__(
        self,
        wide: nn.Module,
        criterion: nn.Module | Callable[[Any, Any], Tensor] | None = None,
        *,
        ceiling: Any = None,
        path_dropout: float = 0.0,
        kinds: tuple[str, ...] = KINDS,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ):
        parameter = next(wide.parameters(), torch.empty(0))
        super().__init__(device=parameter.device, dtype=parameter.dtype, verbose=False)
        if not 0 <= path_dropout <= 1:
            raise ValueError(f"path_dropout must be a probability, got {path_dropout}.")
        refuse_several(wide, type(self).__name__)
        self.trainable_module = wide
        self.criterion = resolve_classification_loss(criterion, self.device)
        self.path_dropout = path_dropout
        self.generator = torch.Generator().manual_seed(seed) if generator is None else generator
        self.ceiling = Ceiling(self.wide, ceiling, kinds=kinds)
        self.drawn = {
            width.name: torch.zeros(len(width.choices), dtype=torch.int64)
            for width in self.wide.plan.widths
            if len(width.choices) > 1 and width.kind in self.ceiling.kinds
        }
        if not self.drawn:
            raise PlanError(
                f"Nothing to sample: no width of kind {' or '.join(self.ceiling.kinds)} can grow. "
                "netaugfx.describe(wide) says why."
            )

    @property
    def wide(self) -> netaugfx.WideModel:
        """The WideModel, also where `trainable_module` wraps it."""
        return wide_in(self.trainable_module, type(self).__name__)

    @property
    def counts(self) -> Mapping[str, Mapping[int, int]]:
        """Width -> size -> how many steps have trained it."""
        return {
            name: dict(zip(self.wide.widths[name].choices, drawn.tolist(), strict=True))
            for name, drawn in self.drawn.items()
        }

    def uniformity(self) -> dict[str, float]:
        """Width -> the p-value of a chi-square test that its sizes came equally often.

        Without a ceiling and path dropout they should: then few p-values are small.
        """
        from scipy.stats import chisquare

        return {name: float(chisquare(drawn.numpy()).pvalue) for name, drawn in self.drawn.items()}

    def sample(self) -> Config:
        """Draw the config of a step, and count its sizes."""
        config = self.ceiling.draw(self.generator)
        if self.path_dropout:
            kept = torch.rand(len(config), generator=self.generator) >= self.path_dropout
            base = self.wide.base_config
            config = self.wide.plan.config(
                {
                    name: size if keep else base[name]
                    for (name, size), keep in zip(config.items(), kept.tolist(), strict=True)
                }
            )
        for name, drawn in self.drawn.items():
            drawn[self.wide.widths[name].choices.index(config[name])] += 1
        return config

    def forward(self, input: Any, target: Any) -> dict[str, Any]:  # noqa: A002 (timm's name)
        """Run one sampled subnet.

        Returns:
            "loss" (with its graph) and "output", both the subnet's.
        """
        with self.wide.at(self.sample()):
            output = call(self.trainable_module, input)
        return {"loss": self.criterion(output, target), "output": output}

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The state of the generator, and the counts."""
        return {
            "generator": self.generator.get_state(),
            "counts": torch.cat([*self.drawn.values()]),
        }

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Take up sampling and counting where `state` left it."""
        if state is not None and {"generator", "counts"} <= state.keys():
            self.generator.set_state(state["generator"].cpu())
            sizes = [len(drawn) for drawn in self.drawn.values()]
            counts = state["counts"].cpu().clone().split(sizes)
            self.drawn = dict(zip(self.drawn, counts, strict=True))
        elif strict:
            raise InputError("The task state is not one of SinglePathTask.get_task_state().")
