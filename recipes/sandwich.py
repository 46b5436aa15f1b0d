"""The sandwich rule: the widest network teaches the base and sampled ones in each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.task import TrainingTask, resolve_classification_loss
from torch import Tensor, nn

from netaugfx.errors import InputError
from recipes import losses
from recipes.netaug import checked_kinds, own_random_numbers
from recipes.passes import SameInput
from recipes.teachers import OnlineTeacher


class SandwichTask(TrainingTask):
    """The sandwich rule with in-place distillation.

    L(widest) on labels + KL(widest, base) + sum over n sampled networks of KL(widest, sampled)

    The widest network's soft output is detached.

    Args:
        wide: a WideModel, or a module that wraps one.
        criterion: (output, target) -> scalar, for the widest.
        samples: n, networks sampled per step beside the widest and the base; the paper uses 2.
        temperature: of the soft output; the paper uses 1.
        kinds: which kinds of widths the sampled networks grow.
        generator: of sampling, on the CPU; made from `seed` if None.
        seed: seed of the generator if none is given.

    Raises:
        InputError: `wide` contains no WideModel.
        PlanError: there is no such kind.

    Source: J. Yu, T. Huang, "Universally Slimmable Networks and Improved Training Techniques",
    ICCV 2019, sections 3.2 and 3.3; the base stands for the smallest network.
    """

    def __init__(
        self,
        wide: nn.Module,
        criterion: nn.Module | Callable[[Any, Any], Tensor] | None = None,
        *,
        samples: int = 2,
        temperature: float = 1.0,
        kinds: tuple[str, ...] = ("stream", "inner"),
        generator: torch.Generator | None = None,
        seed: int = 0,
    ):
        parameter = next(wide.parameters(), torch.empty(0))
        super().__init__(device=parameter.device, dtype=parameter.dtype, verbose=False)
        if samples < 0:
            raise ValueError(f"samples must be from 0 on, got {samples}.")
        self.trainable_module = wide
        self.criterion = resolve_classification_loss(criterion, self.device)
        self.samples, self.temperature, self.kinds = samples, temperature, checked_kinds(kinds)
        self.generator = torch.Generator().manual_seed(seed) if generator is None else generator
        self.teacher = OnlineTeacher(wide, "widest")
        self._run = SameInput()

    def forward(self, input: Any, target: Any) -> dict[str, Any]:  # noqa: A002
        """Run the base, the widest and the sampled networks.

        Returns:
            "loss" (with its graph), "output" (the base's), "teacher_loss" (the widest's on its
            labels), "base_loss" and, where any is sampled, "augmented_loss" (their mean).
        """
        wide = self.teacher.wide
        output = self._run(self.trainable_module, input)
        others = [
            self._subnet(config, input)
            for config in (
                wide.sample(self.generator, kinds=self.kinds) for _ in range(self.samples)
            )
            if config not in (wide.base_config, wide.max_config)
        ]
        # last, as DistributedDataParallel takes for unused what the last pass does not use
        widest = self._subnet(wide.max_config, input)
        soft = widest.detach()
        teacher_loss = self.criterion(widest, target)
        base_loss, *other_losses = (
            losses.soft(each, soft, temperature=self.temperature) for each in (output, *others)
        )
        result = {
            "loss": teacher_loss + base_loss + sum(other_losses),
            "output": output,
            "teacher_loss": teacher_loss.detach(),
            "base_loss": base_loss.detach(),
        }
        if other_losses:
            result["augmented_loss"] = torch.stack([each.detach() for each in other_losses]).mean()
        return result

    def _subnet(self, config: Any, images: Any) -> Tensor:
        with own_random_numbers(self.generator, self.device), self.teacher.wide.at(config):
            return self._run(self.trainable_module, images)

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """Take up sampling where `state` left it."""
        if state is not None and "generator" in state:
            self.generator.set_state(state["generator"].cpu())
        elif strict:
            raise InputError("The task state holds no 'generator'.")
