"""Axes while inference is at work: their factors are numbers and variables, unified as type inference does.

What is left of the variables become the widths of a plan, and their axes plain ones (`axes.py`).

Source: Robinson, A Machine-Oriented Logic Based on the Resolution Principle, 1965; here over sequences of products,
where a variable may also be cut into a sum or refined into a product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import gcd, prod

MAX_SEGMENTS = 256  # beyond this an interleaved axis is pinned instead of spelt out
ONE_FACTOR = "it multiplies another width, and only one factor of a product can grow"


class Var:
    """A size that inference has to find: free, bound to an axis of other variables, or pinned.

    Args:
        size: In the base.
        literal: Whether the source spells it out, so that another factor of a product had better grow.
        given: Whether it is a width of a plan, which is not refined into a product.
        own: Whether it is a whole axis of a Parameter.
    """

    __slots__ = ("bound", "given", "literal", "order", "own", "reason", "size")
    count = 0

    def __init__(
        self, size: int, literal: bool = False, given: bool = False, own: bool = False
    ) -> None:
        self.size = size
        self.literal = literal
        self.given = given
        self.own = own
        self.bound: OpenAxis | None = None
        self.reason: str | None = None  # why it is pinned
        Var.count += 1
        self.order = Var.count

    def __repr__(self) -> str:
        return f"{'!' if self.reason else ''}v{self.order}:{self.size}"


OpenFactor = int | Var
OpenSegment = tuple[OpenFactor, ...]
OpenAxis = tuple[OpenSegment, ...]


class Stiff(int):
    """A number that was a width until it was pinned, and remembers why; what it is added to or multiplied with does."""

    reason: str

    def __new__(cls, n: int, reason: str) -> Stiff:
        made = super().__new__(cls, n)
        made.reason = reason
        return made

    def __reduce__(self) -> tuple[type[Stiff], tuple[int, str]]:
        return Stiff, (int(self), self.reason)

    def __add__(self, other: int) -> Stiff:
        return Stiff(int(self) + int(other), self.reason)

    def __mul__(self, other: int) -> Stiff:
        if not isinstance(other, int):  # a list repeats
            return NotImplemented
        return Stiff(int(self) * int(other), self.reason)

    __radd__, __rmul__ = __add__, __mul__


def fixed(n: int, of: OpenAxis = ()) -> OpenAxis:
    """An axis of `n` elements that is nobody's width; it remembers why `of`, which it is made of, cannot grow."""
    reason = why(of)
    return ((n,),) if reason is None else ((Stiff(n, reason),),)


def why(axis: OpenAxis) -> str | None:
    """Return why `axis`, or a part of it, cannot grow; None where nothing is known of that."""
    factors = (f for segment in resolve(axis) for f in segment)
    return next((r for f in factors if (r := getattr(f, "reason", None))), None)


def free(n: int) -> OpenAxis:
    """An axis that is one new variable."""
    return ((Var(n),),)


def length(axis: OpenAxis) -> int:
    """Return the length of `axis` in the base."""
    return sum(_length(segment) for segment in axis)


def length_at(axis: OpenAxis, sizes: Mapping[Var, int]) -> int:
    """Return the length of `axis` if its variables had other `sizes`; those that are not among them keep theirs."""
    return sum(
        prod(f if isinstance(f, int) else sizes.get(f, f.size) for f in segment)
        for segment in resolve(axis)
    )


def same_length(a: OpenAxis, b: OpenAxis) -> bool:
    """Return whether two axes are as long as each other whatever the sizes of their variables."""
    return _terms(a) == _terms(b)


def _terms(axis: OpenAxis) -> Counter[tuple[int, ...]]:
    """Return the length of an axis as a sum: how often each product of variables occurs, these by their orders."""
    terms: Counter[tuple[int, ...]] = Counter()
    for segment in resolve(axis):
        growing = [f for f in segment if isinstance(f, Var) and f.reason is None]
        number = prod(f if isinstance(f, int) else f.size for f in segment if f not in growing)
        terms[tuple(sorted(v.order for v in growing))] += number
    return terms


def _length(segment: OpenSegment) -> int:
    if len(segment) == 1:
        f = segment[0]
        return f if isinstance(f, int) else f.size
    return prod(f if isinstance(f, int) else f.size for f in segment)


def variables(axis: OpenAxis) -> list[Var]:
    """Return the variables of a resolved `axis`, pinned ones included."""
    return [f for segment in axis for f in segment if isinstance(f, Var)]


def elastic(axis: OpenAxis) -> bool:
    """Return whether `axis` holds a variable that may grow."""
    return any(v.reason is None for v in variables(resolve(axis)))


def pin(axis: OpenAxis, reason: str) -> None:
    """Pin every variable of `axis`; a variable keeps the first reason that it was given."""
    for v in variables(resolve(axis)):
        if v.reason is None:
            v.reason = reason


def settle(axis: OpenAxis) -> None:
    """Make the variables of `axis` plain numbers: it is no width at all (a kernel's extent)."""
    for v in variables(resolve(axis)):
        v.bound = ((v.size,),)


def merge(axes: Sequence[OpenAxis], reason: str) -> OpenAxis:
    """Return the axis that `axes` give when they are laid out as one; what lies before the last sum is pinned."""
    axes = [resolve(axis) for axis in axes]
    for axis in axes if len(axes) > 1 else ():
        if length(axis) == 1:  # it could not be told from its neighbours
            pin(axis, reason)
    several = [k for k, axis in enumerate(axes) if len(axis) > 1]
    if not several:
        return resolve((tuple(f for axis in axes for f in axis[0]),))
    last = several[-1]
    for axis in axes[:last]:  # a sum within it would be interleaved
        pin(axis, reason)
    inner = tuple(f for axis in axes[last + 1 :] for f in axis[0])
    return times(
        prod(length(axis) for axis in axes[:last]), tuple((*s, *inner) for s in axes[last]), 1
    )


def times(outer: int, axis: OpenAxis, inner: int) -> OpenAxis:
    """Return the axis that merging `[outer, axis, inner]` into one gives."""
    segments = tuple((*segment, inner) for segment in resolve(axis))
    if outer == 1:
        return resolve(segments)
    if len(segments) == 1:
        return resolve(((outer, *segments[0]),))
    if outer * len(segments) <= MAX_SEGMENTS:
        return resolve(segments * outer)
    pin(axis, f"it is interleaved {outer} times in a merged axis")
    return fixed(outer * length(axis) * inner, axis)


def resolve(axis: OpenAxis) -> OpenAxis:
    """Return `axis` with bound variables replaced, sums distributed and numbers multiplied out."""
    if _resolved(axis):
        return axis
    segments: list[OpenSegment] = []
    for segment in axis:
        first = segment[0] if segment else 1
        if len(segment) == 1 and (isinstance(first, int) or first.bound is None):
            segments.append(segment)
        else:
            segments.extend(_resolve(segment))
    merged: list[OpenSegment] = []
    for segment in segments:
        if merged and len(segment) == 1 == len(merged[-1]):
            last, this = merged[-1][0], segment[0]
            if isinstance(last, int) and isinstance(this, int):
                merged[-1] = (last + this,)
                continue
        merged.append(segment)
    return tuple(merged)


def _resolved(axis: OpenAxis) -> bool:
    """Return whether `axis` is a sum of free variables and numbers, no two of these side by side."""
    number = False
    for segment in axis:
        if len(segment) != 1:
            return False
        f = segment[0]
        if isinstance(f, int):
            if number:
                return False
            number = True
        elif f.bound is None:
            number = False
        else:
            return False
    return True


def _resolve(segment: OpenSegment) -> list[OpenSegment]:
    done: list[OpenFactor] = []
    for i, factor in enumerate(segment):
        if isinstance(factor, int):
            _times(done, factor)
            continue
        if factor.bound is None:
            done.append(factor)
            continue
        parts = factor.bound = resolve(factor.bound)  # the way is short the next time
        rest = segment[i + 1 :]
        if len(parts) == 1:
            return _resolve((*done, *parts[0], *rest))
        before, inside = _growing(done), [v for part in parts for v in _growing(part)]
        if any(v.own for v in before) and all(v.literal and not v.own for v in inside):
            pin(parts, "it is cut into parts, and each channel of another width has them all")
            return _resolve((*done, factor.size, *rest))
        inner = [s for part in parts for s in _resolve((*part, *rest))]
        for v in (f for f in done if isinstance(f, Var)):
            v.reason = v.reason or "it multiplies a concatenation"
        outer = prod(f if isinstance(f, int) else f.size for f in done)
        if outer * len(inner) > MAX_SEGMENTS:
            for s in inner:
                pin((s,), f"it is interleaved {outer} times in a merged axis")
            return [(_length(segment),)]
        return inner * outer
    return [tuple(done) or (1,)]


def _growing(factors: Iterable[OpenFactor]) -> list[Var]:
    """Return the variables among `factors` that may grow."""
    return [f for f in factors if isinstance(f, Var) and f.reason is None]


def choose(axes: Iterable[OpenAxis], widths: set[Var]) -> None:
    """Let one factor of every product grow and pin the others.

    It is one that grows in another product already, else one that the source does not spell out, else the innermost.
    Where several are `widths`, channels of layers by themselves, these all grow (a weight computed as one vector).
    """
    grows: set[Var] = set()
    for axis in axes:
        for segment in resolve(axis):
            factors = [f for f in segment if isinstance(f, Var)]
            several = [f for f in factors if f in widths and f.reason is None]
            if len(several) > 1:
                pin((tuple(f for f in factors if f not in several),), ONE_FACTOR)
            elif len(factors) > 1:
                best = max(
                    range(len(factors)),
                    key=lambda i: (
                        factors[i].reason is None,
                        factors[i] in grows,
                        not factors[i].literal,
                        i,
                    ),
                )
                grows.add(factors[best])
                for v in factors[:best] + factors[best + 1 :]:
                    if v.reason is None or (v.size > 1 and v not in widths):
                        v.reason = ONE_FACTOR


def _times(factors: list[OpenFactor], n: int) -> None:
    if n == 1:
        return
    if factors and isinstance(factors[-1], int):
        factors[-1] = factors[-1] * n
    else:
        factors.append(n)


def unify(a: OpenAxis, b: OpenAxis, reason: str) -> None:
    """Make `a` and `b` the same axis, by binding variables; what cannot be made the same is pinned for `reason`."""
    a, b = resolve(a), resolve(b)
    while a and b:
        x, y = a[0], b[0]
        if x == y:
            a, b = a[1:], b[1:]
            continue
        if _length(x) == _length(y):
            _match(x, y, reason)
            a, b = resolve(a[1:]), resolve(b[1:])
        elif _length(x) < _length(y):
            b = resolve((*_cut(y, _length(x), reason), *b[1:]))
            a = resolve(a)
            b = _unmerge(b, _length(a[0]))
        else:
            a = resolve((*_cut(x, _length(y), reason), *a[1:]))
            b = resolve(b)
            a = _unmerge(a, _length(b[0]))


def _unmerge(axis: OpenAxis, n: int) -> OpenAxis:
    """Undo the joining of plain numbers, so that the first segment ends at `n` again."""
    first = axis[0]
    if len(first) == 1 and isinstance(first[0], int) and first[0] > n:
        return ((n,), (first[0] - n,), *axis[1:])
    return axis


def _cut(segment: OpenSegment, n: int, reason: str) -> OpenAxis:
    """Cut `segment` behind its first `n` elements; a cut inside a variable splits it in two."""
    outer, inner = segment[0], segment[1:]
    step = _length(inner)
    if isinstance(outer, Var) and outer.reason is not None:
        outer = Stiff(outer.size, outer.reason)
    if isinstance(outer, Var):
        if n % step:
            pin((segment,), reason)
            return ((Stiff(n, reason),), (Stiff(_length(segment) - n, reason),))
        head, tail = Var(n // step, outer.literal), Var(outer.size - n // step, outer.literal)
        outer.bound = ((head,), (tail,))
        return ((head, *inner), (tail, *inner))
    if not inner:
        return ((_like(outer, n),), (_like(outer, outer - n),))
    whole, part = divmod(n, step)
    middle = _cut(inner, part, reason) if part else ()
    last = _like(outer, outer - whole - bool(part))
    whole = _like(outer, whole)
    return (*(((whole, *inner),) if whole else ()), *middle, *(((last, *inner),) if last else ()))


def _like(outer: int, n: int) -> int:
    return Stiff(n, outer.reason) if isinstance(outer, Stiff) else n


def _match(x: OpenSegment, y: OpenSegment, reason: str) -> None:
    """Unify two segments of the same length, factor by factor from the outermost on."""
    while x and y:
        (x,), (y,) = resolve((x,)), resolve((y,))  # a factor may have been bound meanwhile
        f, g = x[0], y[0]
        if len(x) == 1 == len(y):
            _bind(f, g, reason)
            return
        if x == y:
            return
        if _fixed(x) or _fixed(y):
            break
        for alone, other in ((x, y), (y, x)):
            v = alone[0]
            if len(alone) == 1 and isinstance(v, Var):
                if v in other:  # times factors of size 1
                    pin((tuple(u for u in other if u is not v),), reason)
                else:
                    _define(v, other)
                return
        m, n = (h if isinstance(h, int) else h.size for h in (f, g))
        if min(m, n) == 1 < max(m, n):  # it may not grow, and is then nothing
            pin(((f if m == 1 else g,),), reason)
            x, y = (x[1:], y) if m == 1 else (x, y[1:])
            continue
        d = gcd(m, n)
        if d == 1:  # m times one thing is n times another: both repeat what they have in common
            first, second = _common(x[1:], n, reason), _common(y[1:], m, reason)
            if not (first and second):
                break
            pin(((f,), (g,)), reason)
            x, y = first, second
            continue
        x, y = _divide(x, d), _divide(y, d)
        _bind(x[0], y[0], reason)
        x, y = x[1:], y[1:]
    pin((x,) if x else (), reason)
    pin((y,) if y else (), reason)


def _common(segment: OpenSegment, n: int, reason: str) -> OpenSegment:
    """Return what `segment` repeats `n` times; nothing where it does not."""
    (segment,) = resolve((segment,))
    f = segment[0]
    if (f if isinstance(f, int) else f.size) % n:
        return ()
    outer, *inner = _divide(segment, n)
    if inner:
        pin(((outer,),), reason)
    return tuple(inner)


def _divide(segment: OpenSegment, d: int) -> OpenSegment:
    """Write the outermost factor of `segment` as `d` times the rest."""
    f, rest = segment[0], segment[1:]
    n = f if isinstance(f, int) else f.size
    if n == d:
        return segment
    if isinstance(f, int) or f.reason is not None:
        return (d, n // d, *rest)
    outer, inner = Var(d, f.literal), Var(n // d, f.literal)
    f.bound = ((outer, inner),)
    return (outer, inner, *rest)


def _fixed(segment: OpenSegment) -> bool:
    return all(isinstance(f, int) or f.reason is not None for f in segment)


def _define(v: Var, segment: OpenSegment) -> None:
    if len(segment) == 1:
        _bind(v, segment[0], "")
        return
    if v.reason is not None:
        pin((segment,), v.reason)
    whole = [f for f in segment if isinstance(f, Var) and f.size == v.size]
    if v.given and whole:  # times factors of size 1
        pin((tuple(f for f in segment if f is not whole[0]),), ONE_FACTOR)
        _bind(v, whole[0], "")
        return
    v.bound = (segment,)


def _bind(f: OpenFactor, g: OpenFactor, reason: str) -> None:
    """Unify two factors of the same size."""
    if f is g:
        return
    if isinstance(f, int) and isinstance(g, int):
        return
    if isinstance(f, int) or isinstance(g, int):
        v = f if isinstance(f, Var) else g
        assert isinstance(v, Var)
        v.reason = v.reason or reason
        return
    first, second = (f, g) if f.order < g.order else (g, f)
    first.reason = first.reason or second.reason
    first.literal = first.literal or second.literal
    first.own = first.own or second.own
    second.bound = ((first,),)
