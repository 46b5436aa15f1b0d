"""What several commands share: how help reads, types of numbers, where to compute."""

from __future__ import annotations

import argparse
from typing import Any


class WithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of an option whose help does not say it; a flag has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or isinstance(action.default, bool) or action.default == []:
            return action.help
        return super()._get_help_string(action)


def at_least(least: int) -> Any:
    """A type for argparse: a whole number from `least` on."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    whole_number.__name__ = "whole number"
    return whole_number


def above_zero(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Where to compute, and how the images come."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where")
    parser.add_argument("--threads", type=at_least(1), help="threads of torch on a CPU")
    parser.add_argument("--workers", type=at_least(0), default=0, help="processes that load images")
    parser.add_argument("--download", action="store_true", help="fetch the data if it is missing")


def device_of(options: argparse.Namespace) -> Any:
    """The torch.device that is asked for; sets the threads too."""
    import torch

    from recipes.memory import keep_memory

    keep_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    refuse_missing(options.device)
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def refuse_missing(device: str) -> None:
    """Refuse a kind of device that torch does not see here.

    Raises:
        RunError: `device` is "cuda" or "mps", and there is none.
    """
    import torch

    from recipes.errors import RunError

    seen = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device in seen and not seen[device]():
        raise RunError(
            f"--device {device}: torch sees no such device here. Use --device cpu or auto."
        )
