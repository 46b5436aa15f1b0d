"""Small image folders, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image


def make_folder(
    root: Path,
    *,
    classes: tuple[str, ...] = ("cat", "dog", "emu"),
    per_class: int = 6,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
    splits: tuple[str, ...] = ("train", "val"),
) -> Path:
    """Class folders of noisy images whose brightness tells the class."""
    generator = numpy.random.default_rng(0)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    for split in splits:
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = generator.integers(0, 60, shape) + 60 * label
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index:04}.png")
    return root
