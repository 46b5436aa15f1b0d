"""Channel types by hand: what unification makes of two axes, and how an axis lies at a config."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from netaugfx.axes import Axis, extent, size
from netaugfx.unify import Stiff, Var, fixed, free, pin, resolve, unify, why


def test_a_factor_of_one_is_dropped_and_stays() -> None:
    one, heads, width = Var(1), Var(4), Var(16)
    unify(((one, heads, width),), ((heads, width),), "add() combines it")
    assert one.reason == "add() combines it"
    assert resolve(((heads, width),)) == ((heads, width),), "the others are as they were"
    assert (heads.reason, width.reason) == (None, None)


def test_what_is_two_of_one_and_three_of_another_repeats_six_times() -> None:
    half, third = Var(12), Var(8)
    unify(((2, half, 5),), ((3, third, 5),), "it is cut")
    ((three, first),), ((two, second),) = resolve(((half,),)), resolve(((third,),))
    assert first is second
    assert (first.size, first.reason) == (4, None)
    assert (three.size, three.reason, two.size, two.reason) == (3, "it is cut", 2, "it is cut")


def test_parts_that_have_nothing_in_common_stay() -> None:
    half, third = Var(5), Var(2)
    unify(((2, half),), ((5, third),), "it is cut")
    assert (half.reason, third.reason) == ("it is cut", "it is cut")


def test_a_number_remembers_why_it_stays() -> None:
    axis = free(6)
    pin(axis, "flip() runs along it")
    assert fixed(3, axis) == fixed(3)
    assert why(fixed(3, axis)) == "flip() runs along it"
    assert why(resolve((*fixed(2), *fixed(3, axis)))) == "flip() runs along it"
    assert why(resolve(((2, *fixed(3, axis)[0]),))) == "flip() runs along it"
    assert why(fixed(3)) is None
    assert ["a"] * Stiff(3, "it is flipped") == ["a", "a", "a"]
    assert isinstance(fixed(3, axis)[0][0], Stiff)


SIZES = {"a": (2, 3, 4), "b": (1, 3, 3), "c": (2, 2, 5)}  # base, config, largest


@given(
    st.lists(
        st.lists(st.sampled_from([1, 2, 3, *SIZES]), min_size=1, max_size=3).map(tuple),
        min_size=1,
        max_size=2,
    ).map(tuple)
)
@example((("a", "b", 2),))
@example(((2, "a", "c"), (3,)))
def test_an_extent_is_what_counting_every_element_gives(axis: Axis) -> None:
    base, config, largest = ({name: n[k] for name, n in SIZES.items()} for k in range(3))
    runs: list[
        tuple[bool, int]
    ] = []  # of the elements at the config: new, and its number among those
    places: list[int] = []
    counts = [0, 0]
    at = 0
    for segment in axis:
        limits = [SIZES[f] if isinstance(f, str) else (f, f, f) for f in segment]
        for index in itertools.product(*(range(m) for _, _, m in limits)):
            new = any(i >= b for i, (b, _, _) in zip(index, limits, strict=True))
            if all(i < c for i, (_, c, _) in zip(index, limits, strict=True)):
                runs.append((new, counts[new]))
                places.append(at)
            counts[new] += 1
            at += 1
    found = extent(axis, base, config, largest)
    assert [(r.new, r.start + i) for r in found.runs for i in range(r.length)] == runs
    assert [start + i for start, n in found.full for i in range(n)] == places
    assert (found.base, found.new) == tuple(counts)
    assert size(axis, config) == found.length == len(runs)
