"""A part of a dataset as class folders, for evidence on fewer images."""

from __future__ import annotations

import json
from pathlib import Path

from recipes.data import load_data
from recipes.training.checkpoint import write_json


def write_images(spec: str, out: Path, images: int, test_images: int, download: bool) -> str:
    """A part of the data as class folders of PNG, as many of each class; the SPEC to read it by."""
    root = out / "images"
    wanted = {"train": images, "val": test_images}
    if (root / "written.json").exists():
        held = json.loads((root / "written.json").read_text())
        if held != {"data": spec, **wanted}:
            raise SystemExit(f"{root} holds {held}; choose another --out.")
        return f"folder:{root}"
    data = load_data(spec, download=download)
    for split, source in (("train", data.train), ("val", data.validation)):
        each = -(-wanted[split] // data.num_classes)
        counts = [0] * data.num_classes
        for index in range(len(source)):
            if sum(counts) >= wanted[split]:
                break
            image, label = source[index]
            if counts[label] < each:
                folder = root / split / f"{label:03}"
                folder.mkdir(parents=True, exist_ok=True)
                image.save(folder / f"{counts[label]:05}.png")
                counts[label] += 1
    write_json(root / "written.json", {"data": spec, **wanted})
    return f"folder:{root}"
