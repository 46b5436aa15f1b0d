"""Channel types by hand: what unification makes of two axes."""

from __future__ import annotations

from netaugfx.axes import Stiff, Var, fixed, free, pin, resolve, unify, why


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
