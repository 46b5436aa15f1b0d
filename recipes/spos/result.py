"""What a search found, and the small JSON in which a config is shared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netaugfx.plan import Config, Plan
from recipes.errors import SearchError

if TYPE_CHECKING:  # Optuna takes a second to load, and training needs none of it
    import optuna


@dataclass(frozen=True)
class Candidate:
    """One config that was evaluated: `value` is its score, `cost` in MACs or parameters."""

    number: int
    config: Config
    value: float
    cost: float
    seconds: float  # that its evaluation took


@dataclass(frozen=True)
class Result:
    """What a search found.

    Args:
        best: the candidate of the largest score; of equal ones the cheapest.
        candidates: every one that was evaluated, in order, each config once.
        failed: number -> why that candidate failed.
        study: Optuna's study.
        identity: what was searched, and how.
    """

    best: Candidate
    candidates: tuple[Candidate, ...]
    failed: Mapping[int, str]
    study: optuna.Study
    identity: Mapping[str, Any]

    @property
    def best_config(self) -> Config:
        """The config to grow to: `netaugfx.widen(model, max_config=result.best_config)`."""
        return self.best.config

    @property
    def front(self) -> tuple[Candidate, ...]:
        """The candidates that no other one beats in both score and cost, cheapest first."""
        return front(self.candidates)

    def importance(self) -> dict[str, float]:
        """Width -> share of the score that it decides, most first; empty for too few candidates."""
        return importance(self.study)

    def described(self) -> dict[str, Any]:
        """All of it that a person may want to keep, as JSON."""
        return {
            **self.identity,
            "best": told(self.best),
            "candidates": len(self.candidates),
            "failed": len(self.failed),
            "seconds": round(sum(each.seconds for each in self.candidates), 3),
            "front": [told(each) for each in self.front],
            "importance": self.importance(),
        }


def told(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON."""
    return {
        "number": candidate.number,
        "value": candidate.value,
        "cost": candidate.cost,
        "config": dict(candidate.config),
    }


def result_of(study: optuna.Study, plan: Plan) -> Result:
    """Read what a study holds; candidates that came twice count once.

    Raises:
        SearchError: no candidate has been evaluated, or it is no study of these widths.
    """
    from optuna.trial import TrialState

    found: dict[Config, Candidate] = {}
    failed: dict[int, str] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.FAIL and "failure" in trial.user_attrs:
            failed[trial.number] = trial.user_attrs["failure"]
        if trial.state != TrialState.COMPLETE:
            continue
        config = plan.config(trial.params)
        if config not in found:
            attributes = trial.user_attrs
            found[config] = Candidate(
                trial.number,
                config,
                trial.values[0],
                attributes["cost"],
                attributes.get("seconds", 0.0),
            )
    if not found:
        why = f"; the last failure: {list(failed.values())[-1]}" if failed else ""
        raise SearchError(f"The search has no candidate with a score: {len(failed)} failed{why}.")
    best = max(found.values(), key=lambda each: (each.value, -each.cost, -each.number))
    identity = study.user_attrs.get("netaugfx", {})
    return Result(best, tuple(found.values()), failed, study, identity)


def front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates that no other one beats in both score and cost, cheapest first."""
    kept: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.cost, -each.value, each.number)):
        if not kept or each.value > kept[-1].value:
            kept.append(each)
    return tuple(kept)


def importance(study: optuna.Study) -> dict[str, float]:
    """Width -> share of the score that it decides, most first; empty for too few candidates.

    Source: S. Watanabe, A. Bansal, F. Hutter, "PED-ANOVA", IJCAI 2023, as in Optuna; it asks what
    tells the best tenth of the candidates from the others.
    """
    import optuna

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 20 or len({t.values[0] for t in complete}) < 2:
        return {}
    with warnings.catch_warnings():  # it asks what makes a value low, and says so
        warnings.simplefilter("ignore")
        return optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            target=lambda trial: -trial.values[0],
        )


def read_sizes(file: Path, option: str = "--max-config") -> dict[str, int]:
    """The config in a JSON file: width name -> size in channels.

    Raises:
        SearchError: there is no such file, or it is no mapping to whole numbers.
    """
    try:
        sizes = json.loads(file.read_text())
    except OSError as error:
        raise SearchError(f"{option} {file}: cannot be read ({error.strerror}).") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SearchError(f"{option} {file} does not read as JSON ({error}).") from error
    whole = isinstance(sizes, dict) and all(type(size) is int for size in sizes.values())
    if not whole:
        raise SearchError(f'{option} {file}: expected {{"WIDTH": SIZE, ...}}, as a search writes.')
    return sizes
