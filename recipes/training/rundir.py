"""A run's directory: which run it holds, its metrics, its checkpoints. One process at a time.

config.json               everything needed to build the run again
environment.json          where it was started, and with which command
plan.json                 the widths, for NetAug
metrics.jsonl             a line for each epoch
checkpoint.safetensors    the last checkpoint, to resume from
best.safetensors          weights of the untouched model after the epoch of best validation top-1
base.safetensors          at the end: the weights of the untouched model
result.json               at the end: the accuracy of base.safetensors
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from recipes.errors import RunError
from recipes.training.checkpoint import make_directory, read_json, write_atomically, write_json


class RunDirectory:
    """The directory `path`; nothing is written before `locked`."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.plan = path / "config.json", path / "plan.json"
        self.metrics, self.checkpoint = path / "metrics.jsonl", path / "checkpoint.safetensors"
        self.best, self.base = path / "best.safetensors", path / "base.safetensors"
        self.environment, self.result = path / "environment.json", path / "result.json"

    def check(self, config: Mapping[str, Any], resume: bool) -> None:
        """Refuse a directory that cannot take this run; changes nothing.

        Raises:
            RunError: the directory holds another run, or this one and `resume` is false, or other
                files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is not a directory. Choose another --out.")
        if not self.config.exists():
            strangers = (
                [each for each in self.path.iterdir() if not each.name.startswith(".")]
                if self.path.exists()
                else []
            )
            if strangers:
                raise RunError(
                    f"{self.path} holds no run but other files ({strangers[0].name}). "
                    "Choose another --out."
                )
            return
        held = self.held()
        differences = _differences(held, dict(config))
        if differences:
            raise RunError(
                f"{self.path} holds another run: {'; '.join(differences)}. Choose another --out."
            )
        if not resume:
            raise RunError(
                f"{self.path} holds this run already. "
                "Add --resume to go on with it, or choose another --out."
            )

    def held(self) -> dict[str, Any]:
        """The content of config.json."""
        return read_json(self.config)

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether the run that it holds is this one."""
        return not _differences(self.held(), dict(config))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and keep other processes out of it; a process that dies lets go.

        Raises:
            RunError: another process trains in it, or it cannot be written to.
        """
        make_directory(self.path)
        try:
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"{self.path} is in use: another process trains in it. "
                "Wait for it, or choose another --out."
            ) from error
        except OSError as error:
            raise RunError(
                f"Cannot write in {self.path}: {error.strerror}. Choose another --out."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def claim(self, config: Mapping[str, Any], plan_json: str | None) -> None:
        """Write what the run is; what a resumed run has, stays."""
        write_json(self.config, config)
        if not self.environment.exists():
            write_json(self.environment, environment())
        if plan_json is not None:
            write_atomically(self.plan, plan_json.encode())

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics of all epochs, one JSON object a line."""
        write_atomically(
            self.metrics, "".join(json.dumps(line) + "\n" for line in history).encode()
        )

    def read_metrics(self) -> list[dict[str, Any]]:
        """The metrics of the epochs so far."""
        return read_json(self.metrics) if self.metrics.exists() else []


def environment() -> dict[str, Any]:
    """Machine, versions and command, as JSON."""
    packages = ("torch", "torchvision", "timm", "accelerate")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


SHOWN = ("train_loss", "train_base_loss", "train_augmented_loss")


def readable(line: Mapping[str, Any], epochs: int) -> str:
    """A line of metrics.jsonl for a person; what a teacher adds follows, a line for each term."""
    train_loss = f"{line.get('train_base_loss', line['train_loss']):.3f}"
    if "train_augmented_loss" in line:
        train_loss += f" (augmented {line['train_augmented_loss']:.3f})"
    return (
        f"epoch {line['epoch']:>3}/{epochs}  lr {line['lr']:.4f}  "
        f"train loss {train_loss} top-1 {line['train_top1']:5.2f}  "
        f"val loss {line['val_loss']:.3f} top-1 {line['val_top1']:5.2f} "
        f"top-5 {line['val_top5']:5.2f}  {line['seconds']:.1f} s"
    ) + "".join(
        f"\n    {name.removeprefix('train_').replace('_', ' ')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("train_") and name.endswith("_loss") and name not in SHOWN
    )


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested JSON objects, as "name is x there and y here"."""
    asked = json.loads(json.dumps(asked))
    found = []
    for name in [*asked, *(each for each in held if each not in asked)]:
        there, here = held.get(name), asked.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{prefix}{name}.")
        elif there != here:
            found.append(f"{prefix}{name} is {there!r} there and {here!r} here")
    return found
