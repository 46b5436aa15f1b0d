"""Which config comes next: Optuna samplers that only propose what meets the constraint, each config once.

A proposal depends on the seed, its number and the candidates before it alone, so a study that was
killed goes on without repeating itself, and processes that share one do not propose the same.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from netaugfx.plan import Config
from recipes.augment import key
from recipes.spos.budget import Ceiling

TRIES = 100  # proposals until one meets the constraint and is new; after that a uniform draw
COUNTABLE = 20_000  # up to here all configs are listed, so that the search knows when none is left


class Proposals(BaseSampler):
    """Proposes configs: by evolution, NSGA-II, or at random.

    Args:
        ceiling: the constraint, and where uniform draws come from.
        method: "evolution", "nsga2" or "random".
        seed: of every draw.
        population: candidates of a generation.
        top: candidates that the next generation is made from ("evolution").
        mutation: probability that a mutated candidate's width is drawn anew.

    Source: "evolution": Z. Guo et al., "Single Path One-Shot", ECCV 2020, algorithm 1: a generation
    is half mutations of the best `top` candidates so far, half crossovers of two of them. "nsga2":
    K. Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm", 2002, as in Optuna, of
    which the same mutation probability is asked.
    """

    def __init__(
        self,
        ceiling: Ceiling,
        method: str = "evolution",
        *,
        seed: int = 0,
        population: int = 50,
        top: int = 10,
        mutation: float = 0.1,
    ):
        self.ceiling, self.method, self.seed = ceiling, method, seed
        self.population, self.top, self.mutation = population, top, mutation
        self.plan = ceiling.wide.plan
        self.choices: dict[str, tuple[int, ...]] = {
            w.name: w.choices
            for w in self.plan.widths
            if len(w.choices) > 1 and w.kind in ceiling.kinds
        }
        self.space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(sizes) for name, sizes in self.choices.items()
        }
        self.all: list[Config] | None = None
        if prod(map(len, self.choices.values())) <= COUNTABLE:
            every = (
                self.plan.config(dict(zip(self.choices, sizes, strict=True)))
                for sizes in product(*self.choices.values())
            )
            self.all = [config for config in every if ceiling.admits(config)]

    # --------------------------------------------------------------------------- what Optuna asks for

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every width that is searched."""
        return self.space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the config of a trial."""
        generator = torch.Generator().manual_seed(key(self.seed, trial.number))
        config = self._new(study, trial, generator)
        return {name: config[name] for name in self.choices}

    def sample_independent(self, *arguments: Any) -> Any:
        """Never: every width is proposed together with the others."""
        raise NotImplementedError(f"No width is proposed alone; {arguments[2]!r} was asked for.")

    # ------------------------------------------------------------------------------------- proposals

    def exhausted(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether every config that meets the constraint has been evaluated, or has failed."""
        ended = [each for each in trials if each.state != TrialState.RUNNING]
        return self.all is not None and len(self._known(ended)) >= len(self.all)

    def _known(self, trials: Sequence[FrozenTrial]) -> set[tuple[Any, ...]]:
        """The configs of trials; those that were killed do not count."""
        return {
            tuple(trial.params.get(name) for name in self.choices)
            for trial in trials
            if trial.state != TrialState.FAIL or "failure" in trial.user_attrs
        }

    def _new(self, study: Study, trial: FrozenTrial, generator: torch.Generator) -> Config:
        trials = study.get_trials(deepcopy=False)
        known = self._known(trials)
        propose: Callable[[], Config | None] = {
            "evolution": lambda: self._evolved(best, trial.number, generator),
            "nsga2": lambda: self._nsga2(study, trial, generator),
            "random": lambda: None,
        }[self.method]
        best = self._best(trials, trial.number) if self.method == "evolution" else []

        def is_new(config: Config) -> bool:
            return tuple(config[name] for name in self.choices) not in known

        for proposal in (propose, lambda: None):
            for _ in range(TRIES):
                config = proposal()
                if config is None:  # nothing to evolve from yet
                    config = self.ceiling.draw(generator)
                elif not self.ceiling.admits(config):
                    continue
                if is_new(config):
                    return config
        left = [config for config in self.all or () if is_new(config)]
        return left[_below(len(left), generator)] if left else self.ceiling.draw(generator)

    def _best(self, trials: Sequence[FrozenTrial], number: int) -> list[Mapping[str, int]]:
        """The best candidates of all generations before that of trial `number`."""
        start = number // self.population * self.population
        before = [t for t in trials if t.number < start and t.state == TrialState.COMPLETE]
        before.sort(key=lambda each: (-each.values[0], each.number))
        return [each.params for each in before[: self.top]]

    def _evolved(
        self, best: Sequence[Mapping[str, int]], number: int, generator: torch.Generator
    ) -> Config | None:
        if not best:
            return None
        draws = torch.rand(len(self.choices), generator=generator).tolist()
        first = best[_below(len(best), generator)]
        if number % self.population < self.population // 2:
            sizes = {
                name: choices[_below(len(choices), generator)] if u < self.mutation else first[name]
                for (name, choices), u in zip(self.choices.items(), draws, strict=True)
            }
        else:
            second = best[_below(len(best), generator)]
            sizes = {
                name: (first if u < 0.5 else second)[name]
                for name, u in zip(self.choices, draws, strict=True)
            }
        return self.plan.config(sizes)

    def _nsga2(self, study: Study, trial: FrozenTrial, generator: torch.Generator) -> Config | None:
        seed = int(torch.randint(2**31, (), generator=generator))
        inner = NSGAIISampler(
            population_size=self.population, mutation_prob=self.mutation, seed=seed
        )
        found = inner.sample_relative(study, trial, self.space)
        if not found:  # the first generation
            return None
        sizes = {  # what Optuna leaves out is to be mutated
            name: found[name] if name in found else choices[_below(len(choices), generator)]
            for name, choices in self.choices.items()
        }
        return self.plan.config(sizes)


def _below(n: int, generator: torch.Generator) -> int:
    return int(torch.randint(n, (), generator=generator))


class Connection(sqlite3.Connection):
    """A connection that does not wait for the disk: a killed process loses nothing, and a candidate
    costs milliseconds to write instead of a third of a second."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def open_storage(storage: Any) -> Any:
    """Optuna's storage: None in memory, a path of an SQLite file, an URL, or one that is opened already.

    Several processes of one machine may share a file: a write waits up to a minute for others, and
    a candidate of a process that died is given up after three.
    """
    if storage is None or isinstance(storage, optuna.storages.BaseStorage):
        return storage
    url = str(storage) if "://" in str(storage) else f"sqlite:///{storage}"
    own = {"connect_args": {"timeout": 60, "factory": Connection}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
        return optuna.storages.RDBStorage(
            url,
            engine_kwargs=own if url.startswith("sqlite:") else {},
            heartbeat_interval=60,
            grace_period=180,
        )
