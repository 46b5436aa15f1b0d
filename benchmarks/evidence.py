"""What the scripts of evidence share: their options, a part of a dataset as class folders, the report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from recipes.data import load_data
from recipes.memory import keep_memory
from recipes.studies.compare import finished
from recipes.training.checkpoint import write_atomically, write_json
from recipes.training.config import TrainConfig
from recipes.training.loop import train

Report = Mapping[str, Any]


def options_of(
    doc: str, parts: Sequence[str], default: Sequence[str], *, out: str, epochs: int
) -> argparse.ArgumentParser:
    """The options that all scripts have; each adds its own."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data", required=True, metavar="SPEC", help="as torchvision:CIFAR10@DATA")
    parser.add_argument("--download", action="store_true", help="fetch the data if it is missing")
    parser.add_argument("--epochs", type=int, default=epochs, help="of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of each arm")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(default))
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--device", choices=("auto", "cpu"), default="cpu")
    parser.add_argument("--workers", type=int, default=0)
    return parser


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """How many images, and how they are trained on."""
    parser.add_argument("--images", type=int, default=20000, help="training images")
    parser.add_argument("--test-images", type=int, default=10000, help="test images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)


def images_of(options: argparse.Namespace) -> str:
    """The SPEC of the images that the options ask for, written where they are not there yet."""
    return write_images(
        options.data, options.out, options.images, options.test_images, options.download
    )


def trained(
    options: argparse.Namespace, config: TrainConfig, directory: Path, console: Console
) -> dict[str, Any]:
    """The result of one run; trained, or trained on, where it is not there."""
    result = finished(directory, config)
    if result is not None:
        return result
    console.print(f"{time.strftime('%H:%M')} {directory.name}", highlight=False)
    with open(options.out / "log.txt", "a") as log:
        return train(
            config,
            directory,
            resume=True,
            device=options.device,
            workers=options.workers,
            console=Console(file=log, width=160),
        )


def write_report(
    options: argparse.Namespace,
    arguments: Sequence[str] | None,
    part: Callable[[str], Any],
    as_markdown: Callable[[Report], str],
) -> int:
    """Work out part by part; OUT/report.json and OUT/report.md hold all that were ever worked out."""
    keep_memory()
    file = options.out / "report.json"
    parts = json.loads(file.read_text())["parts"] if file.exists() else {}
    command = [Path(sys.argv[0]).name, *(arguments or sys.argv[1:])]
    for name in options.parts:
        parts[name] = part(name)
        report = {"command": command, "torch": torch.__version__, "parts": parts}
        write_json(file, report)
        write_atomically(options.out / "report.md", as_markdown(report).encode())
    Console().print(as_markdown(report), highlight=False, soft_wrap=True)
    return 0


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
