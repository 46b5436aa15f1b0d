"""A run's directory: which run it holds, its metrics, its checkpoint.

config.json               everything needed to build the run again
plan.json                 the widths, for NetAug
metrics.jsonl             a line for each epoch
checkpoint.safetensors    the last finished epoch, to resume from
base.safetensors          at the end: the weights of the untouched model
result.json               at the end: the accuracy of base.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.checkpoint import write_atomically, write_json
from recipes.errors import RunError


class RunDirectory:
    """The directory `path`; nothing is written before `claim`."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.plan = path / "config.json", path / "plan.json"
        self.metrics, self.checkpoint = path / "metrics.jsonl", path / "checkpoint.safetensors"
        self.base, self.result = path / "base.safetensors", path / "result.json"

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
        try:
            held = json.loads(self.config.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.config} does not read as JSON ({error}). Choose another --out."
            ) from error
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

    def claim(self, config: Mapping[str, Any], plan_json: str | None) -> None:
        """Make the directory and write what the run is; what a resumed run has, stays."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)
        if plan_json is not None:
            write_atomically(self.plan, plan_json.encode())

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics of all epochs, one JSON object a line."""
        write_atomically(
            self.metrics, "".join(json.dumps(line) + "\n" for line in history).encode()
        )


def readable(line: Mapping[str, Any], epochs: int) -> str:
    """A line of metrics.jsonl for a person."""
    train_loss = f"{line.get('train_base_loss', line['train_loss']):.3f}"
    if "train_augmented_loss" in line:
        train_loss += f" (augmented {line['train_augmented_loss']:.3f})"
    return (
        f"epoch {line['epoch']:>3}/{epochs}  lr {line['lr']:.4f}  "
        f"train loss {train_loss} top-1 {line['train_top1']:5.2f}  "
        f"val loss {line['val_loss']:.3f} top-1 {line['val_top1']:5.2f} "
        f"top-5 {line['val_top5']:5.2f}  {line['seconds']:.1f} s"
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
