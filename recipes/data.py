"""Data: SPEC -> images for training and validation, and what a model must know about them.

SPEC is one of
    digits                      scikit-learn's handwritten digits, 8x8 grey, no download
    folder:PATH                 class folders in PATH/train and in PATH/val, PATH/validation or PATH/test
    torchvision:CIFAR10@ROOT    a classification dataset of torchvision
    NAME@ROOT                   whatever timm.data.create_dataset accepts: torch/cifar100@ROOT, hfds/mnist
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image
from torch.utils.data import Subset

from recipes.errors import DataError, near

SPECS = "digits, folder:PATH, torchvision:NAME@ROOT, or NAME@ROOT for timm.data.create_dataset"


@dataclass(frozen=True)
class Data:
    """Images with their labels, and what a model must know about them.

    `train` and `validation` are indexable: item i is a PIL image and an int label in [0,
    num_classes).
    """

    train: Sequence
    validation: Sequence
    num_classes: int
    channels: int
    image_size: int  # pixels, the images are square for the network
    flip: bool = True  # whether a mirrored image keeps its label
    classes: tuple[str, ...] | None = None  # their names in the order of the labels, where known

    def described(self) -> dict[str, Any]:
        """All but the images, of which it tells the number, as JSON."""
        counts = {"train": len(self.train), "validation": len(self.validation)}
        found = {field.name: getattr(self, field.name) for field in fields(self)} | counts
        return found | {"classes": None if self.classes is None else list(self.classes)}


def load_data(
    spec: str,
    *,
    num_classes: int | None = None,
    channels: int | None = None,
    image_size: int | None = None,
    download: bool = False,
) -> Data:
    """Open the data that `spec` names; what is given overrides what the data says.

    Raises:
        DataError: the data is missing, empty, unreadable, or `spec` names nothing known; or images are to have another
            number of channels than 1 or 3.
    """
    if channels not in (None, 1, 3):
        raise DataError(f"Images have 1 channel (grey) or 3 (colour); channels={channels} came.")
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        data = _digits()
    elif kind == "folder":
        data = _folder(Path(rest))
    elif kind == "torchvision":
        data = _torchvision(rest, download)
    else:
        data = _timm(spec, download)
    given = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("num_classes", data.num_classes) < data.num_classes:
        raise DataError(
            f"{spec} has {data.num_classes} classes, more than the {num_classes} asked for."
        )
    return replace(data, **given)


def split(data: Data, share: float) -> tuple[Data, Sequence]:
    """Data without a share of its training images, and these: always the same ones of the same data.

    Raises:
        DataError: so small a share is less than one image, or nothing is left to train on.
    """
    if share == 0:
        return data, ()
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0)).tolist()
    count = int(share * len(order))
    if not 0 < count < len(order):
        raise DataError(
            f"A share of {share:g} of {len(order)} training images is {count}: the held-out split would have no image, "
            "or training none. Give a larger or a smaller share."
        )
    held_out, rest = sorted(order[:count]), sorted(order[count:])
    return replace(data, train=Subset(data.train, rest)), Subset(data.train, held_out)


class _Arrays(Sequence):
    """Grey images in memory."""

    def __init__(self, images: Any, labels: Any):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def _digits() -> Data:
    """1,797 handwritten digits; a fifth of each class, always the same, is for validation.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, as in
    scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype("uint8")
    train, validation, train_labels, validation_labels = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return Data(
        _Arrays(train, train_labels), _Arrays(validation, validation_labels), 10, 1, 8, flip=False
    )


def read_image(file: str | IO[bytes], name: str | None = None) -> Image.Image:
    """Read an image file whole; `name` is what errors call it.

    Raises:
        DataError: it does not decode; the message names the file.
    """
    try:
        with Image.open(file) as image:
            image.load()
            return image.copy()
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error and more
        raise DataError(f"Cannot decode {name or file}: {error}") from error


def _folder(root: Path) -> Data:
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise DataError(
            f"There is no folder {root}. Expected class folders in {root}/train and {root}/val."
        )
    splits = {}
    for split, names in {"train": ("train",), "validation": ("val", "validation", "test")}.items():
        folder = next((root / name for name in names if (root / name).is_dir()), None)
        if folder is None:
            raise DataError(
                f"{root} has no folder {' or '.join(names)}: expected class folders in it."
            )
        try:
            splits[split] = ImageFolder(str(folder), loader=read_image)
        except FileNotFoundError as error:  # no class folder, or an empty one
            raise DataError(f"{folder}: {error}".splitlines()[0]) from error
    train, validation = splits["train"], splits["validation"]
    if train.classes != validation.classes:
        odd = sorted(set(train.classes) ^ set(validation.classes))
        raise DataError(
            f"{train.root} and {validation.root} differ in their class folders: {', '.join(odd)}."
        )
    return _from_images(train, validation, len(train.classes), train.classes)


def _torchvision(rest: str, download: bool) -> Data:
    import torchvision.datasets

    name, at, root = rest.partition("@")
    known = [
        each
        for each in torchvision.datasets.__all__
        if inspect.isclass(getattr(torchvision.datasets, each))
    ]
    if name not in known:
        raise DataError(f"torchvision has no dataset {name!r}. {near(name, known)}")
    if not at:
        raise DataError(f"Where is {name}? Give torchvision:{name}@ROOT.")
    dataset = getattr(torchvision.datasets, name)
    parameters = inspect.signature(dataset.__init__).parameters
    if "train" in parameters:
        choices = {"train": [{"train": True}], "validation": [{"train": False}]}
    elif "split" in parameters:
        choices = {
            "train": [{"split": "train"}, {"split": "trainval"}],
            "validation": [{"split": "val"}, {"split": "test"}],
        }
    else:
        raise DataError(
            f"torchvision's {name} does not come split into training and validation images."
        )
    options = {"download": download} if "download" in parameters else {}
    splits = {}
    for split, arguments in choices.items():
        for argument in arguments:
            try:
                splits[split] = dataset(root, **argument, **options)
                break
            except (RuntimeError, FileNotFoundError, NotADirectoryError) as error:
                hint = " Add --download to fetch it." if options and not download else ""
                raise DataError(
                    f"Cannot open {name} in {root}: {error}".splitlines()[0] + hint
                ) from error
            except ValueError:  # this dataset has no such split
                continue
        else:
            raise DataError(f"torchvision's {name} has no split for {split}.")
    classes = getattr(splits["train"], "classes", None)
    labels = len(classes) if classes else 1 + max(int(label) for _, label in splits["train"])
    return _from_images(splits["train"], splits["validation"], labels, classes)


class _TimmImages(Sequence):
    """The images of a timm reader; timm's own dataset skips those that do not decode."""

    def __init__(self, reader: Any):
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file, label, *_ = self.reader[index]
        with file:
            return read_image(file, self.reader.filename(index)), int(label)


def _timm(spec: str, download: bool) -> Data:
    from timm.data import ImageDataset, create_dataset

    name, _, root = spec.partition("@")
    if Path(name).is_dir() and not root:
        name, root = "", name
    if "/" not in name and not Path(root or name).exists():
        raise DataError(f"Unknown data {spec!r}. Give {SPECS}.")
    splits = {}
    for split in ("train", "validation"):
        try:
            splits[split] = create_dataset(name, root=root or None, split=split, download=download)
        except (Exception, SystemExit) as error:  # each reader raises its own
            raise DataError(
                f"timm cannot open {spec!r} ({split}): {error}".splitlines()[0]
            ) from error
        if not hasattr(splits[split], "__getitem__") or not hasattr(splits[split], "__len__"):
            raise DataError(
                f"{spec!r} can only be streamed; a run needs images that have an index."
            )
    train, validation = (
        _TimmImages(split.reader) if isinstance(split, ImageDataset) else split
        for split in splits.values()
    )
    reader = getattr(train, "reader", None)
    classes = getattr(train, "classes", None) or getattr(reader, "class_to_idx", None)
    labels = len(classes) if classes else 1 + max(int(label) for _, label in train)
    return _from_images(train, validation, labels)


def check_classes(
    theirs: Sequence[str] | None, mine: Sequence[str] | None, who: str, data: str
) -> None:
    """Refuse a network that knows other classes, or in another order; where names are not known, let it be.

    Raises:
        DataError: with the first label whose name differs.
    """
    for label, (one, other) in enumerate(zip(theirs or (), mine or (), strict=False)):
        if one != other:
            raise DataError(
                f"{who} learnt other classes than those of {data}: its label {label} is {one!r}, there {other!r}. "
                "Rename or order the class folders alike."
            )


def _from_images(
    train: Sequence, validation: Sequence, num_classes: int, classes: Sequence[str] | None = None
) -> Data:
    """Data whose channels and image size come from a look at 32 images spread over `train`.

    Images of one square size up to 64 pixels keep it; others are scaled to their median shorter
    side, rounded down to a multiple of 32 pixels, at most 224.
    """
    if len(train) == 0 or len(validation) == 0:
        raise DataError("The data holds no images.")
    looked_at = [train[index][0] for index in range(0, len(train), max(1, len(train) // 32))][:32]
    sizes = sorted(min(image.size) for image in looked_at)
    same_square = (
        len({image.size for image in looked_at}) == 1
        and looked_at[0].size[0] == looked_at[0].size[1]
    )
    median = sizes[len(sizes) // 2]
    image_size = median if same_square and median <= 64 else max(32, min(224, median // 32 * 32))
    grey = all(image.mode in {"1", "L", "I", "I;16", "F"} for image in looked_at)
    names = tuple(map(str, classes)) if classes else None
    return Data(train, validation, num_classes, 1 if grey else 3, image_size, classes=names)
