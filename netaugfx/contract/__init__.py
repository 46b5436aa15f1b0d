"""The way out: the base as it came, and any subnet as a network of plain modules."""

from .extraction import both_modes, drop_hooks, extract, extract_base

__all__ = ["both_modes", "drop_hooks", "extract", "extract_base"]
