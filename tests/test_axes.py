"""Channel types by hand: what unification makes of two axes."""

from __future__ import annotations

from netaugfx.axes import Stiff, Var, fixed, free, pin, resolve, unify, why


def test_a_factor_of_one_is_dropped_and_stays() -> None:
    one, heads, width = Var(1), Var(4), Var(16)
    unify(((one, heads, width),), ((heads, width),), "add() combines it")
    assert one.reason == "add() combines it"
    assert resolve(((heads, width),)) == ((heads, width),), "the others are as they were"
    assert (heads.reason, width.reason) == (None, None)


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
