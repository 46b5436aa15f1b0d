"""Lengths that depend on data: what an opaque module keeps of its rows, and what Python reads of it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaugfx
from netaugfx import GuardError, TraceError
from netaugfx.trace import trace


class Rows(nn.Module):
    """Keeps the rows above a threshold: how many, no shape tells."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Any:
        return x[x[:, 0] > self.threshold]


class Boxes(Rows):
    def forward(self, x: Tensor) -> Any:
        kept = super().forward(x)
        return {"list": list(kept), "best": kept if len(kept) > 4 else None, "count": len(kept)}


class Scored(nn.Module):
    """Its own weights decide how many rows it keeps, and its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)[:, 0]
        return x[score > (0.0 if self.training else 0.3)]


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.n += 1
        return x


class Head(nn.Module):
    def __init__(self, read: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.fc, self.read = nn.Linear(8, 4), read

    def forward(self, rows: Any) -> Tensor:
        return self.read(self.fc, rows)


class Net(nn.Module):
    def __init__(self, rows: nn.Module, read: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.rows, self.head = nn.Linear(5, 16), nn.Linear(16, 8), rows, Head(read)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(self.b(torch.relu(self.a(x)))))


def by_len(fc: nn.Module, rows: Tensor) -> Tensor:
    return fc(rows).sum(0) / (1 + len(rows))


def by_branch(fc: nn.Module, rows: Tensor) -> Tensor:
    return fc(rows).sum(0) if rows.shape[0] > 5 else fc.bias * 1


def by_loop(fc: nn.Module, rows: Tensor) -> Tensor:
    return sum((fc(row) for row in rows), start=fc.bias)


def by_list(fc: nn.Module, boxes: dict[str, Any]) -> Tensor:
    return sum((fc(row) for row in boxes["list"]), start=fc.bias)


def by_none(fc: nn.Module, boxes: dict[str, Any]) -> Tensor:
    return fc.bias * 1 if boxes["best"] is None else fc(boxes["best"]).sum(0)


def by_number(fc: nn.Module, boxes: dict[str, Any]) -> Tensor:
    return fc.bias * range(100)[boxes["count"]]


def by_shape(fc: nn.Module, rows: Tensor) -> Tensor:
    return fc(rows).sum(0) / (1 + rows.shape[0])


def by_view(fc: nn.Module, rows: Tensor) -> Tensor:
    n, c = rows.shape
    return fc(rows.view(n, c // 2, 2).flatten(1)).sum(0) / (1 + n)


def subnet_is_right(wide: Any) -> None:
    """A subnet at the base's sizes but for `a` computes on any data what its extracted network computes."""
    config = wide.max_config
    assert config["a"] > wide.base_config["a"]
    network = netaugfx.extract(wide, config).train(wide.training)
    for seed in range(5):
        x = torch.randn(12, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(wide.at(config)(x), plain(network, x), rtol=1e-5, atol=1e-6)


def plain(network: Any, x: Tensor) -> Tensor:
    """What the network's own lines compute, without a graph."""
    out: Tensor = network.head.read(network.head.fc, network.rows(network.b(network.a(x).relu())))
    return out


@pytest.mark.parametrize(
    ("rows", "read", "opaque"),
    [
        (Rows, by_len, True),
        (Rows, by_branch, True),
        (Rows, by_loop, True),
        (Boxes, by_list, True),
        (Boxes, by_none, True),
        (Boxes, by_number, True),
        (Rows, by_shape, False),
        (Rows, by_view, False),
    ],
)
def test_what_python_reads_of_data_is_never_kept(rows: Any, read: Any, opaque: bool) -> None:
    torch.manual_seed(0)
    wide = netaugfx.widen(Net(rows(), read), factor=1.5, example_inputs=torch.randn(12, 5))
    assert list(wide.plan.opaque) == ["rows", "head"][: 1 + opaque]
    if opaque:
        assert "data at test_data_lengths.py:" in wide.plan.opaque["head"]
    assert netaugfx.verify(wide)
    subnet_is_right(wide)


@pytest.mark.parametrize("read", [by_len, by_shape])
def test_weights_and_mode_decide_how_many_rows(read: Any) -> None:
    """And beside it a buffer that training alone moves, so that no graph stands for both modes."""
    torch.manual_seed(0)
    model = Net(nn.Sequential(Scored()), read)
    model.b = nn.Sequential(model.b, Passes())
    wide = netaugfx.widen(model, factor=1.5, example_inputs=torch.randn(12, 5))
    assert netaugfx.verify(wide)
    assert not netaugfx.verify(wide).unchecked
    network = netaugfx.extract(wide, wide.max_config)
    assert type(network) is Net
    subnet_is_right(wide)
    subnet_is_right(wide.eval())


def test_one_row_that_a_threshold_keeps_or_not() -> None:
    traced = trace(Net(Rows(), by_len), (torch.randn(1, 5),))
    assert list(traced.opaque) == ["rows", "head"]


def test_the_root_itself_reads_a_length_of_data() -> None:
    class Root(Net):
        def forward(self, x: Tensor) -> Tensor:
            rows = self.rows(self.b(self.a(x)))
            return self.head.fc(rows) / len(rows)

    with pytest.raises(TraceError, match=r"that depends on data at test_data_lengths.py:\d+"):
        trace(Root(Rows(), by_len), (torch.randn(12, 5),))


class Literal(Net):
    """Its forward holds a channel count, so that only a graph stands for a subnet."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(self.b(self.a(x).view(-1, 16))))


@pytest.mark.parametrize("kind", [Net, Literal])
def test_data_that_no_random_data_foretold_are_refused(kind: type[Net]) -> None:
    model = kind(Rows(threshold=1e6), by_branch)
    wide = netaugfx.widen(model, factor=1.5, example_inputs=torch.randn(12, 5))
    config = wide.max_config
    assert list(wide.plan.opaque) == ["rows"]
    with torch.no_grad():
        for p in (wide.base.a.weight, wide.base.b.weight):
            p.copy_(p.abs())
    many = torch.full((12, 5), 1e9)
    assert len(wide.base.rows(wide.base.b(wide.base.a(many)))) == 12
    few = torch.randn(12, 5)
    network = netaugfx.extract(wide, config)
    torch.testing.assert_close(wide.at(config)(few), network(few))
    with pytest.raises(GuardError, match=r"reads False at test_data_lengths.py:\d+; on these data"):
        wide.at(config)(many)
    if kind is Literal:
        with pytest.raises(AssertionError, match="this is False"):
            network(many)
    else:
        torch.testing.assert_close(network(many), plain(network, many))


def test_macs_of_a_network_whose_rows_depend_on_data() -> None:
    wide = netaugfx.widen(Net(Rows(), by_shape), factor=1.5, example_inputs=torch.randn(12, 5))
    more = wide.macs(wide.max_config) - wide.macs(wide.base_config)
    # the rows become one result, so that none is a sample of its own: 12 in `a` and `b`, from 16 channels to 24
    assert more == 12 * (5 + 8) * 8


class Large(nn.Module):
    """Its results are other Python values where a number is large: no random number is."""

    def __init__(self, give: str | Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        give = VALUES[self.give][0] if isinstance(self.give, str) else self.give
        return give(x, float(x.detach().abs().max()) > 1e4)


def some_key(fc: nn.Module, got: dict[str, Tensor]) -> Tensor:
    try:
        return fc(got["top"]).sum(0)
    except KeyError:
        return fc(got["all"]).sum(0)


VALUES = {
    "none": (
        lambda x, large: (x, x if large else None),
        lambda fc, got: fc(got[0]).sum(0) * (1 if got[1] is None else 2),
    ),
    "not none": (
        lambda x, large: (x, None if large else x),
        lambda fc, got: fc(got[0]).sum(0) * (1 if got[1] is None else 2),
    ),
    "none alone": (
        lambda x, large: None if large else x,
        lambda fc, got: fc.bias * 1 if got is None else fc(got).sum(0),
    ),
    "keys": (
        lambda x, large: {"all": x} | ({"top": x[:1]} if large else {}),
        lambda fc, got: sum(fc(v).sum(0) for v in got.values()),
    ),
    "a missing key": (lambda x, large: {"all": x} | ({"top": x[:1]} if large else {}), some_key),
    "a key in a loop": (
        lambda x, large: {"all": x} | ({"top": x[:1]} if large else {}),
        lambda fc, got: sum(fc(got[k]).sum(0) for k in got),
    ),
    "text": (
        lambda x, large: (x, 1 + large),
        lambda fc, got: fc(got[0]).sum(0) * {"1": 1, "2": 3}[f"{got[1]}"],
    ),
    "text by str": (
        lambda x, large: (x, 1 + large),
        lambda fc, got: fc(got[0]).sum(0) * {"1": 1, "2": 3}[str(got[1])],
    ),
    "a key of a result": (
        lambda x, large: (x, "big" if large else "small"),
        lambda fc, got: {got[1]: fc(got[0])}.get("big", fc.bias),
    ),
    "type": (
        lambda x, large: (x, 2 if large else 1.0),
        lambda fc, got: fc(got[0]).sum(0) * (3 if isinstance(got[1], int) else 1),
    ),
    "a flag by identity": (
        lambda x, large: (x, large),
        lambda fc, got: fc(got[0]).sum(0) * (3 if got[1] is True else 1),
    ),
    "length of a list": (
        lambda x, large: [x, x] if large else [x],
        lambda fc, got: sum(fc(v).sum(0) for v in got),
    ),
}


@pytest.mark.parametrize("kind", [Net, Literal])
@pytest.mark.parametrize("name", VALUES)
def test_other_python_values_on_other_data_are_refused(name: str, kind: type[Net]) -> None:
    torch.manual_seed(0)
    wide = netaugfx.widen(
        kind(Large(name), VALUES[name][1]), factor=1.5, example_inputs=torch.randn(6, 5)
    )
    config = wide.max_config
    network = netaugfx.extract(wide, config)
    small, large = torch.randn(6, 5), 1e7 * torch.randn(6, 5)
    torch.testing.assert_close(wide.at(config)(small), network(small))
    with pytest.raises(GuardError, match=r"reads .* at test_data_lengths.py:\d+; on these data"):
        wide.at(config)(large)
    if isinstance(network, torch.fx.GraphModule):
        network.head.read = None  # a lambda
        network = pickle.loads(pickle.dumps(network))
        with pytest.raises(AssertionError, match="extracted for inputs at which"):
            network(large)


def test_the_examples_own_data_are_looked_at() -> None:
    """On the example itself every subnet runs, though no random data look like it."""
    torch.manual_seed(0)
    give, read = VALUES["length of a list"]
    model = nn.Sequential(nn.Linear(5, 5), Net(Large(give), read))
    large = 1e7 * torch.randn(6, 5)
    wide = netaugfx.widen(model, factor=1.5, example_inputs=large)
    network = netaugfx.extract(wide, wide.max_config)
    torch.testing.assert_close(wide.at(wide.max_config)(large), network(large))


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.relu_()
        return x[x.detach()[:, 0] > 0.1]


def test_a_module_that_reads_data_may_write_to_what_it_is_given() -> None:
    torch.manual_seed(0)
    wide = netaugfx.widen(Net(Writes(), by_shape), factor=1.5, example_inputs=torch.randn(12, 5))
    assert list(wide.plan.opaque) == ["rows"]
    assert netaugfx.verify(wide)


class Masked(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return x[mask] if mask.any() else None


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8))
        self.take = Masked()
        self.head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows = self.take(self.fc(x), mask)
        return torch.zeros(4) if rows is None else self.head(rows).sum(0) / len(rows)


@pytest.mark.parametrize("verify", [False, True])
def test_a_mask_beside_the_data(verify: bool) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    example = torch.randn(6, 5), mask
    wide = netaugfx.widen(Pooled(), factor=2, example_inputs=example, verify=verify)
    network = netaugfx.extract(wide, wide.max_config)
    for shown in (mask, ~mask, mask & False):
        x = torch.randn(6, 5)
        torch.testing.assert_close(wide.at(wide.max_config)(x, shown), network(x, shown))


def test_random_data_on_which_the_base_itself_fails() -> None:
    torch.manual_seed(0)
    model = Net(Rows(threshold=100.0), lambda fc, rows: fc(rows).max(0).values)
    model.b.weight.data.abs_(), model.a.weight.data.abs_()
    wide = netaugfx.widen(model, factor=1.5, example_inputs=1e4 * torch.rand(6, 5))
    assert netaugfx.verify(wide)


def test_an_example_of_one_sample_before_a_norm() -> None:
    """It is taken twice, as a norm cannot train on one, though a module beside it reads data."""
    model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), Net(Rows(), by_shape))
    model[2].a = nn.Linear(16, 16)
    wide = netaugfx.widen(model, factor=1.5, example_inputs=torch.randn(1, 5))
    assert wide.plan.opaque
    assert netaugfx.verify(wide)


class Held:
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows


def test_macs_where_an_object_holds_what_a_module_gives() -> None:
    rows = Large(lambda x, large: Held(x[x[:, 0] > 0]))
    wide = netaugfx.widen(
        Net(rows, lambda fc, held: fc(held.rows)), factor=1.5, example_inputs=torch.randn(6, 5)
    )
    assert wide.macs(wide.max_config) - wide.macs(wide.base_config) == (5 + 8) * 8
