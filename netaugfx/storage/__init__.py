"""Where the numbers lie: the base's Parameters, the blocks beside them, a subnet's tensors put together from both."""

from .blocks import Rooms, assemble, assembly, create, form, initial, own_seed, parent
from .permutation import checked, permute, read_magnitudes
from .sources import Group, Layout, Source, Sources, eager

__all__ = [
    "Group", "Layout", "Rooms", "Source", "Sources", "assemble", "assembly", "checked", "create", "eager", "form",
    "initial", "own_seed", "parent", "permute", "read_magnitudes",
]  # fmt: skip
