"""The building blocks of the test networks, generated or hand-written: user code, no netaugfx."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG_POOL = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE_AVG = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
ADAPTIVE_MAX = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
DROPOUT = {0: nn.Dropout, 1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
ZERO_PAD = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
CONSTANT_PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}
REFLECTION_PAD = {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d}
REPLICATION_PAD = {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d}
CIRCULAR_PAD = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}
F_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
F_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
F_ADAPTIVE_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
F_ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
POOL_FUNCTIONS: dict[str, dict[int, Callable[..., Tensor]]] = {
    "max": F_MAX_POOL,
    "avg": F_AVG_POOL,
    "adaptive max": F_ADAPTIVE_MAX,
    "adaptive avg": F_ADAPTIVE_AVG,
}


# ---------------------------------------------------------------- functions that a forward may call


def relu_method(x: Tensor) -> Tensor:
    return x.relu()


def relu_inplace(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


def relu_underscore(x: Tensor) -> Tensor:
    return x.relu_()


def tanh_method(x: Tensor) -> Tensor:
    return x.tanh()


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def clamp(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0.0, max=6.0)


def hard_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3.0) / 6.0


def swish(x: Tensor) -> Tensor:
    return x.mul(x.sigmoid())


def scale_and_shift(x: Tensor) -> Tensor:
    return 1.5 - 0.5 * x


ACTIVATIONS: dict[str, Callable[[], Step]] = {
    "ReLU": nn.ReLU,
    "F.relu": lambda: F.relu,
    "torch.relu": lambda: torch.relu,
    "relu method": lambda: relu_method,
    "SiLU": nn.SiLU,
    "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid,
    "ReLU6": nn.ReLU6,
    "GELU": nn.GELU,
    "LeakyReLU": lambda: nn.LeakyReLU(0.2),
    "ELU": nn.ELU,
    "Mish": nn.Mish,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "Identity": nn.Identity,
    "PReLU": lambda: nn.PReLU(1),
    "F.silu": lambda: F.silu,
    "F.gelu": lambda: F.gelu,
    "F.hardtanh": lambda: F.hardtanh,
    "torch.sigmoid": lambda: torch.sigmoid,
    "tanh method": lambda: tanh_method,
    "leaky_relu": lambda: leaky_relu,
    "clamp": lambda: clamp,
    "hard_swish": lambda: hard_swish,
    "swish": lambda: swish,
    "scale_and_shift": lambda: scale_and_shift,
}
INPLACE_ACTIVATIONS: dict[str, Callable[[], Step]] = {
    "ReLU inplace": lambda: nn.ReLU(inplace=True),
    "Hardswish inplace": lambda: nn.Hardswish(inplace=True),
    "ReLU6 inplace": lambda: nn.ReLU6(inplace=True),
    "F.relu inplace": lambda: relu_inplace,
    "relu_": lambda: relu_underscore,
}


def flatten_view(x: Tensor) -> Tensor:
    return x.view(x.size(0), -1)


def flatten_reshape(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


def flatten_function(x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


def flatten_method(x: Tensor) -> Tensor:
    return x.flatten(start_dim=1)


def flatten_product(x: Tensor) -> Tensor:
    return x.reshape(-1, math.prod(x.shape[1:]))


def mean_method(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())))


def mean_negative(x: Tensor) -> Tensor:
    return torch.mean(x, dim=list(range(-x.ndim + 2, 0)))


def mean_keepdim(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def sum_method(x: Tensor) -> Tensor:
    return x.sum(dim=tuple(range(2, x.dim())), keepdim=True) / 7.0


def amax_method(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())))


FLATTENS: dict[str, Callable[[], Step]] = {
    "nn.Flatten": nn.Flatten,
    "torch.flatten": lambda: flatten_function,
    "flatten": lambda: flatten_method,
    "view": lambda: flatten_view,
    "reshape": lambda: flatten_reshape,
    "product": lambda: flatten_product,
}
REDUCTIONS: dict[str, Callable[[], Step]] = {
    "mean": lambda: mean_method,
    "torch.mean": lambda: mean_negative,
    "mean keepdim": lambda: mean_keepdim,
    "sum keepdim": lambda: sum_method,
    "amax": lambda: amax_method,
}


def cumsum(x: Tensor) -> Tensor:
    return torch.cumsum(x, 1) * 0.3


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, dim=1) * 2.0


def sort_channels(x: Tensor) -> Tensor:
    return torch.sort(x, dim=1).values


def sort_space(x: Tensor) -> Tensor:
    return x.sort(-1)[0]


def flip_channels(x: Tensor) -> Tensor:
    return torch.flip(x, (1,))


def logcumsumexp(x: Tensor) -> Tensor:
    return torch.logcumsumexp(x, -1)


def layer_standardise(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[1:])


UNKNOWNS: dict[str, Step] = {
    "cumsum": cumsum,
    "softmax": softmax,
    "sort channels": sort_channels,
    "sort space": sort_space,
    "flip channels": flip_channels,
    "logcumsumexp": logcumsumexp,
    "layer_standardise": layer_standardise,
}


# ---------------------------------------------------------------- modules


class Call(nn.Module):
    """A function as a module, so that it can stand in an nn.Sequential."""

    def __init__(self, function: Step) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def as_module(step: Step) -> nn.Module:
    return step if isinstance(step, nn.Module) else Call(step)


class Chain(nn.Module):
    """Steps one after the other; functions among them are called by this module's own forward."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.order = self.attach("step", steps)

    def attach(self, prefix: str, steps: Sequence[Step]) -> tuple[tuple[str, Step | None], ...]:
        order = []
        for index, step in enumerate(steps):
            name = f"{prefix}{index}"
            if isinstance(step, nn.Module):
                setattr(self, name, step)
                order.append((name, None))
            else:
                order.append((name, step))
        return tuple(order)

    def run(self, order: tuple[tuple[str, Step | None], ...], x: Tensor) -> Tensor:
        for name, function in order:
            x = getattr(self, name)(x) if function is None else function(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.order, x)


class Residual(Chain):
    """body(x) + shortcut(x); a shortcut of another size is pooled to the body's."""

    def __init__(
        self, body: Sequence[Step], shortcut: nn.Module | None, pool: bool, how: str
    ) -> None:
        super().__init__(body)
        self.shortcut = shortcut
        self.pool = pool
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.run(self.order, x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.pool:
            x = F_ADAPTIVE_AVG[x.dim() - 2](x, tuple(y.shape[2:]))
        if self.how == "iadd":
            y += x
            return y
        if self.how == "torch.add":
            return torch.add(y, x)
        if self.how == "alpha":
            return y.add(x, alpha=0.5)
        return y + x


class ZerosBeside(nn.Module):
    """A shortcut without weights: zeros beside the channels, padded or made beside them."""

    def __init__(self, first: int, last: int, how: str) -> None:
        super().__init__()
        self.first, self.last, self.how = first, last, how

    def forward(self, x: Tensor) -> Tensor:
        space = (0, 0) * (x.dim() - 2)
        if self.how == "pad":
            return F.pad(x, (*space, self.first, self.last))
        zeros = torch.zeros(x.shape[0], self.first + self.last, *x.shape[2:], dtype=x.dtype)
        return torch.cat([x, zeros.to(x.device)], 1)


class Branches(nn.Module):
    """Branches of the same input, joined by add, mul or cat."""

    def __init__(self, branches: Sequence[nn.Module], how: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        size = outputs[0].shape[2:]
        outputs = [
            y if y.shape[2:] == size else F_ADAPTIVE_AVG[x.dim() - 2](y, tuple(size))
            for y in outputs
        ]
        if self.how == "cat":
            return torch.cat(outputs, 1)
        total = outputs[0]
        for y in outputs[1:]:
            total = total * y if self.how == "mul" else total + y
        return total


class Twice(Chain):
    """One chain called twice."""

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.order, self.run(self.order, x))


class TiedConvs(nn.Module):
    """Two convolutions that share one weight Parameter, after one another or beside one another."""

    def __init__(self, first: nn.Module, second: nn.Module, how: str) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.second.weight = self.first.weight
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chain":
            return self.second(torch.tanh(self.first(x)))
        return self.first(x) + torch.tanh(self.second(x))


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 act(W1 mean(x))), by 1x1 convolutions or by linears."""

    def __init__(self, channels: int, reduced: int, rank: int, form: str) -> None:
        super().__init__()
        self.form = form
        if form.startswith("conv"):
            self.reduce = CONV[rank](channels, reduced, 1)
            self.expand = CONV[rank](reduced, channels, 1)
        else:
            self.reduce = nn.Linear(channels, reduced)
            self.expand = nn.Linear(reduced, channels)
        self.pool = ADAPTIVE_AVG[rank](1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "conv":
            s = x.mean(tuple(range(2, x.dim())), keepdim=True)
        elif self.form == "conv pool":
            s = self.pool(x)
        elif self.form == "linear view":
            s = self.pool(x).view(x.shape[0], x.shape[1])
        else:
            s = x.mean(tuple(range(2, x.dim())))
        s = torch.sigmoid(self.expand(self.act(self.reduce(s))))
        if self.form == "linear view":
            b, c = x.size()[:2]
            s = s.view(b, c, *([1] * (x.dim() - 2)))
        elif self.form == "linear index":
            s = s[(slice(None), slice(None)) + (None,) * (x.dim() - 2)]
        elif self.form == "linear unsqueeze":
            for _ in range(x.dim() - 2):
                s = s.unsqueeze(-1)
        return x * s


class SpatialGate(nn.Module):
    """x * sigmoid(conv(x)) with a gate of one channel, `(B, 1, ...) * (B, C, ...)`."""

    def __init__(self, channels: int, rank: int, swapped: bool) -> None:
        super().__init__()
        self.conv = CONV[rank](channels, 1, 1)
        self.swapped = swapped

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x).sigmoid()
        return gate * x if self.swapped else x.mul(gate)


class OddPad(nn.Module):
    """Pads the last axis to an even size."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return x


class SamePad(nn.Module):
    """Pads every spatial axis as TensorFlow's "same" does for this kernel and stride."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        pad: list[int] = []
        for size in reversed(x.size()[2:]):
            total = max((math.ceil(size / self.stride) - 1) * self.stride + self.kernel - size, 0)
            pad += [total // 2, total - total // 2]
        return F.pad(x, pad)


class FunctionPad(nn.Module):
    """F.pad with literal sizes; "channels" adds a zero channel at the end (ResNet's option A)."""

    def __init__(self, rank: int, mode: str) -> None:
        super().__init__()
        self.pad = [1, 0] * rank + ([0, 1] if mode == "channels" else [])
        self.mode = "constant" if mode == "channels" else mode

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, mode=self.mode)


class FunctionalPool(nn.Module):
    """A pooling function, its arguments given by keyword."""

    def __init__(self, kind: str, **arguments: Any) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = arguments

    def forward(self, x: Tensor) -> Tensor:
        return POOL_FUNCTIONS[self.kind][x.dim() - 2](x, **self.arguments)


class FunctionalDropout(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.p, training=self.training)


class DropPath(nn.Module):
    """Drops whole samples of the batch, in training."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1.0 - self.p
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = torch.rand(shape, dtype=x.dtype, device=x.device).add_(keep).floor_()
        return x.div(keep) * mask


class BatchNormAct(nn.Module):
    """Batch norm and activation in one module, on raw parameters, as in timm's BatchNormAct2d."""

    def __init__(self, channels: int, act: Step, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = 1e-5
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.act = as_module(act)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        mean, var = self.running_mean, self.running_var
        x = F.batch_norm(
            x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(x)


class LayerScale(nn.Module):
    """A learnt factor per channel, of shape `(C, 1, ...)`."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *([1] * rank)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class PixelAttention(nn.Module):
    """Torch's multi-head attention over the pixels, one head for each channel that the count allows."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + tokens.mT.unflatten(2, x.shape[2:])


class WrittenOver(nn.Module):
    """Some channels are written over others, and some values over all."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, : self.count] = x[:, : self.count].relu()
        y[..., 0] = 0.5
        return y


class InParts(nn.Module):
    """Cut at literal places, the parts put together in another order."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        head, tail = x.tensor_split([self.first], dim=1)
        return torch.cat([tail, x.narrow(1, 0, self.first).tanh(), head], 1)


def over_root_of_count(x: Tensor) -> Tensor:
    return x / math.sqrt(x.shape[1])


def cosine_gate(x: Tensor) -> Tensor:
    return x * F.cosine_similarity(x, x.roll(1, 2), dim=1)[:, None]


def in_its_own_shape(x: Tensor) -> Tensor:
    """A shape that is given whole."""
    return (x * 2).flatten(2).transpose(1, 2).relu().transpose(1, 2).reshape(x.shape)


def merged_with_the_batch(x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    y = x.reshape(n * c, 1, *x.shape[2:]).tanh()
    return y.reshape(n, c, *x.shape[2:])


def beyond_the_end(x: Tensor) -> Tensor:
    return x[:, :1000] * x[:, 0:]


def squeezed_in_place(x: Tensor) -> Tensor:
    """A gate for each channel, its shape changed in place."""
    gate = x.flatten(2).mean(2, keepdim=True)
    gate.squeeze_(2)
    for _ in x.shape[2:]:
        gate = gate.unsqueeze(-1)
    return x * gate.sigmoid()


def centred(x: Tensor) -> Tensor:
    """Less its mean over space, which no gradient reaches."""
    with torch.no_grad():
        mean = x.flatten(2).mean(2)
    return x - mean.reshape(*x.shape[:2], *[1] * (x.dim() - 2))


def filtered(x: Tensor) -> Tensor:
    """Lower frequencies by half."""
    return torch.fft.irfft(torch.fft.rfft(x, dim=-1) * 0.5, n=x.shape[-1], dim=-1)


class FixedVariance(nn.Module):
    """Divided by the root of a buffer, which must be positive."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.linspace(0.05, 2.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.variance.sqrt().reshape(-1, *[1] * (x.dim() - 2))


class DownAndUp(nn.Module):
    """To half the size and back, to the size that there was."""

    def __init__(self, channels: int, inner: int, rank: int) -> None:
        super().__init__()
        self.down = CONV[rank](channels, inner, 1, stride=2)
        up = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
        self.up = up(inner, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x), output_size=x.shape[2:])


class GroupGate(nn.Module):
    """A gate for each group of channels, repeated over the channels of a group."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.gates = nn.Linear(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        gates = self.gates(x.flatten(2).mean(2)).sigmoid()
        gates = gates.view(n, self.groups, 1).expand(n, self.groups, c // self.groups)
        return x * gates.reshape(n, c, *[1] * (x.dim() - 2))


class ForeignCount(nn.Module):
    """Channels viewed by the count of those that came in, alone and within a product."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.conv = CONV[rank](channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        y = torch.stack([self.conv(x), x.tanh()], 2).reshape(n, c * 2, -1)
        return y.view(n, c, 2, *x.shape[2:]).sum(2)


class ChannelMeanGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x.mean(1, keepdim=True))


class GatedUnit(nn.Module):
    """a * sigmoid(b), where a and b are the halves of the channels."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.how == "split":
            a, b = torch.split(x, x.shape[1] // 2, dim=1)
        elif self.how == "slice":
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        else:
            return F.glu(x, 1)
        return a * torch.sigmoid(b)


class SplitTransform(nn.Module):
    """The first channels pass, the rest go through a module, then both are concatenated again."""

    def __init__(self, first: int, rest: int, body: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.rest = rest
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.first, self.rest], dim=1)
        return torch.cat([a, self.body(b)], dim=1)


class ChannelShuffle(nn.Module):
    def __init__(self, groups: int, how: str) -> None:
        super().__init__()
        self.groups = groups
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "nn":
            return F.channel_shuffle(x, self.groups)
        batch, channels = x.shape[:2]
        space = x.shape[2:]
        x = x.view(batch, self.groups, channels // self.groups, *space)
        x = x.transpose(1, 2).contiguous()
        return x.view(batch, -1, *space)


class ExpertConv(nn.Module):
    """A convolution whose kernel is mixed from experts, for each sample its own (CondConv, dynamic convolution)."""

    def __init__(
        self, channels: int, out: int, rank: int, kernel: int, groups: int, flat: bool, bias: bool
    ) -> None:
        super().__init__()
        self.channels, self.out, self.kernel, self.groups = channels, out, kernel, groups
        self.convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
        shape = (out, channels // groups, kernel**rank)
        self.route = nn.Linear(channels, 2)
        self.weight = nn.Parameter(torch.randn(2, math.prod(shape)) / 3)
        if not flat:
            self.weight = nn.Parameter(self.weight.detach().view(2, *shape))
        self.bias = nn.Parameter(torch.randn(2, out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *space = x.shape
        mixture = torch.sigmoid(self.route(x.flatten(2).mean(2)))
        weight = torch.matmul(mixture, self.weight.flatten(1))
        kernel = (self.kernel,) * len(space)
        weight = weight.view(batch * self.out, self.channels // self.groups, *kernel)
        bias = None if self.bias is None else torch.matmul(mixture, self.bias).view(-1)
        x = x.reshape(1, batch * channels, *space)
        x = self.convolve(x, weight, bias, padding=self.kernel // 2, groups=batch * self.groups)
        return x.view(batch, self.out, *space)


class LiteralSlice(nn.Module):
    """The first n channels, n a number in the code (GhostNet)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]


class LiteralView(nn.Module):
    """`x.view(-1, n)`, n a number in the code."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.features)


class ChannelsLastNorm(nn.Module):
    """LayerNorm over the channels of a channels-first map, by permuting."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        last = x.dim() - 1
        return self.norm(x.movedim(1, last)).movedim(last, 1)


class ChannelsLastLinear(nn.Module):
    """A linear layer over the channels of a channels-first map, by permuting."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, out)

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        x = self.linear(x.permute(0, *axes, 1))
        return x.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


@dataclasses.dataclass
class Output:
    """What a network with a dataclass output returns."""

    logits: Tensor
    features: Tensor


class Network(Chain):
    """Stems for each input, merge, body, head, an output of some form; the root runs all steps."""

    def __init__(
        self,
        stems: Sequence[Sequence[Step]],
        body: Sequence[Step],
        head: Sequence[Step],
        merge: str,
        output: str,
    ) -> None:
        super().__init__(())
        self.stem_orders = tuple(
            self.attach(f"stem{index}_", stem) for index, stem in enumerate(stems)
        )
        self.body_order = self.attach("body", body)
        self.head_order = self.attach("head", head)
        self.merge = merge
        self.output = output

    def forward(self, *inputs: Tensor) -> Any:
        maps = [self.run(order, x) for order, x in zip(self.stem_orders, inputs, strict=True)]
        x = maps[0]
        for y in maps[1:]:
            if y.shape[2:] != x.shape[2:]:
                y = F_ADAPTIVE_AVG[x.dim() - 2](y, tuple(x.shape[2:]))
            x = (
                torch.cat([x, y], 1)
                if self.merge == "cat"
                else x * y
                if self.merge == "mul"
                else x + y
            )
        features = self.run(self.body_order, x)
        logits = self.run(self.head_order, features)
        if self.output == "tuple":
            return logits, features
        if self.output == "list":
            return [logits, (features, logits)]
        if self.output == "dict":
            return {"logits": logits, "features": features}
        if self.output == "dataclass":
            return Output(logits=logits, features=features)
        return logits


class TwoInputs(Network):
    """A Network whose forward names its two inputs."""

    def forward(self, image: Tensor, other: Tensor) -> Any:
        return super().forward(image, other)


class OneInput(Network):
    """A Network whose forward names its one input."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and running statistic with values that hide nothing: no zeros, no ones.

    Args:
        model: changed in place.
        seed: of a generator of its own; the global random state is left alone.

    Returns:
        The same model.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    def around_one(like: Tensor) -> Tensor:
        return 0.5 + torch.rand(like.shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and parameter[0].numel() > 1:
                parameter.copy_(1.3 * normal(parameter) / math.sqrt(parameter[0].numel()))
            elif "bias" in name:
                parameter.copy_(0.3 * normal(parameter))
            else:
                parameter.copy_(around_one(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(around_one(buffer))
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(int(torch.randint(1, 6, (), generator=generator)))
    return model
