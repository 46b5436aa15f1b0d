"""Where the layers of a picture stand: rows, frames around blocks, columns, and lanes for the edges. Pixels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt

import networkx as nx

ROW, BOX, HEAD, GAP, MARGIN = 21, 15, 16, 8, 14
MAIN, SIDE = 172, 74  # a row's first box, and those beside it
TOP = 61  # what stands above the columns
CONCATENATIONS = ("cat", "concat", "concatenate")


@dataclass
class Row:
    """Boxes side by side: a layer, and the norms that only it feeds."""

    nodes: list[str]
    group: str = ""
    column: int = 0
    y: float = 0.0

    @property
    def middle(self) -> float:
        return self.y + BOX / 2


@dataclass
class Frame:
    """Rows of one block that stand together in a column."""

    label: str
    rows: list[Row]
    column: int = 0
    y: float = 0.0

    @property
    def head(self) -> float:
        return HEAD if self.label else 0

    @property
    def height(self) -> float:
        return self.head + ROW * len(self.rows) + GAP


@dataclass
class Sheet:
    """Where everything stands.

    Args (fields):
        graph: What is drawn, as `to_networkx` gives it; a dense block's concatenations are fed by one another.
        rows: In graph order, from top to bottom and from column to column.
        frames: Rows of one block, in one column each.
        left: Where the boxes of each column begin.
        lanes: (source, gutter) -> where its line runs down; gutter i is to the left of column i.
        buses: Source -> where its line runs above the columns.
    """

    graph: nx.DiGraph
    rows: list[Row]
    frames: list[Frame]
    left: list[float] = field(default_factory=list)
    lanes: dict[tuple[str, int], float] = field(default_factory=dict)
    buses: dict[str, float] = field(default_factory=dict)
    width: float = 0.0
    height: float = 0.0


def lay_out(graph: nx.DiGraph) -> Sheet:
    """Return where the nodes of `to_networkx` and its edges stand."""
    graph = _thinned(graph)
    rows = _rows(graph)
    sheet = Sheet(graph, rows, _frames(graph, rows))
    _place(sheet)
    return sheet


def _thinned(graph: nx.DiGraph) -> nx.DiGraph:
    """Return the graph with a concatenation that repeats an earlier one fed by that one: a dense block's are many."""
    graph, whole = graph.copy(), graph
    joins = [n for n, d in whole.nodes(data=True) if d["is_join"] and d["type"] in CONCATENATIONS]
    for i, node in enumerate(joins):
        inputs = set(whole.pred[node])
        for earlier in reversed(joins[:i]):
            part = set(whole.pred[earlier])
            if part < inputs:
                graph.remove_edges_from([(n, node) for n in part])
                graph.add_edge(earlier, node)
                break
    return graph


def _rows(graph: nx.DiGraph) -> list[Row]:
    """Return the nodes in order, a norm or the like beside the layer that feeds only it."""
    rows: list[Row] = []
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
            rows.append(Row([node]))
    return rows


def _frames(graph: nx.DiGraph, rows: Sequence[Row]) -> list[Frame]:
    """Return the rows in frames, one for each block: a module that is no sequence of numbered blocks itself."""
    names = {row.nodes[0] for row in rows}
    within = {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 1)}
    under: dict[str, int] = defaultdict(int)
    paths: list[list[str]] = []
    for row in rows:
        path = name = row.nodes[0]
        if graph.nodes[name]["is_join"]:
            path = name.rpartition(":")[0]
        elif name not in within:
            path = name.rpartition(".")[0]
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
    for path in list(sequences):  # what holds little else than a sequence is no block either
        above = [".".join(path.split(".")[:i]) for i in range(1, path.count(".") + 1)]
        sequences |= {p for p in above if 2 * under.get(path, 0) > under[p]}
    frames: list[Frame] = []
    prefixes_of = {id(row): prefixes for row, prefixes in zip(rows, paths, strict=True)}
    for row, prefixes in zip(rows, paths, strict=True):
        row.group = next((p for p in prefixes if p not in sequences), (prefixes or [""])[-1])
        if frames and frames[-1].rows[-1].group == row.group:
            frames[-1].rows.append(row)
        else:
            frames.append(Frame(row.group, [row]))
    for frame in frames:
        shared = [
            p
            for p in prefixes_of[id(frame.rows[0])]
            if all(p in prefixes_of[id(r)] for r in frame.rows)
        ]
        frame.label = shared[-1] if shared and len(frame.rows) > 1 else ""
        for row in frame.rows:
            row.group = frame.label
    return frames


def _place(sheet: Sheet) -> None:
    """Wrap the frames into columns, then find the lanes of the edges beside and above them."""
    column = MAIN + SIDE * max(1, *(len(row.nodes) - 1 for row in sheet.rows), 1) + 60
    total = sum(frame.height for frame in sheet.frames)
    limit = max(total / max(1, round(sqrt(1.5 * total / column))), 12 * ROW)
    placed: list[Frame] = []
    here, at, rest = 0, 0.0, total
    for whole in sheet.frames:
        frame = whole
        rest -= whole.height
        most = limit * (1.1 if rest > limit / 5 else 1.3)  # no column for a classifier alone
        if at and at + frame.height > most and frame.height <= limit:
            here, at = here + 1, 0.0
        while at + frame.height > most and len(frame.rows) > 1:
            room = max(1, int((limit - at - frame.head - GAP) / ROW))
            if room >= len(frame.rows):
                break
            placed.append(Frame(frame.label, frame.rows[:room], here, at))
            frame = Frame(f"{whole.label} (continued)" if whole.label else "", frame.rows[room:])
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
    top = TOP + 5 * (max(buses.values(), default=-1) + 1)
    sheet.buses = {source: top - 6 - 5 * lane for source, lane in buses.items()}
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
    sheet.width = max(x + MARGIN, 560.0)
    sheet.height = max((f.y + f.height for f in sheet.frames), default=top)


def _row_of(sheet: Sheet) -> dict[str, int]:
    return {node: i for i, row in enumerate(sheet.rows) for node in row.nodes}


def arcs(sheet: Sheet) -> Iterable[tuple[str, str, Row, Row, bool]]:
    """Yield every edge between rows, and whether it is a short way down."""
    row_of = _row_of(sheet)
    for source, target in sheet.graph.edges:
        i, j = row_of[source], row_of[target]
        a, b = sheet.rows[i], sheet.rows[j]
        if i != j:
            yield source, target, a, b, j == i + 1 and a.column == b.column


def _nets(sheet: Sheet) -> dict[tuple[str, int], list[float | None]]:
    """Return (source, gutter) -> the heights that its line there must reach, None for above the columns."""
    nets: dict[tuple[str, int], list[float | None]] = defaultdict(list)
    for frame in sheet.frames:
        for row in frame.rows:
            row.column = frame.column
    for source, _, a, b, down in arcs(sheet):
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


def _lanes(spans: Mapping[str, tuple[float, float]], apart: float) -> dict[str, int]:
    """Return a lane for every span, so that no two that overlap share one; short ones come first."""
    lanes: dict[str, int] = {}
    taken: list[list[tuple[float, float]]] = []
    for name, (low, high) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        free = (
            i
            for i, there in enumerate(taken)
            if all(high + apart < a or low - apart > b for a, b in there)
        )
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes[name] = lane
    return lanes
