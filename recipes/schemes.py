"""Augmentation for distillation: nine schemes x -> x', and T. stddev, which ranks them.

A scheme works on a batch that is normalised and carries the standard augmentation already. All
random numbers follow from an explicit generator; the global random state stays as it was.

Source: H. Wang, S. Lohit, M. Jones, Y. Fu, "What Makes a 'Good' Data Augmentation in Knowledge
Distillation - A Statistical Perspective", NeurIPS 2022. Deviations: the transforms of single images
are drawn for each image, not once for the batch; the square that Cutout removes lies within the
image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision.transforms import v2

from recipes.errors import DistillError, near
from recipes.features import eval_mode
from recipes.losses import entropy
from recipes.netaug import own_random_numbers

__all__ = ["SCHEMES", "Scheme", "build_scheme", "teacher_stddev"]

SMALL = 64  # pixels; up to here AutoAugment takes the policy for CIFAR-10, above ImageNet's
ALONE = ("identity", "flip", "crop-flip", "cutout", "autoaugment")  # each image by itself
Predict = Callable[[Tensor], Tensor]

SCHEMES = {
    "identity": "x' = x",
    "flip": "mirrored with probability 1/2",
    "crop-flip": "padded by an eighth, cropped, and flipped",
    "cutout": "a square of half the side set to the mean colour",
    "autoaugment": "AutoAugment's policy",
    "mixup": "with another image, weights from Beta(1, 1)",
    "cutmix": "a box of another image, its area from Beta(1, 1)",
    "cutmixpick": "of two CutMix draws the half with the highest entropy of the teacher",
    "cutmixpick-student": "the same, of the student",
}


@dataclass(frozen=True)
class Scheme:
    """One scheme, for images of one normalisation.

    Attributes:
        name: of SCHEMES.
        mean, std: of the channels, what the images were normalised by.
        draws: CutMix draws that CutMixPick picks from; it keeps one in `draws` (r = 0.5 for two).
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    draws: int = 2

    @property
    def judge(self) -> str | None:
        """Whose entropy the scheme needs: "teacher", "student" or None."""
        return {"cutmixpick": "teacher", "cutmixpick-student": "student"}.get(self.name)

    def __call__(
        self, images: Tensor, generator: torch.Generator, predict: Predict | None = None
    ) -> Tensor:
        """x' for a batch x.

        Args:
            images: (N, C, H, W), normalised.
            generator: on the CPU.
            predict: images -> logits of the network that judges, where the scheme needs one.

        Returns:
            (N, C, H, W), without labels; x' of one index need not be of that image.
        """
        if self.judge is not None:
            if predict is None:
                raise DistillError(
                    f"{self.name} picks by the {self.judge}'s entropy: give predict."
                )
            pool = torch.cat([_mixed("cutmix", images, generator) for _ in range(self.draws)])
            return pick(pool, len(images), predict)
        if self.name in ("mixup", "cutmix"):
            return _mixed(self.name, images, generator)
        return self._alone(images, generator)

    def _alone(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Every image by itself."""
        if self.name == "identity":
            return images.clone()
        size = tuple(images.shape[-2:])
        flip = v2.RandomHorizontalFlip()
        if self.name == "autoaugment":
            return self._auto_augment(images, generator)
        transform: Callable[[Tensor], Tensor] = {
            "flip": flip,
            "crop-flip": v2.Compose(
                [v2.RandomCrop(size, padding=max(1, min(size) // 8), fill=0), flip]
            ),
            "cutout": v2.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)),
        }[self.name]
        with own_random_numbers(generator, images.device):
            return torch.stack([transform(image) for image in images])

    def _auto_augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise DistillError(
                f"AutoAugment takes 1 or 3 channels, the images have {images.shape[1]}."
            )
        small = max(images.shape[-2:]) <= SMALL
        policy = v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET
        transform = v2.AutoAugment(policy)
        mean, std = (
            torch.tensor(each, dtype=images.dtype, device=images.device).view(-1, 1, 1)
            for each in (self.mean, self.std)
        )
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        with own_random_numbers(generator, images.device):
            pixels = torch.stack([transform(image) for image in pixels])
        return (pixels.to(images.dtype) / 255 - mean) / std


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that images are normalised by: ImageNet's for colour, else 0.5."""
    if channels == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return (0.5,) * channels, (0.5,) * channels


def build_scheme(name: str, mean: Sequence[float], std: Sequence[float]) -> Scheme:
    """The scheme of that name.

    Raises:
        DistillError: there is none.
    """
    if name not in SCHEMES:
        raise DistillError(f"There is no augmentation {name!r}. {near(name, list(SCHEMES))}")
    return Scheme(name, tuple(mean), tuple(std))


def _mixed(name: str, images: Tensor, generator: torch.Generator) -> Tensor:
    """MixUp or CutMix of a shuffled batch, each image with the next."""
    if len(images) < 2:
        raise DistillError(f"{name} mixes images: a batch needs at least 2, got {len(images)}.")
    order = torch.randperm(len(images), generator=generator).to(images.device)
    no_labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    mix = {"mixup": v2.MixUp, "cutmix": v2.CutMix}[name](alpha=1.0, num_classes=1)
    with own_random_numbers(generator, images.device):
        return mix(images[order], no_labels)[0]


@torch.no_grad()
def pick(pool: Tensor, count: int, predict: Predict) -> Tensor:
    """The `count` images of `pool` on which the network that `predict` runs has the highest entropy."""
    return pool[entropy(predict(pool)).topk(count).indices.sort().values]


# ---------------------------------------------------------------------------------------- T. stddev


@torch.no_grad()
def teacher_means(
    teacher: nn.Module,
    loader: Iterable,
    scheme: Scheme | str,
    K: int = 640,  # noqa: N803 (the paper's name)
    repeats: int = 100,
    *,
    generator: torch.Generator | None = None,
    student: nn.Module | None = None,
) -> Tensor:
    """u for each repeat: the mean of the teacher's probabilities over K samples, half x, half x'.

    Args:
        teacher: images -> logits; runs in eval mode, and is left in the mode it was in.
        loader: gives (images, labels, ...) batches with the standard augmentation; started again
            where it ends, so that repeats may exceed an epoch.
        scheme: or its name, for images normalised as `normalisation` says.
        K: samples of a repeat, even. repeats: how many.
        generator: of the scheme; seeded with 0 if None.
        student: judges for `cutmixpick-student`.

    Returns:
        (repeats, classes), float64, on the CPU.
    """
    if K < 2 or K % 2:
        raise DistillError(f"K counts x and x' alike and must be even and at least 2, got {K}.")
    if repeats < 2:
        raise DistillError(f"A standard deviation needs at least 2 repeats, got {repeats}.")
    if isinstance(scheme, str):
        images = next((batch[0] for batch in loader), torch.empty(0, 3))
        scheme = build_scheme(scheme, *normalisation(images.shape[1]))
    if scheme.judge == "student" and student is None:
        raise DistillError(f"{scheme.name} picks by the student's entropy: give a student.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    judge = student if scheme.judge == "student" and student is not None else teacher
    device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
    means, total, left = [], torch.zeros(()), K // 2
    with eval_mode(teacher), eval_mode(judge):
        while len(means) < repeats:
            before = len(means), left
            for images, *_ in loader:
                if len(images) < 2 and scheme.name not in ALONE:
                    continue  # nothing to mix with
                images = images.to(device)
                both = torch.cat([images[:left], scheme(images, generator, judge)[:left]])
                total = total + teacher(both).double().softmax(1).sum(0).cpu()
                left -= len(both) // 2
                if left == 0:  # what is left of the batch is not used
                    means.append(total / K)
                    total, left = torch.zeros(()), K // 2
                    if len(means) == repeats:
                        break
            if (len(means), left) == before:
                raise DistillError(f"The loader gives no batch that {scheme.name} can work on.")
    return torch.stack(means)


def stddev_of(means: Tensor) -> float:
    """The standard deviation over repeats of each class's mean probability, a mean over classes.

    Args:
        means: (repeats, classes), from `teacher_means`.
    """
    return means.std(0).mean().item()


def interval_of(means: Tensor, *, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of `stddev_of(means)`, by resampling the repeats.

    The standard deviation of a resample is smaller by sqrt(1 - 1 / repeats), which is put right.

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(means)
    values = torch.stack(
        [means[torch.randint(n, (n,), generator=generator)].std(0).mean() for _ in range(draws)]
    ) / math.sqrt(1 - 1 / n)
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def teacher_stddev(
    teacher: nn.Module,
    loader: Iterable,
    scheme: Scheme | str,
    K: int = 640,  # noqa: N803
    repeats: int = 100,
    *,
    generator: torch.Generator | None = None,
    student: nn.Module | None = None,
) -> float:
    """T. stddev of a scheme: the smaller, the better the scheme is said to be for distillation.

    The arguments are those of `teacher_means`.

    Source: as the file, section 3; K = 640 as in the authors' code (five batches of
    64, x and x').
    """
    return stddev_of(
        teacher_means(teacher, loader, scheme, K, repeats, generator=generator, student=student)
    )
