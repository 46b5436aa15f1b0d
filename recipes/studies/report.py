"""`netaugfx report RUN...`: runs as one HTML page that needs nothing else, and no network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import netaugfx
from recipes.errors import RunError
from recipes.studies.curves import draw_curves
from recipes.studies.search_pictures import section
from recipes.studies.searching import STUDIES
from recipes.training.checkpoint import read_json
from recipes.training.rundir import RunDirectory

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
code, pre { background: #f4f4f4; overflow-x: auto; } pre { padding: .5rem; }
svg { height: auto; max-width: 100%; } summary { cursor: pointer; }
"""
COLUMNS = {  # of the table: key in result.json -> heading
    "top1": "top-1 (%)",
    "top5": "top-5 (%)",
    "best_top1": "best epoch's top-1 (%)",
    "train_top1": "on training images (%)",
    "parameters": "parameters",
    "epochs": "epochs",
    "seconds": "seconds",
}


def report(directories: Sequence[Path]) -> str:
    """An HTML page: a table, the curves, and for each run widths, configuration and environment.

    Raises:
        RunError: a directory holds no run; or they hold none that has finished an epoch.
    """
    runs = {name: RunDirectory(path) for name, path in _names(directories).items()}
    for run in runs.values():
        if not run.config.exists():
            raise RunError(f"{run.path} holds no run: expected what `netaugfx train --out` wrote.")
    metrics = {name: run.read_metrics() for name, run in runs.items()}
    if not any(metrics.values()):
        raise RunError(f"No epoch of {', '.join(map(str, directories))} has ended yet.")
    drawn = StringIO()
    draw_curves(drawn, {name: [lines] for name, lines in metrics.items()})
    curves = drawn.getvalue()
    body = [
        "<h1>netaugfx: " + escape(", ".join(runs)) + "</h1>",
        _table(runs),
        curves[curves.index("<svg") :],
        *(_details(name, run) for name, run in runs.items()),
    ]
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>netaugfx report</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def runs_in(path: Path) -> list[Path]:
    """The run at `path`, or the runs of a comparison in it."""
    if (path / "config.json").exists() or not path.is_dir():
        return [path]
    return sorted(each.parent for each in path.glob("*/config.json")) or [path]


def _names(directories: Sequence[Path]) -> dict[str, Path]:
    """Short names that tell the directories apart."""
    names = [path.name or str(path.resolve().name) for path in directories]
    if len(set(names)) < len(names):
        names = [str(path) for path in directories]
    return dict(zip(names, directories, strict=True))


def _table(runs: Mapping[str, RunDirectory]) -> str:
    rows = [
        "<tr><th>run</th><th>trained by</th>"
        + "".join(f"<th>{each}</th>" for each in COLUMNS.values())
        + "</tr>"
    ]
    for name, run in runs.items():
        config = run.held()["config"]
        result = read_json(run.result) if run.result.exists() else {}
        cells = [escape(name), escape(_way(config))]
        cells += [_shown(result.get(key)) for key in COLUMNS]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _way(config: Mapping[str, Any]) -> str:
    """How a run was trained: its method, its teacher and what it learnt from it."""
    distill = config.get("distill")
    if not distill:
        return str(config["method"])
    return f"{config['method']}, {', '.join(distill['objectives'])} by {distill['teacher']}"


def _shown(value: Any) -> str:
    if value is None:
        return "not ended"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _details(name: str, run: RunDirectory) -> str:
    held = run.held()
    parts = [f"<h2>{escape(name)}</h2>"]
    if run.environment.exists():
        environment = read_json(run.environment)
        parts.append(f"<pre>{escape(shlex.join(environment.pop('command')))}</pre>")
        parts.append(_folded("Environment", _mapping(environment)))
    if run.plan.exists():
        plan = netaugfx.Plan.from_json(run.plan.read_text())
        parts.append(_folded(f"{len(plan.widths)} widths", netaugfx.picture(plan, title=name)))
        studies = run.path / "search" / STUDIES
        if studies.exists():
            parts.append(section(studies, plan))
    elif "kinds" in held["config"]:
        parts.append("<p>plan.json is missing: neither widths nor searches can be shown.</p>")
    parts.append(_folded("Configuration", _mapping(held["config"])))
    parts.append(_folded("Data", _mapping(held["data"])))
    return "\n".join(parts)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _mapping(values: Mapping[str, Any]) -> str:
    rows = (
        f"<tr><td>{escape(str(key))}</td><td>{escape(json.dumps(value))}</td></tr>"
        for key, value in values.items()
    )
    return "<table>" + "".join(rows) + "</table>"
