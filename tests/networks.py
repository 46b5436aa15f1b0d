"""Networks written by hand: three whole ones, and one for each trap that others fell into.

Every class here is code as users write it. `CASES` names them all; `CORE` are those whose
operators the library widens, `WIDE` those that it must at least never widen wrongly.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d, deform_conv2d

from tests import modules


@dataclass(frozen=True)
class Case:
    """A network to test: how to make it and what it eats.

    Args:
        name: what a failing test prints.
        make: gives the network.
        shapes: of one sample of each input, `(C, *space)` or `(C,)`.
        other: another image size that the network takes, or None.
        random_weights: whether to replace the weights by ones that hide nothing.
        core: whether inference alone must get it right; else it is tested as verification leaves it.
        mixes: whether some operator mixes channels otherwise than by a weight, so that the base is
            contained only where that operator is kept to base channels.
        large: whether copies of it fill the memory.
        fused: whether torch has a fused kernel for some of its layers, which rounds otherwise than their operators.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((3, 8, 8),)
    other: int | None = None
    random_weights: bool = True
    core: bool = True
    mixes: bool = False
    large: bool = False
    fused: bool = False

    def build(self, seed: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make()
        return modules.randomise(model, seed) if self.random_weights else model

    def inputs(self, seed: int = 0, batch: int = 3, size: int | None = None) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1000 + seed)
        shapes = [
            shape if size is None else (shape[0], *((size,) * len(shape[1:])))
            for shape in self.shapes
        ]
        return tuple(torch.randn(batch, *shape, generator=generator) for shape in shapes)

    def other_size(self) -> int | None:
        return self.other

    def __repr__(self) -> str:
        return self.name


# ---------------------------------------------------------------- three whole networks


class AudioBlock(nn.Module):
    """A residual block of a keyword spotter: dilated depthwise, pointwise, norm."""

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.expand = nn.Conv1d(channels, hidden, 1, bias=False)
        self.norm1 = nn.BatchNorm1d(hidden)
        self.depthwise = nn.Conv1d(
            hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden, bias=False
        )
        self.norm2 = nn.BatchNorm1d(hidden)
        self.project = nn.Conv1d(hidden, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm1d(channels)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.expand(x)))
        y = F.relu(self.norm2(self.depthwise(y)))
        return x + self.drop(self.norm3(self.project(y)))


class AudioNet(nn.Module):
    """1-d: a waveform `(B, 1, T)` to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(1, 6, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(6), nn.ReLU()
        )
        self.blocks = nn.Sequential(AudioBlock(6, 8, 1), AudioBlock(6, 8, 2))
        self.down = nn.Conv1d(6, 5, 3, stride=2, padding=1)
        self.pool = nn.MaxPool1d(2)
        self.hidden = nn.Linear(10, 7)
        self.classifier = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        x = self.pool(F.silu(self.down(x)))
        x = F.adaptive_avg_pool1d(x, 2).flatten(1)
        return self.classifier(F.relu(self.hidden(x)))


class VideoBlock(nn.Module):
    """A (2+1)-d residual block with squeeze-excite."""

    def __init__(self, channels: int, hidden: int, out: int, stride: int) -> None:
        super().__init__()
        self.spatial = nn.Conv3d(
            channels, hidden, (1, 3, 3), stride=(1, stride, stride), padding=(0, 1, 1), bias=False
        )
        self.norm1 = nn.BatchNorm3d(hidden)
        self.temporal = nn.Conv3d(hidden, out, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.norm2 = nn.BatchNorm3d(out)
        self.squeeze = modules.SqueezeExcite(out, 2, 3, "linear view")
        self.act = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(
                nn.Conv3d(channels, out, 1, stride=(1, stride, stride), bias=False),
                nn.BatchNorm3d(out),
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        y = self.act(self.norm1(self.spatial(x)))
        y = self.squeeze(self.norm2(self.temporal(y)))
        y += identity
        return self.act(y)


class VideoNet(nn.Module):
    """3-d: a clip `(B, 3, T, H, W)` to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3, stride=(1, 2, 2), padding=1)
        self.norm = modules.BatchNormAct(4, nn.SiLU())
        self.layer1 = VideoBlock(4, 3, 4, 1)
        self.layer2 = VideoBlock(4, 5, 6, 2)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.norm(self.stem(x))))
        return self.head(torch.flatten(self.pool(x), 1))


class ImageAndTable(nn.Module):
    """Two inputs, an image and a row of a table; a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.table = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
        self.mix = nn.Conv2d(5, 7, 3)
        self.norm = nn.BatchNorm2d(7)
        self.classes = nn.Linear(7, 3)
        self.box = nn.Linear(7, 4)

    def forward(self, image: Tensor, table: Tensor) -> dict[str, Tensor]:
        scale = torch.sigmoid(self.table(table))[:, :, None, None]
        x = F.relu(self.norm(self.mix(self.image(image) * scale)))
        pooled = x.mean((-2, -1))
        return {"classes": self.classes(pooled), "box": self.box(pooled).sigmoid()}


# ---------------------------------------------------------------- traps


class AuxiliaryHead(nn.Module):
    """`self.training` decides in Python what is computed and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.auxiliary = nn.Linear(4, 2)
        self.body = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.stem(x)))
        early = self.auxiliary(x.mean((2, 3))) if self.training else None
        logits = self.head(F.relu(self.body(x)).mean((2, 3)))
        return (logits, early) if self.training else logits


class DropoutEverywhere(nn.Module):
    """Dropout by function, with and without self.training, and by module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc1 = nn.Linear(5, 6)
        self.fc2 = nn.Linear(6, 2)
        self.drop = nn.Dropout2d(0.3)
        self.path = modules.DropPath(0.4)
        self.p = 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.conv1(x)))
        x = F.dropout2d(F.relu(self.conv2(x)), self.p, self.training)
        x = self.path(x).mean((2, 3))
        x = F.dropout(F.relu(self.fc1(x)), p=self.p, training=self.training)
        return self.fc2(F.dropout(x, self.p, self.training, inplace=False))


class AttentionGate(nn.Module):
    """`(B, 1, H, W) * (B, C, H, W)`, and a gate that is expanded first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)
        self.query = nn.Conv2d(5, 1, 1)
        self.channel = nn.Conv2d(5, 5, 1)
        self.out = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = torch.sigmoid(self.query(x)) * x
        x = x * torch.sigmoid(self.channel(x.mean((2, 3), keepdim=True))).expand_as(x)
        return self.head(F.relu(self.out(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Channel shuffle by view, transpose, view, between grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 6, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 1, groups=2)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.norm(self.conv1(x)))
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        y = y.view(batch, -1, height, width)
        return self.head((x + self.conv2(y)).mean((2, 3)))


class GhostModule(nn.Module):
    """`out[:, :n]` with a literal n (GhostNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.primary = nn.Conv2d(3, 4, 1)
        self.cheap = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.oup = 7
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.relu(self.primary(x))
        x2 = self.cheap(x1)
        out = torch.cat([x1, x2], dim=1)
        return self.head(out[:, : self.oup, :, :].mean((2, 3)))


class FlattenThenLinear(nn.Module):
    """A map larger than 1x1 is flattened before a linear layer (VGG, AlexNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((3, 2))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(4 * 6, 5), nn.ReLU(True), nn.Linear(5, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class LiteralBatchView(nn.Module):
    """`x.view(B, 32)` and `x.view(-1, 32)`, the numbers written in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.fc1 = nn.Linear(8 * 9, 32)
        self.fc2 = nn.Linear(32, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = F.relu(self.fc1(x.view(-1, 8 * 3 * 3)))
        x = F.relu(self.fc2(x.view(x.size(0), 32)))
        return self.head(x.view(-1, 32))


class LiteralChannelView(nn.Module):
    """The channel count is a literal inside a reshape, flattened space beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.mix = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        batch, _, height, width = x.shape
        x = x.view(batch, 6, height * width).reshape(batch, 6, height, width)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class CalledTwice(nn.Module):
    """One convolution and norm, called twice; one norm, called on two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.other = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.norm(self.other(x)))
        return self.head(x.mean((2, 3)))


class SharedHead(nn.Module):
    """One head on maps of two sizes, as in a detector."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.down = nn.Conv2d(5, 5, 3, stride=2, padding=1)
        self.tower = nn.Sequential(nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.predict = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = F.relu(self.stem(x))
        coarse = F.relu(self.down(fine))
        return [self.predict(self.tower(level)) for level in (fine, coarse)]


class TiedParameter(nn.Module):
    """One Parameter in two modules: a convolution's weight, and a norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 5, 1)
        self.conv2 = nn.Conv2d(4, 5, 1, bias=False)
        self.conv2.weight = self.conv1.weight
        self.norm1 = nn.BatchNorm2d(5)
        self.norm2 = nn.BatchNorm2d(5)
        self.norm2.weight = self.norm1.weight
        self.norm2.bias = self.norm1.bias
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.norm1(self.conv1(x)) + F.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


class TiedAcrossWidths(nn.Module):
    """A weight shared by layers whose outputs would else be free of each other."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 4, bias=False)
        self.middle = nn.Linear(4, 3)
        self.again = nn.Linear(3, 4)
        self.again.weight = self.encode.weight
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.middle(torch.tanh(self.encode(x))))
        return self.head(torch.tanh(self.again(x)))


class CountsBatches(nn.Module):
    """Momentum None reads num_batches_tracked; a fused norm adds to it in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm1 = nn.BatchNorm2d(4, momentum=None)
        self.conv2 = nn.Conv2d(4, 5, 1)
        self.norm2 = modules.BatchNormAct(5, F.relu)
        self.norm3 = nn.BatchNorm2d(5, track_running_stats=False)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return self.head(self.norm3(self.norm2(self.conv2(x))).mean((2, 3)))


class Frozen(nn.Module):
    """A frozen stem (requires_grad False, norm in eval) below layers that train."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.stem.requires_grad_(False).eval()
        self.conv = nn.Conv2d(4, 5, 1)
        self.conv.bias.requires_grad_(False)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(self.stem(x)))).mean((2, 3)))


def double_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A forward hook that changes what a module gives."""
    return output * 2.0


def shift_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A forward pre-hook that changes what a module gets."""
    return tuple(x + 0.5 for x in inputs)


def count_call(module: Any, *_: Any) -> None:
    """A forward hook or pre-hook that only watches."""
    module.calls = getattr(module, "calls", 0) + 1


class Watched(nn.Module):
    """Hooks that watch: on a leaf, on a block and on the root."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.head = nn.Linear(5, 2)
        self.conv.register_forward_hook(count_call)
        self.block[0].register_forward_pre_hook(count_call)
        self.block.register_forward_hook(count_call)
        self.register_forward_hook(count_call)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.conv(x)).mean((2, 3)))


class Hooked(nn.Module):
    """Hooks that change what passes: on a leaf, on a block and on the root."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.conv.register_forward_hook(double_output)
        self.block = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.block.register_forward_pre_hook(shift_input)
        self.head = nn.Linear(5, 2)
        self.register_forward_hook(double_output)
        self.register_forward_pre_hook(shift_input)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.conv(x)).mean((2, 3)))


class InplaceAlias(nn.Module):
    """An in-place activation changes the tensor that the shortcut reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv(F.relu(x, inplace=True))
        return self.head((x + y).mean((2, 3)))


class ShapeArithmetic(nn.Module):
    """Padding, pooling and scaling computed from shapes, branches on parity."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 2, stride=2)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        height, width = x.shape[-2:]
        if height % 2 == 0:
            x = F.pad(x, [0, -width % 4, 0, 1])
        x = F.relu(self.conv2(x))
        area = x.size(2) * x.size(3)
        x = x.sum(dim=(2, 3)) / float(area)
        return self.head(x * (x.shape[1] ** 0 + len(x.shape)))


class Asserts(nn.Module):
    """Asserts of lengths: one that any width keeps, one that four groups keep, one that no other width keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.any = nn.Conv2d(3, 4, 3)
        self.fours = nn.Conv2d(4, 8, 1)
        self.eights = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.any(x))
        torch._assert(x.dim() == 4 and x.shape[1] > 2, "an image was expected")
        x = self.fours(x)
        batch, channels, *space = x.shape
        torch._assert(channels % 4 == 0, "channels must be a multiple of 4")
        x = F.relu(x.view(batch, 4, channels // 4, *space).flip(1).reshape(x.shape))
        x = F.relu(self.eights(x))
        torch._assert(x.size(1) % 8 == 0, "channels must be a multiple of 8")
        return self.head(x)


class AsksForItsDevice(nn.Module):
    """Leaves automatic mixed precision, but not where it is traced on the meta device (efficientvit_l1)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if x.device.type != "meta":
            with torch.autocast(device_type=x.device.type, enabled=False):
                x = F.relu(x) + 1
        return self.head(x)


class ReadsInEval(nn.Module):
    """Its head reads data, and so cannot be traced, in eval mode alone (detectors that put boxes together)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)
        self.head = ReadingHead()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))))


class ReadingHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Conv2d(5, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(F.relu(self.hidden(x)))
        return x if self.training or x.sum() > -1e9 else -x


class ConcatThenNorm(nn.Module):
    """Maps are concatenated, then normed, then flattened into a linear layer (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(7)
        self.conv3 = nn.Conv2d(7, 2, 1)
        self.norm2 = nn.BatchNorm2d(9)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.relu(self.conv1(x))
        x2 = torch.cat([x1, self.conv2(x1)], 1)
        x3 = torch.cat([x2, self.conv3(F.relu(self.norm1(x2)))], 1)
        return self.head(self.pool(F.relu(self.norm2(x3))).flatten(1))


class GroupedConvs(nn.Module):
    """Grouped convolutions with in != out, and with a group width that the code fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(3, 6)
        self.conv2 = nn.Conv2d(6, 9, 1, groups=3)
        self.head = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(F.relu(self.stem(x))))
        return self.head(F.relu(self.conv2(F.relu(x))).mean((2, 3)))


class PlainTensors(nn.Module):
    """A tensor attribute that is no buffer, of as many values as there are channels; tensors made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.scale = torch.linspace(1, 2, 4)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x)))) * self.scale.to(x).view(4, 1, 1)
        x = F.relu(self.conv3(x))
        ones = torch.ones(len(x), 1, *x.shape[2:], dtype=x.dtype)
        return self.head(torch.cat([x + torch.zeros(x.shape, dtype=x.dtype), ones], 1).mean((2, 3)))


class GatePerGroup(nn.Module):
    """A gate for each group, repeated over as many channels as a group has: the number of groups grows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.gates = nn.Linear(8, 2)
        self.shifts = nn.Linear(8, 2)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        n, c = x.shape[:2]
        pooled = x.mean((2, 3))
        gates = self.gates(pooled).sigmoid().view(n, 2, 1).expand(n, 2, c // 2).reshape(n, c, 1, 1)
        shifts = self.shifts(pooled).view(n, 2, 1) + x.new_zeros(n, 1, c // 2)
        return self.head((x * gates + shifts.view(n, c, 1, 1)).mean((2, 3)))


class CountOfAnother(nn.Module):
    """Channels that stay, and channels of another width, viewed by the count of those that came in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.conv3 = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        n, c, h, w = x.shape
        y = (self.conv2(x) * x.new_tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)).view(n, c, h * w)
        z = F.fold(F.unfold(self.conv3(x), 3).reshape(n, c * 9, (h - 2) * (w - 2)), (h, w), 3)
        return self.head(torch.cat([y.mean(2), z.mean((2, 3))], 1))


class GatedHalves(nn.Module):
    """Gated linear units by chunk, by split and by F.glu."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 1)
        self.conv2 = nn.Conv2d(3, 8, 1)
        self.conv3 = nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv1(x).chunk(2, dim=1)
        c, d = self.conv2(a * torch.sigmoid(b)).split(4, dim=1)
        return self.head(F.glu(self.conv3(F.gelu(c) * d), dim=1).mean((2, 3)))


class ExpertConvs(nn.Module):
    """Kernels mixed for each sample, kept as vectors and as tensors: dense, grouped and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.dense = modules.ExpertConv(6, 4, 2, 3, groups=1, flat=True, bias=True)
        self.norm2 = nn.BatchNorm2d(4)
        self.depthwise = modules.ExpertConv(4, 4, 2, 3, groups=4, flat=True, bias=False)
        self.grouped = modules.ExpertConv(4, 6, 2, 1, groups=2, flat=False, bias=True)
        self.last = modules.ExpertConv(6, 5, 2, 3, groups=1, flat=False, bias=False)
        self.norm3 = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.norm2(self.dense(x)))
        x = F.relu(self.grouped(F.relu(self.depthwise(x))))
        return self.head(F.relu(self.norm3(self.last(x))).mean((2, 3)))


class HyperNetwork(nn.Module):
    """A kernel that another layer computes, for each sample its own; no norm behind it has as many channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.kernel = nn.Linear(4, 5 * 4 * 9)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        n, channels, *space = x.shape
        kernel = self.kernel(x.mean((2, 3))).view(-1, channels, 3, 3)
        x = F.conv2d(x.reshape(1, n * channels, *space), kernel, padding=1, groups=n)
        return self.head(F.relu(x).view(n, 5, *space).mean((2, 3)))


class DynamicReLU(nn.Module):
    """The largest of two linear functions of each channel, whose slopes and offsets the image gives (DyReLU-B)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 1)
        self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 5 * 4)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        given = torch.sigmoid(self.second(F.relu(self.first(x.mean((2, 3)))))).view(-1, 5, 4)
        lines = x.permute(2, 3, 0, 1)[..., None] * given[:, :, :2] + given[:, :, 2:]
        return self.head(lines.amax(-1).permute(2, 3, 0, 1).mean((2, 3)))


class BilinearPooling(nn.Module):
    """Products of the channels of two maps, three widths at once in the last one, and a fixed projection."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("projection", torch.randn(6, 4))
        self.head, self.last = nn.Linear(4, 2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (F.relu(layer(x)).flatten(2) for layer in (self.a, self.b, self.c))
        two = self.norm(torch.einsum("nat,nbt->nab", a, b).flatten(1))
        three = torch.einsum("nat,nbt,nct->nabc", a, b, c).flatten(1)
        return self.head(two @ self.projection) + self.last(three)


class CutInHalvesAndThirds(nn.Module):
    """Channels of a depthwise multiplier, cut in two parts at one place and in three at another (EdgeNeXt)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.multiplier = nn.Conv2d(12, 24, 3, padding=1, groups=12)
        self.first = nn.Conv2d(12, 12, 1, groups=12)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.multiplier(self.stem(x)))
        a, b = x.chunk(2, dim=1)
        x = x + torch.cat([self.first(a), b], 1)
        a, b, c = x.chunk(3, dim=1)
        x = x * torch.cat([self.second(a), b, c], 1)
        return self.head(x.mean((2, 3)))


class PixelShuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 4, 3, padding=1)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(F.relu(self.conv1(x)), 2)
        return self.head(F.pixel_unshuffle(F.relu(self.conv2(x)), 2))


class ConvNextBlock(nn.Module):
    """LayerNorm on permuted axes, linears on the last axis, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4, eps=1e-6)
        self.fc1 = nn.Linear(4, 6)
        self.fc2 = nn.Linear(6, 4)
        self.gamma = nn.Parameter(torch.full((4,), 0.1))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class ChannelBuffers(nn.Module):
    """Buffers with a channel axis: input statistics, and a blur filter per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1))
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        line = torch.tensor([1.0, 2.0, 1.0]) / 4.0
        self.register_buffer("blur", (line[:, None] * line).expand(4, 1, 3, 3).clone())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv((x - self.mean) / self.std))
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.blur, stride=2, groups=4)
        return self.head(x.mean((2, 3)))


class StandardisedConv(nn.Conv2d):
    """A convolution that standardises its own weight (NFNet)."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        mean = weight.mean(dim=(1, 2, 3), keepdim=True)
        std = weight.std(dim=(1, 2, 3), keepdim=True)
        weight = (weight - mean) / (std + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class SamePaddedConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (-1, -2):
            kernel, stride = self.kernel_size[axis], self.stride[axis]
            total = max((-(x.shape[axis] // -stride) - 1) * stride + kernel - x.shape[axis], 0)
            pads += [total // 2, total - total // 2]
        x = F.pad(x, pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SelfWeighted(nn.Module):
    """Convolutions with a forward of their own, on their own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = StandardisedConv(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class SamePadded(nn.Module):
    """ "Same" padding from the input's size: stride 2, dense and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = SamePaddedConv(3, 4, 3, stride=2, bias=False)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = SamePaddedConv(4, 4, 5, stride=2, groups=4)
        self.conv3 = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm1(self.conv1(x)))
        return self.head(F.relu(self.conv3(F.relu(self.conv2(x)))).mean((2, 3)))


class LiteralHeads(nn.Module):
    """Self-attention over the pixels, its head count a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.qkv = nn.Linear(4, 12)
        self.project = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        y = y.transpose(1, 2).reshape(batch, tokens, channels)
        return self.head((x + self.project(y)).mean(1))


class ChannelConv(nn.Module):
    """A 1-d convolution over the channel axis (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.out = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        gate = self.eca(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        x = x * gate.view(x.shape[0], -1, 1, 1)
        return self.head(F.relu(self.out(x)).mean((2, 3)))


class Parametrised(nn.Module):
    """A weight that is computed from others (weight norm as a parametrisation)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.mix = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(F.relu(self.conv(x)))).mean((2, 3)))


class Transformer(nn.Module):
    """Torch's own attention over patches and a class token, with the table of biases that Swin has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 5, 6))
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).reshape(x.shape[0], 6, 4).permute(0, 2, 1)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head(self.layer(x)[:, 0])


class AttentionByHand(nn.Module):
    """Scores over the root of a width that is read from a shape; biases from a table by an index."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.query, self.key, self.value = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 5)
        self.table = nn.Parameter(torch.randn(7, 2))
        self.register_buffer("index", torch.arange(16).remainder(7).view(4, 4))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        q, k = self.query(x), self.key(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores + self.table[self.index].sum(-1)
        return self.head((scores.softmax(-1) @ self.value(x)).mean(1))


class PoolingUndone(nn.Module):
    """An encoder and decoder that shares the places of the maxima (SegNet), its norms with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.InstanceNorm2d(5, affine=True, track_running_stats=True)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.middle = nn.Conv2d(5, 5, 1)
        self.up = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = self.pool(F.relu(self.norm(self.down(x))))
        x = self.middle(x)
        x[:, :2] += 1.0
        return self.up(self.unpool(x, places))


class OldWeightNorm(nn.Module):
    """The old-style weight norm, which cannot be deep-copied once it has run."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


class ChannelPadded(nn.Module):
    """A shortcut that pads the channel axis with zeros (ResNet's option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(F.relu(shortcut + self.conv(x)).mean((2, 3)))


class ZeroPaddedBlock(nn.Module):
    """A residual block whose shortcut has every second pixel, and zeros beside its channels."""

    def __init__(self, channels: int, out: int, shortcut: str) -> None:
        super().__init__()
        self.out, self.shortcut = out, shortcut
        self.conv1 = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = x[:, :, ::2, ::2]
        batch, channels, *space = x.shape
        if self.shortcut == "both sides":
            new = (self.out - channels) // 2
            x = F.pad(x, (0, 0, 0, 0, new, self.out - channels - new), "constant", 0)
        elif self.shortcut == "difference":
            x = F.pad(x, (0, 0, 0, 0, 0, y.size(1) - x.size(1)), value=0.5)
        elif self.shortcut == "zeros":
            new = torch.zeros(batch, self.out - channels, *space, dtype=x.dtype, device=x.device)
            x = torch.cat([x, new], 1)
        elif self.shortcut == "new zeros":
            x = torch.cat([x.new_zeros((batch, 3, *space)), x], 1)
        elif self.shortcut == "zeros like":
            x = torch.cat([x, torch.zeros_like(x[:, : self.out - channels])], 1)
        elif self.shortcut == "times zero":
            x = torch.cat([x, x.mul(0)], 1)
        return F.relu(x + y)


class ZeroPaddedShortcuts(nn.Module):
    """Shortcuts without weights in all the ways that people write them, and a grouped convolution behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(
            ZeroPaddedBlock(4, 7, "both sides"),
            ZeroPaddedBlock(7, 9, "difference"),
            ZeroPaddedBlock(9, 11, "zeros"),
        )
        self.squeeze = nn.Conv2d(11, 3, 1)
        self.again = nn.Sequential(
            ZeroPaddedBlock(3, 6, "new zeros"),
            ZeroPaddedBlock(6, 8, "zeros like"),
            ZeroPaddedBlock(8, 16, "times zero"),
        )
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.blocks(self.stem(x)))
        return self.head(F.relu(self.depthwise(self.again(x))).mean((2, 3)))


class PaddedSequences(nn.Module):
    """Channels padded with a constant in one and in three dimensions, and where no layer makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 6, 1)
        self.lift, self.deep = nn.Conv3d(6, 4, 1), nn.Conv3d(4, 9, 1)
        self.last, self.head = nn.Conv3d(11, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.pad(x, [1, 1], value=2.0) if x.shape[-1] % 2 else x
        x = F.pad(x, (0, 0, 0, 2), value=-1.0) + self.conv(x)
        x = x[..., None, None].expand(-1, -1, -1, 2, 2)
        y = self.lift(x)
        y = F.pad(y, (0, 0, 0, 0, 0, 0, 2, 3)) * self.deep(y)
        y = F.pad(y, (0, 0, 0, 0, 0, 0, 1, 1))  # nothing but `last` meets these
        return self.head(self.last(y).mean((2, 3, 4)))


class Checkpointed(nn.Module):
    """Activation checkpointing, which runs a block's forward again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Dropout(0.2))
        self.out = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = checkpoint(self.block, x, use_reentrant=False) if self.training else self.block(x)
        return self.head((x + self.out(y)).mean((2, 3)))


class Reserved(nn.Module):
    """Children, Parameters and buffers named as the library names its own."""

    def __init__(self) -> None:
        super().__init__()
        self.augmented = nn.Conv2d(3, 4, 3)
        self.base = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.plan = nn.Conv2d(5, 4, 1)
        self.sample = nn.Conv2d(4, 4, 1)
        self.example = nn.Conv2d(4, 3, 1)
        self.at = nn.ReLU()
        self.widths = nn.Linear(3, 2)
        self.bound = nn.Parameter(torch.ones(()))
        self.register_buffer("pinned", torch.tensor(2.0))

    def forward(self, bound: Tensor) -> Tensor:
        x = self.plan(self.base(F.relu(self.augmented(bound))))
        x = self.example(self.at(self.sample(x))) * self.bound
        return self.widths(x.mean((2, 3))) * self.pinned


class Unused(nn.Module):
    """Layers that no forward calls, and an input that is returned as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.unused = nn.Sequential(nn.Conv2d(4, 9, 1), nn.BatchNorm2d(9))
        self.unused_parameter = nn.Parameter(torch.ones(5))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        return self.head(F.relu(self.conv(x)).mean((2, 3))), x, 3


class MapsOut(nn.Module):
    """A backbone: it returns every stage's map, nested, and goes on from each."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(4, 6, 1), nn.Conv2d(6, 5, 3, stride=2), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Any]:
        low = self.stage1(x)
        high = self.stage2(low)
        return {"maps": [low, high], "pooled": (high.mean((2, 3)),)}


class Deformable(nn.Module):
    """Convolutions that read at places of their own: with a mask, in groups, depthwise, and as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.places, self.mask = nn.Conv2d(6, 18, 3, padding=1), nn.Conv2d(6, 9, 3, padding=1)
        self.masked = DeformConv2d(6, 8, 3, padding=1)
        self.places_of_halves = nn.Conv2d(8, 36, 3, stride=2, padding=1)
        self.halves = DeformConv2d(8, 6, 3, stride=2, padding=1, bias=False)
        self.places_of_groups = nn.Conv2d(6, 2, 1)
        self.grouped, self.depthwise = (
            DeformConv2d(6, 4, 1, groups=2),
            DeformConv2d(4, 4, 1, groups=4),
        )
        self.weight = nn.Parameter(torch.ones(5, 4, 1, 1))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.masked(x, self.places(x), self.mask(x).sigmoid()))
        x = F.relu(self.halves(x, self.places_of_halves(x)))
        places = self.places_of_groups(x)
        x = self.depthwise(F.relu(self.grouped(x, places)), places)
        x = deform_conv2d(x, places, self.weight)
        return self.head(F.relu(x).mean((2, 3)))


class Recurrent(nn.Module):
    """Recurrent layers in both directions, on top of each other, with a state given and cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(3, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 4, 2, batch_first=True, dropout=0.2, bidirectional=True)
        self.middle = nn.Linear(8, 5)
        self.gru, self.rnn = nn.GRU(5, 3), nn.RNN(5, 3, nonlinearity="relu", bias=False)
        self.up = nn.Linear(3, 6)
        self.cell, self.other = nn.LSTMCell(6, 4), nn.GRUCell(6, 4)
        self.hidden = nn.Linear(8, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lstm(F.relu(self.stem(x)).transpose(1, 2))[0]
        x = F.relu(self.middle(x)).transpose(0, 1)
        y, state = self.gru(x)
        x = F.relu(self.up(y + self.rnn(x, state)[0]))
        h, c = self.cell(x[0])
        for step in x[1:3]:
            h, c = self.cell(step, (h, c))
        return self.head(F.relu(self.hidden(torch.cat([c, self.other(x[3], h)], -1))))


class RawParameters(nn.Module):
    """Parameters used without a layer: a scalar, a bias per channel, a weight for F.conv2d."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(4))
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.mix = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1)
        x = F.relu(x * self.scale + self.shift)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class UnknownInTheMiddle(nn.Module):
    """Operators without a rule between convolutions; what lies beyond stays elastic."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 6, 1)
        self.conv1 = nn.Conv2d(6, 4, 3)
        self.conv2 = nn.Conv2d(4, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.before(x)))
        x = torch.flip(x, (1,))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


class SwishFunction(torch.autograd.Function):
    """x * sigmoid(x), which keeps its input alone for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


class GateFunction(torch.autograd.Function):
    """Two inputs and two results, one of which is no tensor; forward and context apart."""

    @staticmethod
    def forward(x: Tensor, gate: Tensor, scale: float = 2.0) -> tuple[Tensor, None]:
        return x * (gate * scale).tanh(), None

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.scale = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, Tensor, None]:
        x, gate = ctx.saved_tensors
        t = (gate * ctx.scale).tanh()
        return gradient * t, gradient * x * ctx.scale * (1 - t * t), None


class OwnBackward(nn.Module):
    """Functions with a backward of their own: called by name, and as an attribute keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.swish = SwishFunction.apply
        self.gate = nn.Conv2d(6, 5, 1)
        self.body = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.stem(x))
        x, _ = GateFunction.apply(self.body(x), self.gate(x), 0.5)
        return self.head(SwishFunction.apply(x).mean((2, 3)))


class OwnBackwardInAGraph(nn.Module):
    """A Function behind a view that holds a channel count: no class runs at other widths, a graph does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = SwishFunction.apply(self.stem(x))
        x = x.view(x.shape[0], 6, -1).unflatten(2, x.shape[2:])
        return self.head(SwishFunction.apply(self.body(x)).mean((2, 3)))


class SoftmaxFunction(torch.autograd.Function):
    """A softmax over channels, and nothing beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, None]:
        y = (x - x.amax(1, keepdim=True)).exp()
        y = y / y.sum(1, keepdim=True)
        ctx.save_for_backward(y)
        return y, None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Tensor:
        (y,) = ctx.saved_tensors
        return y * (gradient - (gradient * y).sum(1, keepdim=True))


class OwnBackwardMixes(nn.Module):
    """A Function that mixes channels, and one that is a linear layer: its weight is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Conv2d(6, 5, 1)
        self.hidden = nn.Linear(5, 7, bias=False)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = SoftmaxFunction.apply(self.stem(x))
        x = F.relu(self.body(x)).mean((2, 3))
        return self.head(F.relu(LinearFunction.apply(x, self.hidden.weight)))


class LinearFunction(torch.autograd.Function):
    """A linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


class LiteralFunction(torch.autograd.Function):
    """It holds a channel count, which no subnet can replace."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x.view(x.shape[0], 6, -1) * 2).view(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class HalvesFunction(torch.autograd.Function):
    """It cuts channels in halves, and divides by their number where told to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: bool) -> Tensor:
        half = x.shape[1] // 2
        y = torch.cat((x[:, half:], x[:, :half]), 1)
        ctx.by = x.shape[1] if by else 1
        return y / x.shape[1] if by else y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        half = gradient.shape[1] // 2
        return torch.cat((gradient[:, -half:], gradient[:, :-half]), 1) / ctx.by, None


class OwnBackwardCounts(nn.Module):
    """Functions that hold a count of channels, or compute one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.body = nn.Conv2d(6, 4, 1)
        self.grows = nn.Conv2d(4, 5, 1)
        self.neck = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = LiteralFunction.apply(self.stem(x))
        x = HalvesFunction.apply(F.relu(self.body(x)), False)
        x = HalvesFunction.apply(self.neck(F.relu(self.grows(x))), True)
        return self.head(x.mean((2, 3)))


class StoresFeatures(nn.Module):
    """A block that leaves on itself what others read, logs and forgets, as auxiliary losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 5, 1)
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        self.features = x.mean((2, 3))
        self.last = {"features": self.features, "shape": x.shape}
        self.log.append(x.amax((2, 3)))
        self.log = self.log[-2:]
        return self.conv2(x)


class CachesGrid(nn.Module):
    """A constant kept for the size of map that came last, and made anew for another."""

    size: tuple[int, ...] | None = None
    grid = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.size != y.shape[2:]:
            self.size = y.shape[2:]
            self.grid = torch.arange(y.shape[3], dtype=y.dtype).expand(y.shape[2:]).clone()
        return y * self.grid.to(y)


class ReadsStoredFeatures(nn.Module):
    """An auxiliary output of what a block has stored."""

    def __init__(self) -> None:
        super().__init__()
        self.block = StoresFeatures()
        self.head = nn.Linear(5, 2)
        self.auxiliary = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.block.features = None
        y = self.head(F.relu(self.block(x)).mean((2, 3)))
        self.mean = y.detach().mean(0)
        return y + self.auxiliary(self.block.last["features"]) if self.training else y


CORE = (
    Case("audio", AudioNet, ((1, 32),), 45),
    Case("video", VideoNet, ((3, 4, 6, 6),), 7),
    Case("image and table", ImageAndTable, ((3, 8, 8), (4,))),
    Case("auxiliary head", AuxiliaryHead, other=11),
    Case("dropout everywhere", DropoutEverywhere, other=11),
    Case("attention gate", AttentionGate, other=11),
    Case("flatten then linear", FlattenThenLinear, other=11),
    Case("literal batch view", LiteralBatchView),
    Case("literal channel view", LiteralChannelView, other=11),
    Case("called twice", CalledTwice, other=11),
    Case("shared head", SharedHead, other=11),
    Case("tied parameter", TiedParameter, other=11),
    Case("tied across widths", TiedAcrossWidths, ((3,),)),
    Case("counts batches", CountsBatches, other=11),
    Case("frozen", Frozen, other=11),
    Case("watched", Watched, other=11),
    Case("inplace alias", InplaceAlias, other=11),
    Case("shape arithmetic", ShapeArithmetic, other=11),
    Case("same padded", SamePadded, other=11),
    Case("asserts", Asserts, other=11),
    Case("reads in eval", ReadsInEval, other=11),
    Case("asks for its device", AsksForItsDevice, other=11),
    Case("channel padded", ChannelPadded, other=11),
    Case("zero-padded shortcuts", ZeroPaddedShortcuts, ((3, 16, 16),), 21),
    Case("padded sequences", PaddedSequences, ((3, 8),), 11),
    Case("checkpointed", Checkpointed, other=11),
    Case("reserved", Reserved, other=11),
    Case("unused", Unused, other=11),
    Case("maps out", MapsOut, other=11),
    Case("unknown in the middle", UnknownInTheMiddle, other=11),
)
WIDE = (
    Case("hooked", Hooked, other=11, core=False),
    Case("shuffle unit", ShuffleUnit, other=11, core=False),
    Case("ghost module", GhostModule, other=11, core=False),
    Case("concat then norm", ConcatThenNorm, other=11, core=False),
    Case("plain tensors", PlainTensors, other=11),
    Case("stores features", ReadsStoredFeatures, other=11),
    Case("caches a grid", CachesGrid, other=11),
    Case("count of another", CountOfAnother, other=11),
    Case("gate per group", GatePerGroup, other=11),
    Case("grouped convs", GroupedConvs, other=11, core=False, mixes=True),
    Case("gated halves", GatedHalves, other=11, core=False),
    Case("expert convs", ExpertConvs, other=11, core=False, mixes=True),
    Case("hyper network", HyperNetwork, other=11, core=False, mixes=True),
    Case("dynamic relu", DynamicReLU, other=11, core=False),
    Case("bilinear pooling", BilinearPooling, other=11, core=False),
    Case("cut in halves and thirds", CutInHalvesAndThirds, other=11, core=False),
    Case("pixel shuffled", PixelShuffled, other=10, core=False),
    Case("convnext block", ConvNextBlock, other=10, core=False, mixes=True),
    Case("channel buffers", ChannelBuffers, other=11, core=False),
    Case("self weighted", SelfWeighted, other=11, core=False, mixes=True),
    Case("literal heads", LiteralHeads, other=10, core=False, mixes=True),
    Case("channel conv", ChannelConv, other=11, core=False, mixes=True),
    Case("transformer", Transformer, core=False, mixes=True, fused=True),
    Case("attention by hand", AttentionByHand, core=False, mixes=True),
    Case("pooling undone", PoolingUndone, other=10, core=False),
    Case("parametrised", Parametrised, other=11, core=False),
    Case("deformable", Deformable, other=11, core=False),
    Case("recurrent", Recurrent, ((3, 4),), 5, core=False),
    Case("raw parameters", RawParameters, other=11, core=False),
    Case("own backward", OwnBackward, other=11),
    Case("own backward in a graph", OwnBackwardInAGraph, other=11),
    Case("own backward mixes", OwnBackwardMixes, other=11, mixes=True),
    Case("own backward counts", OwnBackwardCounts, other=11),
)
CASES = CORE + WIDE
WHOLE = CORE[:3]
