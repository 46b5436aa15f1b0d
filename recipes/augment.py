"""Augmentation and loading.

Random numbers are keyed by (seed, epoch, index), so that a resumed epoch needs no replay.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.transforms import v2

from recipes.data import Data
from recipes.schemes import normalisation as normalisation
from recipes.schemes import teacher_stddev as teacher_stddev

SMALL = 64  # pixels; up to it images are shifted by a padded crop, above it cropped and resized
KEPT = (
    2**29
)  # bytes of small images that a process keeps as tensors, so as not to decode them again


def key(*numbers: int) -> int:
    """A seed of 63 bits from whole numbers, unrelated for neighbouring numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Transform:
    """Maps a PIL image to a float32 tensor (channels, image_size, image_size), in three steps.

    Apart, because the first need be done once for an image, and the last once for a batch.
    """

    fixed: Callable  # without randomness; to a uint8 tensor where `kept`
    drawn: Callable  # random, image by image
    floats: Callable  # elementwise, so that a batch can be mapped at once
    kept: bool = False  # whether what `fixed` gives is small enough to be kept

    def __call__(self, image: Image.Image) -> Tensor:
        return self.floats(self.drawn(self.fixed(image)))


def build_transforms(data: Data, augment: str = "standard") -> tuple[Transform, Transform]:
    """Transforms for training and validation.

    Args:
        augment: "standard" crops and flips; "autoaugment" and "randaugment" come before that;
            with "none", training images are transformed as those for validation.

    Source: E. Cubuk et al., "AutoAugment", CVPR 2019, and "RandAugment", NeurIPS 2020, as in
    torchvision, with its defaults; AutoAugment's policy is CIFAR-10's up to 64 pixels, else
    ImageNet's.
    """
    size, (mean, std) = data.image_size, normalisation(data.channels)
    to_channels: Callable = v2.RGB() if data.channels == 3 else v2.Grayscale(data.channels)
    policy: list[Callable] = []
    if augment == "autoaugment":
        own = v2.AutoAugmentPolicy.CIFAR10 if size <= SMALL else v2.AutoAugmentPolicy.IMAGENET
        policy = [v2.AutoAugment(own)]
    elif augment == "randaugment":
        policy = [v2.RandAugment()]
    if size > SMALL:
        options: dict[str, Any] = {
            "input_size": (data.channels, size, size),
            "mean": mean,
            "std": std,
        }
        flip = 0.5 if data.flip else 0.0
        train = create_transform(**options, is_training=True, hflip=flip, interpolation="bicubic")
        validation = create_transform(**options, is_training=False, interpolation="bicubic")
        if augment == "none":
            train = validation
        return (
            Transform(to_channels, v2.Compose([*policy, train]), _same),
            Transform(to_channels, validation, _same),
        )
    to_size = [v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()]
    floats = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    plain = Transform(v2.Compose([to_channels, *to_size]), _same, floats, kept=True)
    if augment == "none":
        return plain, plain
    padded = [*to_size, v2.Pad(max(1, size // 8))]  # 4 pixels at 32x32, as is usual on CIFAR
    shift = [v2.RandomCrop(size), *([v2.RandomHorizontalFlip()] if data.flip else [])]
    if policy:
        return Transform(to_channels, v2.Compose([*policy, *padded, *shift]), floats), plain
    fixed = v2.Compose([to_channels, *padded])
    return Transform(fixed, v2.Compose(shift), floats, kept=True), plain


def _same(image: Any) -> Any:
    return image


class _Images(Dataset):
    """Images as the fixed step of their transform gives them; small ones are kept, up to `KEPT`."""

    def __init__(self, images: Sequence, transform: Transform):
        self.images, self.transform = images, transform
        self.kept: dict[int, tuple[Tensor, int]] = {}
        self.room = KEPT if transform.kept else 0

    def __len__(self) -> int:
        return len(self.images)

    def fixed(self, index: int) -> tuple[Any, int]:
        found = self.kept.get(index)
        if found is None:
            image, label = self.images[index]
            found = self.transform.fixed(image), label
            if self.room > 0:
                self.kept[index] = found
                self.room -= found[0].nbytes
        return found

    def as_floats(self, images: Sequence, labels: Sequence[int]) -> list[tuple[Tensor, int]]:
        return list(zip(self.transform.floats(torch.stack(list(images))), labels, strict=True))


class AugmentedImages(_Images):
    """Images whose random transform depends on (seed, epoch, index) alone.

    Items are looked up by (epoch, index); a loader looks up a batch at once.
    """

    def __init__(self, images: Sequence, transform: Transform, seed: int):
        super().__init__(images, transform)
        self.seed = seed

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([epoch_and_index])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        fixed = [self.fixed(index) for _, index in keys]
        before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
        images = []
        try:
            for (epoch, index), (image, _) in zip(keys, fixed, strict=True):
                seed = key(self.seed, epoch, index)
                torch.default_generator.manual_seed(seed)
                random.seed(seed)
                numpy.random.seed(seed % 2**32)
                images.append(self.transform.drawn(image))
        finally:
            torch.set_rng_state(before[0])
            random.setstate(before[1])
            numpy.random.set_state(before[2])
        return self.as_floats(images, [label for _, label in fixed])


class PlainImages(_Images):
    """Images under a transform without randomness."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        fixed = [self.fixed(index) for index in indices]
        images = [self.transform.drawn(image) for image, _ in fixed]
        return self.as_floats(images, [label for _, label in fixed])


class ShuffledKeys(Sampler):
    """(epoch, index) for every image once, in an order that depends on (seed, epoch) alone.

    `epoch` is set before each pass, and `skip` to leave out the first images of its order. The
    keys carry the epoch to the workers.
    """

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch, self.skip = length, seed, 0, 0

    def __len__(self) -> int:
        return self.length - self.skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(key(self.seed, self.epoch))
        for index in torch.randperm(self.length, generator=generator).tolist()[self.skip :]:
            yield self.epoch, index


def build_loaders(
    data: Data, batch_size: int, seed: int, workers: int, augment: str = "standard"
) -> tuple[DataLoader, DataLoader, ShuffledKeys]:
    """Loaders for training and validation, and the training sampler: set its epoch before a pass.

    A last training batch that is not full is dropped, unless it is the only one: batch norm on a
    few images hurts.
    """
    train_transform, validation_transform = build_transforms(data, augment)
    keys = ShuffledKeys(len(data.train), seed)
    # With a generator of its own a loader does not draw from the global random state.
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    train = DataLoader(
        AugmentedImages(data.train, train_transform, seed),
        batch_size=batch_size,
        sampler=keys,
        drop_last=len(data.train) > batch_size,
        generator=torch.Generator(),
        **options,
    )
    validation = DataLoader(
        PlainImages(data.validation, validation_transform),
        batch_size=max(batch_size, 256),
        generator=torch.Generator(),
        **options,
    )
    return train, validation, keys


def plain_loader(data: Data, batch_size: int) -> DataLoader:
    """Training images as they are, evenly spaced, no more of them than there are for validation."""
    step = -(-len(data.train) // max(1, len(data.validation)))
    some = Subset(
        PlainImages(data.train, build_transforms(data)[1]), range(0, len(data.train), step)
    )
    return DataLoader(some, batch_size=max(batch_size, 256), generator=torch.Generator())
