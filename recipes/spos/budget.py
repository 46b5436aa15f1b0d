"""A ceiling on what a subnet may cost: in MACs or in parameters, of the base or outright."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

import netaugfx
from netaugfx.cost import Cost, Term
from netaugfx.plan import KINDS, Config
from netaugfx.sampling import Within
from recipes.errors import SearchError

MEASURES = ("macs", "parameters")
TRIES = 1_000  # draws until one meets a constraint that is a function


@dataclass(frozen=True)
class Budget:
    """A ceiling.

    Args:
        limit: times the base's cost if `relative`, else MACs of one image or parameters.
        measure: "macs" or "parameters".
        relative: whether the limit is a multiple of the base's cost.
    """

    limit: float
    measure: str = "macs"
    relative: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no ceiling.

        Raises:
            SearchError: another measure, or a limit that is no finite number above 0.
        """
        if self.measure not in MEASURES:
            raise SearchError(f"A budget is of {' or '.join(MEASURES)}; {self.measure!r} came.")
        number = isinstance(self.limit, int | float) and not isinstance(self.limit, bool)
        if not number or not 0 < self.limit < math.inf:
            raise SearchError(f"A budget's limit is a number above 0; {self.limit!r} came.")

    @staticmethod
    def of(value: Any, measure: str = "macs") -> Budget:
        """A budget from "3.0x" (times the base), "2.5M" (outright), or a number (times the base).

        >>> Budget.of("3.0x")
        Budget(limit=3.0, measure='macs', relative=True)
        >>> Budget.of("2.5M", "parameters")
        Budget(limit=2500000.0, measure='parameters', relative=False)

        Raises:
            SearchError: it reads as neither.
        """
        if isinstance(value, Budget):
            return value
        if not isinstance(value, str):
            return Budget(value, measure)
        match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([xkMG]?)", value.strip())
        if match is None:
            raise SearchError(
                f"A budget is a multiple of the base, as 3.0x, or a number, as 2.5M; {value!r} came."
            )
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(match[2], 1)
        return Budget(float(match[1]) * scale, measure, relative=match[2] == "x")

    def __str__(self) -> str:
        """Return it as `of` reads it, with its measure."""
        return (
            f"{self.limit:g}x {self.measure}"
            if self.relative
            else f"{self.limit:,.0f} {self.measure}"
        )


class Ceiling:
    """A constraint on the subnets of one wide model: what they cost, which it admits, draws of those.

    Args:
        wide: whose subnets.
        constraint: None (every subnet), a `Budget` or what `Budget.of` reads, or a function from a
            config to whether it is admitted.
        measure: of costs, where the constraint does not say.
        kinds: which kinds of widths are drawn; the others stay at their base size.

    Raises:
        SearchError: not even the base is within the budget.
    """

    def __init__(
        self,
        wide: netaugfx.WideModel,
        constraint: Any = None,
        *,
        measure: str = "macs",
        kinds: Iterable[str] = KINDS,
    ):
        self.wide, self.kinds = wide, (kinds,) if isinstance(kinds, str) else tuple(kinds)
        self.rule: Callable[[Config], bool] | None = constraint if callable(constraint) else None
        self.budget = (
            None if constraint is None or self.rule is not None else Budget.of(constraint, measure)
        )
        self.measure = self.budget.measure if self.budget else measure
        self._parameters = parameter_count(wide)
        self.base_cost = self.cost(wide.base_config)
        self.limit = math.inf
        self._chain: Within | None = None
        if self.budget is None:
            return
        self.limit = self.budget.limit * (self.base_cost if self.budget.relative else 1)
        if self.base_cost > self.limit:
            raise SearchError(
                f"Nothing meets the budget of {self.budget} ({self.limit:,.0f}): the cheapest config, the base, "
                f"costs {self.base_cost:,} {self.measure}. Give at least 1x: "
                "3x is three times the base, 3 without the x is 3 outright."
            )
        if self.measure == "parameters":
            self._chain = Within(self._parameters, wide.plan, self.limit, self.kinds)

    def cost(self, config: Mapping[str, int]) -> int:
        """MACs of one forward of one image, or parameters."""
        config = self.wide.plan.config(config)
        return (
            self._parameters.macs(config)
            if self.measure == "parameters"
            else self.wide.macs(config)
        )

    def admits(self, config: Config) -> bool:
        """Whether a config meets the constraint."""
        if self.rule is not None:
            return bool(self.rule(config))
        return self.budget is None or self.cost(config) <= self.limit

    def draw(self, generator: torch.Generator) -> Config:
        """A config, uniformly among those that meet the constraint.

        Raises:
            SearchError: of `TRIES` draws none met a constraint that is a function.
        """
        if self._chain is not None:
            return self._chain(generator)
        if self.budget is not None:
            relative = max(1.0, self.limit / self.base_cost)
            return self.wide.sample(generator, kinds=self.kinds, budget=relative)
        for _ in range(TRIES):
            config = self.wide.sample(generator, kinds=self.kinds)
            if self.admits(config):
                return config
        too = "does" if self.admits(self.wide.base_config) else "does not either"
        raise SearchError(
            f"Nothing meets the constraint, it seems: {TRIES:,} uniform draws did not, and the cheapest config, the "
            f"base ({self.base_cost:,} {self.measure}), {too}."
        )

    def __str__(self) -> str:
        """Return what it is, in words that are the same for the same constraint."""
        if self.rule is not None:
            return getattr(self.rule, "__qualname__", type(self.rule).__qualname__)
        return str(self.budget) if self.budget else "none"


def parameter_count(wide: netaugfx.WideModel) -> Cost:
    """The parameters of the subnet at a config, as a polynomial of the widths: `.macs(config)` counts them."""
    terms = []
    for name, parameter in wide.named_base_parameters():
        axes = wide.plan.axes.get(name)
        if axes is None:
            terms.append(Term(Fraction(parameter.numel()), ()))
        else:
            terms.append(Term(Fraction(1), tuple(axes)))
    return Cost(tuple(terms))
