"""State that lives on modules as Python attributes: read, changed and cached by forwards."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaugfx
from netaugfx import graphs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every trace of a wide model."""
    found: list[None] = []
    real = graphs.trace

    def trace(*args: Any, **kwargs: Any) -> Any:
        found.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr(graphs, "trace", trace)
    return found


def same_as_extracted(wide: Any, x: Tensor = X) -> None:
    config = wide.max_config
    torch.testing.assert_close(wide.at(config)(x), netaugfx.extract(wide, config)(x))


class Annealed(nn.Module):
    """A temperature, a flag, thresholds in a list, a function and an activation that may be replaced."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.squash = torch.tanh
        self.temperature, self.flag, self.levels = 2.0, False, [1.0, 2.0]
        self.untouched = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.a(x)))
        if self.flag:
            y = y * 3
        if hasattr(self, "late"):
            y = y * self.late
        y = self.squash(self.b(y)) * self.levels[0] * self.factor
        return y / self.temperature


def swap(m: Any) -> None:
    m.__class__ = type("Swapped", (Annealed,), {"forward": lambda self, x: self.b(self.a(x))})


CHANGES: dict[str, Callable[[Any], object]] = {
    "a number": lambda m: setattr(m, "temperature", 0.5),
    "a flag": lambda m: setattr(m, "flag", True),
    "in a list": lambda m: m.levels.__setitem__(0, 5.0),
    "a function": lambda m: setattr(m, "squash", torch.sigmoid),
    "what was not there": lambda m: setattr(m, "late", 2.0),
    "over the class": lambda m: setattr(m, "factor", 3.0),
    "a submodule": lambda m: setattr(m, "act", nn.GELU()),
    "a submodule of the same class": lambda m: setattr(m, "act", nn.ReLU(inplace=True)),
    "a layer's own": lambda m: setattr(m.a, "stride", (2, 2)),
    "a norm's own": lambda m: setattr(m.norm, "eps", 0.3),
    "the class": swap,
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_changed_attribute_reaches_subnets(what: str, nested: bool, traces: list[None]) -> None:
    model = nn.Sequential(Annealed(), nn.Conv2d(2, 2, 1)) if nested else Annealed()
    wide = netaugfx.widen(model, example_inputs=X).eval()
    config = wide.max_config
    before = wide.at(config)(X)
    first = len(traces)
    CHANGES[what](wide.base[0] if nested else wide.base)
    after = wide.at(config)(X)
    same_as_extracted(wide)
    base = wide.base(X)
    assert base.shape == after.shape
    torch.testing.assert_close(netaugfx.extract(wide, {})(X), base)
    assert len(traces) <= first + 3
    wide.at(config)(X), wide.macs(config)
    now = len(traces)
    assert torch.equal(wide.at(config)(X), after)
    assert len(traces) == now
    unlike = before.shape != after.shape or not torch.equal(before, after)
    assert unlike != (what == "a submodule of the same class")


def test_programs_are_found_again_when_a_value_comes_back(traces: list[None]) -> None:
    wide = netaugfx.widen(Annealed(), example_inputs=X).eval()
    config = wide.max_config
    first = wide.at(config)(X)
    wide.base.temperature = 1.0
    wide.at(config)(X)
    count = len(traces)
    for temperature in (2.0, 1.0, 2.0):
        wide.base.temperature, wide.base.untouched = temperature, wide.base.untouched + 1
        found = wide.at(config)(X)
    assert torch.equal(found, first)
    assert len(traces) == count


def test_many_values_are_told_of_once_and_few_programs_are_kept() -> None:
    wide = netaugfx.widen(Annealed(), example_inputs=X).eval()
    config = wide.max_config
    first = wide.at(config)(X)

    def anneal() -> None:
        for i in range(1, 15):
            wide.base.temperature = float(i)
            torch.testing.assert_close(wide.at(config)(X) * i, first * 2)

    with pytest.warns(UserWarning, match=r"'temperature' has changed.* 8 times") as told:
        anneal()
    assert len(told) == 1
    assert len(wide._graphs.layouts) <= 8
    same_as_extracted(wide)


class Counts(nn.Module):
    """Counts its passes and its samples; `parity` makes every other pass another one."""

    def __init__(self, parity: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.steps = self.samples = 0
        self.parity = parity

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.samples += len(x)
        y = self.b(F.relu(self.a(x)))
        return y * 2 if self.parity and self.steps % 2 else y


def test_a_counter_does_not_cause_a_trace_for_every_step(traces: list[None]) -> None:
    wide = netaugfx.widen(Counts(), example_inputs=X)
    traces.clear()
    config = wide.max_config

    def train() -> None:
        for _ in range(12):
            wide(X).sum().backward()
            wide.at(config)(X)

    with pytest.warns(UserWarning, match="'samples', 'steps' changes in the forward") as told:
        train()
    assert len(told) == 1
    assert len(traces) <= 3
    assert wide.base.steps == 12


def test_a_counter_that_matters_is_followed() -> None:
    wide = netaugfx.widen(Counts(parity=True), example_inputs=X, verify=False)
    config = wide.max_config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            wide(X)
            same = copy.deepcopy(netaugfx.extract(wide, config))
            assert torch.equal(wide.at(config)(X), same(X))


class CachesGrid(nn.Module):
    """Keeps a grid for the size of map that came last, as detectors do: by a key, by its shape, or in a dict."""

    key = None
    grid = torch.empty(0)

    def __init__(self, by: str) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.by = by
        self.known: dict[Any, Tensor] = {}
        if by == "shape":
            self.points = torch.empty(0, 0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        if self.training:
            return y
        h, w = y.shape[2:]
        if self.by == "dict":
            if (int(h), int(w)) not in self.known:
                self.known[int(h), int(w)] = made(h, w, y)
            return y.flatten(2) * self.known[int(h), int(w)]
        if self.by == "shape":
            if self.points.shape != (h, w):
                self.points = made(h, w, y).view(h, w)
            return y * self.points
        if self.key != y.shape[2:]:
            self.key, self.grid = y.shape[2:], made(h, w, y)
        return y.flatten(2) * self.grid


def made(h: int, w: int, y: Tensor) -> Tensor:
    return torch.arange(w, dtype=y.dtype).expand(h, w).flatten().clone()


@pytest.mark.parametrize("by", ["key", "shape", "dict"])
@pytest.mark.parametrize("first", [0, 1])
def test_constants_that_a_forward_caches_are_never_stale(
    by: str, first: int, traces: list[None]
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, *size) for size in ((4, 16), (16, 4), (8, 8))]
    wide = netaugfx.widen(CachesGrid(by), example_inputs=inputs[first]).eval()
    config = wide.max_config
    network = netaugfx.extract(wide, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(30):
            last, now = torch.randint(3, (2,), generator=generator).tolist()
            wide(inputs[last])
            expected = copy.deepcopy(network)(inputs[now])
            assert torch.equal(wide.at(config)(inputs[now]), expected)
    assert len(traces) <= 14


class CachesInEval(nn.Module):
    """What a Parameter gives is cached in eval mode, and forgotten in train() (LeViT's attention biases)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.kind = kind
        self.folded: Any = {}

    def train(self, mode: bool = True) -> CachesInEval:
        super().train(mode)
        self.folded = {}
        return self

    def scaled(self) -> Tensor:
        if self.training:
            return self.scale.exp()
        if self.kind == "tensor":
            if not isinstance(self.folded, Tensor):
                self.folded = self.scale.exp()
            return self.folded
        if "scale" not in self.folded:
            self.folded["scale"] = self.scale.exp()
        found: Tensor = self.folded["scale"]
        return found

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x) * self.scaled()
        a, b = x.split([2, 2], 1)  # literals, so that an extracted subnet needs a graph
        y: Tensor = self.conv2(torch.cat([x, b, a], 1))
        return y


@pytest.mark.parametrize("kind", ["tensor", "dict"])
@pytest.mark.parametrize("grad", [True, False])
def test_what_is_cached_in_eval_mode_grows_and_is_never_stale(kind: str, grad: bool) -> None:
    model = CachesInEval(kind).eval()
    with torch.set_grad_enabled(grad):
        model(X)  # it has a cache when it is widened
    wide = netaugfx.widen(model, factor=2.0, example_inputs=X)
    assert wide.elastic_share == 1
    for _ in range(2):
        wide.eval()
        with torch.set_grad_enabled(grad):
            wide(X)
            same_as_extracted(wide)
            there = netaugfx.extract(wide.eval(), wide.max_config).train()(X)
        wide.train()
        torch.testing.assert_close(there, wide.at(wide.max_config)(X))
        with torch.no_grad():
            wide.base.scale += 1


def test_a_train_method_that_needs_data_is_passed_over() -> None:
    class Needs(nn.Sequential):
        def train(self, mode: bool = True) -> Needs:
            super().train(mode)
            if self[0].weight.abs().max().item() > 1e9:
                raise OverflowError
            return self

    wide = netaugfx.widen(
        Needs(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), factor=2.0, example_inputs=X
    )
    assert wide.elastic_share == 1
    same_as_extracted(wide)


def test_a_cost_follows_attributes() -> None:
    wide = netaugfx.widen(Annealed(), example_inputs=X)
    before = wide.macs(wide.max_config)
    wide.base.a.stride = (2, 2)
    assert wide.macs(wide.max_config) == before // 4


@functools.lru_cache
def ramp(h: int, w: int) -> Tensor:
    return torch.linspace(-1, 1, w).expand(h, w).contiguous()


class Ramp(nn.Module):
    """Adds a constant that a cache outside of the model keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.b(y + ramp(*y.shape[2:]))


def test_the_class_that_reads_a_cached_constant_is_kept() -> None:
    ramp.cache_clear()
    Ramp()(X)
    wide = netaugfx.widen(Ramp(), example_inputs=X)
    assert type(netaugfx.extract(wide, wide.max_config)) is Ramp
    assert netaugfx.verify(wide).unchecked == {}


CONSTANTS = {n: torch.tensor([float(n)]) for n in range(40)}


class ByMode(nn.Module):
    """A constant that depends on the mode, or on the number of channels; its forward may hold channel counts."""

    def __init__(self, held: bool, channels: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.held, self.channels = held, channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        n, _, h, w = y.shape
        if self.held:
            y = y.reshape(n, 2, 4, h, w).transpose(1, 2).reshape(n, 8, h, w)
        number = int(self.a.weight.shape[0]) if self.channels else 2 if self.training else 3
        out: Tensor = self.b(y * CONSTANTS[number])
        return out


def test_constants_that_differ_are_told_apart() -> None:
    wide = netaugfx.widen(ByMode(held=False, channels=False), example_inputs=X)
    assert type(netaugfx.extract(wide, wide.max_config)) is ByMode
    wide = netaugfx.widen(ByMode(held=True, channels=False), example_inputs=X)
    with pytest.raises(netaugfx.ExtractError, match="_tensor_constant0"):
        netaugfx.extract(wide, wide.max_config)
    wide = netaugfx.widen(ByMode(held=False, channels=True), example_inputs=X)
    assert isinstance(netaugfx.extract(wide, wide.max_config), torch.fx.GraphModule)
    same_as_extracted(wide)


class WritesInPlace(nn.Module):
    """Adds in place to tensors that are no buffers, and makes a layer in its forward."""

    total = torch.zeros(1)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.total, self.other = torch.zeros(1), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.total += 1
        self.other += len(x)
        self.act = nn.ReLU()
        return self.b(self.act(self.a(x)))


def test_a_subnet_writes_to_no_tensor_of_the_base() -> None:
    wide = netaugfx.widen(WritesInPlace(), example_inputs=X)
    config = wide.max_config
    assert wide.elastic_share == 1.0
    for n in range(1, 4):
        wide(X)
        wide.at(config)(X)
        assert (wide.base.total.item(), wide.base.other.item()) == (n, 2 * n)
    same_as_extracted(wide)


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def reset(self, classes: int) -> None:
        self.head = nn.Conv2d(4, classes, 1)


@pytest.mark.parametrize("way", ["wide.head =", "wide.base.head =", "a method", "add_module"])
def test_a_layer_in_anothers_place_is_the_bases_and_the_graphss(way: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    wide = netaugfx.widen(Headed(), example_inputs=x)
    names, new = list(wide.state_dict()), nn.Conv2d(4, 2, 1)
    if way == "wide.head =":
        wide.head = new
    elif way == "wide.base.head =":
        wide.base.head = new
    elif way == "add_module":
        wide.add_module("head", new)
    else:
        wide.reset(2)
        new = wide.base.head
    assert wide.head is new is wide.base.head
    assert any(p is new.weight for p in wide.parameters())
    assert list(wide.state_dict()) == names
    assert torch.equal(netaugfx.extract_base(wide).head.weight, new.weight)
    assert netaugfx.verify(wide)
    assert copy.deepcopy(wide).double()(x.double()).dtype == torch.float64
    wide.reset(5)
    assert wide(x).shape[1] == 5
    assert dict(wide.named_parameters())["head.weight"].shape[0] == 5
    with pytest.raises(netaugfx.GuardError, match="a module has taken another's place"):
        wide.at(wide.max_config)(x)


def test_children_come_and_go_in_base_and_graphs_alike() -> None:
    wide = netaugfx.widen(Headed(), example_inputs=torch.zeros(2, 3, 8, 8))
    wide.aux = nn.Linear(1, 1)
    assert "aux.weight" in wide.base.state_dict()
    del wide.aux
    assert not hasattr(wide, "aux")
    assert set(dict(wide.named_children())) == {"body", "head", "augmented"}


class Thresholded(nn.Module):
    limit = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).clamp(max=self.limit) * self.scale


def test_an_attribute_of_the_base_is_set_on_the_base() -> None:
    x = torch.randn(2, 3, 4, 4)
    wide = netaugfx.widen(Thresholded(), example_inputs=x)
    wide.limit, wide.scale, wide.note = 0.5, 3.0, "of the reader's own"
    assert (wide.base.limit, wide.base.scale) == (0.5, 3.0)
    assert not hasattr(wide.base, "note")
    base = netaugfx.extract_base(wide)
    assert torch.equal(base(x), wide(x))
    assert torch.equal(base(x), base.body(x).clamp(max=0.5) * 3)
    subnet = netaugfx.extract(wide, wide.max_config)
    torch.testing.assert_close(subnet(x), wide.at(wide.max_config)(x))
