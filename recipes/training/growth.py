"""What grows, when and how far: widening for a run, sampling, the schedule, sorting.

Source: H. Cai, C. Gan, J. Lin, S. Han, "Network Augmentation for Tiny Deep Learning", ICLR 2022,
sections 3.2 and 4.1, and the authors' code (mit-han-lab/tinyml, netaug/).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import netaugfx
from netaugfx.plan import KINDS, Config, Plan
from netaugfx.storage import read_magnitudes
from recipes.netaug import Sampler, sample_uniformly, usual_kinds
from recipes.training.config import TrainConfig

REFRESHING = 32  # batches that the base's batch-norm statistics are taken from after sorting


def widen(
    model: nn.Module, config: TrainConfig, example: Tensor
) -> tuple[netaugfx.WideModel, Sampler]:
    """The wide model of a run, and how its configs are drawn."""
    ratios = config.ratios and {kind: _floats(each) for kind, each in config.ratios.items()}
    wide = netaugfx.widen(
        model,
        factor=config.factor,
        diversity=config.diversity,
        choices=ratios,
        max_config=config.max_config,
        keep=config.keep,
        example_inputs=(example,),
        seed=config.seed,
    )
    if config.coupling == "independent":
        return wide, sample_uniformly
    sampler = ExpandSampler.of(wide.plan)
    plan = sampler.coupled(wide.plan)
    # its laws have been verified: they do not depend on how far a width grows
    wide = netaugfx.widen(
        model, plan=plan, example_inputs=(example,), seed=config.seed, verify=False
    )
    return wide, sampler


def _floats(ratios: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(ratio) for ratio in ratios)  # `choices` reads whole numbers as sizes


@dataclass(frozen=True)
class ExpandSampler:
    """Sample as the authors do: an inner width is its own ratio times the stream width before it.

        inner = base of inner * own ratio * (stream / base of stream)

    Each stream and each own ratio is drawn uniformly. An inner width that reads another inner one
    (squeeze-excite) has no ratio of its own and follows it. Where only streams grow, inner widths
    follow them.

    Args:
        own: width -> the sizes that it can have while what it reads is at its base size.
        reads: inner width -> the width that its first layer reads.
        kinds: width -> kind.

    Source: the authors' code, models/netaug/mbv2.py, NetAugMobileNetV2.set_active.
    """

    own: Mapping[str, tuple[int, ...]]
    reads: Mapping[str, str]
    kinds: Mapping[str, str]

    @staticmethod
    def of(plan: Plan) -> ExpandSampler:
        """The sampler of a plan in which every width has its own sizes."""
        return ExpandSampler(
            {width.name: width.choices for width in plan.widths},
            widths_read(plan),
            {width.name: width.kind for width in plan.widths},
        )

    def coupled(self, plan: Plan) -> Plan:
        """`plan` with every size that this sampler can come to among the choices."""
        sizes: dict[str, set[int]] = {}

        def of(name: str) -> set[int]:
            if name not in sizes:
                before = self.reads.get(name)
                if before is None:
                    sizes[name] = set(self.own[name])
                else:
                    sizes[name] = {
                        self._size(name, own, before, size)
                        for size in of(before)
                        for own in self.own[name]
                    }
            return sizes[name]

        widths = [replace(width, choices=tuple(sorted(of(width.name)))) for width in plan.widths]
        return replace(plan, widths=tuple(widths))

    def _size(self, name: str, own: int, before: str, size: int) -> int:
        """The size of `name` where `before` has `size`; as the authors', rounded half up."""
        base = self.own[name][0]
        own = base if self.kinds[before] == "inner" else own
        return max(base, int(own * size / self.own[before][0] + 0.5))

    def __call__(
        self, wide: netaugfx.WideModel, generator: torch.Generator, kinds: tuple[str, ...]
    ) -> Config:
        """Draw a config of `wide`, which was widened with the coupled plan."""
        draws = torch.rand(len(self.own), generator=generator).tolist()
        own = {
            name: sizes[int(u * len(sizes))] if self.kinds[name] in kinds else sizes[0]
            for (name, sizes), u in zip(self.own.items(), draws, strict=True)
        }
        sizes: dict[str, int] = {}

        def of(name: str) -> int:
            if name not in sizes:
                before = self.reads.get(name)
                sizes[name] = (
                    own[name] if before is None else self._size(name, own[name], before, of(before))
                )
            return sizes[name]

        return wide.plan.config({name: of(name) for name in self.own})


def widths_read(plan: Plan) -> dict[str, str]:
    """Inner width -> the first width that the first layer that makes it reads, where it can grow."""
    found: dict[str, str] = {}
    inner = {width.name for width in plan.widths if width.kind == "inner"}
    for name, axes in plan.axes.items():
        summed = plan.contracted.get(name, ())
        read = [f for i in summed for segment in axes[i] for f in segment if isinstance(f, str)]
        made = {
            f
            for i, axis in enumerate(axes)
            if i not in summed
            for segment in axis
            for f in segment
            if f in inner
        }
        for width in made:
            first = next((each for each in read if each != width), None)
            chain = first
            while chain is not None and chain != width:
                chain = found.get(chain)
            if first is not None and chain is None:  # no width follows itself
                found.setdefault(width, first)
    return found


def kinds_of(config: TrainConfig, wide: netaugfx.WideModel) -> tuple[str, ...]:
    """Which kinds of widths grow: those that `config` says, or else speaks of; or the usual ones."""
    if config.kinds is not None:
        return config.kinds
    amounts = (config.ratios, config.factor, config.diversity)
    keys = {key for amount in amounts if isinstance(amount, Mapping) for key in amount}
    spoken = {
        width.kind
        for name, width in wide.widths.items()
        if width.kind in keys or any(fnmatchcase(name, key) for key in keys)
    }
    named = tuple(kind for kind in KINDS if kind in spoken)
    if named:
        return named
    both = config.sort or config.coupling == "expand" or config.max_config is not None
    return KINDS if both or config.method != "netaug" else usual_kinds(wide)


def kinds_at(config: TrainConfig, epoch: int, kinds: Iterable[str]) -> tuple[str, ...]:
    """Which of `kinds` grow in `epoch` (from 0): those whose share of the epochs is not over."""
    share = {"stream": config.stop_stream, "inner": config.stop_inner}
    return tuple(kind for kind in kinds if epoch < share[kind] * config.epochs)


def alpha_at(config: TrainConfig, epoch: int) -> float:
    """The weight of the augmented loss in `epoch` (from 0): linear from alpha to alpha_end."""
    if config.alpha_end is None or config.epochs == 1:
        return config.alpha
    done = epoch / (config.epochs - 1)
    return config.alpha + done * (config.alpha_end - config.alpha)


def sorts_at(config: TrainConfig, epoch: int, kinds: Iterable[str]) -> bool:
    """Whether channels are sorted before `epoch`: as the authors do, while both kinds grow.

    Trained weights are not: sorting would move other channels into a base that is good as it is.
    """
    trained = config.pretrained or config.init is not None
    return config.sort and not trained and set(kinds_at(config, epoch, kinds)) == set(KINDS)


def importance_orders(wide: netaugfx.WideModel) -> dict[str, list[int]]:
    """For each width that can be permuted and grows: its channels by importance, largest first.

    The importance of a channel is the L1 norm of all weights that read it, in the widest subnet.

    Source: the authors' code, models/netaug/utils.py, sort_channels_inner. Deviation: stream
    widths too, whose channels several layers read.
    """
    return {
        name: magnitudes.argsort(descending=True, stable=True).tolist()
        for name, magnitudes in read_magnitudes(wide.plan, wide.base, wide.rooms).items()
        if wide.widths[name].permutable and len(wide.widths[name].choices) > 1
    }


def sort_channels(
    wide: netaugfx.WideModel,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module | None,
    batches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Let the base hold the most important channels; momentum and average go along.

    Args:
        batches: training images and labels, from which the base's batch norms take new statistics.
    """
    wide.permute(importance_orders(wide), optimizer, ema)
    training = wide.training
    refresh_norms(wide.base, batches)
    wide.train(training)


def refresh_norms(base: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Give a network's batch norms the statistics of a few batches; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        update_bn(([images] for images, _ in islice(batches, REFRESHING)), base)
