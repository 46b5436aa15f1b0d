"""Every SPEC, what a model must know of the data, and augmentation by (seed, epoch, index)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.datasets import FakeData, ImageFolder

from recipes.augment import AugmentedImages, build_loaders, build_transforms
from recipes.data import Data, load_data, split
from recipes.errors import DataError
from recipes.evaluation import batches
from tests.recipes.images import make_folder


def test_digits_are_split_the_same_way_each_time() -> None:
    data, again = load_data("digits"), load_data("digits")
    assert (data.num_classes, data.channels, data.image_size, data.flip) == (10, 1, 8, False)
    assert (len(data.train), len(data.validation)) == (1437, 360)
    assert all(data.validation[i] == again.validation[i] for i in range(360))
    assert {label for _, label in data.validation} == set(range(10))
    image, label = data.train[0]
    assert image.mode == "L"
    assert isinstance(label, int)


@pytest.mark.parametrize("validation", ["val", "validation", "test"])
def test_folder(tmp_path: Path, validation: str) -> None:
    data = load_data(f"folder:{make_folder(tmp_path, splits=('train', validation))}")
    assert (data.num_classes, data.channels, data.image_size) == (3, 3, 8)
    assert (len(data.train), len(data.validation)) == (18, 18)


def test_grey_and_large_images(tmp_path: Path) -> None:
    grey = load_data(f"folder:{make_folder(tmp_path / 'grey', mode='L')}")
    assert grey.channels == 1
    wide = load_data(f"folder:{make_folder(tmp_path / 'wide', size=(90, 70))}")
    assert (wide.channels, wide.image_size) == (3, 64)
    large = load_data(f"folder:{make_folder(tmp_path / 'large', size=(400, 300), per_class=2)}")
    assert large.image_size == 224


def test_what_is_given_overrides(tmp_path: Path) -> None:
    spec = f"folder:{make_folder(tmp_path)}"
    data = load_data(spec, num_classes=5, channels=1, image_size=12)
    assert (data.num_classes, data.channels, data.image_size) == (5, 1, 12)
    with pytest.raises(DataError, match="has 3 classes, more than the 2 asked for"):
        load_data(spec, num_classes=2)


def test_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Pretend(FakeData):
        classes = ("a", "b")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            super().__init__(20 if train else 8, (3, 32, 32), 2)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pretend)
    data = load_data(f"torchvision:CIFAR10@{tmp_path}")
    assert (data.num_classes, data.channels, data.image_size) == (2, 3, 32)
    assert (len(data.train), len(data.validation)) == (20, 8)


def test_timm(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for spec in (str(root), f"folder/any@{root}", f"torch/folder@{root}"):
        data = load_data(spec)
        assert (data.num_classes, data.channels, data.image_size) == (3, 3, 8), spec
        assert (len(data.train), len(data.validation)) == (18, 18), spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("folder:{tmp}/none", r"There is no folder {tmp}/none\. Expected class folders in"),
        ("folder:{tmp}", r"{tmp} has no folder train: expected class folders in it"),
        ("torchvision:CIFAR1@{tmp}", r"torchvision has no dataset 'CIFAR1'\. Near: CIFAR10"),
        ("torchvision:CIFAR10", r"Where is CIFAR10\? Give torchvision:CIFAR10@ROOT"),
        ("torchvision:CIFAR10@{tmp}", r"Cannot open CIFAR10 in {tmp}: .* Add --download"),
        ("digit", r"Unknown data 'digit'\. Give digits, folder:PATH, torchvision:NAME@ROOT"),
        ("torch/nothing@{tmp}", r"timm cannot open 'torch/nothing@{tmp}' \(train\)"),
    ],
)
def test_bad_specs(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message.format(tmp=tmp_path)):
        load_data(spec.format(tmp=tmp_path))


def test_bad_folders(tmp_path: Path) -> None:
    empty = make_folder(tmp_path / "empty")
    (empty / "train" / "fox").mkdir()
    with pytest.raises(DataError, match=r"empty/train: .*no valid file for the classes fox"):
        load_data(f"folder:{empty}")
    differ = make_folder(tmp_path / "differ")
    (differ / "val" / "emu").rename(differ / "val" / "yak")
    with pytest.raises(DataError, match=r"differ in their class folders: emu, yak"):
        load_data(f"folder:{differ}")
    none = tmp_path / "none"
    (none / "train").mkdir(parents=True)
    (none / "val").mkdir()
    with pytest.raises(DataError, match=r"none/train: .*[Cc]ouldn't find any class folder"):
        load_data(f"folder:{none}")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, workers: int) -> None:
    root = make_folder(tmp_path)
    (root / "train" / "cat" / "0003.png").write_bytes(b"\x89PNG no image")
    data = Data(
        ImageFolder(str(root / "train"), loader=_reader()), ImageFolder(str(root / "val")), 3, 3, 8
    )
    loader, _, _ = build_loaders(data, 4, 0, workers)
    with pytest.raises(DataError) as raised:
        list(batches(loader))
    assert str(raised.value).startswith(f"Cannot decode {root}/train/cat/0003.png: ")
    assert "\n" not in str(raised.value)


def _reader():
    from recipes.data import read_image

    return read_image


def _batches(loader: object) -> list:
    return [(images.clone(), labels.clone()) for images, labels in loader]


@pytest.mark.parametrize("size", [8, 80])
def test_augmentation_depends_on_seed_epoch_and_index_alone(tmp_path: Path, size: int) -> None:
    data = load_data(f"folder:{make_folder(tmp_path, size=(size, size))}")
    dataset = AugmentedImages(data.train, build_transforms(data)[0], seed=1)
    before = torch.get_rng_state()
    first = dataset[3, 2][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    dataset[0, 0]
    assert torch.equal(dataset[3, 2][0], first)
    assert first.shape == (3, data.image_size, data.image_size)
    others = [dataset[4, 2][0], AugmentedImages(data.train, dataset.transform, seed=2)[3, 2][0]]
    assert not all(torch.equal(each, first) for each in others)


class Counting(list):
    """Images that count how often each was decoded."""

    def __init__(self, images: object) -> None:
        super().__init__(images)  # type: ignore[call-overload]
        self.looked_up: Counter = Counter()

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        self.looked_up[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("room", "decoded"), [(2**20, 1), (1, 3)], ids=["kept", "no room"])
@pytest.mark.parametrize("augment", ["standard", "none"])
def test_small_images_are_decoded_once_where_there_is_room(
    augment: str, room: int, decoded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(f"folder:{make_folder(tmp_path)}")
    monkeypatch.setattr("recipes.augment.KEPT", room)
    images = Counting(data.train[i] for i in range(4))
    dataset = AugmentedImages(images, build_transforms(data, augment)[0], seed=1)
    batch = [(0, 1), (2, 3)]
    one_by_one = [dataset[each] for each in batch]
    images.looked_up.clear()
    dataset.kept.pop(3, None)
    for _ in range(3):
        for (image, label), (own, same) in zip(
            dataset.__getitems__(batch), one_by_one, strict=True
        ):
            assert torch.equal(image, own)
            assert label == same
    assert images.looked_up[3] == decoded


def test_the_order_and_the_images_are_the_same_with_workers(tmp_path: Path) -> None:
    data = load_data(f"folder:{make_folder(tmp_path)}")
    seen = {}
    for workers in (0, 1):
        loader, _, keys = build_loaders(data, 5, 0, workers)
        for epoch in (0, 1):
            keys.epoch = epoch
            seen[workers, epoch] = _batches(loader)
    for epoch in (0, 1):
        assert len(seen[0, epoch]) == 3  # 18 images: a last batch of 3 is dropped
        for (images, labels), (images_1, labels_1) in zip(
            seen[0, epoch], seen[1, epoch], strict=True
        ):
            assert torch.equal(images, images_1)
            assert torch.equal(labels, labels_1)
    assert not torch.equal(seen[0, 0][0][0], seen[0, 1][0][0])


def test_what_is_held_out_is_in_neither_split() -> None:
    data = load_data("digits")
    rest, held_out = split(data, 0.1)
    assert (len(rest.train), len(held_out)) == (1437 - 143, 143)

    def pixels(images: Any) -> list[bytes]:
        return [image.tobytes() for image, _ in images]

    assert sorted(pixels(rest.train) + pixels(held_out)) == sorted(pixels(data.train))
    assert pixels(split(data, 0.1)[1]) == pixels(held_out)
    assert set(pixels(split(data, 0.05)[1])) <= set(pixels(held_out))  # more is the same and others
    assert len({label for _, label in held_out}) == 10
    assert pixels(rest.validation) == pixels(data.validation)
    assert split(data, 0) == (data, ())
    for share in (0.0001, 1.0):
        with pytest.raises(DataError, match=r"of 1437 training images is \d+: the held-out split"):
            split(data, share)


def test_digits_are_not_mirrored() -> None:
    transform, plain = build_transforms(load_data("digits"))
    image = Image.new("L", (8, 8))
    image.putpixel((0, 4), 255)
    columns = {int(transform(image)[0].max(0).values.argmax()) for _ in range(50)}
    assert columns <= {0, 1}
    assert plain(image)[0, 4, 0] == 1.0


def test_timm_skips_no_image_that_does_not_decode(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "train" / "cat" / "0003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"Cannot decode .*0003\.png"):
        list(load_data(str(root)).train)


def test_fine_grained_data_sets_of_torchvision(tmp_path: Path) -> None:
    """Pets and Food, laid out as their authors publish them, a few small images each."""
    pets, food = tmp_path / "oxford-iiit-pet", tmp_path / "food-101"
    for folder in (pets / "images", pets / "annotations", food / "meta"):
        folder.mkdir(parents=True)
    for part, numbers in {"trainval": (1, 2, 3), "test": (4,)}.items():
        lines = []
        for label, name in enumerate(("Abyssinian", "Beagle"), start=1):
            for number in numbers:
                Image.new("RGB", (40, 30)).save(pets / "images" / f"{name}_{number}.jpg")
                lines.append(f"{name}_{number} {label} 1 1")
        (pets / "annotations" / f"{part}.txt").write_text("\n".join(lines))
    for part, numbers in {"train": (1, 2), "test": (3,)}.items():
        held = {}
        for name in ("apple_pie", "waffles", "tacos"):
            (food / "images" / name).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                Image.new("RGB", (80, 96)).save(food / "images" / name / f"{number}.jpg")
            held[name] = [f"{name}/{number}" for number in numbers]
        (food / "meta" / f"{part}.json").write_text(json.dumps(held))
    for name, classes, size, train, validation in (
        ("OxfordIIITPet", 2, 32, 6, 2),
        ("Food101", 3, 64, 6, 3),
    ):
        data = load_data(f"torchvision:{name}@{tmp_path}")
        assert (data.num_classes, data.channels, data.image_size) == (classes, 3, size)
        assert (len(data.train), len(data.validation)) == (train, validation)
        loader = build_loaders(data, 3, 0, 0)[0]
        images, _ = next(iter(loader))
        assert images.shape == (3, 3, size, size)
        assert {int(label) for _, label in data.train} == set(range(classes))
