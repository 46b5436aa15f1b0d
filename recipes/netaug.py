"""NetAug: train a tiny network inside larger networks that share its weights.

Source: H. Cai, C. Gan, J. Lin, S. Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022,
section 3.2, equations 1 and 2. Deviations: subnets normalise by their own batch statistics and
leave the base's running statistics alone; the augmented pass draws its random numbers (dropout,
drop path) from the task's own generator.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.task import TrainingTask, resolve_classification_loss
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import netaugfx
from netaugfx.errors import InputError, PlanError
from netaugfx.plan import KINDS
from recipes.passes import SameInput

TRIES = 1_000  # draws until one is wider than the base

# (wide, generator, kinds) -> a config at which only these kinds have grown
Sampler = Callable[[netaugfx.WideModel, torch.Generator, tuple[str, ...]], Any]


def sample_uniformly(
    wide: netaugfx.WideModel, generator: torch.Generator, kinds: tuple[str, ...]
) -> Any:
    """Every width of `kinds` uniformly among its choices, the others at base size."""
    return wide.sample(generator, kinds=kinds)


def usual_kinds(wide: netaugfx.WideModel) -> tuple[str, ...]:
    """Which kinds of widths NetAug grows where nobody says: inner ones; streams where there are no others.

    The paper grows both. In short trainings of small networks inner widths alone did better, and their steps cost
    less: docs/results/netaug.md, "How far".
    """
    growing = _growing_kinds(wide)
    return ("inner",) if "inner" in growing else ("stream",) if growing else KINDS


def netaug_loss(base_loss: Tensor, augmented_losses: Iterable[Tensor], alpha: float) -> Tensor:
    """The loss of the base plus the weighted losses of the augmented networks that contain it.

    L_aug = L(W_t) + alpha * L([W_t, W_1]) + ... + alpha * L([W_t, W_i])       (equation 1, every
    alpha_i = alpha; with a single sampled network it is equation 2)

    With alpha = 0 the result is `base_loss` itself: 0 * inf is not 0.

    Args:
        base_loss: L(W_t), a scalar.
        augmented_losses: L([W_t, W_i]), a scalar for each sampled augmented network.
        alpha: the weight of each augmented loss.

    Returns:
        A scalar tensor.

    >>> netaug_loss(torch.tensor(2.0), [torch.tensor(3.0), torch.tensor(5.0)], alpha=0.5)
    tensor(6.)
    """
    if alpha == 0:
        return base_loss
    return base_loss + alpha * sum(augmented_losses)


@contextmanager
def own_random_numbers(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Inside, global random numbers follow from `generator`; afterwards they go on as before."""
    seed = int(torch.randint(2**62, (), generator=generator))
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index]):
            torch.default_generator.manual_seed(seed)
            torch.cuda.default_generators[index].manual_seed(seed)
            yield
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield


class NetAugTask(TrainingTask):
    """NetAug as a timm training task: L(W_t) + alpha * L([W_t, W_i]), W_i sampled anew each step.

        task = NetAugTask(netaugfx.widen(model), criterion)
        result = task(input, target)            # one backward pass for both losses
        result["loss"].backward()
        result = task.backward(input, target)   # or: a backward pass each, at lower peak memory

    `alpha`, `samples` and `kinds` may be changed between steps; with `kinds=()` only the base is
    trained. An optimiser that was made before `widen` holds the Parameters of the model that you
    gave to it, not those of `wide`: its step, which would do nothing, raises InputError.

    Args:
        wide: a WideModel, or a module that wraps one (DistributedDataParallel).
        criterion: (output, target) -> scalar loss; timm's classification loss from
            `criterion_kwargs` if None.
        alpha: weight of each augmented loss; the paper uses 1.
        samples: augmented networks sampled per step; the paper uses 1 and finds that more hurt.
        kinds: which kinds of widths are augmented; the others stay at their base size. None: those
            of `usual_kinds`.
        sampler: how configs are drawn; `recipes.training.growth.ExpandSampler` draws as the authors do.
        generator: a CPU generator for sampling and for the augmented pass; made from `seed` if
            None. Ranks that train together must start from the same one, so that they sample the
            same networks.
        seed: seed of the generator if none is given.

    Raises:
        InputError: `wide` contains no WideModel, or several.
        PlanError: no width of the given kinds can grow, or there is no such kind.
    """

    def __init__(
        self,
        wide: nn.Module,
        criterion: nn.Module | Callable[[Any, Any], Tensor] | None = None,
        *,
        alpha: float = 1.0,
        samples: int = 1,
        kinds: tuple[str, ...] | None = None,
        sampler: Sampler = sample_uniformly,
        generator: torch.Generator | None = None,
        seed: int = 0,
        criterion_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = False,
    ):
        parameter = next(wide.parameters(), torch.empty(0))
        super().__init__(
            device=device or parameter.device, dtype=dtype or parameter.dtype, verbose=verbose
        )
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha must be a finite number from 0 on, got {alpha}.")
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(
                f"samples must be at least 1, got {samples}; to train the base alone use kinds=()."
            )
        refuse_several(wide, type(self).__name__)
        self.trainable_module = wide
        self.criterion = resolve_classification_loss(
            criterion, self.device, criterion_kwargs=criterion_kwargs
        )
        self.alpha = alpha
        self.samples = samples
        self.kinds = usual_kinds(self.wide) if kinds is None else kinds
        self.sampler = sampler
        self.generator = torch.Generator().manual_seed(seed) if generator is None else generator
        self._run = SameInput()
        growing = _growing_kinds(self.wide)
        if self.kinds and not growing.intersection(self.kinds):
            raise PlanError(
                f"Nothing to augment: no width of kind {' or '.join(self.kinds)} can grow "
                f"(kinds that can: {', '.join(sorted(growing)) or 'none'}). "
                "netaugfx.describe(wide) says why."
            )
        _refuse_idle_steps(self)

    @property
    def wide(self) -> netaugfx.WideModel:
        """The WideModel, also where `trainable_module` wraps it."""
        return wide_in(self.trainable_module, type(self).__name__)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which kinds of widths are augmented; may be set to one kind, to several, or to ()."""
        return self._kinds

    @kinds.setter
    def kinds(self, kinds: str | Iterable[str]) -> None:
        self._kinds = checked_kinds(kinds)

    def forward(self, input: Any, target: Any) -> dict[str, Any]:  # noqa: A002 (timm's name)
        """Run the base, then each sampled network.

        Args:
            input: what the model takes; a tuple is its positional inputs.
            target: what the criterion takes beside the model's output.

        Returns:
            "loss" (scalar, with graph), "output" (the base's), "base_loss" and "augmented_loss"
            (detached scalars; the mean over the sampled networks, absent if none ran).
        """
        output = self._run(self.trainable_module, input)
        base_loss = self.criterion(output, target)
        augmented_losses = list(self._augmented_losses(input, target))
        loss = netaug_loss(base_loss, augmented_losses, self.alpha)
        return self._result(loss, output, base_loss, augmented_losses)

    def backward(
        self,
        input: Any,  # noqa: A002
        target: Any,
        backward: Callable[[Tensor], Any] = torch.Tensor.backward,
    ) -> dict[str, Any]:
        """Run and differentiate the base, then each sampled network: one graph is alive at a time.

        The gradients are those of `task(input, target)["loss"].backward()`, up to the order of
        additions.

        Args:
            backward: called with each weighted loss, e.g. `accelerator.backward`.

        Returns:
            What `forward` returns, every tensor detached.
        """
        output = self._run(self.trainable_module, input)
        base_loss = self.criterion(output, target)
        backward(base_loss)
        augmented_losses = []
        for augmented_loss in self._augmented_losses(input, target):
            if self.alpha != 0:
                backward(self.alpha * augmented_loss)
            augmented_losses.append(augmented_loss.detach())
        base_loss = base_loss.detach()
        output = torch.utils._pytree.tree_map(
            lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output
        )
        return self._result(
            netaug_loss(base_loss, augmented_losses, self.alpha),
            output,
            base_loss,
            augmented_losses,
        )

    def _augmented_losses(self, images: Any, target: Any) -> Iterator[Tensor]:
        """Yield L([W_t, W_i]) of each sampled network; with alpha = 0 without a graph."""
        wide = self.wide
        if not _growing_kinds(wide).intersection(self.kinds):
            return
        device = next(wide.parameters()).device
        with_graph = self.alpha != 0 and torch.is_grad_enabled()
        for _ in range(self.samples):
            config = self._sample_wider(wide)
            with (
                own_random_numbers(self.generator, device),
                torch.set_grad_enabled(with_graph),
                wide.at(config),
            ):
                augmented_loss = self.criterion(self._run(self.trainable_module, images), target)
            yield augmented_loss

    def _sample_wider(self, wide: netaugfx.WideModel) -> Any:
        """Sample a config other than the base's: an empty W_i would update its statistics twice.

        Raises:
            InputError: the sampler gives nothing else.
        """
        base_config = wide.base_config
        for _ in range(TRIES):
            if (config := self.sampler(wide, self.generator, self.kinds)) != base_config:
                return config
        raise InputError(
            f"The sampler gave the base's own config {TRIES:,} times in a row, and NetAug needs a wider network in "
            "each step. Give a sampler that grows widths (a budget above 1), or set kinds=() to train the base alone."
        )

    @staticmethod
    def _result(
        loss: Tensor, output: Any, base_loss: Tensor, augmented_losses: list[Tensor]
    ) -> dict[str, Any]:
        result = {"loss": loss, "output": output, "base_loss": base_loss.detach()}
        if augmented_losses:
            result["augmented_loss"] = torch.stack(
                [each.detach() for each in augmented_losses]
            ).mean()
        return result

    def prepare_distributed(self, device_ids: list | None = None, **ddp_kwargs: Any) -> NetAugTask:
        """Wrap the wide model in DistributedDataParallel; a step uses only the blocks it samples.

        With more than one sample per step use `task.backward`: one backward pass over several
        sampled networks would reduce a block twice.
        """
        from torch.nn.parallel import DistributedDataParallel

        # Buffers broadcast between the passes would overwrite what the backward pass still needs.
        ddp_kwargs = {"find_unused_parameters": True, "forward_sync_buffers": False} | ddp_kwargs
        self.trainable_module = DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """The state of the generator: a uint8 tensor."""
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
            raise InputError(
                "The task state holds no 'generator': it is not one of NetAugTask.get_task_state()."
            )


def wide_in(module: nn.Module, task: str) -> netaugfx.WideModel:
    """The WideModel that a task trains, also where something wraps it.

    Raises:
        InputError: there is none.
    """
    for inner in module.modules():
        if isinstance(inner, netaugfx.WideModel):
            return inner
    raise InputError(
        f"{task} expects a widened model, got {type(module).__name__}. "
        "Make one with wide = netaugfx.widen(model)."
    )


def refuse_several(module: nn.Module, task: str) -> None:
    """Raise InputError if `module` holds wide models beside the one that `wide_in` finds."""
    own = set(wide_in(module, task).modules())  # a model in parts holds others
    found = {n: m for n, m in module.named_modules() if isinstance(m, netaugfx.WideModel)}
    if any(m not in own for m in found.values()):
        raise InputError(
            f"{task} trains one widened model, and {type(module).__name__} holds several: "
            f"{', '.join(found)}. Widen the model that they stand in, with keep=... for its rest."
        )


def checked_kinds(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds of widths as a tuple, also where one comes by itself.

    Raises:
        PlanError: there is no such kind.
    """
    if not isinstance(kinds, Iterable):
        raise PlanError(f"kinds must be among {' and '.join(KINDS)}; {kinds!r} came.")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise PlanError(f"No width has the kind {kind!r}; kinds are {' and '.join(KINDS)}.")
    return kinds


def _growing_kinds(wide: netaugfx.WideModel) -> set[str]:
    """The kinds of the widths that can exceed their base size."""
    largest, base = wide.max_config, wide.base_config
    return {width.kind for name, width in wide.widths.items() if largest[name] > base[name]}


def _like_the_base(held: list[nn.Parameter], wide: netaugfx.WideModel) -> bool:
    """Whether each Parameter has the shape of another one of the base."""
    return Counter(p.shape for p in held) <= Counter(p.shape for p in wide.base.parameters())


def _refuse_idle_steps(task: NetAugTask) -> None:
    """Let an optimiser of the model before `widen` raise where it steps while only `task` has gradients.

    The hook sees every optimiser of the process and goes with the task. It takes for the model's those whose Parameters
    have shapes of the base's.
    """
    watched = weakref.ref(task)

    def check(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        task = watched()
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if task is None or any(p.grad is not None for p in held):
            return
        own = {id(p): p for p in task.trainable_module.parameters()}
        if any(id(p) in own for p in held) or not _like_the_base(held, task.wide):
            return
        if any(p.grad is not None for p in own.values()):
            raise InputError(
                f"{type(optimizer).__name__} holds none of the {len(own)} Parameters of the wide "
                "model, so its step would change nothing: it was made before widen. Make it "
                "afterwards, from wide.parameters()."
            )

    weakref.finalize(task, register_optimizer_step_pre_hook(check).remove)
