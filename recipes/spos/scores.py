"""What makes a config good: three scores, chosen by name; larger is better.

    subnet      top-1 of the subnet itself, with inherited weights (Single Path One-Shot's score)
    base        top-1 of the base after a short NetAug continuation with that config as the maximum
    alignment   how well the gradients of the subnet and of the base agree on a few batches

All look at images that are decoded once and kept, and leave the wide model as they found it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import netaugfx
from netaugfx.plan import Config
from recipes.errors import SearchError
from recipes.netaug import NetAugTask, own_random_numbers

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Images:
    """Batches of images and labels on the model's device, decoded once.

    Args:
        train: batch norms are recalibrated on them, and the base is trained on.
        held_out: scores are taken on them: images kept from training, never those of the test set.

    Raises:
        SearchError: one of the two is empty.
    """

    train: Batches
    held_out: Batches

    def __post_init__(self) -> None:
        """Refuse what no score can be taken on."""
        for name in ("train", "held_out"):
            if not sum(len(labels) for _, labels in getattr(self, name)):
                raise SearchError(
                    f"A search needs images to train on and held-out ones to judge by; there are no {name} images. "
                    "Keep some of the training images, e.g. a tenth, from training."
                )

    def digest(self) -> str:
        """16 hexadecimal digits that tell the held-out images from others: of labels and some pixels."""
        found = hashlib.sha256()
        for images, labels in self.held_out:
            some = images.detach().flatten()[:: max(1, images[0].numel() // 16)]
            found.update(labels.cpu().to(torch.int64).numpy().tobytes())
            found.update(some.cpu().to(torch.float64).numpy().tobytes())
        return found.hexdigest()[:16]

    @staticmethod
    def of(
        train: Iterable, held_out: Iterable, device: torch.device, *, batches: int = 32
    ) -> Images:
        """Read `batches` batches of a loader of training images, and all of the held-out ones."""

        def read(loader: Iterable) -> Batches:
            return tuple((x.to(device), y.to(device)) for x, y in loader)

        return Images(read(islice(train, batches)), read(held_out))


class SubnetAccuracy:
    """Top-1 in percent of the subnet on the held-out images, its batch norms recalibrated first.

    Args:
        recalibrate: training batches for the statistics; 0: the base's statistics, which says little.

    Source: Z. Guo et al., "Single Path One-Shot", ECCV 2020, sections 3.1 and 3.3.
    """

    name = "subnet"

    def __init__(self, wide: netaugfx.WideModel, images: Images, *, recalibrate: int = 32):
        self.wide, self.images, self.recalibrate = wide, images, recalibrate

    def settings(self) -> dict[str, Any]:
        """What the value depends on beside weights and images, as JSON."""
        return {"recalibrate": min(self.recalibrate, len(self.images.train))}

    def __call__(self, config: Config) -> float:
        """Score a config."""
        wide = self.wide
        seen = [x for x, _ in self.images.train[: self.recalibrate]]
        if config == wide.base_config:
            base = copy.deepcopy(wide.base)  # whose own statistics stay
            if seen:
                refresh(base, seen)
            return top1(base.eval(), self.images.held_out)
        kept = wide.statistics.get(config)
        with as_it_was(wide):
            wide.eval()
            try:
                if seen:
                    wide.recalibrate(config, seen)
                return top1(wide.at(config), self.images.held_out)
            finally:
                if seen:
                    wide.uncalibrate(config)
                if kept is not None:
                    wide.statistics[config] = kept


class BaseAfterNetAug:
    """Top-1 in percent of the base on the held-out images, after NetAug with a config as the maximum.

    Every candidate starts from the same weights and sees the same batches in the same order: one
    pass over the kept training batches for each of `epochs`, by SGD with Nesterov momentum at a
    constant learning rate. Sizes are sampled among the wide model's own up to those of the config.
    The base config is the base trained alone.

    Args:
        epochs: passes over the kept training batches.
        lr: of SGD.
        momentum: of SGD, Nesterov's.
        weight_decay: of SGD.
        alpha: weight of the augmented loss.
        smoothing: of the labels.
        seed: of sampling.
    """

    name = "base"

    def __init__(
        self,
        wide: netaugfx.WideModel,
        images: Images,
        *,
        epochs: int = 1,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 4e-5,
        alpha: float = 1.0,
        smoothing: float = 0.1,
        seed: int = 0,
    ):
        self.wide, self.images, self.epochs, self.lr = wide, images, epochs, lr
        self.momentum, self.weight_decay, self.alpha = momentum, weight_decay, alpha
        self.smoothing, self.seed = smoothing, seed

    def settings(self) -> dict[str, Any]:
        """What the value depends on beside weights and images, as JSON."""
        names = ("epochs", "lr", "momentum", "weight_decay", "alpha", "smoothing", "seed")
        return {name: getattr(self, name) for name in names}

    def __call__(self, config: Config) -> float:
        """Score a config."""
        wide, grows = self.wide, config != self.wide.base_config

        def up_to(_: Any, generator: torch.Generator, kinds: tuple[str, ...]) -> Config:
            draws = torch.rand(len(config), generator=generator).tolist()
            sizes = {}
            for (name, most), u in zip(config.items(), draws, strict=True):
                allowed = [n for n in wide.widths[name].choices if n <= most]
                sizes[name] = allowed[int(u * len(allowed))]
            return wide.plan.config(sizes)

        with as_it_was(wide, weights=True):
            wide.train()
            task = NetAugTask(
                wide,
                nn.CrossEntropyLoss(label_smoothing=self.smoothing),
                alpha=self.alpha,
                kinds=("stream", "inner") if grows else (),
                sampler=up_to,
                seed=self.seed,
            )
            optimizer = torch.optim.SGD(
                [p for p in wide.parameters() if p.requires_grad],
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                nesterov=self.momentum > 0,
            )
            for _ in range(self.epochs):
                for images, labels in self.images.train:
                    optimizer.zero_grad()
                    loss = task.backward(images, labels)["loss"]
                    if not loss.isfinite():
                        return float("nan")
                    optimizer.step()
            wide.eval()
            return top1(wide, self.images.held_out)


class GradientAlignment:
    """The cosine between the subnet's gradient on training images and the base's on held-out ones.

    Both are gradients with respect to the base's Parameters, averaged over `batches` batches, with
    batch statistics. Where it is large, a step on the augmented loss lowers the base's loss on
    images that it has not seen (to first order). No weight changes. From -1 to 1.

    Args:
        batches: training and held-out batches to average over.
        smoothing: of the labels.
        seed: of the random numbers of dropout.

    Source: the cosine of two losses' gradients as in Y. Du et al., "Adapting Auxiliary Losses Using
    Gradient Similarity", 2018, section 3; as a score of configs it is ours.
    """

    name = "alignment"

    def __init__(
        self,
        wide: netaugfx.WideModel,
        images: Images,
        *,
        batches: int = 4,
        smoothing: float = 0.1,
        seed: int = 0,
    ):
        self.wide, self.images, self.batches = wide, images, batches
        self.smoothing, self.seed = smoothing, seed
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self._target: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """What the value depends on beside weights and images, as JSON."""
        return {name: getattr(self, name) for name in ("batches", "smoothing", "seed")}

    def __call__(self, config: Config) -> float:
        """Score a config."""
        if self._target is None:
            self._target = self._gradient(self.wide.base_config, self.images.held_out)
        gradient = self._gradient(config, self.images.train)
        return float(nn.functional.cosine_similarity(self._target, gradient, dim=0))

    def _gradient(self, config: Config, batches: Batches) -> Tensor:
        """The mean gradient at a config with respect to the base's Parameters, flat."""
        parameters = [p for p in self.wide.base_parameters() if p.requires_grad]
        total = parameters[0].new_zeros(sum(p.numel() for p in parameters))
        generator = torch.Generator().manual_seed(self.seed)
        with as_it_was(self.wide, weights=config == self.wide.base_config):
            self.wide.train()
            for images, labels in batches[: self.batches]:
                with own_random_numbers(generator, images.device), torch.enable_grad():
                    loss = self.criterion(self.wide.at(config)(images), labels)
                    found = torch.autograd.grad(loss, parameters, allow_unused=True)
                flat = [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(parameters, found, strict=True)
                ]
                total += torch.cat(flat)
        return total


SCORES: dict[str, Callable[..., Any]] = {
    each.name: each for each in (SubnetAccuracy, BaseAfterNetAug, GradientAlignment)
}


def build_score(name: str, wide: netaugfx.WideModel, images: Images | None, **settings: Any) -> Any:
    """The score of that name.

    Raises:
        SearchError: there is none, or no images came.
    """
    if name not in SCORES:
        raise SearchError(f"There is no score {name!r}; there are {', '.join(SCORES)}.")
    if images is None:
        raise SearchError(f"The score {name!r} needs images: give images=Images(train, held_out).")
    return SCORES[name](wide, images, **settings)


@torch.no_grad()
def top1(network: Callable[[Tensor], Tensor], batches: Batches) -> float:
    """Accuracy in percent; NaN where a logit is no finite number."""
    hits, count = 0, 0
    for images, labels in batches:
        logits = network(images)
        if not logits.isfinite().all():
            return float("nan")
        hits += int((logits.argmax(1) == labels).sum())
        count += len(labels)
    return 100.0 * hits / count


def refresh(base: nn.Module, images: Iterable[Tensor]) -> None:
    """Give a network's batch norms the statistics of these batches; the global random state stays."""
    with torch.random.fork_rng(devices=[]):
        update_bn(([each] for each in images), base)


@contextmanager
def as_it_was(wide: netaugfx.WideModel, *, weights: bool = False) -> Iterator[None]:
    """Afterwards, train and eval flags are as before; with `weights`, weights, buffers and gradients too."""
    modules = [wide.base, *wide.modules()]
    flags = [module.training for module in modules]
    held = {name: t.detach().clone() for name, t in wide.state_dict().items()} if weights else {}
    gradients = [p.grad for p in wide.parameters()] if weights else []
    for p in wide.parameters() if weights else ():
        p.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for name, t in wide.state_dict().items() if weights else ():
                t.copy_(held[name])
        for p, gradient in zip(wide.parameters(), gradients, strict=False):
            p.grad = gradient
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
