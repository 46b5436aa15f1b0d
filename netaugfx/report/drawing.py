"""The network drawn: layers that grow together in one colour, what is pinned grey. SVG, written by hand."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, sqrt
from textwrap import wrap

from ..model import WideModel
from ..plan import Plan
from .description import to_networkx
from .layout import BOX, MAIN, MARGIN, SIDE, Sheet, arcs, lay_out

# Pixels. Text is 10 pixels high in a monospaced font, so its length is known.
CHAR, TAG = 6, 28  # of one character, and of the number at a box's left
GREY, HATCH = "#cfcfcf", "url(#hatch)"
SYMBOLS = {"add": "+", "iadd": "+", "mul": "×", "imul": "×", "sub": "−", "isub": "−"}
STYLE = (
    "text{font:10px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#111}"
    ".t{font-weight:bold}.l{fill:#555}.e{fill:none;stroke-width:1.4}.f{fill:#f6f6f6;stroke:#ddd}"
)


def picture(
    wide_or_plan: WideModel | Plan, *, title: str = "", config: Mapping[str, int] | None = None
) -> str:
    """Return the network as an SVG drawing: which layers grow together, what is pinned and why.

    From top to bottom and from column to column in graph order, a block in each frame. A width has one colour and one
    number, which the legend names; several stripes are a concatenation. Grey is pinned, hatched was left as it is,
    with the number of the reason. Every box has a tooltip; in a browser, pointing at one dims all other widths.

    With a config, the subnet at it is drawn instead: the darker a width, the further it grows, and white stays.

    Args:
        wide_or_plan: What to draw.
        title: What stands above it.
        config: Sizes to draw; widths that it leaves out are at their base size.

    Returns:
        The text of an SVG file: the same for the same plan and config.

    Raises:
        ConfigError: The config names an unknown width, or a size that is not one of its choices.
    """
    plan = wide_or_plan.plan if isinstance(wide_or_plan, WideModel) else wide_or_plan
    sizes = plan.max_config if config is None else plan.config(config)
    largest = max((w.choices[-1] / w.base for w in plan.widths), default=1.0)
    shades = {w.name: _shade(sizes[w.name] / w.base, largest) for w in plan.widths}
    fills = None if config is None else shades
    sheet, key = lay_out(to_networkx(plan)), _key(plan, sizes, fills)
    body = [*_drawn_frames(sheet), *_drawn_edges(sheet, key), *_drawn_boxes(sheet, key)]
    legend, bottom = _legend(sheet, plan, key)
    about = (
        f"{len(plan.widths)} widths, elastic share {plan.elastic_share:.3f}. One colour and number: "
        "these layers grow together."
    )
    if config is not None:
        about = (
            f"{sum(n > plan.base_config[w] for w, n in sizes.items())} of {len(plan.widths)} widths grow. One number: "
            "these layers grow together. Darker: further, white: not at all."
        )
    about += (
        " Several stripes: a concatenation." if any(len(x.widths) > 1 for x in plan.flow) else ""
    )
    about += " Grey: pinned." if plan.pinned else ""
    about += " Hatched: left as it is." if plan.opaque else ""
    head = [
        _text(MARGIN, 20, title, "t"),
        *(_text(MARGIN, 36 + 13 * i, line) for i, line in enumerate(_lines(about, sheet))),
    ]
    dim = "".join(
        f"svg:has(.w{i}:hover) .b:not(.w{i}){{opacity:.15}}"
        for i in (*(key.tags[name] for name in plan.by_name), *key.reasons.values())
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{sheet.width:g}" height="{bottom:g}" '
            f'viewBox="0 0 {sheet.width:g} {bottom:g}">',
            f"<style>{STYLE}{dim}</style>",
            '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse">'
            '<rect width="6" height="6" fill="#eee"/>'
            '<path d="M0 6L6 0" stroke="#999"/></pattern></defs>',
            f'<rect width="{sheet.width:g}" height="{bottom:g}" fill="#fff"/>',
            *head,
            *body,
            *legend,
            "</svg>\n",
        ]
    )


@dataclass(frozen=True)
class _Key:
    """What stands for what.

    Args (fields):
        fills: Elastic width -> its colour.
        tags: Width -> its number, or that of the reason why it is pinned.
        reasons: Reason -> its number, p1 and so on.
        sizes: Elastic width -> the size that is told beside its base size.
    """

    fills: Mapping[str, str]
    tags: Mapping[str, str]
    reasons: Mapping[str, str]
    sizes: Mapping[str, int]


def _key(plan: Plan, sizes: Mapping[str, int], given: Mapping[str, str] | None) -> _Key:
    names = {name: i for i, name in enumerate(plan.by_name, 1)}
    why = dict.fromkeys((*plan.pinned.values(), *plan.opaque.values()))
    reasons = {reason: f"p{i}" for i, reason in enumerate(why, 1)}
    pinned = {name: reasons[reason] for name, reason in plan.pinned.items()}
    fills = given or {name: _colour(i) for name, i in names.items()}
    return _Key(fills, {name: str(i) for name, i in names.items()} | pinned, reasons, sizes)


def _shade(ratio: float, largest: float) -> str:
    """Return a colour for a width that is `ratio` times its base: white at 1, blue at `largest`."""
    share = (ratio - 1) / (largest - 1) if largest > 1 else 0.0
    rgb = (round(255 + share * (end - 255)) for end in (90, 150, 235))
    return "#" + "".join(f"{c:02x}" for c in rgb)


def _colour(i: int, light: float | None = None) -> str:
    """Return a colour for width number `i`: neighbours far apart (the golden angle), none twice."""
    tone = (0.77, 0.7, 0.85)[i % 3] if light is None else light
    rgb = colorsys.hls_to_rgb(i * 0.381966 % 1, tone, 0.62)
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb)


def _clean(text: str) -> str:
    return escape(re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text))


def _text(x: float, y: float, text: str, style: str = "") -> str:
    style = f' class="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}"{style} xml:space="preserve">{_clean(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[len(text) - most + 1 :]


def _lines(text: str, sheet: Sheet, indent: int = 0) -> list[str]:
    return wrap(text, int((sheet.width - 2 * MARGIN) / CHAR) - indent) or [""]


def _drawn_frames(sheet: Sheet) -> Iterable[str]:
    for frame in sheet.frames:
        if frame.label:
            x = sheet.left[frame.column] - 4
            width = MAIN + max(0, *(len(row.nodes) - 1 for row in frame.rows)) * (SIDE + 2) + 8
            height = frame.height - 4
            yield (
                f'<rect class="f" x="{x:g}" y="{frame.y - 1:g}" width="{width:g}" '
                f'height="{height:g}" rx="3"/>'
            )
            yield _text(x + 24, frame.y + 11, _short(frame.label, 34), "l")


def _drawn_edges(sheet: Sheet, key: _Key) -> Iterable[str]:
    for source, target, a, b, down in arcs(sheet):
        widths = sheet.graph.nodes[source]["widths"]
        first = next((w for w in widths if w in key.fills), None)
        colour = _colour(int(key.tags[first]), 0.4) if first else "#888"
        xa, xb = sheet.left[a.column], sheet.left[b.column]
        right = xa + MAIN + (len(a.nodes) - 1) * (SIDE + 2)
        if sheet.graph.nodes[a.nodes[0]]["is_join"]:
            right = xa + _pill(sheet, a.nodes[0])
        ya, yb = a.middle + 3, b.middle - 3
        if down:
            points = [(xa + 14, a.y + BOX), (xa + 14, b.y)]
        elif a.column == b.column:
            lane = sheet.lanes[source, a.column]
            points = [(xa, ya), (lane, ya), (lane, yb), (xb, yb)]
        elif b.column == a.column + 1:
            lane = sheet.lanes[source, b.column]
            points = [(right, ya), (lane, ya), (lane, yb), (xb, yb)]
        else:
            out, back = sheet.lanes[source, a.column + 1], sheet.lanes[source, b.column]
            over = sheet.buses[source]
            points = [(right, ya), (out, ya), (out, over), (back, over), (back, yb), (xb, yb)]
        x, y = points[-1]
        tip = "l-3 -5h6z" if down else "l-5 -3v6z"
        yield (
            f'<path class="e" stroke="{colour}" d="{_rounded(points)}">'
            f"<title>{_clean(f'{source} → {target}')}</title></path>"
            f'<path fill="{colour}" d="M{x:g} {y:g}{tip}"/>'
        )


def _rounded(points: Sequence[tuple[float, float]], radius: float = 3) -> str:
    """Return a path through the points with its corners rounded."""
    path = f"M{points[0][0]:g} {points[0][1]:g}"
    for before, (x, y), after in zip(points, points[1:], points[2:], strict=False):
        near = []
        for px, py in (before, after):
            away = max(abs(px - x), abs(py - y)) or 1
            r = min(radius, away / 2)
            near.append((x + (px - x) / away * r, y + (py - y) / away * r))
        (ax, ay), (bx, by) = near
        path += f"L{ax:g} {ay:g}Q{x:g} {y:g} {bx:g} {by:g}"
    return path + f"L{points[-1][0]:g} {points[-1][1]:g}"


def _symbol(sheet: Sheet, node: str) -> str:
    kind = str(sheet.graph.nodes[node]["type"])
    return SYMBOLS.get(kind, kind)


def _pill(sheet: Sheet, node: str) -> float:
    """Return how wide a join is drawn."""
    if len(sheet.graph.nodes[node]["widths"]) > 1:
        return MAIN
    return TAG + CHAR * min(22, len(_symbol(sheet, node))) + 12


def _drawn_boxes(sheet: Sheet, key: _Key) -> Iterable[str]:
    for row in sheet.rows:
        x = sheet.left[row.column]
        for i, node in enumerate(row.nodes):
            join = sheet.graph.nodes[node]["is_join"]
            width = _pill(sheet, node) if join else SIDE if i else MAIN
            if join:
                name = _symbol(sheet, node)
            elif i:
                name = node.rpartition(".")[2]
                name = sheet.graph.nodes[node]["type"] if name.isdigit() else name
            else:
                inside = row.group and node.startswith(f"{row.group}.")
                name = node[len(row.group) + 1 :] if inside else node
                told = f"{name} {sheet.graph.nodes[node]['type']}"
                if name.rpartition(".")[2].isdigit() and len(told) <= (MAIN - TAG) // CHAR:
                    name = told
            yield from _box(sheet, key, node, x, row.y, width, name, tag=not i)
            x += width + 2


def _box(
    sheet: Sheet, key: _Key, node: str, x: float, y: float, width: float, name: str, *, tag: bool
) -> Iterable[str]:
    """Yield one layer: a stripe for each width, broader for more channels; its number; its name; its tooltip."""
    data = sheet.graph.nodes[node]
    known = sheet.graph.graph["widths"]
    mine = data["widths"]
    classes = " ".join(f"w{t}" for t in _tags(sheet, key, node))
    told = "\n".join(_told(sheet, key, node))
    yield f'<g class="b {classes}"><title>{_clean(told)}</title>'
    shape = f'y="{y:g}" height="{BOX}"'
    ends = ' rx="7"' if data["is_join"] else ' rx="2"'
    tags = _tags(sheet, key, node) if tag else []
    label = "+".join(tags) if len(tags) < 3 else f"{tags[0]}…{tags[-1]}"
    start = x + 4 + (max(TAG, (CHAR + 1) * len(label) + CHAR) if tag else 0)  # of the name
    room = int((x + width - start) / CHAR)
    grey = data["opaque"] or not any(w in key.fills for w in mine)
    if grey or len(mine) == 1:
        fill = HATCH if data["opaque"] else GREY if grey else key.fills[mine[0]]
        yield f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="{fill}"/>'
    else:
        yield f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="#fff"/>'
        shares = [sqrt(known[w].base) if w in known else 4.0 for w in mine]
        at = min(start + CHAR * (len(name) + 1), x + width * 0.6)
        room = int((at - start) / CHAR)
        scale = (x + width - at) / sum(shares)
        for w, share in zip(mine, shares, strict=True):
            fill = key.fills.get(w, GREY)
            yield f'<rect x="{at:.5g}" width="{share * scale:.4g}" {shape} fill="{fill}"/>'
            at += share * scale
    edge = ' stroke-dasharray="3 2"' if grey else ""
    yield (
        f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="none" stroke="#555" '
        f'stroke-width=".8"{edge}/>'
    )
    if label:
        yield _text(x + 4, y + 11, label, "t")
    yield _text(start, y + 11, _short(name, room))
    yield "</g>"


def _tags(sheet: Sheet, key: _Key, node: str) -> list[str]:
    data = sheet.graph.nodes[node]
    if data["opaque"]:
        return [key.reasons[data["opaque"]]]
    return list(dict.fromkeys(key.tags[name] for name in data["widths"]))


def _told(sheet: Sheet, key: _Key, node: str) -> Iterable[str]:
    """Yield the lines of a tooltip."""
    data, known = sheet.graph.nodes[node], sheet.graph.graph["widths"]
    yield f"{node} ({data['type']})"
    if data["opaque"]:
        yield f"left as it is: {data['opaque']}"
    for w in data["widths"]:
        if w in known:
            yield f"{key.tags[w]}: {w}, {known[w].kind}, {known[w].base} → {key.sizes[w]}"
        elif w in data["pinned"]:
            yield f"{key.tags[w]}: {w}, pinned: {data['pinned'][w]}"
    if not data["widths"] and not data["opaque"]:
        yield "no width reaches it"


def _legend(sheet: Sheet, plan: Plan, key: _Key) -> tuple[list[str], float]:
    """Return the widths in columns, then the reasons of what cannot grow, and the height of it all."""
    sizes = [f"{w.base} → {key.sizes[w.name]}" for w in plan.widths]
    longest = min(40, max((len(w.name) for w in plan.widths), default=0))
    cell = 44 + CHAR * (longest + 2 + 8 + max(map(len, sizes), default=0)) + 18
    columns = max(1, int((sheet.width - 2 * MARGIN) / cell))
    tall = ceil(len(plan.widths) / columns)
    y = sheet.height + 24
    what = "largest size" if key.sizes == plan.max_config else "size"
    drawn = [_text(MARGIN, y, f"Width, kind, base → {what} in channels", "t")]
    for i, (width, size) in enumerate(zip(plan.widths, sizes, strict=True)):
        x, at = MARGIN + cell * (i // tall), y + 8 + 15 * (i % tall)
        choices = " ".join(map(str, width.choices))
        told = f"{width.name}: {choices}\n{', '.join(width.layers)}"
        fill, n = key.fills[width.name], key.tags[width.name]
        drawn += [
            f'<g class="b w{n}"><title>{_clean(told)}</title>'
            f'<rect x="{x:g}" y="{at:g}" width="36" height="13" rx="2" fill="{fill}" '
            'stroke="#555" stroke-width=".8"/>',
            _text(x + 5, at + 10, n, "t"),
            _text(x + 44, at + 10, _short(width.name, longest)),
            _text(x + 44 + CHAR * (longest + 2), at + 10, width.kind, "l"),
            _text(x + 44 + CHAR * (longest + 10), at + 10, size),
            "</g>",
        ]
    y += 8 + 15 * tall + 20
    if key.reasons:
        drawn.append(_text(MARGIN, y, "Cannot grow", "t"))
        y += 8
    for reason, number in key.reasons.items():
        pinned = [name for name, why in plan.pinned.items() if why == reason]
        opaque = [name for name, why in plan.opaque.items() if why == reason]
        who = [*pinned, *opaque]
        few = ", ".join(who[:6]) + (f" and {len(who) - 6} more" if len(who) > 6 else "")
        lines = _lines(f"{reason}: {few}", sheet, 8)
        drawn += [
            f'<g class="b w{number}"><title>{_clean(", ".join(who))}</title>'
            f'<rect x="{MARGIN}" y="{y:g}" width="36" height="13" rx="2" stroke="#555" '
            f'stroke-width=".8" stroke-dasharray="3 2" fill="{HATCH if opaque else GREY}"/>',
            _text(MARGIN + 5, y + 10, number, "t"),
            *(_text(MARGIN + 44, y + 10 + 13 * k, line) for k, line in enumerate(lines)),
            "</g>",
        ]
        y += 13 * len(lines) + 4
    return drawn, y + MARGIN
