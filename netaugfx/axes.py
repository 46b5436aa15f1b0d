"""Channel types: an axis is a concatenation of segments, a segment a product of factors, a factor a number or a width.

A flattened 7x7 feature map has the axis `w x 49`, a dense block's input `w1 + w2 + w3`, a shuffled map `w x 2`.
Factors are integers and width names; `size` and `extent` evaluate an axis at a config.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

Factor = int | str
Segment = tuple[Factor, ...]  # factors from the outermost to the innermost
Axis = tuple[Segment, ...]


def size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the length of `axis` where every width has the size that `sizes` gives it."""
    return sum(prod(sizes[f] if isinstance(f, str) else f for f in segment) for segment in axis)


def widths_of(axis: Axis) -> Iterator[str]:
    """Yield the widths that occur in `axis`, in order, with repetition."""
    return (f for segment in axis for f in segment if isinstance(f, str))


class Run(NamedTuple):
    """A contiguous stretch of an axis at a config: `length` elements, of the base or new, from `start` on."""

    new: bool
    start: int
    length: int


@dataclass(frozen=True)
class Extent:
    """An elastic axis at one config, beside its base and its largest form.

    Args (fields):
        runs: The axis at the config as stretches of base elements and of new elements, each numbered apart.
        full: The axis at the config as `(start, length)` stretches of its largest form.
        base: The number of base elements; `new`: the number of new ones in the largest form.
    """

    runs: tuple[Run, ...]
    full: tuple[tuple[int, int], ...]
    base: int
    new: int

    @property
    def length(self) -> int:
        return sum(run.length for run in self.runs)

    @property
    def at_base(self) -> bool:
        return not any(run.new for run in self.runs)

    def base_positions(self) -> list[int]:
        """Return the positions that base elements have in the axis at this config, in base order."""
        positions: list[int] = []
        here = 0
        for run in self.runs:
            if not run.new:
                positions.extend(range(here, here + run.length))
            here += run.length
        return positions


def extent(
    axis: Axis, base: Mapping[str, int], config: Mapping[str, int], largest: Mapping[str, int]
) -> Extent:
    """Lay out `axis` at `config`: segment by segment, and within a segment outer factor by outer factor."""
    runs: list[Run] = []
    full: list[tuple[int, int]] = []
    base_at = new_at = full_at = 0
    for segment in axis:
        f = segment[0]
        if len(segment) == 1 and isinstance(f, str):
            stretches: Iterable[tuple[int, int, int]] = ((base[f], config[f], largest[f]),)
        else:
            stretches = _stretches(segment, base, config, largest)
        for b, c, m in stretches:
            _add(runs, False, base_at, b)
            if c > b:
                _add(runs, True, new_at, c - b)
            if c:
                _join(full, full_at, c)
            base_at, new_at, full_at = base_at + b, new_at + m - b, full_at + m
    return Extent(tuple(runs), tuple(full), base_at, new_at)


def _stretches(
    segment: Segment,
    base: Mapping[str, int],
    config: Mapping[str, int],
    largest: Mapping[str, int],
    new: bool = False,
) -> Iterator[tuple[int, int, int]]:
    """Yield the lengths, at the three sizes, of stretches that grow at their end; all of a `new` one is new."""
    k = next((k for k, f in enumerate(segment) if isinstance(f, str)), len(segment) - 1)
    outer, own, rest = segment[:k], (segment[k : k + 1],), segment[k + 1 :]
    b, c, m = 0 if new else size(own, base), size(own, config), size(own, largest)
    if not any(isinstance(f, str) for f in rest):
        inner = size((rest,), base)
        for _ in range(size((outer,), base)):
            yield b * inner, c * inner, m * inner
        return
    whole = size((rest,), largest)
    old = [] if new else list(_stretches(rest, base, config, largest))
    added = list(_stretches(rest, base, config, largest, True))
    for _ in range(size((outer,), base)):
        for i in range(c):
            yield from old if i < b else added
        yield 0, 0, (m - c) * whole


def _add(runs: list[Run], new: bool, start: int, length: int) -> None:
    if length == 0:
        return
    if runs:
        last_new, last_start, last_length = runs[-1]
        if last_new == new and last_start + last_length == start:
            runs[-1] = Run(new, last_start, last_length + length)
            return
    runs.append(Run(new, start, length))


def _join(full: list[tuple[int, int]], start: int, length: int) -> None:
    if full and sum(full[-1]) == start:
        full[-1] = (full[-1][0], full[-1][1] + length)
    else:
        full.append((start, length))
