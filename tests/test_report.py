"""What a plan looks like: as a table, as a graph of layers, as a picture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from xml.etree import ElementTree

import networkx
import pytest
import torch
from torch import Tensor, nn

import netaugfx
from tests.real import timm_model

SVG = "{http://www.w3.org/2000/svg}"


class Odd(nn.Module):
    """Cannot be traced: it reads tensor data."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + 1 if x.sum() > 0 else x)


class Mixed(nn.Module):
    """Everything that a picture shows: a sum, a concatenation, a pin, an opaque module, a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.branch = nn.Conv2d(8, 6, 1)
        self.wide = nn.Conv2d(14, 10, 1)
        self.sums = nn.Conv2d(10, 8, 1)
        self.odd = Odd()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.twice(self.twice(x))
        x = self.wide(torch.cat([x, self.branch(x)], 1))
        x = torch.flip(self.sums(x), (1,))
        return self.head((self.odd(x) * self.scale).mean((2, 3)))


def plan(model: nn.Module, size: int = 8) -> netaugfx.Plan:
    return netaugfx.plan(model, example_inputs=(torch.zeros(2, 3, size, size),))


@cache
def real(name: str) -> netaugfx.Plan:
    return plan(timm_model(name), 64)


REAL = ("resnet18", "mobilenetv3_small_050", "densenet121")
PLANS: dict[str, Callable[[], netaugfx.Plan]] = {
    "mixed": cache(lambda: plan(Mixed())),
    **{name: lambda name=name: real(name) for name in REAL},  # type: ignore[misc]
}


def boxes(text: str) -> dict[str, ElementTree.Element]:
    """The first line of each tooltip -> its group; legend and edges have other tooltips."""
    root = ElementTree.fromstring(text)
    found = {}
    for group in root.iter(f"{SVG}g"):
        first = (group.findtext(f"{SVG}title") or "").partition("\n")[0]
        if match := re.fullmatch(r"(.*) \(\w+\)", first):
            assert match[1] not in found, "a layer is drawn twice"
            found[match[1]] = group
    return found


def fills(group: ElementTree.Element) -> list[str]:
    rects = (rect.get("fill", "") for rect in group.iter(f"{SVG}rect"))
    return [fill for fill in rects if fill not in ("none", "#fff")]


def test_describe() -> None:
    lines = netaugfx.describe(PLANS["mixed"]()).splitlines()
    assert re.fullmatch(r"stem +stream +8 16 24 +stem, norm, twice, branch and 1 more", lines[1])
    assert any(re.fullmatch(r"  sums: flip\(\) \(test_report.py:\d+\) .*", x) for x in lines)
    assert any(re.fullmatch(r"  odd: reads tensor data .*test_report.py:\d+", x) for x in lines)
    assert re.match(
        r"3 widths, elastic share 0\.\d+, [\d,]+ numbers in blocks \([\d.]+ [kM]?B in float32\)",
        lines[-1],
    )


def test_the_flow_of_a_network() -> None:
    flow = {layer.name: layer for layer in PLANS["mixed"]().flow}
    assert {name: layer.inputs for name, layer in flow.items()} == {
        "stem": (),
        "norm": ("stem",),
        "twice": ("norm",),
        ":add": ("norm", "twice"),
        "branch": (":add",),
        ":cat": (":add", "branch"),
        "wide": (":cat",),
        "sums": ("wide",),
        "odd": ("sums",),
        "scale": ("odd",),
        "head": ("scale",),
    }
    assert [name for name, layer in flow.items() if layer.is_join] == [":add", ":cat"]
    assert flow["twice"].type == "Conv2d"
    assert (flow["scale"].type, flow["odd"].type) == ("Parameter", "Odd")
    assert flow[":cat"].widths == ("stem", "branch")


@pytest.mark.parametrize("name", PLANS)
def test_the_flow_survives_json_and_has_every_layer(name: str) -> None:
    made = PLANS[name]()
    assert netaugfx.Plan.from_json(made.to_json()) == made
    names = [layer.name for layer in made.flow]
    assert max(Counter(names).values()) == 1
    assert {layer for width in made.widths for layer in width.layers} <= set(names)
    assert {source for layer in made.flow for source in layer.inputs} <= set(names)
    known = {*made.by_name, *made.pinned}
    assert all(width in known for layer in made.flow for width in layer.widths)


def test_a_branch_of_train_mode_alone_is_in_the_flow() -> None:
    class Auxiliary(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.norm(x) if self.training else self.twice(x)

    assert [layer.name for layer in plan(Auxiliary()).flow] == ["stem", "norm", "twice"]


def test_to_networkx() -> None:
    made = PLANS["mixed"]()
    graph = netaugfx.to_networkx(made)
    assert list(graph) == [layer.name for layer in made.flow]
    assert list(graph.pred[":cat"]) == [":add", "branch"]
    assert graph.nodes["wide"]["widths"] == ("wide",)
    assert graph.nodes["sums"]["pinned"] == {"sums": made.pinned["sums"]}
    assert graph.nodes["odd"]["opaque"] == made.opaque["odd"]
    assert graph.graph["widths"]["stem"] is made.by_name["stem"]


def test_to_networkx_of_a_residual_network() -> None:
    graph = netaugfx.to_networkx(real("resnet18"))
    assert networkx.is_directed_acyclic_graph(graph)
    assert list(networkx.topological_sort(graph))[-1] == "fc"
    assert [n for n, d in graph.nodes(data=True) if d["pinned"]] == ["fc"]
    assert sum(d["is_join"] for _, d in graph.nodes(data=True)) == 8
    assert set(graph.pred["layer2.0:iadd"]) == {"layer2.0.bn2", "layer2.0.downsample.1"}


@pytest.mark.parametrize("name", PLANS)
def test_a_picture_has_every_layer_in_the_colour_of_its_width(name: str) -> None:
    made = PLANS[name]()
    drawn = boxes(netaugfx.picture(made, title=name))
    assert list(drawn) == [layer.name for layer in made.flow]
    colour: dict[str, set[str]] = {}
    for layer in made.flow:
        found = fills(drawn[layer.name])
        elastic = [w for w in layer.widths if w in made.by_name]
        if layer.name in made.opaque:
            assert found == ["url(#hatch)"]
        elif not elastic:
            assert found == ["#cfcfcf"]
        else:
            assert len(found) == len(layer.widths)
            for width, fill in zip(layer.widths, found, strict=True):
                colour.setdefault(width, set()).add(fill)
    grey = {w: colour.pop(w) for w in made.pinned if w in colour}
    assert all(fill == {"#cfcfcf"} for fill in grey.values())
    assert all(len(fill) == 1 for fill in colour.values()), "one colour for each width"
    assert len({min(fill) for fill in colour.values()}) == len(colour), "one width for each colour"
    assert set(colour) <= set(made.by_name)


@pytest.mark.parametrize("name", PLANS)
def test_a_picture_has_legend_and_reasons(name: str) -> None:
    made = PLANS[name]()
    root = ElementTree.fromstring(netaugfx.picture(made))
    text = " ".join(" ".join(x.text or "" for x in root.iter(f"{SVG}text")).split())
    for width in made.widths:
        assert f"{width.kind} {width.base} → {width.choices[-1]}" in text
    for reason in (*made.pinned.values(), *made.opaque.values()):
        assert " ".join(reason.split()) in text


@pytest.mark.parametrize("name", PLANS)
def test_in_a_picture_nothing_overlaps_or_leaves_the_sheet(name: str) -> None:
    root = ElementTree.fromstring(netaugfx.picture(PLANS[name]()))
    size = float(root.get("width", 0)), float(root.get("height", 0))
    outlines = []
    for group in boxes(ElementTree.tostring(root, "unicode")).values():
        rect = next(r for r in group.iter(f"{SVG}rect") if r.get("fill") == "none")
        x, y, w, h = (float(rect.get(k, 0)) for k in ("x", "y", "width", "height"))
        assert x > 0 < y, name
        assert x + w < size[0]
        assert y + h < size[1]
        outlines.append((x, y, x + w, y + h))
    for i, (a, b, c, d) in enumerate(outlines):
        assert all(a >= g or c <= e or b >= h or d <= f for e, f, g, h in outlines[:i])


def test_a_picture_of_a_config_has_its_sizes_and_shades() -> None:
    wide = netaugfx.widen(Mixed(), example_inputs=(torch.zeros(2, 3, 8, 8),))
    some = next(iter(wide.widths.values()))
    text = netaugfx.picture(wide, config={some.name: some.choices[-1]})
    assert f"1 of {len(wide.widths)} widths grow" in text
    assert f"{some.base} → {some.choices[-1]}" in text
    others = [w for w in wide.widths.values() if w is not some]
    assert all(f"{w.base} → {w.base}<" in text for w in others)
    assert 'fill="#5a96eb"' in text  # as far as it can
    assert netaugfx.picture(wide, config=wide.max_config).count(">8 → 24<") == netaugfx.picture(
        wide
    ).count(">8 → 24<")
    with pytest.raises(netaugfx.ConfigError, match="cannot be 5"):
        netaugfx.picture(wide, config={some.name: 5})


def test_a_picture_is_the_same_each_time() -> None:
    first = netaugfx.picture(plan(Mixed()), title="a & b")
    assert first == netaugfx.picture(plan(Mixed()), title="a & b")
    wide = netaugfx.widen(Mixed(), example_inputs=(torch.zeros(2, 3, 8, 8),), verify=False)
    assert netaugfx.picture(wide, title="a & b") == first
    assert ">a &amp; b<" in first


def test_odd_names_are_drawn() -> None:
    model = nn.Sequential()
    model.add_module("<a&\x00'\"é>", nn.Conv2d(3, 4, 1))
    model.add_module("b:c", nn.Conv2d(4, 4, 1))
    model.add_module("d", nn.Conv2d(4, 4, 1))
    assert list(boxes(netaugfx.picture(plan(model)))) == ["<a&?'\"é>", "b:c", "d"]


def test_a_plan_without_flow_is_drawn_as_its_legend() -> None:
    from dataclasses import replace

    empty = replace(PLANS["mixed"](), flow=())
    assert boxes(netaugfx.picture(empty)) == {}
