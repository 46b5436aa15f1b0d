"""What grows: widths, their choices, and the axes of every Parameter as functions of them. Frozen, printable, JSON."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from math import isfinite, prod
from types import MappingProxyType
from typing import Any

from .axes import Axis, size
from .errors import ConfigError, PlanError

KINDS = ("stream", "inner")


class Config(Mapping[str, int]):
    """A frozen, hashable mapping from every width name of a plan to a size in channels."""

    __slots__ = ("_hash", "_sizes")

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = dict(sizes)
        self._hash = hash(frozenset(self._sizes.items()))

    def __getitem__(self, name: str) -> int:
        return self._sizes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._sizes == dict(other)

    def __repr__(self) -> str:
        return f"Config({self._sizes})"

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, int]]]:
        return Config, (self._sizes,)


@dataclass(frozen=True)
class Width:
    """One decision variable: the channel axes that must grow together.

    Args (fields):
        name: The first producer's module path, with a segment index where one layer feeds several widths.
        base: Channels in the base.
        choices: Sizes in channels that a config may give it, ascending, the base first.
        kind: `inner` (within one block, and not its output) or `stream`.
        permutable: Whether its channels may be put in any order without changing what a subnet computes.
        layers: The layers one of whose axes it spans, in graph order.
    """

    name: str
    base: int
    choices: tuple[int, ...]
    kind: str
    permutable: bool
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One place in the data flow between layers.

    Args (fields):
        name: The module's path (of a Parameter of the network itself, the Parameter's name); of a join, the path of
            the module whose forward has it, a colon, and the operator.
        type: The class of the module, or the operator.
        is_join: Whether it is no layer, but an operator in which several flows meet: a sum, a concatenation.
        widths: The widths of its output, pinned ones included, in the order of its channels.
        inputs: The names of what flows into it.
    """

    name: str
    type: str
    is_join: bool
    widths: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Which widths a model has, which of them are pinned and why, and where they lie in its Parameters.

    Args (fields):
        widths: The elastic widths in graph order.
        pinned: Width name -> why it stays at its base size.
        axes: Parameter or buffer name -> its elastic form, an `Axis` per dimension; plain tensors are left out.
        contracted: Parameter name -> the axes that an operator sums over (its inputs).
        fills: Buffer name -> the value of new elements, where the operator fixes it (batch norm: 0 and 1).
        opaque: Module path -> why it was left as it is.
        elastic_share: Elastic output channels of convolution and linear layers over all of their output
            channels, those of the network's outputs left out; 1.0 where there are none. Of a model in parts, the
            outputs of the parts are left out, and every layer outside of them counts.
        flow: The layers in graph order, each with what flows into it.
    """

    widths: tuple[Width, ...]
    pinned: Mapping[str, str]
    axes: Mapping[str, tuple[Axis, ...]]
    contracted: Mapping[str, tuple[int, ...]]
    fills: Mapping[str, float]
    opaque: Mapping[str, str]
    elastic_share: float
    counted: int = 0  # output channels that the share is of
    parts: tuple[str, ...] = ()  # the children that are widened apart, where the root has no graph
    flow: tuple[Layer, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Plan.from_json, (self.to_json(),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    @cached_property
    def by_name(self) -> Mapping[str, Width]:
        return MappingProxyType({w.name: w for w in self.widths})

    @cached_property
    def base_config(self) -> Config:
        """Every width at its base size."""
        return Config({w.name: w.base for w in self.widths})

    @cached_property
    def max_config(self) -> Config:
        """Every width at its largest choice."""
        return Config({w.name: w.choices[-1] for w in self.widths})

    @cached_property
    def augmented_elements(self) -> int:
        """How many numbers the blocks hold that `widen` would allocate."""
        return sum(
            prod(size(axis, self.max_config) for axis in axes)
            - prod(size(axis, self.base_config) for axis in axes)
            for name, axes in self.axes.items()
            if name not in self.fills
        )

    def block_memory(self, bytes_each: int = 4) -> str:
        """Return the memory that the blocks take, in bytes with a decimal unit (`"19.6 MB"`); float32 takes 4 each."""
        n, units = float(self.augmented_elements * bytes_each), ["B", "kB", "MB", "GB", "TB", "PB"]
        while n >= 999.5 and len(units) > 1:
            n, units = n / 1000, units[1:]
        return f"{n:.3g} {units[0]}"

    def config(self, sizes: Mapping[str, int]) -> Config:
        """Return `sizes` as a whole config: widths that it leaves out are at their base size.

        Raises:
            ConfigError: An unknown width, or a size that is not one of its choices.
        """
        if not isinstance(sizes, Mapping):
            raise ConfigError(f"A config is a mapping from width name to size; {sizes!r} came.")
        known = isinstance(sizes, Config) and sizes._sizes.keys() == self.base_config._sizes.keys()
        if known and all(
            sizes[w.name] in w.choices and type(sizes[w.name]) is int for w in self.widths
        ):
            return sizes  # type: ignore[return-value]
        whole = dict(self.base_config)
        for name, n in sizes.items():
            if name not in whole:
                near = difflib.get_close_matches(str(name), whole, 3)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                why = f" (it is pinned: {self.pinned[name]})" if name in self.pinned else ""
                raise ConfigError(
                    f"No width is called {name!r}{why}{hint or '; see describe(plan).'}"
                )
            if isinstance(n, float | bool) or n not in self.by_name[name].choices:
                choices = ", ".join(map(str, self.by_name[name].choices))
                raise ConfigError(
                    f"Width {name!r} cannot be {n!r}: its choices are {choices}, whole numbers."
                )
            whole[name] = int(n)
        return Config(whole)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the plan as JSON text; `Plan.from_json` is its inverse."""
        return json.dumps(asdict(self), indent=indent)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that `Plan.to_json` wrote.

        Raises:
            PlanError: The text is no plan.
        """
        try:
            raw = json.loads(text)
            return Plan(
                widths=tuple(
                    Width(**{**w, "choices": tuple(w["choices"]), "layers": tuple(w["layers"])})
                    for w in raw["widths"]
                ),
                axes={
                    name: tuple(tuple(tuple(s) for s in axis) for axis in axes)
                    for name, axes in raw["axes"].items()
                },
                contracted={name: tuple(axes) for name, axes in raw["contracted"].items()},
                parts=tuple(raw["parts"]),
                flow=tuple(
                    Layer(**{**f, "widths": tuple(f["widths"]), "inputs": tuple(f["inputs"])})
                    for f in raw.get("flow", ())
                ),
                **{k: raw[k] for k in ("pinned", "fills", "opaque", "elastic_share", "counted")},
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(
                f"Not a plan: {error!r}. Expected the text of Plan.to_json()."
            ) from error

    def __str__(self) -> str:
        lines = [f"{len(self.widths)} widths, elastic share {self.elastic_share:.3f}"]
        lines += [
            f"  {w.name}: {w.kind}, {' '.join(map(str, w.choices))}; {', '.join(w.layers)}"
            for w in self.widths
        ]
        lines += [f"  {name}: pinned, {reason}" for name, reason in self.pinned.items()]
        lines += [f"  {path}: opaque, {reason}" for path, reason in self.opaque.items()]
        return "\n".join(lines)


Amount = float | Mapping[str, Any]


def with_choices(
    plan: Plan,
    *,
    factor: Amount = 3.0,
    diversity: Amount = 2,
    choices: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    max_config: Mapping[str, int] | None = None,
    divisor: int = 1,
) -> Plan:
    """Return `plan` with sizes for every width to choose from.

    A width w gets w, then `diversity` sizes linearly spaced up to `factor` * w, each rounded to a multiple of
    `divisor`; factor 3 and diversity 2 give w, 2w, 3w.

    Args:
        plan: Its widths; the sizes that it has are replaced.
        factor: The largest size over the base size: a number, or a mapping from a kind or a
            width-name glob to one (the name wins over
            the kind; what no key covers has the default).
        diversity: The number of sizes above the base; likewise.
        choices: Ratios (floats) or sizes (ints) outright, or a mapping likewise; it wins over the factor.
        max_config: The largest size of each width; widths that it leaves out do not grow.
        divisor: Sizes above the base are rounded to the nearest multiple of it that is not below the base.

    Raises:
        PlanError: factor < 1, diversity < 1, a choice below the base, or a key that covers nothing.
        ConfigError: `max_config` names an unknown width.

    Source: Cai, Gan, Lin, Han, Network Augmentation for Tiny Deep Learning, ICLR 2022, section 3.2.
    """
    if not isinstance(divisor, int) or divisor < 1:
        raise PlanError(f"divisor must be a whole number from 1 on; {divisor!r} came.")
    for value in (factor, diversity, choices):
        if isinstance(value, Mapping):
            _check_keys(plan, value)
    if max_config is not None:
        _check_largest(plan, max_config)
    widths = []
    for width in plan.widths:
        explicit = _pick(choices, width, None) if isinstance(choices, Mapping) else choices
        if explicit is not None:
            if isinstance(explicit, str) or not isinstance(explicit, Iterable):
                raise PlanError(
                    f"choices must be a list of ratios (floats) or sizes (ints); {explicit!r} came."
                )
            sizes = [_explicit(width, c) for c in explicit]
        else:
            r, s = _pick(factor, width, 3.0), _pick(diversity, width, 2)
            if max_config is not None:
                r = max_config.get(width.name, width.base) / width.base
            if not isinstance(r, int | float) or not r >= 1 or r == float("inf"):
                raise PlanError(
                    f"factor must be a number from 1 on; {r!r} came for {width.name!r}."
                )
            if not isinstance(s, int) or s < 1:
                raise PlanError(f"diversity must be a whole number from 1 on; {s!r} came.")
            step = (r - 1) / s
            sizes = [
                _rounded(width.base * (1 + i * step), width.base, divisor) for i in range(1, s + 1)
            ]
            if max_config is not None and r > 1:
                sizes = [*(n for n in sizes if n < max_config[width.name]), max_config[width.name]]
        widths.append(replace(width, choices=tuple(sorted({width.base, *sizes}))))
    return replace(plan, widths=tuple(widths))


def _rounded(n: float, base: int, divisor: int) -> int:
    rounded = int(n / divisor + 0.5) * divisor
    return rounded if rounded >= base else rounded + -(-(base - rounded) // divisor) * divisor


def _explicit(width: Width, choice: float) -> int:
    if isinstance(choice, bool) or not isinstance(choice, int | float) or not isfinite(choice):
        raise PlanError(f"choices must be ratios (floats) or sizes (ints); {choice!r} came.")
    n = choice if isinstance(choice, int) else round(choice * width.base)
    if n < width.base:
        hint = (
            " (whole numbers are sizes; write 2.0 for a ratio)" if isinstance(choice, int) else ""
        )
        raise PlanError(
            f"choices: {choice!r} is below the base size {width.base} of {width.name!r}{hint}."
        )
    return n


def _pick(value: Any, width: Width, default: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    for key, v in value.items():
        if key not in KINDS and fnmatchcase(width.name, key):
            return v
    return value.get(width.kind, default)


def _check_keys(plan: Plan, value: Mapping[str, Any]) -> None:
    for key in value:
        if not isinstance(key, str):
            raise PlanError(f"A kind or a width-name glob was expected as a key; {key!r} came.")
        if key not in KINDS and not any(fnmatchcase(w.name, key) for w in plan.widths):
            raise PlanError(
                f"{key!r} is neither a kind ('stream', 'inner') nor does it match a width; see describe(plan)."
            )


def _check_largest(plan: Plan, sizes: Mapping[str, int]) -> None:
    if not isinstance(sizes, Mapping):
        raise ConfigError(
            f"max_config: a mapping from width name to size was expected; {sizes!r} came."
        )
    for name, n in sizes.items():
        if name not in plan.by_name:
            near = difflib.get_close_matches(str(name), plan.by_name, 3) or list(plan.by_name)[:3]
            raise ConfigError(
                f"max_config: no width is called {name!r}; there are, for instance, {', '.join(near) or 'none'}."
            )
        if not isinstance(n, int) or n < plan.by_name[name].base:
            raise ConfigError(
                f"max_config: {name!r} cannot be {n!r}; its base is {plan.by_name[name].base}."
            )
