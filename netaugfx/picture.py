"""The network drawn: layers that grow together in one colour, what is pinned grey. SVG, written by hand."""

from __future__ import annotations

import colorsys
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, sqrt
from os.path import commonprefix
from textwrap import wrap

import networkx as nx

from .model import WideModel
from .plan import Plan
from .report import to_networkx

# Pixels. Text is 10 pixels high in a monospaced font, so its length is known: 6 pixels a character.
CHAR, ROW, BOX, HEAD, GAP, MARGIN = 6, 21, 15, 16, 8, 14
MAIN, SIDE, TAG = 172, 74, 28  # a row's first box, those beside it, the number at a box's left
GREY, HATCH = "#cfcfcf", "url(#hatch)"
SYMBOLS = {"add": "+", "iadd": "+", "mul": "×", "imul": "×", "sub": "−", "isub": "−"}
STYLE = (
    "text{font:10px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#111}"
    ".t{font-weight:bold}.l{fill:#555}.e{fill:none;stroke-width:1.4}.f{fill:#f6f6f6;stroke:#ddd}"
)


@dataclass
class _Row:
    """Boxes side by side: a layer, and the norms that only it feeds."""

    nodes: list[str]
    group: str = ""
    column: int = 0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.y + BOX / 2


@dataclass
class _Frame:
    """Rows of one block that stand together in a column."""

    label: str
    rows: list[_Row]
    column: int = 0
    y: float = 0.0

    @property
    def head(self) -> float:
        return HEAD if self.label else 0

    @property
    def height(self) -> float:
        return self.head + ROW * len(self.rows) + GAP


@dataclass
class _Sheet:
    """Where everything stands, and the numbers of widths and of reasons."""

    graph: nx.DiGraph
    rows: list[_Row]
    frames: list[_Frame]
    tags: dict[str, str] = field(default_factory=dict)
    fills: dict[str, str] = field(default_factory=dict)
    left: list[float] = field(default_factory=list)  # of the boxes of each column
    lanes: dict[tuple[str, int], float] = field(default_factory=dict)  # (source, gutter) -> x
    bus: dict[str, float] = field(default_factory=dict)  # source -> y, above the columns
    width: float = 0.0
    height: float = 0.0


def picture(wide_or_plan: WideModel | Plan, *, title: str = "") -> str:
    """Return the network as an SVG drawing: which layers grow together, what is pinned and why.

    From top to bottom and from column to column in graph order, a block in each frame. A width has one colour and one
    number, which the legend names; several stripes are a concatenation. Grey is pinned, hatched was left as it is,
    with the number of the reason. Every box has a tooltip; in a browser, pointing at one dims all other widths.

    Args:
        wide_or_plan: What to draw.
        title: What stands above it.

    Returns:
        The text of an SVG file: the same for the same plan.
    """
    plan = wide_or_plan.plan if isinstance(wide_or_plan, WideModel) else wide_or_plan
    graph = _thinned(to_networkx(plan))
    rows = _rows(graph)
    sheet = _Sheet(graph, rows, _frames(rows))
    for i, name in enumerate(plan.by_name, 1):
        sheet.tags[name], sheet.fills[name] = str(i), _colour(i)
    reasons = list(dict.fromkeys((*plan.pinned.values(), *plan.opaque.values())))
    for name, reason in (*plan.pinned.items(), *plan.opaque.items()):
        sheet.tags.setdefault(name, f"p{reasons.index(reason) + 1}")
    _place(sheet)
    body = [*_drawn_frames(sheet), *_drawn_edges(sheet), *_drawn_boxes(sheet)]
    legend, bottom = _legend(sheet, plan, reasons)
    about = (
        f"{len(plan.widths)} widths, elastic share {plan.elastic_share:.3f}. One colour and number: "
        "these layers grow together."
    )
    about += " Several stripes: a concatenation." if any(len(x.widths) > 1 for x in plan.flow) else ""
    about += " Grey: pinned." if plan.pinned else ""
    about += " Hatched: left as it is." if plan.opaque else ""
    head = [
        _text(MARGIN, 20, title, "t"),
        *(_text(MARGIN, 36 + 13 * i, line) for i, line in enumerate(_lines(about, sheet))),
    ]
    dim = "".join(
        f"svg:has(.w{i}:hover) .b:not(.w{i}){{opacity:.15}}"
        for i in [*range(1, len(plan.widths) + 1), *(f"p{j + 1}" for j in range(len(reasons)))]
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


# ---------------------------------------------------------------------------------------- rows and frames


def _thinned(graph: nx.DiGraph) -> nx.DiGraph:
    """Return the graph with a concatenation that repeats an earlier one fed by that one: a dense block's are many."""
    graph, whole = graph.copy(), graph
    for i, node in enumerate(joins := [n for n, d in whole.nodes(data=True) if d["is_join"]]):
        inputs = set(whole.pred[node])
        for earlier in reversed(joins[:i]):
            part = set(whole.pred[earlier])
            if whole.nodes[earlier]["type"] == whole.nodes[node]["type"] and part < inputs:
                graph.remove_edges_from([(n, node) for n in part])
                graph.add_edge(earlier, node)
                break
    return graph


def _rows(graph: nx.DiGraph) -> list[_Row]:
    """Return the nodes in order, a norm or the like beside the layer that feeds only it."""
    rows: list[_Row] = []
    for node, data in graph.nodes(data=True):
        last = rows[-1].nodes if rows else []
        beside = (
            len(last) in (1, 2)
            and not data["is_join"]
            and not data["opaque"]
            and not re.search("Conv|Linear|Parameter", data["type"])
            and list(graph.pred[node]) == last[-1:]
            and list(graph.succ[last[-1]]) == [node]
            and not graph.nodes[last[-1]]["is_join"]
            and graph.nodes[last[-1]]["widths"] == data["widths"]
        )
        if beside:
            last.append(node)
        else:
            rows.append(_Row([node]))
    return rows


def _frames(rows: Sequence[_Row]) -> list[_Frame]:
    """Return the rows in frames, one for each block: a module that is no sequence of numbered blocks itself."""
    names = {row.nodes[0] for row in rows}
    within = {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)}
    under: dict[str, int] = defaultdict(int)
    paths: list[list[str]] = []
    for row in rows:
        name, join, _ = row.nodes[0].partition(":")
        path = name if join or name in within else name.rpartition(".")[0]
        prefixes = [".".join(path.split(".")[:i]) for i in range(1, path.count(".") + 2)]
        paths.append([p for p in prefixes if p])
        for p in paths[-1]:
            under[p] += 1
    numbered: dict[tuple[str, str], int] = defaultdict(int)
    for path, n in under.items():
        parent, _, name = path.rpartition(".")
        stem = name.rstrip("0123456789")
        if n > 1 and name != stem and (not stem or under.get(parent, 0) > 16):
            numbered[parent, stem] += 1
    sequences = {parent for (parent, _), n in numbered.items() if n > 1}
    frames: list[_Frame] = []
    prefixes_of = {id(row): prefixes for row, prefixes in zip(rows, paths, strict=True)}
    for row, prefixes in zip(rows, paths, strict=True):
        row.group = next((p for p in prefixes if p not in sequences), (prefixes or [""])[-1])
        if frames and frames[-1].rows[-1].group == row.group:
            frames[-1].rows.append(row)
        else:
            frames.append(_Frame(row.group, [row]))
    for frame in frames:
        shared = commonprefix([prefixes_of[id(row)] for row in frame.rows])
        frame.label = shared[-1] if shared and len(frame.rows) > 1 else ""
        for row in frame.rows:
            row.group = frame.label
    return frames


# ------------------------------------------------------------------------------------------------- layout


def _place(sheet: _Sheet) -> None:
    """Wrap the frames into columns, then find the lanes of the edges beside and above them."""
    column = MAIN + SIDE * max(1, *(len(row.nodes) - 1 for row in sheet.rows), 1) + 60
    total = sum(frame.height for frame in sheet.frames)
    limit = max(total / max(1, round(sqrt(1.5 * total / column))), 12 * ROW)
    placed: list[_Frame] = []
    here, at = 0, 0.0
    for whole in sheet.frames:
        frame = whole
        if at and at + frame.height > limit * 1.1 and frame.height <= limit:
            here, at = here + 1, 0.0
        while at + frame.height > limit * 1.1 and len(frame.rows) > 1:
            room = max(1, int((limit - at - frame.head - GAP) / ROW))
            if room >= len(frame.rows):
                break
            placed.append(_Frame(frame.label, frame.rows[:room], here, at))
            frame = _Frame(f"{whole.label} (continued)" if whole.label else "", frame.rows[room:])
            here, at = here + 1, 0.0
        frame.column, frame.y = here, at
        placed.append(frame)
        at += frame.height
    sheet.frames = placed
    nets = _nets(sheet)
    crossing = {
        source: (min(gutters), max(gutters))
        for source, gutters in _by_source(nets).items()
        if max(gutters) - min(gutters) > 1 or any(None in nets[source, g] for g in gutters)
    }
    buses = _lanes(crossing, 0)
    top = 48 + 13 + 5 * (max(buses.values(), default=-1) + 1)
    sheet.bus = {source: top - 6 - 5 * lane for source, lane in buses.items()}
    for frame in sheet.frames:
        frame.y += top
        for i, row in enumerate(frame.rows):
            row.column, row.y = frame.column, frame.y + frame.head + ROW * i
    nets = _nets(sheet)
    x = float(MARGIN)
    for gutter in range(here + 2):
        spans = {
            source: (min(ys), max(ys))
            for (source, g), found in nets.items()
            if g == gutter and (ys := [top - 6 if y is None else y for y in found])
        }
        lanes = _lanes(spans, 4)
        many = max(lanes.values(), default=-1) + 1
        step = 7 if many <= 8 else max(2.5, 56 / many)
        x += 16 + step * many
        for source, lane in lanes.items():
            sheet.lanes[source, gutter] = x - 12 - step * lane
        if gutter <= here:
            sheet.left.append(x)
            wide = [len(row.nodes) for row in sheet.rows if row.column == gutter]
            x += MAIN + (SIDE + 2) * (max(wide, default=1) - 1) + 10
    sheet.width = max(x + MARGIN, 420.0)
    sheet.height = max((f.y + f.height for f in sheet.frames), default=top)


def _row_of(sheet: _Sheet) -> dict[str, int]:
    return {node: i for i, row in enumerate(sheet.rows) for node in row.nodes}


def _arcs(sheet: _Sheet) -> Iterable[tuple[str, str, _Row, _Row, bool]]:
    """Yield every edge between rows, and whether it is a short way down."""
    row_of = _row_of(sheet)
    for source, target in sheet.graph.edges:
        i, j = row_of[source], row_of[target]
        a, b = sheet.rows[i], sheet.rows[j]
        if i != j:
            yield source, target, a, b, j == i + 1 and a.column == b.column


def _nets(sheet: _Sheet) -> dict[tuple[str, int], list[float | None]]:
    """Return (source, gutter) -> the heights that its line there must reach, None for above the columns."""
    nets: dict[tuple[str, int], list[float | None]] = defaultdict(list)
    for frame in sheet.frames:
        for row in frame.rows:
            row.column = frame.column
    for source, _, a, b, down in _arcs(sheet):
        if down:
            continue
        if a.column == b.column:
            nets[source, a.column] += [a.middle, b.middle]
        elif b.column == a.column + 1:
            nets[source, b.column] += [a.middle, b.middle]
        else:
            nets[source, a.column + 1] += [a.middle, None]
            nets[source, b.column] += [None, b.middle]
    return nets


def _by_source(nets: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for source, gutter in nets:
        found[source].append(gutter)
    return found


def _lanes(spans: dict[str, tuple[float, float]], apart: float) -> dict[str, int]:
    """Return a lane for every span, so that no two that overlap share one; short ones come first."""
    lanes: dict[str, int] = {}
    taken: list[list[tuple[float, float]]] = []
    for name, (low, high) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        for lane, there in enumerate(taken):
            if all(high + apart < a or low - apart > b for a, b in there):
                break
        else:
            lane = len(taken)
            taken.append([])
        taken[lane].append((low, high))
        lanes[name] = lane
    return lanes


# ------------------------------------------------------------------------------------------------ drawing


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


def _lines(text: str, sheet: _Sheet, indent: int = 0) -> list[str]:
    return wrap(text, int((sheet.width - 2 * MARGIN) / CHAR) - indent) or [""]


def _drawn_frames(sheet: _Sheet) -> Iterable[str]:
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


def _drawn_edges(sheet: _Sheet) -> Iterable[str]:
    for source, target, a, b, down in _arcs(sheet):
        widths = sheet.graph.nodes[source]["widths"]
        first = next((w for w in widths if w in sheet.fills), None)
        colour = _colour(int(sheet.tags[first]), 0.4) if first else "#888"
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
            over = sheet.bus[source]
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


def _symbol(sheet: _Sheet, node: str) -> str:
    kind = str(sheet.graph.nodes[node]["type"])
    return SYMBOLS.get(kind, kind)


def _pill(sheet: _Sheet, node: str) -> float:
    """Return how wide a join is drawn."""
    if len(sheet.graph.nodes[node]["widths"]) > 1:
        return MAIN
    return TAG + CHAR * min(22, len(_symbol(sheet, node))) + 12


def _drawn_boxes(sheet: _Sheet) -> Iterable[str]:
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
            yield from _box(sheet, node, x, row.y, width, name, tag=not i)
            x += width + 2


def _box(
    sheet: _Sheet, node: str, x: float, y: float, width: float, name: str, *, tag: bool
) -> Iterable[str]:
    """Yield one layer: a stripe for each width, as broad as its channels; its number; its name; its tooltip."""
    data = sheet.graph.nodes[node]
    known = sheet.graph.graph["widths"]
    mine = [w for w in data["widths"] if w in sheet.tags]
    classes = " ".join(f"w{t}" for t in dict.fromkeys(_tags(sheet, node)))
    told = "\n".join(_told(sheet, node))
    yield f'<g class="b {classes}"><title>{_clean(told)}</title>'
    shape = f'y="{y:g}" height="{BOX}"'
    ends = ' rx="7"' if data["is_join"] else ' rx="2"'
    tags = _tags(sheet, node) if tag else []
    label = tags[0] if len(tags) == 1 else f"{tags[0]}…{tags[-1]}" if tags else ""
    start = x + 4 + (max(TAG, CHAR * (len(label) + 1)) if tag else 0)  # of the name
    if data["opaque"] or len(mine) <= 1:
        fill = HATCH if data["opaque"] else sheet.fills.get(mine[0], GREY) if mine else GREY
        yield f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="{fill}"/>'
    else:
        yield f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="#fff"/>'
        shares = [sqrt(known[w].base) if w in known else 4.0 for w in mine]
        at = min(start + CHAR * (len(name) + 1), x + width * 0.6)
        scale = (x + width - at) / sum(shares)
        for w, share in zip(mine, shares, strict=True):
            fill = sheet.fills.get(w, GREY)
            yield f'<rect x="{at:.5g}" width="{share * scale:.4g}" {shape} fill="{fill}"/>'
            at += share * scale
    grey = data["opaque"] or not any(w in sheet.fills for w in mine)
    edge = ' stroke-dasharray="3 2"' if grey else ""
    yield (
        f'<rect x="{x:g}" width="{width:g}" {shape}{ends} fill="none" stroke="#555" '
        f'stroke-width=".8"{edge}/>'
    )
    if label:
        yield _text(x + 4, y + 11, label, "t")
    yield _text(start, y + 11, _short(name, int((x + width - start) / CHAR)))
    yield "</g>"


def _tags(sheet: _Sheet, node: str) -> list[str]:
    data = sheet.graph.nodes[node]
    names = [node] if data["opaque"] else data["widths"]
    return [sheet.tags[name] for name in names if name in sheet.tags]


def _told(sheet: _Sheet, node: str) -> Iterable[str]:
    """Yield the lines of a tooltip."""
    data, known = sheet.graph.nodes[node], sheet.graph.graph["widths"]
    yield f"{node} ({data['type']})"
    if data["opaque"]:
        yield f"left as it is: {data['opaque']}"
    for w in data["widths"]:
        if w in known:
            yield f"{sheet.tags[w]}: {w}, {known[w].kind}, {known[w].base} → {known[w].choices[-1]}"
        elif w in data["pinned"]:
            yield f"{sheet.tags[w]}: {w}, pinned: {data['pinned'][w]}"
    if not data["widths"] and not data["opaque"]:
        yield "no width reaches it"


def _legend(sheet: _Sheet, plan: Plan, reasons: Sequence[str]) -> tuple[list[str], float]:
    """Return the widths in columns, then the reasons of what cannot grow, and the height of it all."""
    sizes = [f"{w.base} → {w.choices[-1]}" for w in plan.widths]
    longest = min(34, max((len(w.name) for w in plan.widths), default=0))
    cell = 44 + CHAR * (longest + 2 + 8 + max(map(len, sizes), default=0)) + 18
    columns = max(1, int((sheet.width - 2 * MARGIN) / cell))
    tall = ceil(len(plan.widths) / columns)
    y = sheet.height + 24
    drawn = [_text(MARGIN, y, "Width, kind, base → largest size in channels", "t")]
    for i, (width, size) in enumerate(zip(plan.widths, sizes, strict=True)):
        x, at = MARGIN + cell * (i // tall), y + 8 + 15 * (i % tall)
        choices = " ".join(map(str, width.choices))
        told = f"{width.name}: {choices}\n{', '.join(width.layers)}"
        fill, n = sheet.fills[width.name], sheet.tags[width.name]
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
    if reasons:
        drawn.append(_text(MARGIN, y, "Cannot grow", "t"))
        y += 8
    for i, reason in enumerate(reasons, 1):
        pinned = [name for name, why in plan.pinned.items() if why == reason]
        opaque = [name for name, why in plan.opaque.items() if why == reason]
        who = [*pinned, *opaque]
        few = ", ".join(who[:6]) + (f" and {len(who) - 6} more" if len(who) > 6 else "")
        lines = _lines(f"{reason}: {few}", sheet, 8)
        drawn += [
            f'<g class="b wp{i}"><title>{_clean(", ".join(who))}</title>'
            f'<rect x="{MARGIN}" y="{y:g}" width="36" height="13" rx="2" stroke="#555" '
            f'stroke-width=".8" stroke-dasharray="3 2" fill="{HATCH if opaque else GREY}"/>',
            _text(MARGIN + 5, y + 10, f"p{i}", "t"),
            *(_text(MARGIN + 44, y + 10 + 13 * k, line) for k, line in enumerate(lines)),
            "</g>",
        ]
        y += 13 * len(lines) + 4
    return drawn, y + MARGIN
