"""The figures of benchmarks/search.py as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from recipes.studies.curves import interval, shown

WANTED = 0.3  # points: the gain that is worth finding


def as_markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    tables: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
        "speed": _speed,
        "tau": _tau,
        "methods": _methods,
        "agreement": _agreement,
        "gain": _gain,
    }
    lines = [f"    {' '.join(report['command'])}", ""]
    for part, found in report["parts"].items():
        lines += [f"## {part}", "", *tables[part](found), ""]
    return "\n".join(lines)


def _speed(found: Mapping[str, Any]) -> list[str]:
    return [
        f"{found['batches']} training batches, {found['held_out']:,} held-out images.",
        "",
        "| score | candidates per minute | per minute of CPU time | share that is evaluation |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {score} | {row['per_minute']:.1f} | {row['per_cpu_minute']:.1f} | {row['evaluation']:.0%} |"
            for score, row in found["speed"].items()
        ),
    ]


def _taus(taus: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        "| | Kendall's tau | 95% interval | p | n |",
        "| --- | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {t['tau']:.2f} | {t['interval'][0]:.2f} to {t['interval'][1]:.2f} | {t['p']:.4f} | {t['n']} |"
            for name, t in taus.items()
        ),
    ]


def _tau(found: Mapping[str, Any]) -> list[str]:
    return [
        *_taus(found["taus"]),
        "",
        "| MACs, times the base | inherited (held-out, %) | alone (test, %) |",
        "| ---: | ---: | ---: |",
        *(
            f"| {row['macs']:.2f} | {row['inherited']:.2f} | {row['alone']:.2f} |"
            for row in found["subnets"]
        ),
    ]


def _methods(found: Mapping[str, Any]) -> list[str]:
    random = found["methods"]["random"]
    rows = []
    for method, row in found["methods"].items():
        gains = [a - b for a, b in zip(row["best"], random["best"], strict=True)]
        gain = "" if row is random else shown(gains, "+")
        rows.append(
            f"| {method} | {shown(row['best'])} | {gain} | {shown(row['test'])} | {interval(row['macs'])[0]:.2f} |"
        )
    return [
        f"{found['trials']} candidates each, {len(random['best'])} search seeds. Standard deviation of the score over "
        f"random candidates {found['spread']:.2f}, its standard error from the number of held-out images "
        f"{found['noise']:.2f}.",
        "",
        "| method | best score (held-out, %) | over random | the same on test images (%) | MACs, times the base |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ]


def _agreement(found: Mapping[str, Any]) -> list[str]:
    spread = ", ".join(f"{name} {value:.3g}" for name, value in found["spread"].items())
    return [*_taus(found["taus"]), "", f"Standard deviation over the configs: {spread}."]


def _gain(found: Mapping[str, Any]) -> list[str]:
    first, *_ = found["gain"].values()
    rows = []
    for arm, values in found["gain"].items():
        gains = [a - b for a, b in zip(values, first, strict=True)]
        gain = "" if values is first else shown(gains, "+")
        needed = found["seeds_needed"].get(arm) or ""
        seconds = interval(found["seconds"][arm])[0]
        rows.append(f"| {arm} | {shown(values)} | {gain} | {needed} | {seconds:,.0f} |")
    return [
        f"| | top-1 of the base (%) | over the default | seeds for +- {WANTED} | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        *(
            f"Found by {score} ({found['macs'][score]:.2f} times the base's MACs): `{json.dumps(config)}`"
            for score, config in found["found"].items()
        ),
    ]
