"""Which config a step trains: uniformly drawn, drawn within a budget of MACs, or from a fixed pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite, lcm, log10, prod
from typing import Any

import torch

from .axes import Axis, size
from .cost import Cost
from .errors import ConfigError
from .plan import KINDS, Config, Plan, Width
from .storage import own_seed

SWEEPS = 32  # of the Markov chain for one draw within a budget
MOST = 10_000  # configs of a pool: it is listed in full, so that its draws are always the same
PATIENCE = (
    10  # draws in vain, for each config that a pool has so far, before no more are thought to fit
)

Draw = Callable[[torch.Generator], Config]


class Sampler:
    """What draws the configs of one wide model; chains and pools are made once.

    Args:
        plan: Its widths.
        seed: Of the pools.
        polynomial: What a forward costs, as it is now.
    """

    def __init__(self, plan: Plan, seed: int, polynomial: Callable[[], Cost]) -> None:
        self.plan, self.seed, self.polynomial = plan, seed, polynomial
        self.chains: dict[Any, tuple[Cost, Within]] = {}
        self.pools: dict[Any, tuple[Config, ...]] = {}

    def draw(self, kinds: tuple[str, ...], budget: float | None, pool: int | None) -> Draw:
        """Return what draws a config from a generator; the arguments are those of `WideModel.sample`.

        Raises:
            ConfigError: Fewer configs than the pool should have.
            PlanError: A budget, but the MACs are no polynomial of the widths.
        """
        if pool is not None:
            key = (kinds, budget, pool)
            if key not in self.pools:
                one, seed = self.draw(kinds, budget, None), own_seed("pool", self.seed)
                self.pools[key] = pool_of(pool, one, self.plan, kinds, budget, seed)
            return partial(choose, self.pools[key])
        if budget is None:
            return partial(uniform, self.plan, kinds)
        cost = self.polynomial()
        found, chain = self.chains.get((kinds, budget), (None, None))
        if chain is None or found != cost:
            limit = budget * cost.macs(self.plan.base_config)
            chain = Within(cost, self.plan, limit, kinds)
            self.chains[kinds, budget] = cost, chain
        return chain


def checked(generator: Any, kinds: str | Iterable[str], budget: Any, pool: Any) -> tuple[str, ...]:
    """Return the kinds as a tuple; raise ConfigError where an argument of `sample` is not what it should be."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"sample: generator must be a torch.Generator; {generator!r} came. "
            "Make one with torch.Generator().manual_seed(0)."
        )
    if not isinstance(kinds, Iterable):
        raise ConfigError(f"sample: kinds must be among {' and '.join(KINDS)}; {kinds!r} came.")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds:
        raise ConfigError(
            f"sample: kinds is empty, so nothing can be drawn; give {' or '.join(map(repr, KINDS))}, or both."
        )
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"No width has the kind {kind!r}; kinds are {' and '.join(KINDS)}.")
    number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if budget is not None and not (number and budget >= 1):
        raise ConfigError(
            f"sample: budget must be a number from 1 on, in MACs of the base; {budget!r} came."
        )
    if budget is not None and not isfinite(budget):
        raise ConfigError(f"sample: budget must be finite; {budget!r} came. Leave it out for none.")
    if pool is not None and (isinstance(pool, bool) or not isinstance(pool, int) or pool < 1):
        raise ConfigError(
            f"sample: pool must be a whole number of configs from 1 on; {pool!r} came."
        )
    return kinds


def uniform(plan: Plan, kinds: tuple[str, ...], generator: torch.Generator) -> Config:
    """Draw every width of `kinds` uniformly among its choices, the others at base size."""
    draws = torch.rand(len(plan.widths), generator=generator, device=generator.device).tolist()
    return Config(
        {
            w.name: w.choices[int(u * len(w.choices))] if w.kind in kinds else w.base
            for w, u in zip(plan.widths, draws, strict=True)
        }
    )


class Within:
    """Draws uniformly among the configs whose MACs stay within a limit, by a Markov chain.

    The chain starts at the base, which fits. A sweep visits every width once and draws it anew, uniformly among the
    choices that fit while the others stay: a Gibbs sampler, whose only stationary distribution is the uniform one over
    the configs that fit. A draw is the state after `sweeps` sweeps; draws are independent of each other.

    Args:
        cost: The MACs; they grow with every width.
        plan: The widths.
        limit: MACs; at least the base's.
        kinds: The kinds of widths that are drawn; the others stay at base size.
        sweeps: How many sweeps a draw takes.

    Source: Geman, Geman, Stochastic Relaxation, Gibbs Distributions, and the Bayesian Restoration of Images, 1984;
    Morris, Sinclair, Random Walks on Truncated Cubes and Sampling 0-1 Knapsack Solutions, 2004, for such sets.
    """

    def __init__(
        self, cost: Cost, plan: Plan, limit: float, kinds: tuple[str, ...], sweeps: int = SWEEPS
    ) -> None:
        self.plan, self.sweeps = plan, sweeps
        scale = lcm(*(t.coefficient.denominator for t in cost.terms))
        axes: dict[Axis, int] = {}
        for term in cost.terms:
            for axis in term.axes:
                axes.setdefault(axis, len(axes))
        self.terms = [(int(t.coefficient * scale), [axes[a] for a in t.axes]) for t in cost.terms]
        self.lengths = [size(axis, plan.base_config) for axis in axes]
        self.limit = limit * scale
        self.free: list[tuple[int, Width, list[tuple[int, int]], list[int]]] = []
        for i, width in enumerate(plan.widths):
            if width.kind not in kinds or len(width.choices) == 1:
                continue
            more = {**plan.base_config, width.name: width.base + 1}
            slopes = [(k, size(axis, more) - self.lengths[k]) for axis, k in axes.items()]
            slopes = [(k, slope) for k, slope in slopes if slope]
            touched = {k for k, _ in slopes}
            mine = [t for t, (_, factors) in enumerate(self.terms) if touched.intersection(factors)]
            self.free.append((i, width, slopes, mine))

    def __call__(self, generator: torch.Generator) -> Config:
        """Draw a config."""
        draws = torch.rand(
            self.sweeps * len(self.free), generator=generator, device=generator.device
        ).tolist()
        sizes = [w.base for w in self.plan.widths]
        lengths = list(self.lengths)
        values = [self._value(t, lengths) for t in range(len(self.terms))]
        total = sum(values)
        at = 0
        for _ in range(self.sweeps):
            for i, width, slopes, mine in self.free:
                rest = total - sum(values[t] for t in mine)
                now = sizes[i]
                for fitting in range(len(width.choices) - 1, -1, -1):  # MACs grow with the choice
                    _move(lengths, slopes, width.choices[fitting] - now)
                    now = width.choices[fitting]
                    if rest + sum(self._value(t, lengths) for t in mine) <= self.limit:
                        break
                n = width.choices[int(draws[at] * (fitting + 1))]
                _move(lengths, slopes, n - now)
                for t in mine:
                    values[t] = self._value(t, lengths)
                total = rest + sum(values[t] for t in mine)
                sizes[i] = n
                at += 1
        return Config({w.name: n for w, n in zip(self.plan.widths, sizes, strict=True)})

    def _value(self, t: int, lengths: list[int]) -> int:
        value, factors = self.terms[t]
        for k in factors:
            value *= lengths[k]
        return value


def _move(lengths: list[int], slopes: list[tuple[int, int]], step: int) -> None:
    for k, slope in slopes:
        lengths[k] += slope * step


def choose(configs: tuple[Config, ...], generator: torch.Generator) -> Config:
    """Draw one of `configs` uniformly."""
    u = float(torch.rand((), generator=generator, device=generator.device))
    return configs[int(u * len(configs))]


def pool_of(
    k: int, draw: Draw, plan: Plan, kinds: tuple[str, ...], budget: float | None, seed: int
) -> tuple[Config, ...]:
    """Return `k` distinct configs other than the base, drawn by `draw`: the same ones for the same seed.

    Raises:
        ConfigError: There are fewer, or, within a budget, there seem to be; or `k` is above `MOST`.
    """
    asked = f"sample: a pool of {k} configs was asked for, but"
    free = [w for w in plan.widths if w.kind in kinds and len(w.choices) > 1]
    if not free:
        others = sorted({w.kind for w in plan.widths if len(w.choices) > 1})
        hint = f"grow those that are {' and '.join(others)}" if others else "plan more choices"
        raise ConfigError(
            f"{asked} no width of the kinds {', '.join(kinds)} has a choice, so the base is all there is; {hint}."
        )
    total = prod(len(w.choices) for w in free) - 1
    if k > total:
        raise ConfigError(
            f"{asked} only {total} wider than the base exist in {len(free)} widths of the kinds {', '.join(kinds)}; "
            "ask for a smaller pool, or plan more choices (diversity)."
        )
    if k > MOST:
        exist = f"{total}" if total < 10**9 else f"about 10^{log10(total):.0f}"
        raise ConfigError(
            f"{asked} it may have {MOST} at most, since it is listed in full; {exist} wider than the base exist: "
            "draw without a pool."
        )
    generator = torch.Generator().manual_seed(seed)
    found: dict[Config, None] = {}
    vain = draws = 0
    while len(found) < k:
        if vain > PATIENCE * (len(found) + 10):
            within = f" come within the budget of {budget}" if budget is not None else " came"
            raise ConfigError(
                f"{asked} only {len(found)} wider than the base{within} in {draws} draws; ask for a smaller pool, "
                "or give it a larger budget."
            )
        config = draw(generator)
        draws, vain = draws + 1, vain + 1
        if config != plan.base_config and config not in found:
            found[config] = None
            vain = 0
    return tuple(found)
