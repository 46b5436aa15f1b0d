"""The searches of a run as part of its page: front, convergence, importance, and the widths found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import netaugfx
from recipes.errors import SearchError
from recipes.spos.result import Result, result_of
from recipes.spos.sampler import open_storage

COLOURS = {"evolution": "tab:blue", "nsga2": "tab:orange", "random": "tab:gray"}
UNITS = {"subnet": "top-1 (%)", "base": "top-1 of the base (%)", "alignment": "cosine"}


def results_in(storage: Any, plan: netaugfx.Plan) -> dict[str, Result]:
    """Name -> what was found, of every study in a storage that has a candidate with a score."""
    import optuna

    opened = open_storage(storage)
    found = {}
    for name in optuna.study.get_all_study_names(opened):
        study = optuna.load_study(study_name=name, storage=opened)
        if "netaugfx" not in study.user_attrs:
            continue
        try:
            found[name] = result_of(study, plan)
        except SearchError:  # nothing has been scored yet
            continue
    return found


def section(storage: Path, plan: netaugfx.Plan) -> str:
    """The searches in a study file as HTML: for each score front and convergence, then each search."""
    parts = ["<h3>Search</h3>"]
    found = results_in(storage, plan)
    if not found:
        return ""
    scores: dict[str, dict[str, Result]] = {}
    for name, result in found.items():
        scores.setdefault(str(result.identity["score"]), {})[name] = result
    parts.append(_table(found))
    for score, results in scores.items():
        parts.append(f"<p>Score: {escape(score)}</p>")
        parts += [svg(draw_front, results), svg(draw_convergence, results)]
    for name, result in found.items():
        title = (
            f"{name}: {result.best.value:.4g}, {result.best.cost:,.0f} {result.identity['measure']}"
        )
        parts.append(f"<details><summary>{escape(title)}</summary>")
        if result.importance():
            parts.append(svg(draw_importance, result))
        parts.append(netaugfx.picture(plan, title=name, config=result.best_config))
        parts.append("</details>")
    return "\n".join(parts)


def svg(draw: Callable[[StringIO, Any], None], what: Any) -> str:
    """A drawing as an SVG element."""
    drawn = StringIO()
    draw(drawn, what)
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def draw_front(to: Path | StringIO, results: Mapping[str, Result]) -> None:
    """Draw score against cost: every candidate as a dot, the Pareto front of each search as a line."""
    figure, axes = _figure()
    for name, result in results.items():
        base, colour = result.identity["base_cost"], _colour(result)
        axes.plot(
            [each.cost / base for each in result.candidates],
            [each.value for each in result.candidates],
            "o",
            markersize=3,
            alpha=0.3,
            color=colour,
        )
        line = result.front
        axes.step(
            [each.cost / base for each in line],
            [each.value for each in line],
            where="post",
            color=colour,
            label=name,
        )
    some = next(iter(results.values()))
    axes.set(
        title="Pareto front",
        xlabel=f"{some.identity['measure']}, times the base",
        ylabel=_unit(some),
    )
    axes.legend()
    _save(figure, to)


def draw_convergence(to: Path | StringIO, results: Mapping[str, Result]) -> None:
    """Draw the best score so far against the number of candidates."""
    figure, axes = _figure()
    for name, result in results.items():
        best = list(accumulate((each.value for each in result.candidates), max))
        axes.step(range(1, len(best) + 1), best, where="post", color=_colour(result), label=name)
    some = next(iter(results.values()))
    axes.set(title="Convergence", xlabel="candidates", ylabel=f"best so far: {_unit(some)}")
    axes.legend()
    _save(figure, to)


def draw_importance(to: Path | StringIO, result: Result) -> None:
    """Draw what share of the score each width decides, most at the top."""
    importance = list(result.importance().items())[:30]
    figure, axes = _figure(height=0.25 * len(importance) + 1.2)
    axes.barh([name for name, _ in reversed(importance)], [x for _, x in reversed(importance)])
    axes.set(title="Importance of each width (PED-ANOVA)", xlabel="share")
    _save(figure, to)


def _table(found: Mapping[str, Result]) -> str:
    heads = ("search", "budget", "seed", "candidates", "failed", "score", "cost")
    rows = ["<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for name, result in found.items():
        cost = (
            f"{result.best.cost / result.identity['base_cost']:.2f} x {result.identity['measure']}"
        )
        asked = (escape(str(result.identity["constraint"])), result.identity["seed"])
        counts = (len(result.candidates), len(result.failed))
        cells = (*asked, *counts, f"{result.best.value:.4g}", cost)
        rows.append(
            f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{each}</td>" for each in cells) + "</tr>"
        )
    return "<table>" + "\n".join(rows) + "</table>"


def _colour(result: Result) -> str:
    return COLOURS.get(str(result.identity["method"]), "tab:green")


def _unit(result: Result) -> str:
    return UNITS.get(str(result.identity["score"]), "score")


def _figure(height: float = 4.0) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, to: Path | StringIO) -> None:
    figure.savefig(to, dpi=120, format=None if isinstance(to, Path) else "svg")
