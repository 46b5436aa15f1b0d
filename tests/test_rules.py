"""Rules tried one by one, each between two layers that can grow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
from torchvision.ops import deform_conv2d

import netaugfx
from netaugfx.infer import OUTPUT
from netaugfx.rules import registry
from netaugfx.testing import check_rule

X, Y, ROW = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4), torch.randn(2, 6)
TOKENS = torch.randn(2, 5, 8)


ONE = torch.randn(2, 1, 4, 4)
MAP1, MAP3 = torch.randn(2, 6, 8), torch.randn(2, 6, 4, 4, 4)
GRID = F.affine_grid(torch.eye(2, 3).repeat(2, 1, 1), [2, 1, 3, 3], align_corners=False)
KERNEL = torch.ones(4, 4, 3, 3)
PICKED = torch.tensor([2, 0])
MASK = torch.tensor([True, False, True, False])
PLACES = torch.arange(24).view(6, 4).mul(2).repeat(2, 4, 1, 1)
HALF = torch.full((6,), 0.5)


def made(module: nn.Module) -> nn.Module:
    """Whose Parameters hide nothing."""
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(0.5, 1.5)
    return module


def assigned(x: Tensor, y: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2] = y[:, 4:] * 2
    x[:, :, 0] = 1.0
    x[:, :, 1:, 1:] += y[:, :, :-1, :-1]
    x[x > 1] = 1.0
    return x


def put(x: Tensor, channels: Any, value: Any) -> Tensor:
    x = x.clone()
    x[:, channels] = value
    return x


def masked(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, MASK] = 0.0
    return x


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)


def zeros_beside(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return torch.cat([x, x.new_zeros(batch, channels, height, width)], 1)


def padded_like(x: Tensor, y: Tensor) -> Tensor:
    missing = x.size(1) - y.size(1)
    return x + F.pad(y, (0, 0, 0, 0, missing // 2, missing - missing // 2))


def one_zero_beside(x: Tensor, y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    return x + torch.cat([y, torch.zeros(batch, 6 - channels, height, width).to(y)], 1)


def asked(x: Tensor) -> list[bool]:
    return [
        torch.jit.isinstance(x, list[Tensor]),
        torch.jit.is_tracing(),
        torch.is_complex(x),
        x.is_complex(),
        not torch.is_floating_point(x),
        not torch.is_tensor(x),
        not x.is_contiguous(),
        x.get_device() > 0,
        torch.result_type(x, x) != x.dtype,
    ]


def filled(x: Tensor, y: Tensor) -> Tensor:
    """A concatenation by hand, in memory that is as yet unwritten."""
    out = x.new_empty(2, 9, 4, 4)
    out[:, :6] = x
    out[:, 6:] = y[:, :3]
    return out


def filled_later(x: Tensor, y: Tensor) -> Tensor:
    split = x.shape[1]
    out = torch.zeros(x.shape[0], split + y.shape[1], 4, 4).to(x)
    out[:, :split], out[:, split:] = x, y
    return out


def some_switched_off(x: Tensor) -> Tensor:
    on = torch.ones(6).to(x)
    on[2:] = 0
    return x * on[:, None, None]


def switched_off(x: Tensor) -> Tensor:
    on = torch.ones(6).to(x)
    on[2] = 0
    return x * on[:, None, None]


def with_token(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros(2, 1, 8).to(x), x], 1).softmax(-1)[:, 1:]


def padded_twice(x: Tensor, y: Tensor) -> Tensor:
    x = F.pad(F.pad(x, (0, 0, 0, 0, 2, 2)), (1, 1, 1, 1, 1, 0))[:, :, 1:-1, 1:-1]
    return x + F.pad(y, (0, 0, 0, 0, 5, 0))


def deformed(x: Tensor, y: Tensor) -> Tensor:
    places = torch.linspace(-1, 1, 2 * 36 * 16).view(2, 36, 4, 4).to(x)
    return deform_conv2d(x, places, y[..., :3, :3], padding=1)


def attention_by_hand(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ k


def scaled_first(q: Tensor, k: Tensor) -> Tensor:
    q = q * q.size(-1) ** -0.5
    return (q @ k.mT).softmax(-1) @ k


def energy(x: Tensor) -> Tensor:
    channels = x.shape[1]
    return x * (x.square().sum(1, keepdim=True) / (channels - 1) + 1e-4).rsqrt()


def ranked(x: Tensor) -> Tensor:
    return x.topk(2, 2).values + x.sort(2)[0][:, :, :2] * x.kthvalue(1, 2)[0][:, :, None]


def inner(x: Tensor, y: Tensor) -> Tensor:
    return torch.tensordot(torch.inner(x, y), y, dims=([2, 3], [0, 1]))


def unpooled_by(x: Tensor, y: Tensor) -> Tensor:
    _, indices = F.max_pool2d(y, 2, return_indices=True)
    return F.max_unpool2d(F.max_pool2d(x, 2), indices, 2)


def sampled(x: Tensor, y: Tensor) -> Tensor:
    """Channels where a batch is meant."""
    points = y.transpose(0, 1)[..., :2]
    return F.grid_sample(x.transpose(0, 1), points, align_corners=False).transpose(0, 1)


def warped(x: Tensor) -> Tensor:
    grid = F.affine_grid(x.mean(1)[:, :2, :3], list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def written_out(x: Tensor) -> Tensor:
    y = x.detach()
    return x * torch.add(y, 1, out=torch.empty_like(y))


def behind_fixed(x: Tensor, y: Tensor) -> Tensor:
    """Two channels that stay, and six that grow behind them, whose place is counted from the end."""
    both = torch.cat([torch.arange(2).to(x)[:, None, None] * y, x], 1)
    parts = (
        both[:, :-6].sum(1, True),
        both[:, -6:],
        both.tensor_split([-6], 1)[1],
        both.narrow(1, -6, 6),
    )
    return sum(parts[1:], start=parts[0])


def flags(x: Tensor) -> Tensor:
    chosen = x > 0
    chosen &= x < 1
    chosen |= x < -1
    chosen ^= x < -2
    return x * chosen


def two_shuffled(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def gated_in_place(x: Tensor) -> Tensor:
    gate = (x * 2).mean((2, 3))
    gate.t_().t_()
    gate.unsqueeze_(-1).transpose_(1, 2).swapaxes_(1, 2).squeeze_(-1)
    gate.unsqueeze_(-1)
    return x * gate.unsqueeze_(-1).sigmoid()


def mean_by_hand(x: Tensor) -> Tensor:
    return x * (x.sum((2, 3), keepdim=True) / x.shape[2:].numel() + x.size()[1:2].numel() ** -0.5)


def along_channels(x: Tensor) -> Tensor:
    """Four filters for each channel, the same for all."""
    filters = torch.arange(16.0).view(4, 1, 2, 2).to(x).sin()
    alike = filters[:1, 0].repeat(x.shape[1], 1, 1, 1)
    many = F.conv2d(x, filters.repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])
    return many * F.conv2d(x, alike, groups=x.shape[1]).repeat_interleave(4, 1)


def spectrum(x: Tensor) -> Tensor:
    y = torch.fft.rfft2(x, norm="ortho")
    y = torch.fft.ifftshift(torch.fft.fftshift(y, dim=(2, 3)), (-2, -1))
    return torch.fft.irfft2(y * 2.0, s=x.shape[-2:], norm="ortho") + torch.fft.fft(x).imag


def complex_numbers(x: Tensor) -> Tensor:
    y = torch.polar(x.abs(), x) * torch.complex(x, x)
    z = torch.view_as_complex(torch.view_as_real(y))
    return torch.view_as_real(z).sum(-1) + z.abs() + torch.angle(z) + torch.real(z) * torch.imag(z)


class Table(nn.Module):
    """Words become channels, and are compared with what comes in."""

    def __init__(self, bag: bool = False) -> None:
        super().__init__()
        self.embed = nn.EmbeddingBag(7, 8) if bag else nn.Embedding(7, 8)
        self.register_buffer("words", torch.tensor([[1, 2, 0, 3, 6], [2, 2, 4, 5, 0]]))

    def forward(self, x: Tensor) -> Tensor:
        found = self.embed(self.words)
        return x * (found if found.dim() == 3 else found[:, None])


class Unpooled(nn.Module):
    """Max pooling undone, as in a segmentation network."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y, indices = self.pool(x)
        return self.unpool(y * 2, indices)


class Doubled(nn.ConvTranspose2d):
    """A transposed convolution whose weight is no Parameter, so that no block of it stands for its inputs alone."""

    def __init__(self) -> None:
        super().__init__(6, 4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, self.weight * 2.0)


class Upsampled(nn.Module):
    """A transposed convolution to the size of another map."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(6, 6, 3, 2, 1, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first, second = self.up(x, y.size()), self.up(x, [7, y.shape[-1]])
        return first + F.pad(second, (0, 0, 0, 1))


class Standardised(nn.Conv2d):
    """A convolution with standardised weights, the mean and the spread by hand."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / (var + 1e-5).sqrt()
        return self._conv_forward(x, weight, self.bias)


class StandardisedByNorm(nn.Conv2d):
    """The same by a batch norm over the weight, as timm's networks without norms have it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class Losses(nn.Module):
    """Terms of a loss that the forward computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.HuberLoss(reduction="none"), nn.L1Loss()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.each(x, y) + self.all(x, y)
        return loss


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(8, 8, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.form(x, y)


class SelfAttention(nn.Module):
    def __init__(self, need_weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = made(nn.MultiheadAttention(8, 2, **options))
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        y, shares = self.attention(x, x, x, need_weights=self.need_weights)
        return y if shares is None else y * shares.sum()


class CrossAttention(nn.Module):
    """Masked in both ways."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention = made(nn.MultiheadAttention(8, 2, batch_first=True, **options))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        later = torch.ones(5, 5, dtype=torch.bool).triu(1)
        absent = torch.tensor([[False] * 5, [False] * 4 + [True]])
        out: Tensor = self.attention(x, y, y * 2, absent, False, later)[0]
        return out


class Halves(nn.Module):
    """Around a layer with two groups, which something else keeps at two."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        halves = x.view(x.shape[0], 2, -1, *x.shape[2:])
        first, second = halves[:, 0], halves[:, 1]
        y: Tensor = self.layer(torch.cat([first + second, first * second], 1))
        return y


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
    "extremes along channels": (lambda x: x - x.min(1, True)[0] + x.median(dim=1, keepdim=True).values, (X,), 1),
    "extremes along space": (lambda x: x.max(2)[1] * x.min(dim=3).indices * x.mean((2, 3))[..., None], (X,), 1),
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
    "renorm": (lambda x: x.renorm(2, 1, 1.0), (X,), 1),
    "renorm of what is in channels": (lambda x: x.renorm(2, 0, 1.0), (X,), 1),
    "grouped convolution": (nn.Conv2d(6, 9, 3, groups=3), (X,), 1),
    "groups of a fixed number": (made(Halves(nn.Conv2d(6, 4, 3, groups=2))), (X,), 1),
    "groups of a fixed number, transposed": (made(Halves(nn.ConvTranspose2d(6, 4, 2, groups=2))), (X,), 1),
    "norm over a fixed number of groups": (made(Halves(nn.GroupNorm(2, 6))), (X,), 1),
    "depthwise, multiplier 2": (nn.Conv2d(6, 12, 3, groups=6), (X,), 1),
    "transposed convolution": (nn.ConvTranspose2d(6, 4, 2, 2), (X,), 1),
    "transposed, depthwise": (nn.ConvTranspose2d(6, 6, 2, 2, groups=6), (X,), 1),
    "transposed to a size": (Upsampled(), (X, torch.randn(2, 6, 8, 8)), 1),
    "transposed to a size, depthwise": (Upsampled(groups=6), (X, torch.randn(2, 6, 8, 8)), 1),
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
    "flatten by a module": (nn.Flatten(1), (X,), 1),
    "unflatten by a module": (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Flatten(1, 2)), (X,), 1),
    "ravelled": (lambda x: x * x[:1].mean((2, 3)).ravel()[:, None, None], (X,), 1),
    "flatten two": (lambda x, y: (x[:, :, None] * y[:, None]).flatten(1), (ROW, ROW), 1),
    "unflatten": (lambda x: x.unflatten(1, (2, 3)).flatten(1, 2), (X,), 1),
    "reshape as another": (lambda x, y: x.flatten(2).reshape_as(y), (X, Y), 1),
    "shuffle to its own shape": (lambda x: x.view(2, 3, 2, 4, 4).transpose(1, 2).reshape(x.shape), (X,), 1),
    "shuffle of two to their shape": (lambda x, y: two_shuffled(torch.cat([x, y], 1)), (X, Y), 1),
    "reshape to another's shape": (lambda x, y: x.flatten(2).reshape(y.shape), (X, Y), 1),
    "view of another's size": (lambda x, y: x.flatten(1).view(y.size()), (X, Y), 1),
    "a part of another's shape": (lambda x, y: x.flatten(0, 1).unflatten(0, y.shape[:2]), (X, Y), 1),
    "expanded to another's shape": (lambda x, y: x.mean((2, 3), keepdim=True).expand(y.shape), (X, Y), 1),
    "norm over another's shape": (lambda x, y: F.layer_norm(x, y.shape[2:]), (TOKENS, TOKENS), -1),
    "padded by modules": (nn.Sequential(nn.ZeroPad2d(1), nn.ConstantPad2d((0, 1, 1, 0), 0.5)), (X,), 1),
    "zero channels by a module": (nn.ConstantPad3d((0, 0, 0, 0, 1, 2), 0.0), (X,), 1),
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
    # parts
    "narrow": (lambda x: x.narrow(1, 1, 3), (X,), 1),
    "narrow, by keyword": (lambda x: torch.narrow(x, dim=-3, start=-4, length=3), (X,), 1),
    "slice beyond the end": (lambda x: x[:, :16] * x[:, -16:10] * x[:, -6:], (X,), 1),
    "narrow from the end": (lambda x: x.narrow(1, -6, 6), (X,), 1),
    "places from the end, behind what stays": (behind_fixed, (X, ONE), 1),
    "cut in two": (lambda x: torch.cat(torch.tensor_split(x, 2, dim=1)[::-1], 1), (X,), 1),
    "cut by a number": (lambda x: torch.cat(x.tensor_split(x.shape[1] // 3, 1)[::-1], 1), (X,), 1),
    "chunks by a number": (lambda x: torch.cat(x.chunk(x.shape[1] // 3, 1)[::-1], 1), (X,), 1),
    "unequal chunks": (lambda x: torch.cat(x.chunk(3, -1)[::-1], -1), (TOKENS,), -1),
    "unequal chunks of a length": (lambda x: torch.cat(x.split(3, -1)[::-1], -1), (TOKENS,), -1),
    "unequal parts": (lambda x: torch.cat(x.tensor_split(5, -1)[::-1], -1), (TOKENS,), -1),
    "cut at places": (lambda x: torch.cat(x.tensor_split([1, 4], dim=1)[::-1], 1), (X,), 1),
    "hsplit": (lambda x: torch.cat(torch.hsplit(x, [1, -2])[::-1], 1), (X,), 1),
    "vsplit and dsplit": (lambda x: torch.cat([x.vsplit(2)[0], x.dsplit(2)[1][:1].repeat(1, 1, 2, 1)]), (X,), 1),
    "picked in space": (lambda x: x[:, :, [0, 2]][..., PICKED] + x.index_select(2, PICKED)[..., :2], (X,), 1),
    "picked apart": (lambda x: x[PICKED.clamp(max=1), :, [1, 3]], (X,), 1),
    "one place": (lambda x: x.select(2, 1) + x[..., 3] + torch.select(x, -1, 0), (X,), 1),
    "gathered in space": (lambda x, y: torch.gather(x, 2, y.argsort(2)), (X, Y), 1),
    "taken along space": (lambda x: torch.take_along_dim(x, x.argmax(3, keepdim=True), 3), (X,), 1),
    "ranked in space": (ranked, (X,), 1),
    "diff": (lambda x: x.diff(dim=1), (X,), 1),
    "diff of two": (lambda x, y: torch.cat([x, y], 1).diff(dim=1), (X, Y), 1),
    "cumsum": (lambda x: x.cumsum(1), (X,), 1),
    "cumsum of two": (lambda x, y: torch.cat([x, y], 1).cumsum(1), (X, Y), 1),
    "assignment": (assigned, (X, Y), 1),
    "embedding": (Table(), (TOKENS,), -1),
    "bag of embeddings": (Table(bag=True), (TOKENS,), -1),
    # movement
    "turned": (lambda x: x.mT.swapaxes(axis0=1, axis1=2).swapdims(1, 2).swapdims(dim0=1, dim1=2).mH.mT, (TOKENS,), -1),
    "turned over": (lambda x: x[0].T.t().H.data.adjoint()[None], (TOKENS,), -1),
    "moved": (lambda x: x.movedim(1, -1).moveaxis((3, 1), (1, 2)), (X,), 1),
    "beside in space": (lambda x, y: torch.cat([x, y], axis=2), (X, Y), 1),
    "hstack": (lambda x, y: torch.hstack((x, y)), (X, Y), 1),
    "dstack": (lambda x, y: torch.dstack((x, y)), (X, Y), 1),
    "vstack": (lambda x, y: torch.vstack((x, y)), (X, Y), 1),
    "broadcast_to": (lambda x: x * x.mean(1, keepdims=True).broadcast_to(x.shape), (X,), 1),
    "expand to channels": (lambda x: x * x.mean(1, keepdim=True).expand(-1, x.shape[1], -1, -1), (X,), 1),
    "repeat to channels": (lambda x: x * x.mean(1, keepdim=True).repeat(1, x.size(1), 1, 1), (X,), 1),
    "expand, literal": (lambda x: x[:1].expand(2, 6, -1, 4), (X,), 1),
    "expand_as": (lambda x, y: y[0, :, :1, :1].expand_as(x), (X, Y), 1),
    "one channel, expanded": (lambda x, y: x * y.expand(2, x.shape[1], 4, 4), (X, ONE), 1),
    "one channel, expanded as": (lambda x, y: x * y.expand_as(x), (X, ONE), 1),
    "one channel, repeated": (lambda x, y: x * y.repeat(1, x.shape[1], 1, 1), (X, ONE), 1),
    "one channel, broadcast": (lambda x, y: torch.mul(*torch.broadcast_tensors(x, y)), (X, ONE), 1),
    "one channel, multiplied": (lambda x, y: x * y, (X, ONE), 1),
    "one channel, dropped": (lambda x, y: x.mul(y.squeeze(1)[:, None]).mul(y[:1].squeeze()), (X, ONE), 1),
    "broadcast_tensors": (lambda x, y: torch.add(*torch.broadcast_tensors(x, y[:1])), (X, Y), 1),
    "repeated by a number": (lambda x: x.repeat(1, x.shape[1] // 3, 1, 1), (X,), 1),
    "interleaved by a number": (lambda x: x.repeat_interleave(x.shape[1] // 3, dim=1), (X,), 1),
    "repeated along channels": (along_channels, (X,), 1),
    "turned in space": (lambda x: torch.rot90(x, 1, (2, 3)) + x.rot90(dims=[-1, -2]), (X,), 1),
    "diagonal of space": (lambda x: x.diagonal(1, 2, 3) + torch.diagonal(x, dim1=-1, dim2=-2)[..., 1:], (X,), 1),
    "triangle of space": (lambda x: x.tril() + torch.triu(x, 1), (X,), 1),
    "reshape, input by keyword": (lambda x: torch.reshape(input=x, shape=(2, -1)), (X,), 1),
    "moved, input by keyword": (
        lambda x: torch.movedim(input=torch.permute(input=x, dims=(0, 2, 3, 1)), source=3, destination=1), (X,), 1),
    "squeezed, input by keyword": (lambda x: torch.squeeze(input=x[:, :, :1], dim=2), (X,), 1),
    "repeated, input by keyword": (lambda x: torch.tile(input=x, dims=(2, 1, 1)), (X,), 1),
    "tile": (lambda x: x.tile(2, 1, 1), (X,), 1),
    "reshape by keyword": (lambda x: torch.reshape(x, shape=(2, 2, -1, 4, 4)).flatten(1, 2), (X,), 1),
    "shapes changed in place": (gated_in_place, (X,), 1),
    "numbers of elements": (mean_by_hand, (X,), 1),
    "zeros beside": (zeros_beside, (X,), 1),
    "zeros beside, as another": (lambda x, y: x + F.pad(y, (0, 0, 0, 0, 2, 1), value=0.5), (X, X[:, :3]), 1),
    "zeros beside, in one dimension": (lambda x, y: x + F.pad(y, [0, 0, 0, 2]), (MAP1, MAP1[:, :4]), 1),
    "zeros beside, in three": (lambda x, y: x + F.pad(y, (0,) * 7 + (2,), "constant"), (MAP3, MAP3[:, :4]), 1),
    "zeros beside, the difference": (padded_like, (X, X[:, :4]), 1),
    "zeros beside, no difference": (lambda x, y: torch.cat([padded_like(x, y), y], 1), (X, Y), 1),
    "zeros made beside": (lambda x, y: x + torch.cat([y, torch.zeros(2, 2, 4, 4).to(y)], 1), (X, X[:, :4]), 1),
    "zeros made before": (lambda x, y: x + torch.cat([y.new_zeros(size=(2, 2, 4, 4)), y], 1), (X, X[:, :4]), 1),
    "one zero made beside": (one_zero_beside, (X, X[:, :5]), 1),
    "filled": (filled, (X, Y), 1),
    "filled later": (filled_later, (X, Y), 1),
    "blurred by ones": (lambda x: F.conv2d(x, torch.ones(6, 1, 3, 3).to(x), padding=1, groups=6), (X,), 1),
    "some switched off": (some_switched_off, (X,), 1),
    "a token of zeros": (with_token, (TOKENS,), -1),
    "zeros beside, twice": (padded_twice, (X, Y), 1),
    "zeros beside, shuffled": (lambda x: F.channel_shuffle(F.pad(x, (0, 0, 0, 0, 0, 2)), 2), (X,), 1),
    "zeros beside, gating": (lambda x: torch.mul(*F.pad(x, (0, 0, 0, 0, 1, 1)).chunk(2, 1)), (X,), 1),
    "deformed by a computed weight": (deformed, (X, Y), 1),
    "constants": (lambda x: put(x, slice(None), torch.ones(6, 1, 1).to(x)) + x * torch.full((6, 1, 1), 0.5), (X,), 1),
    # along channels
    "normalize and compare": (lambda x, y: x * F.cosine_similarity(F.normalize(x), y)[:, None], (X, Y), 1),
    "cosine similarity": (lambda x, y: x * nn.CosineSimilarity(dim=1)(x, y).unsqueeze(1), (X, Y), 1),
    "distances of all": (lambda x, y: torch.cdist(x, y) @ x, (TOKENS, TOKENS * 2), -1),
    "distances": (lambda x, y: x * nn.PairwiseDistance(keepdim=True)(x, y), (TOKENS, TOKENS * 2), -1),
    "local response norm": (nn.LocalResponseNorm(3), (X,), 1),
    "local response norm, across maps": (nn.CrossMapLRN2d(3), (X,), 1),
    "local response norm, function": (lambda x: F.local_response_norm(x, 2, beta=2.0), (X,), 1),
    "logsumexp": (lambda x: x - x.logsumexp(1, keepdim=True), (X,), 1),
    "var_mean": (lambda x: torch.sub(x, torch.var_mean(x, 1, keepdim=True)[1]), (X,), 1),
    "std, unbiased by place": (lambda x: x * torch.std(x, 1, False, True), (X,), 1),
    "std_mean": (lambda x: x * torch.std_mean(x, (1, 2), keepdim=True)[0], (X,), 1),
    "var of all": (lambda x: x / (1 + x.var(False)), (X,), 1),
    "aminmax": (lambda x: x - torch.aminmax(x, dim=1, keepdim=True).max, (X,), 1),
    "norms": (lambda x: x / (x.norm(2, 1, True) + torch.linalg.vector_norm(x, dim=1, keepdim=True)), (X,), 1),
    "norm of a map": (lambda x: x / torch.norm(x, p=2, dim=(2, 3), keepdim=True), (X,), 1),
    "norm of all": (lambda x: x / torch.linalg.norm(x), (ROW,), 1),
    "losses": (lambda x, y: x * F.mse_loss(x, y) + F.smooth_l1_loss(x, y, reduction="none"), (X, Y), 1),
    "losses of probabilities": (
        lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1), reduction="none")
        + F.binary_cross_entropy_with_logits(x, y.sigmoid()) * F.binary_cross_entropy(x.sigmoid(), y.sigmoid()),
        (X, Y), 1),
    "losses by modules": (Losses(), (X, Y), 1),
    "spectrum": (spectrum, (X,), 1),
    "complex numbers": (complex_numbers, (X,), 1),
    "softmax2d": (nn.Softmax2d(), (X,), 1),
    # norms
    "instance norm, running": (made(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), (X,), 1),
    "instance norm along channels": (lambda x: F.instance_norm(x), (TOKENS,), -1),
    "instance norm, function": (lambda x: F.instance_norm(x), (MAP1,), 1),
    # pooling
    "adaptive": (lambda x: F.adaptive_avg_pool1d(x, 3) + F.adaptive_max_pool1d(x, 3), (MAP1,), 1),
    "adaptive, 3-d": (nn.Sequential(nn.AdaptiveMaxPool3d(3), nn.AdaptiveAvgPool3d((1, None, 2))), (MAP3,), 1),
    "unpooled": (Unpooled(), (X,), 1),
    "unpooled, functions": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), (X,), 1),
    "unpooled by another": (unpooled_by, (X, Y), 1),
    "grid sample of channels": (sampled, (X, Y), 1),
    "grid sample": (lambda x: F.grid_sample(x, GRID.to(x), align_corners=False), (X,), 1),
    "affine grid": (warped, (X,), 1),
    "interpolate": (lambda x: F.interpolate(F.interpolate(x, size=(3, 5), mode="bicubic"), scale_factor=2), (X,), 1),
    "interpolate, 1-d and like": (lambda x, y: F.interpolate(x, size=y.shape[2:], mode="linear"), (MAP1, MAP1), 1),
    "padded by its own number": (lambda x: F.pad(x, (0, 0, 0, 0, x.shape[1], 1)), (X,), 1),
    "pad modules": (nn.Sequential(nn.ReflectionPad2d(1), nn.CircularPad2d((1, 0, 2, 0))), (X,), 1),
    # element by element
    "like it": (lambda x: x * torch.full_like(x, x.shape[1] ** -0.5), (X,), 1),
    "prelu of channels": (lambda x: F.prelu(x, x.mean((0, 2, 3))), (X,), 1),
    "prelu module": (made(nn.PReLU(6)), (X,), 1),
    "where": (lambda x, y: torch.where(x > 0, x, y * 2).clamp(y.mean(1, keepdim=True), None), (X, Y), 1),
    "clamp between": (lambda x, y: torch.clamp(x, min=y, max=y + 1), (X, Y), 1),
    "lerp": (lambda x, y: torch.lerp(x, y, x.sigmoid()), (X, Y), 1),
    "masked": (lambda x: x.masked_fill(x < 0, -1.0).masked_fill_(MASK, 2.0), (X,), 1),
    "of another type": (lambda x, y: x.type_as(y[:, :1]).to(y[0]), (X, Y), 1),
    "a tensor of a tensor": (lambda x: torch.as_tensor(x) + torch.asarray(x, requires_grad=True), (X,), 1),
    "new tensors of tensors": (lambda x: torch.tensor(x.detach()) * x.new_tensor(data=x.detach()), (X,), 1),
    "asked what it is": (lambda x: x if any(asked(x)) else x * 2, (X,), 1),
    "longer names": (
        lambda x: +x.tanh().arcsin() * x.arctan().arcsinh() + torch.special.expit(x).arctanh().fix(), (X,), 1),
    "flags combined": (flags, (X,), 1),
    # products
    "matmul by keywords": (
        lambda x, y: torch.matmul(other=y, input=torch.matmul(input=x, other=y.mT)), (TOKENS, TOKENS), -1),
    "product of itself": (lambda x: torch.bmm(input=x @ x.mT, mat2=x), (TOKENS,), -1),
    "addmm": (lambda x, y: torch.addmm(x, x @ x.mT, y), (ROW, ROW), 1),
    "baddbmm": (lambda x, y: torch.baddbmm(y, y @ x.mT, y) + torch.addbmm(y[0], y @ x.mT, y), (TOKENS, TOKENS * 2), -1),
    "addmv and addr": (lambda x: torch.addr(x, torch.addmv(x.sum(1), x, x.mean(0)), x.mean(0)), (ROW,), 1),
    "outer": (lambda x: torch.outer(*x.mean((2, 3))).matmul(x.flatten(2)), (X,), 1),
    "inner and tensordot": (inner, (TOKENS, TOKENS * 2), -1),
    "tensordot": (lambda x, y: torch.tensordot(x, y, dims=([2, 0], [2, 0])) @ y, (TOKENS, TOKENS * 2), -1),
    "einsum, dots": (lambda x, y: torch.einsum("...nc,...mc,...md->...nd", x, y[None], y[0]), (TOKENS, TOKENS), -1),
    "bilinear": (Bilinear(), (TOKENS, TOKENS * 2), -1),
    # weights computed from others
    "transposed convolution, computed": (Doubled(), (X,), 1),
    "standardised weight": (made(Standardised(6, 4, 3)), (X,), 1),
    "weight standardised by a norm": (made(StandardisedByNorm(6, 4, 3)), (X,), 1),
    "weight norm": (made(weight_norm(nn.Conv2d(6, 4, 3))), (X,), 1),
    "weight norm, depthwise": (made(weight_norm(nn.Conv2d(6, 6, 3, groups=6))), (X,), 1),
    "weight norm, over inputs": (made(weight_norm(nn.Linear(8, 4), dim=1)), (TOKENS,), -1),
    "self-attention": (SelfAttention(False, batch_first=True), (TOKENS,), -1),
    "self-attention, tokens first": (SelfAttention(True, dropout=0.1), (TOKENS,), -1),
    "cross-attention": (CrossAttention(), (TOKENS, TOKENS * 2), -1),
    "cross-attention, three weights": (CrossAttention(kdim=8, vdim=8, bias=False), (TOKENS, TOKENS * 2), -1),
    "transformer": (made(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), (TOKENS,), -1),
    "weight norm of all": (made(weight_norm(nn.Linear(8, 4), dim=None)), (TOKENS,), -1),
    # a channel count that is a number
    "attention by hand": (attention_by_hand, (TOKENS, TOKENS * 2), -1),
    "scaled first": (scaled_first, (TOKENS, TOKENS * 2), -1),
    "energy": (energy, (X,), 1),
}  # fmt: skip


# what stays beside what grows
BESIDE = {
    "eca": ("merges it with another elastic axis",),
    "unequal chunks": ("makes its parts unequal, by channels whose number stays",),
    "unequal chunks of a length": ("makes its parts unequal, by channels whose number stays",),
    "unequal parts": ("makes its parts unequal, by channels whose number stays",),
    "diff": ("begins with its first element",),
    "diff of two": ("begins with its first element",),
    "zero channels": ("no Parameter makes these channels",) * 2,
    "zero channels by a module": ("no Parameter makes these channels",) * 2,
    "padded by its own number": ("no Parameter makes these channels",),
    "zeros beside, twice": ("no Parameter makes these channels",) * 2,
    "places from the end, behind what stays": ("mul() repeats it along",),
    "one channel, expanded": ("expand() repeats it",),
    "one channel, expanded as": ("expand_as() repeats it",),
    "one channel, repeated": ("repeat() repeats it",),
    "one channel, broadcast": ("broadcast_tensors() repeats it",),
    "one channel, multiplied": ("mul() repeats it",),
    "one channel, dropped": ("squeeze() drops it",),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", LAWFUL)
def test_grows_and_is_lawful(name: str) -> None:
    operator, examples, channel = LAWFUL[name]
    plan, report = check_rule(operator, *examples, channel=channel)
    assert report, str(report)
    others = [re.sub(r" \(test_rules.py:\d+\)", "", why) for why in plan.pinned.values()]
    others = [why for why in others if why != OUTPUT]
    assert [word for word in BESIDE.get(name, ()) if word not in " ".join(others)] == []
    assert len(others) == len(BESIDE.get(name, ()))


class Across(nn.Module):
    """Channels where space is meant."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(x.transpose(1, 2))


# what may not grow, and what is said of it
PINNED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "no rule": (lambda x: torch.special.bessel_j0(x), "special_bessel_j0() has no rule"),
    "transformed": (lambda x: torch.fft.fft(x, dim=1).real, "fft_fft() transforms it"),
    "transformed with others": (lambda x: torch.fft.irfftn(torch.fft.rfftn(x)), "fft_rfftn() transforms it"),
    "halves exchanged": (lambda x: torch.fft.fftshift(x), "fft_fftshift() transforms it"),
    "turned": (lambda x: torch.rot90(x), "rot90() turns it"),
    "a diagonal": (lambda x: x.diagonal(0, 1, 2)[:, None], "diagonal() takes a diagonal of it"),
    "a triangle": (lambda x: x.movedim(1, -1).tril().movedim(-1, 1), "tril() takes a triangle of it"),
    "flip": (lambda x: x.flip(1), "flip() runs along it"),
    "cummax": (lambda x: torch.cummax(x, 1).values, "cummax() runs along it"),
    "sort": (lambda x: x.sort(1).values, "sort() ranks its elements"),
    "topk": (lambda x: torch.topk(x, 3, dim=1)[0], "topk() ranks its elements"),
    "argmax": (lambda x: x * x.argmax(1, keepdim=True), "argmax() ranks its elements"),
    "argmax of all": (lambda x: x * torch.argmax(x), "argmax() ranks its elements"),
    "where the largest is": (lambda x: x * x.max(1, keepdim=True)[1], "max() ranks its elements"),
    "where the median is": (lambda x: x * torch.median(x, dim=1, keepdim=True).indices, "median() ranks its elements"),
    "where the least is": (lambda x: torch.mul(*x.min(-3, True)) * x, "min() ranks its elements"),
    "an element": (lambda x: x * x[:, 0:][:, [0]][:, 0, None], "picks channels of it by their numbers"),
    "one element": (lambda x: x * x[:, 1, None], "takes one element of it"),
    "list": (lambda x: x[:, [0, 2]], "getitem() picks channels of it by their numbers"),
    "tensor": (lambda x: x[:, PICKED], "getitem() picks channels of it by their numbers"),
    "mask": (masked, "setitem() picks elements by a mask"),
    "every other": (lambda x: x[:, ::2], "getitem() takes every so many elements of it"),
    "select": (lambda x: x.select(1, 0)[:, None], "select() takes one element of it"),
    "index_select": (lambda x: x.index_select(1, PICKED), "index_select() picks channels of it by their numbers"),
    "gather": (lambda x: x.gather(1, torch.zeros_like(x).long()), "gather() picks elements along it by their numbers"),
    "take": (lambda x: x * x.take(PICKED)[0], "take() addresses elements by their numbers"),
    "chunk": (lambda x: torch.cat(x.chunk(4, 1)[::-1], 1), "chunk() cuts it into 4 parts, which it is too short for"),
    "tensor_split": (lambda x: x.tensor_split(7, 1)[0], "cuts it into 7 parts, which it is too short for"),
    "shuffled and cut": (lambda x: torch.cat(shuffled(x).chunk(2, 1)[::-1], 1),
                         "chunk() cuts it into 2 equal parts, which its 3 groups of 2 channels do not divide into"),
    "unbind": (lambda x: torch.stack(x.unbind(1), 1), "unbind() takes it apart"),
    "roll": (lambda x: x.roll(1, 1), "roll() rolls it"),
    "out=": (written_out, "add() writes to its out= argument"),
    "constant": (lambda x: x * torch.linspace(0, 1, 6)[:, None, None],
                 "mul() combines it with channels that no layer makes"),
    "pinned": (lambda x: x * x.flip(1).relu(), "flip() runs along it"),
    "of another": (lambda x: x + x.mT.flip(1), "flip() runs along it"),
    "fractional": (nn.FractionalMaxPool2d(2, output_size=2), "draws random numbers for every channel"),
    "spectral norm": (spectral_norm(nn.Conv2d(6, 4, 1)), "largest singular value of the whole"),
    "orthogonal": (orthogonal(nn.Linear(4, 4)), "computes its weight from other Parameters (Orthogonal)"),
    "pooled over": (Across(lambda x: F.avg_pool2d(x, 2)), "avg_pool2d() pools over it"),
    "convolved over": (Across(lambda x: F.conv2d(x, KERNEL.to(x))), "slides over it"),
    "convolved over, transposed": (Across(lambda x: F.conv_transpose2d(x, KERNEL.to(x))), "slides over it"),
    "resampled": (Across(lambda x: F.interpolate(x, scale_factor=2)), "interpolate() resamples it"),
    "sampled": (Across(lambda x: F.grid_sample(x, GRID.to(x), align_corners=False)), "resamples it"),
    "points": (lambda x: F.grid_sample(X, x[..., :2], align_corners=False), "resamples it"),
    "a matrix": (lambda x: F.affine_grid(x[:, :, 0, 0].view(2, 2, 3), [2, 1, 2, 2], False), "takes it for a matrix"),
    "padded": (Across(nn.ReflectionPad2d(1)), "pads it"),
    "padded and cut": (lambda x: F.pad(x, (0, 0, 0, 0, -1, 2)), "pad() pads it"),
    "switched off": (switched_off, "setitem() takes one element of it"),
    "shuffled": (Across(nn.PixelShuffle(2)), "interleaves it"),
    "unshuffled": (Across(nn.PixelUnshuffle(2)), "takes it apart"),
    "unfolded": (Across(lambda x: F.unfold(x, 2)), "slides over it"),
    "folded": (lambda x: F.fold(x[..., 0].mT, (4, 3), 2)[..., 0], "slides over it"),
    "unpooled": (Across(Unpooled()), "pools over it"),
    "unpooled at given places": (Across(lambda x: F.max_unpool2d(x, PLACES.to(x.device), 2)), "pools over it"),
    "a part, gathered": (lambda x: x.gather(0, torch.zeros(1, 3, 4, 4, dtype=torch.int64, device=x.device)),
                         "gather() takes a part of it"),
    "cut into empty parts": (lambda x: torch.cat(x.tensor_split([2, 2, 4], 1), 1), "into parts, some of them empty"),
    "padded in a circle": (lambda x: F.pad(x.movedim(1, -1), (1, 1, 0, 0), "circular").movedim(-1, 1), "pad() pads it"),
    "assigned, one": (lambda x: put(x, 1, 0.0), "setitem() takes one element of it"),
    "assigned, every other": (lambda x: put(x, slice(0, 6, 2), 0.0), "setitem() takes every so many elements of it"),
    "assigned, picked": (lambda x: put(x, [0, 2], 0.0), "setitem() picks channels of it by their numbers"),
    "assigned, a constant": (lambda x: put(x, slice(None), torch.eye(6, device=x.device)[:, :1, None]),
                             "setitem() combines it with channels that no layer makes"),
    "windows": (lambda x: x.unfold(1, 3, 1)[..., 0], "unfold() makes windows of it"),
    "diagonal": (lambda x: torch.einsum("bchh->bch", x)[..., None], "einsum() takes a diagonal"),
    "a number of all": (lambda x: x / (x.shape[1] * x.shape[2]), "computes with its length and that of another axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", PINNED)
def test_what_may_not_grow_is_pinned_and_says_why(name: str) -> None:
    operator, why = PINNED[name]
    with pytest.raises(netaugfx.RuleError) as raised:
        check_rule(operator, X)
    text = re.sub(r" \(test_rules.py:\d+\)", "", str(raised.value))
    assert why in text, text


def test_channels_that_are_parts_of_numbers_are_pinned() -> None:
    with pytest.raises(netaugfx.RuleError, match=r"view_as_complex\(\).* takes it for numbers of"):
        check_rule(lambda x: torch.view_as_complex(x).abs(), torch.randn(2, 5, 2), channel=-1)


# channels where space is meant, in one dimension and in three
SPACE = {
    "adaptive_avg_pool1d": (lambda x: F.adaptive_avg_pool1d(x, 3), MAP1),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(x, 3), MAP1),
    "adaptive_avg_pool3d": (lambda x: F.adaptive_avg_pool3d(x, (3, 2, 2)), MAP3),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(x, (3, 2, 2)), MAP3),
    "max_pool1d": (lambda x: F.max_pool1d(x, 2), MAP1),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), MAP3),
}


@pytest.mark.parametrize("name", SPACE)
def test_pooling_over_channels_pins_them(name: str) -> None:
    operator, x = SPACE[name]
    with pytest.raises(netaugfx.RuleError, match=rf"{name}\(\) .*pools over it"):
        check_rule(Across(operator), x)


def test_order_matters_where_channels_are_combined_with_their_neighbours() -> None:
    def permutable(name: str) -> bool:
        operator, examples, channel = LAWFUL[name]
        plan, _ = check_rule(operator, *examples, channel=channel)
        return plan.widths[-1].permutable

    names = ("eca", "local response norm", "cumsum", "diff")
    assert not any(permutable(name) for name in names)
    assert permutable("add")


@pytest.mark.parametrize("name", ["batch norm", "instance norm, running"])
def test_statistics_of_new_channels(name: str) -> None:
    plan, _ = check_rule(LAWFUL[name][0], X)
    assert plan.fills == {"operator.running_mean": 0.0, "operator.running_var": 1.0}


@pytest.mark.parametrize("bag", [True, False])
def test_a_vocabulary_is_no_width(bag: bool) -> None:
    plan, _ = check_rule(Table(bag), TOKENS, channel=-1)
    assert [w.name for w in plan.widths] == ["before.0"]


def test_attention_keeps_its_scale() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            q = self.q(x)
            y: Tensor = self.out(F.scaled_dot_product_attention(q, q, q))
            return y

    wide = netaugfx.widen(Attention(), example_inputs=TOKENS)
    assert "scale = 0.5" in netaugfx.extract(wide, wide.max_config).code  # type: ignore[operator]


def test_a_rule_of_ones_own() -> None:
    def own(x: Tensor) -> Tensor:
        return torch.special.entr(x.abs())

    with pytest.raises(netaugfx.RuleError, match="has no rule"):
        check_rule(own, X)
    netaugfx.register_rule(torch.special.entr)(lambda op: op.tensors[0].axes)
    plan, report = check_rule(own, X)
    assert report
    assert [w.name for w in plan.widths] == ["before.0"]


def test_a_rule_that_lies_is_found_out() -> None:
    netaugfx.register_rule(torch.flip)(lambda op: op.tensors[0].axes)
    _, report = check_rule(lambda x: torch.flip(x, [1]), X)
    assert set(report.failures) == {4}


@torch.library.custom_op("netaugfx_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)
doubled.register_autograd(lambda ctx, gradient: gradient * 2)


@pytest.mark.parametrize(
    "target", [doubled, torch.ops.netaugfx_tests.doubled, torch.ops.netaugfx_tests.doubled.default,
               "netaugfx_tests::doubled"], ids=repr
)  # fmt: skip
def test_a_rule_for_an_operator_of_ones_own(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    with pytest.raises(netaugfx.RuleError, match=r"doubled.* has no rule"):
        check_rule(doubled, X)
    netaugfx.register_rule(target)(lambda op: op.tensors[0].axes)
    for called in (doubled, torch.ops.netaugfx_tests.doubled):
        plan, report = check_rule(called, X)
        assert report
        assert [w.name for w in plan.widths] == ["before.0"]


class Held(nn.Module):
    """Its view needs memory in order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], -1)


def test_check_rule_gives_its_operator_memory_in_order() -> None:
    assert check_rule(Held(), X)[1]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda op: None, "it gave None where an axis for each of 4 dimensions was expected"),
        (lambda op: tuple(op.result.shape), r"it gave \(2, 6, 4, 4\) where an axis"),
        (lambda op: op.tensors[0].axes[1:], "it gave lengths"),
    ],
)
def test_a_rule_that_gives_no_axes_is_told_so(
    gives: Callable[[Any], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    netaugfx.register_rule(torch.special.entr)(gives)
    with pytest.raises(netaugfx.RuleError, match=message):
        check_rule(torch.special.entr, X)


def test_what_check_rule_refuses() -> None:
    for operator, examples, channel, message in (
        (torch.relu, (), 1, "at least one"),
        (torch.relu, (X,), 7, r"an axis 7 of channels; shape \(2, 6, 4, 4\) came"),
        (lambda x: torch.max(x, 2), (X,), 1, "gave max, and one tensor was expected"),
    ):
        with pytest.raises(netaugfx.RuleError, match=message):
            check_rule(operator, *examples, channel=channel)


def test_what_cannot_be_registered() -> None:
    for targets, message in (
        ((3,), "3 is no function"),
        ((nn.ReLU(),), "ReLU.* is one module; give its class"),
        ((assigned,), r"assigned\(\) is a Python function, which is traced through"),
        ((), "give what the rule describes"),
    ):
        with pytest.raises(netaugfx.RuleError, match=f"register_rule: {message}"):
            netaugfx.register_rule(*targets)(lambda op: ())
