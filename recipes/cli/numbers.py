"""Types of numbers for argparse."""

from __future__ import annotations

import argparse
from typing import Any


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
