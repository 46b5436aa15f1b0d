"""What `verify` can check: models in parts, forwards of one dtype, inputs whose values decide lengths."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaugfx
from netaugfx.parts import WideParts
from netaugfx.verify import laws

X = torch.zeros(2, 3, 8, 8)


class Single(nn.Module):
    """It runs in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu().float())


def test_a_forward_that_runs_in_float32_alone_is_checked_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = netaugfx.widen(Single(), example_inputs=X)
    report = netaugfx.verify(wide)
    assert report
    assert report.dtype == torch.float32
    assert "checked in torch.float32" in str(report)
    monkeypatch.setattr(laws, "extract", lambda wide, config: netaugfx.extract_base(wide))
    assert "is not what extract gives" in netaugfx.verify(wide).failures[3]


def test_float64_stays_where_a_law_is_broken_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = netaugfx.widen(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), example_inputs=X)
    monkeypatch.setattr(laws, "extract", lambda wide, config: netaugfx.extract_base(wide))
    report = netaugfx.verify(wide)
    assert set(report.failures) == {3}
    assert report.dtype == torch.float64


class FloatInside(nn.Module):
    """It leaves float64 on the way, as attention does for its softmax (efficientvit)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.mix = nn.Linear(3, channels), nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x = self.stem(x)
        for _ in range(3):
            y = F.linear(y.float(), self.mix.weight.float()).tanh()
        return self.head((y.softmax(0) @ y.t() @ y).to(x.dtype))


@pytest.mark.parametrize("channels", [22, 26, 30, 100])
def test_rounding_of_what_leaves_float64_is_no_fault(channels: int) -> None:
    torch.manual_seed(0)
    wide = netaugfx.widen(
        FloatInside(channels), example_inputs=torch.zeros(7, 3), factor=1.5, verify=False
    )
    report = netaugfx.verify(wide, [wide.max_config])
    assert report, str(report)
    assert report.dtype == torch.float64


class Halves(nn.Module):
    """Its root reads data, so that its children are traced apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.head = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x if x.mean() < 1e9 else -x)


def test_a_model_in_parts() -> None:
    wide = netaugfx.widen(Halves(), example_inputs=X, verify=False)
    assert isinstance(wide, WideParts)
    report = netaugfx.verify(wide)
    assert report
    assert report.configs == tuple(dict.fromkeys(report.configs))
    assert wide.max_config in report.configs


class Masked(nn.Module):
    """The lengths of its samples decide how long a mask is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 8, 1))
        self.out = nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(int(lengths.max()))[None, None] < lengths[:, None, None]
        return self.out(F.relu(self.body(x)) * mask)


def test_whole_numbers_among_the_example_keep_their_values() -> None:
    inputs = torch.randn(2, 3, 10), torch.tensor([10, 4])
    wide = netaugfx.widen(Masked(), example_inputs=inputs)
    assert "body.0" in wide.widths
    assert netaugfx.verify(wide)
    assert wide.at(wide.max_config)(*inputs).shape == (2, 4, 10)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())


class Logarithm(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.log())


def test_a_forward_that_takes_positive_numbers_alone() -> None:
    wide = netaugfx.widen(Logarithm(), example_inputs=X + 1)
    assert set(wide.widths) == {"stem"}
    wide.base.head.register_forward_hook(lambda module, args, output: output * 2)
    assert not netaugfx.verify(wide)  # compared by numbers, not by NaN


def test_hooks_that_decide_what_the_model_computes_are_refused() -> None:
    model = Small()
    model.stem.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(netaugfx.VerifyError, match="no hooks, which 'stem' have: remove them"):
        netaugfx.widen(model, example_inputs=X)
    seen: list[Tensor] = []
    model = Small()
    model.stem.register_forward_hook(lambda module, args, output: seen.append(output))
    assert set(netaugfx.widen(model, example_inputs=X).widths) == {"stem"}


def test_a_subnet_that_changes_what_the_base_computes_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = netaugfx.widen(Small(), example_inputs=X)
    at = type(wide).at

    def spoiling(self: netaugfx.WideModel, config: dict[str, int]) -> object:
        with torch.no_grad():
            self.base.head.weight.add_(1)
        return at(self, config)

    monkeypatch.setattr(type(wide), "at", spoiling)
    assert "computes something else after" in netaugfx.verify(wide).failures[2]
