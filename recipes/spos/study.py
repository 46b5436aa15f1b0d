"""The search: candidates inherit the wide model's weights, are scored, and lead to better ones."""

from __future__ import annotations

import hashlib
import math
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

import netaugfx
from netaugfx.plan import KINDS, Config
from recipes.errors import SearchError
from recipes.spos.budget import Ceiling
from recipes.spos.result import Candidate, Result, result_of
from recipes.spos.scores import Images, build_score

METHODS = ("evolution", "nsga2", "random")
HOPELESS = 10  # failures without a single success, after which the search gives up


class CandidateError(Exception):
    """A candidate's evaluation failed: it is marked so, and the search goes on."""


def search(
    wide: netaugfx.WideModel,
    evaluate: str | Callable[[Config], float],
    *,
    images: Images | None = None,
    constraint: Any = None,
    measure: str = "macs",
    trials: int = 1000,
    method: str = "evolution",
    population: int = 50,
    top: int = 10,
    mutation: float = 0.1,
    kinds: Iterable[str] = KINDS,
    storage: Any = None,
    name: str | None = None,
    seed: int = 0,
    told: Callable[[int, Candidate | str, float | None], None] | None = None,
    **settings: Any,
) -> Result:
    """Search the config of largest score.

    A candidate is scored at most once. One whose evaluation raises or is no finite number is marked
    failed, and the search goes on.

    Args:
        wide: its subnets are the candidates, with the weights that it has; it is left as it was.
        evaluate: a config's score, larger is better; or "subnet", "base" or "alignment"
            (recipes/spos/scores.py).
        images: for the named scores. The held-out ones must not be those of the test set.
        constraint: "3.0x" (times the base's cost), "2.5M" (outright), a `Budget`, a number (times
            the base's), or a function from a config to whether it is admitted. None: every subnet.
        measure: of costs, "macs" or "parameters".
        trials: candidates; those that the storage holds count. The paper's 50 x 20.
        method: "evolution" (the paper's, for the score alone), "nsga2" (score against cost), or
            "random" (uniform, a baseline for the other two).
        population: candidates of a generation (the paper's).
        top: candidates from which evolution makes the next generation (the paper's).
        mutation: probability that a width is drawn anew (the paper's).
        kinds: which kinds of widths are searched; the others stay at their base size.
        storage: None keeps the study in memory; a path is an SQLite file, an URL whatever Optuna
            opens. What was killed goes on with the same call; several processes may share one, and
            may then evaluate one candidate more each. The study knows an `evaluate` of your own by
            its name and code, not by what it reads from elsewhere.
        name: of the study in the storage; the method if None.
        seed: of the proposals.
        told: called with the number of candidates so far, the new one or why it failed, and the
            best score before it, by whichever process.
        settings: of a named score, e.g. `recalibrate=16`.

    Returns:
        What the study holds: see `Result`.

    Raises:
        SearchError: nothing to search, nothing meets the constraint, the storage holds another
            search, or the first `HOPELESS` candidates have all failed.

    Source: Z. Guo et al., "Single Path One-Shot Neural Architecture Search with Uniform Sampling",
    ECCV 2020, section 3.3 and algorithm 1. Deviations: what is searched are widths to grow; a
    generation may start while candidates of the last one are still evaluated by other processes.
    """
    _check(wide, evaluate, images)
    if method not in METHODS:
        raise SearchError(f"method is one of {', '.join(METHODS)}; {method!r} came.")
    numbers = (trials, top, population)
    if any(not isinstance(n, int) for n in numbers) or not isinstance(mutation, int | float):
        raise SearchError(
            "trials, top and population are whole numbers, and mutation is a probability; "
            f"{trials!r}, {top!r}, {population!r} and {mutation!r} came."
        )
    if min(trials, top) < 1 or population < 2 or not 0 <= mutation <= 1:
        raise SearchError(
            "trials and top are from 1 on, population from 2 on and mutation is a probability; "
            f"{trials}, {top}, {population} and {mutation} came."
        )
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise SearchError(f"No width has the kind {kind!r}; kinds are {' and '.join(KINDS)}.")
    if not any(len(w.choices) > 1 and w.kind in kinds for w in wide.plan.widths):
        raise SearchError(
            f"There is nothing to search: no width of kind {' or '.join(kinds)} can grow. "
            "netaugfx.describe(wide) says why."
        )
    ceiling = Ceiling(wide, constraint, measure=measure, kinds=kinds)
    score = (
        build_score(evaluate, wide, images, **settings) if isinstance(evaluate, str) else evaluate
    )
    from recipes.spos.sampler import Proposals

    sampler = Proposals(
        ceiling, method, seed=seed, population=population, top=top, mutation=mutation
    )
    if sampler.all == []:
        count = math.prod(len(sizes) for sizes in sampler.choices.values())
        raise SearchError(
            f"Nothing meets the constraint: none of the {count:,} configs does; the cheapest, the base, costs "
            f"{ceiling.base_cost:,} {ceiling.measure}."
        )
    identity = {
        "widths": {width: list(sizes) for width, sizes in sampler.choices.items()},
        "weights": digest(wide),
        "score": evaluate if isinstance(evaluate, str) else fingerprint(evaluate),
        "settings": score.settings() if isinstance(evaluate, str) else {},
        "held_out": images.digest() if isinstance(evaluate, str) and images else None,
        "constraint": fingerprint(constraint) if callable(constraint) else str(ceiling),
        "measure": ceiling.measure,
        "base_cost": ceiling.base_cost,
        "method": method,
        "population": population,
        "mutation": mutation,
        "seed": seed,
    }
    if method == "evolution":
        identity["top"] = top
    study = open_study(storage, name or method, sampler, identity)
    _run(study, sampler, ceiling, score, trials, told)
    return result_of(study, wide.plan)


def _check(wide: Any, evaluate: Any, images: Any) -> None:
    if not isinstance(wide, netaugfx.WideModel):
        raise SearchError(
            f"A search needs a WideModel, got {type(wide).__name__}. "
            "Make one with wide = netaugfx.widen(model)."
        )
    if not isinstance(evaluate, str) and not callable(evaluate):
        raise SearchError(
            f"evaluate is a function from a config to a score, or one of subnet, base and alignment; "
            f"{evaluate!r} came."
        )
    if images is not None and not isinstance(images, Images):
        raise SearchError(
            f"images is a recipes.spos.Images, got {type(images).__name__}. "
            "Make one with Images.of(train_loader, held_out_loader, device)."
        )


def fingerprint(function: Callable[..., Any]) -> str:
    """The name of a function and 8 hexadecimal digits of its code's SHA-256; without code, the name."""
    inner = getattr(function, "func", function)  # of a partial
    inner = getattr(inner, "__func__", inner)  # of a method
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    code = getattr(inner, "__code__", None) or getattr(type(inner).__call__, "__code__", None)
    name = str(named.__qualname__)
    if code is None:
        return name
    found = hashlib.sha256()
    waiting = [code]
    while waiting:
        code = waiting.pop()
        found.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                waiting.append(constant)
            elif isinstance(constant, frozenset):  # in another order in every process
                found.update(repr(sorted(map(repr, constant))).encode())
            else:
                found.update(repr(constant).encode())
    return f"{name} {found.hexdigest()[:8]}"


def digest(wide: netaugfx.WideModel) -> str:
    """16 hexadecimal digits of the SHA-256 of all weights and buffers."""
    found = hashlib.sha256()
    for name, tensor in wide.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def open_study(storage: Any, name: str, sampler: Any, identity: Mapping[str, Any]) -> Any:
    """The study of that name in the storage; made where there is none.

    Raises:
        SearchError: the storage is no study file, or holds another search by that name.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    from recipes.spos.sampler import open_storage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["maximize", "minimize"] if identity["method"] == "nsga2" else ["maximize"]
    try:
        study = optuna.create_study(
            storage=open_storage(storage),
            sampler=sampler,
            study_name=name,
            directions=directions,
            load_if_exists=True,
        )
    except (SQLAlchemyError, RuntimeError, sqlite3.Error) as error:
        why = str(getattr(error, "orig", None) or error).splitlines()[0]
        raise SearchError(f"{storage} cannot be used as a study file: {why}.") from error
    held = study.user_attrs.get("netaugfx")
    if held is None and study.get_trials(deepcopy=False):
        raise SearchError(f"{storage} holds a study {name!r} that is none of netaugfx's.")
    if held is None:
        study.set_user_attr("netaugfx", dict(identity))
        return study
    for key in ("widths", *identity):
        if held.get(key) != identity[key]:
            what = "another model" if key == "widths" else "another search"
            if key == "weights":
                what = "a search of other weights"
            there, here = (_short(each) for each in (held.get(key), identity[key]))
            raise SearchError(
                f"{storage} holds {what} by the name {name!r}: its {key} are {there} there and {here} here. "
                "Give another storage (--storage, or another --out), or from Python another name."
            )
    return study


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _run(
    study: Any,
    sampler: Any,
    ceiling: Ceiling,
    score: Callable[[Config], float],
    trials: int,
    told: Callable[[int, Candidate | str, float | None], None] | None,
) -> None:
    """Evaluate candidates until there are `trials` of them, or no new one is left."""
    from optuna.trial import TrialState

    plan, two = sampler.plan, len(study.directions) == 2

    def counted(held: Sequence[Any]) -> tuple[int, int]:
        """How many are complete, and how many have failed: those that were killed have not."""
        complete = sum(each.state == TrialState.COMPLETE for each in held)
        return complete, sum(
            "failure" in each.user_attrs for each in held if each.state == TrialState.FAIL
        )

    def tell(what: Candidate | str) -> None:
        if told is not None:
            held = study.get_trials(deepcopy=False)
            values = [each.values[0] for each in held if each.state == TrialState.COMPLETE]
            told(sum(counted(held)) + 1, what, max(values, default=None))

    def objective(trial: Any) -> Any:
        config = plan.config(
            {
                name: trial.suggest_categorical(name, sizes)
                for name, sizes in sampler.choices.items()
            }
        )
        cost, started = float(ceiling.cost(config)), time.perf_counter()
        try:
            value = float(score(config))
            if not math.isfinite(value):
                raise SearchError(f"its score is {value}")
        except Exception as error:  # an evaluation may raise anything, and the study goes on
            trial.set_user_attr("failure", f"{type(error).__name__}: {error}")
            tell(f"{trial.number}: {error}")
            raise CandidateError from error
        seconds = time.perf_counter() - started
        trial.set_user_attr("cost", cost)
        trial.set_user_attr("seconds", seconds)
        tell(Candidate(trial.number, config, value, cost, seconds))
        return (value, cost) if two else value

    def enough() -> bool:
        held = study.get_trials(deepcopy=False)
        complete, failed = counted(held)
        if not complete and failed >= min(HOPELESS, trials):
            why = [each.user_attrs["failure"] for each in held if "failure" in each.user_attrs][-1]
            raise SearchError(
                f"All of the first {failed} candidates have failed; the last one: {why}."
            )
        return complete + failed >= trials or sampler.exhausted(held)

    def stop(study: Any, _: Any) -> None:
        if enough():
            study.stop()

    if not enough():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna, on its experimental heartbeat
            study.optimize(objective, callbacks=[stop], catch=(CandidateError,))
