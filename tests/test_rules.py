"""Rules tried one by one, each between two layers that can grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaugfx
from netaugfx.rules import registry
from netaugfx.testing import check_rule

X, Y, ROW = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4), torch.randn(2, 6)
TOKENS = torch.randn(2, 5, 8)


class Eca(nn.Module):
    """A gate from a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None]).sigmoid()
        return x * gate.view(x.shape[0], -1, 1, 1).expand_as(x)


LAWFUL: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...], int]] = {
    "add": (torch.add, (X, Y), 1),
    "gate": (lambda x, y: x * y.mean((2, 3), keepdim=True).sigmoid(), (X, Y), 1),
    "mean over channels": (lambda x: x - x.mean(1, keepdim=True), (X,), 1),
    "var over channels": (lambda x: x / (1 + x.var(dim=1, keepdim=True)), (X,), 1),
    "max over channels": (lambda x: x * x.max(1, keepdim=True).values.sigmoid(), (X,), 1),
    "softmax over channels": (lambda x: x.softmax(1), (X,), 1),
    "layer norm": (nn.LayerNorm(8), (TOKENS,), -1),
    "rms norm": (nn.RMSNorm(8), (TOKENS,), -1),
    "group norm, one group": (nn.GroupNorm(1, 6), (X,), 1),
    "group norm": (nn.GroupNorm(3, 6), (X,), 1),
    "instance norm": (nn.InstanceNorm2d(6, affine=True), (X,), 1),
    "batch norm": (nn.BatchNorm2d(6), (X,), 1),
    "normalize": (lambda x: F.normalize(x, dim=1), (X,), 1),
    "grouped convolution": (nn.Conv2d(6, 9, 3, groups=3), (X,), 1),
    "depthwise, multiplier 2": (nn.Conv2d(6, 12, 3, groups=6), (X,), 1),
    "transposed convolution": (nn.ConvTranspose2d(6, 4, 2, 2), (X,), 1),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 2, 2, groups=6), (X,), 1),
    "concatenation": (lambda x, y: torch.cat([x, y], 1), (X, Y), 1),
    "stack and sum": (lambda x, y: torch.stack([x, y], 1).sum(1), (X, Y), 1),
    "halves": (lambda x: torch.mul(*x.chunk(2, 1)), (X,), 1),
    "unequal split": (lambda x: torch.cat(x.split([2, 4], 1)[::-1], 1), (X,), 1),
    "literal slice": (lambda x: x[:, :4], (X,), 1),
    "glu": (nn.GLU(1), (X,), 1),
    "shuffle": (lambda x: x.view(2, 3, 2, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4), (X,), 1),
    "channel shuffle": (nn.ChannelShuffle(3), (X,), 1),
    "pixel shuffle": (nn.PixelShuffle(2), (torch.randn(2, 8, 4, 4),), 1),
    "pixel unshuffle": (nn.PixelUnshuffle(2), (X,), 1),
    "flatten a map": (lambda x: x.flatten(1), (X,), 1),
    "zero channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), (X,), 1),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), (X,), 1),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), (X,), 1),
    "unfold and fold": (lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 4), 2, stride=2), (X,), 1),
    "upsample": (nn.Upsample(scale_factor=2), (X,), 1),
    "prelu": (nn.PReLU(), (X,), 1),
    "matmul over channels": (lambda x, y: x @ y.transpose(1, 2) @ y, (TOKENS, TOKENS), -1),
    "einsum": (lambda x, y: torch.einsum("bnc,bmc,bmd->bnd", x, y, y), (TOKENS, TOKENS), -1),
    "attention": (
        lambda q, k: F.scaled_dot_product_attention(
            *(t.reshape(2, 5, 2, 4).transpose(1, 2) for t in (q, k, k))
        )
        .transpose(1, 2)
        .reshape(2, 5, 8),
        (TOKENS, TOKENS),
        -1,
    ),
    "eca": (Eca(), (X,), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LAWFUL)
def test_grows_and_is_lawful(name: str) -> None:
    operator, examples, channel = LAWFUL[name]
    plan, report = check_rule(operator, *examples, channel=channel)
    assert report, str(report)
    assert plan.widths


@pytest.mark.parametrize("operator", [torch.cumsum, torch.flip, torch.fft.fft])
def test_what_may_not_grow_is_pinned_and_named(operator: Callable[..., Tensor]) -> None:
    dims = [1] if operator is torch.flip else 1
    with pytest.raises(netaugfx.RuleError, match=operator.__name__.removeprefix("fft_")):
        check_rule(lambda x: operator(x, dims).real, X)


@pytest.fixture
def registered() -> Iterator[None]:
    kept = dict(registry._rules)
    yield
    registry._rules.clear()
    registry._rules.update(kept)


def test_a_rule_of_ones_own(registered: None) -> None:
    def own(x: Tensor) -> Tensor:
        return torch.special.entr(x.abs())

    with pytest.raises(netaugfx.RuleError, match="has no rule"):
        check_rule(own, X)
    netaugfx.register_rule(torch.special.entr)(lambda op: op.tensors[0].axes)
    plan, report = check_rule(own, X)
    assert report
    assert [w.name for w in plan.widths] == ["before.0"]


def test_a_rule_that_lies_is_found_out(registered: None) -> None:
    netaugfx.register_rule(torch.flip)(lambda op: op.tensors[0].axes)
    _, report = check_rule(lambda x: torch.flip(x, [1]), X)
    assert set(report.failures) == {4}


def test_what_cannot_be_registered() -> None:
    with pytest.raises(netaugfx.RuleError, match="register_rule: 3 is no function"):
        netaugfx.register_rule(3)(lambda op: ())
