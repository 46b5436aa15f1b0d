"""Every generator of the tests: small random networks as frozen specs that print and shrink.

A spec's repr is its source: paste a shrunk counterexample into an `@example`. Every spec builds:
where an argument does not fit the map that arrives (a kernel larger than the image, a stride under
"same" padding), the nearest one that does is taken instead.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

import timm.layers
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._pytree import tree_leaves

from tests import modules

MOST_CHANNELS = 12


@dataclass(frozen=True)
class Site:
    """What reaches a step: the shape of one sample, and what the builder must know to stay valid.

    Args:
        shape: `(C, *space)`, or `(C,)` once flattened.
        fresh: no backward pass needs this tensor, so an in-place activation may overwrite it.
    """

    shape: tuple[int, ...]
    fresh: bool = False

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def space(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def rank(self) -> int:
        return len(self.shape) - 1

    def to(
        self, channels: int | None = None, space: tuple[int, ...] | None = None, fresh: bool = False
    ) -> Site:
        shape = (
            self.channels if channels is None else channels,
            *(self.space if space is None else space),
        )
        return replace(self, shape=shape, fresh=fresh)


Built = tuple[modules.Step, Site]


@dataclass(frozen=True, repr=False)
class Spec:
    """Prints as the call that makes it, defaults left out."""

    def __repr__(self) -> str:
        parts = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(parts)})"


class Step(Spec):
    """One step of a network, on a feature map."""

    def build(self, site: Site) -> Built:
        raise NotImplementedError


def build_steps(steps: tuple[Step, ...], site: Site) -> tuple[list[modules.Step], Site]:
    built = []
    for step in steps:
        layer, site = step.build(site)
        built.append(layer)
    return built, site


def convolved(size: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolution(
    site: Site,
    out: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: int | str,
    mode: str,
    bias: bool,
    groups: int,
) -> tuple[nn.Module, Site]:
    """A convolution with the nearest arguments that fit the site."""
    smallest = min(site.space)
    if dilation * (kernel - 1) + 1 > smallest:
        dilation = 1
    kernel = min(kernel, smallest)
    if padding == "same":  # an even kernel makes torch warn
        kernel -= 1 - kernel % 2
        stride = 1
        pad: int | str = "same"
        if mode != "zeros" and dilation * (kernel - 1) // 2 + 1 >= smallest:
            mode = "zeros"
        space = site.space
    else:
        pad = dilation * (kernel - 1) // 2 if padding == "half" else int(padding)
        pad = min(pad, smallest - 1)
        space = tuple(convolved(size, kernel, stride, dilation, pad) for size in site.space)
    conv = modules.CONV[site.rank](
        site.channels,
        out,
        kernel,
        stride,
        pad,
        dilation=dilation,
        groups=groups,
        bias=bias,
        padding_mode=mode,
    )
    return conv, site.to(out, space, fresh=True)


@dataclass(frozen=True, repr=False)
class Conv(Step):
    """A dense convolution."""

    out: int = 1
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    padding: int | str = 0
    mode: str = "zeros"
    bias: bool = True
    trainable: bool = True

    def build(self, site: Site) -> Built:
        conv, after = convolution(
            site,
            self.out,
            self.kernel,
            self.stride,
            self.dilation,
            self.padding,
            self.mode,
            self.bias,
            1,
        )
        return conv.requires_grad_(self.trainable), after


@dataclass(frozen=True, repr=False)
class Depthwise(Step):
    """A depthwise convolution with a channel multiplier."""

    multiplier: int = 1
    kernel: int = 3
    stride: int = 1
    padding: int | str = "half"
    mode: str = "zeros"
    bias: bool = False

    def build(self, site: Site) -> Built:
        multiplier = self.multiplier if self.multiplier * site.channels <= MOST_CHANNELS else 1
        out = multiplier * site.channels
        return convolution(
            site,
            out,
            self.kernel,
            self.stride,
            1,
            self.padding,
            self.mode,
            self.bias,
            groups=site.channels,
        )


@dataclass(frozen=True, repr=False)
class Norm(Step):
    """A batch norm; a frozen one stays in eval mode inside a network that trains."""

    affine: bool = True
    track: bool = True
    momentum: float | None = 0.1
    frozen: bool = False
    trainable: bool = True

    def build(self, site: Site) -> Built:
        norm = modules.BATCH_NORM[site.rank](
            site.channels,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track,
        )
        if self.frozen:
            norm.eval()
        return norm.requires_grad_(self.trainable), site.to(fresh=True)


@dataclass(frozen=True, repr=False)
class NormAct(Step):
    """Batch norm and activation in one module: the tests' own, or timm's where the rank allows."""

    act: str = "ReLU"
    source: str = "own"

    def build(self, site: Site) -> Built:
        act = modules.ACTIVATIONS[self.act]()
        if self.source == "timm" and site.rank == 2:
            layer = act if isinstance(act, nn.Module) else None
            timm_norm = timm.layers.BatchNormAct2d(
                site.channels, apply_act=layer is not None, inplace=False
            )
            if layer is not None:
                timm_norm.act = layer
            return timm_norm, site.to()
        return modules.BatchNormAct(site.channels, act), site.to()


@dataclass(frozen=True, repr=False)
class Act(Step):
    """An activation: module, function or method; in place only where autograd allows it."""

    kind: str = "ReLU"

    def build(self, site: Site) -> Built:
        if self.kind in modules.INPLACE_ACTIVATIONS:
            if not site.fresh:
                return nn.ReLU(), site.to()
            return modules.INPLACE_ACTIVATIONS[self.kind](), site.to()
        return modules.ACTIVATIONS[self.kind](), site.to()


@dataclass(frozen=True, repr=False)
class Pool(Step):
    """A pooling layer: max, average, adaptive; as a module or as a function."""

    kind: str = "max"
    size: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False
    function: bool = False

    def build(self, site: Site) -> Built:
        if self.kind.startswith("adaptive"):
            space = (self.size,) * site.rank
            average = self.kind == "adaptive avg"
            if self.function:
                return modules.FunctionalPool(self.kind, output_size=self.size), site.to(
                    space=space
                )
            table: Any = modules.ADAPTIVE_AVG if average else modules.ADAPTIVE_MAX
            return table[site.rank](self.size), site.to(space=space)
        size = min(self.size, *site.space)
        padding = min(self.padding, size // 2)
        arguments = {
            "kernel_size": size,
            "stride": self.stride,
            "padding": padding,
            "ceil_mode": self.ceil,
        }
        if self.function:
            layer: nn.Module = modules.FunctionalPool(self.kind, **arguments)
        else:
            table = modules.MAX_POOL if self.kind == "max" else modules.AVG_POOL
            layer = table[site.rank](**arguments)
        space = tuple(layer(torch.zeros(1, 1, *site.space)).shape[2:])
        return layer, site.to(space=space)


@dataclass(frozen=True, repr=False)
class Pad(Step):
    """Padding, by a module, by F.pad, by shape arithmetic; "channels" pads the channel axis too."""

    kind: str = "zero"

    def build(self, site: Site) -> Built:
        rank = site.rank
        if min(site.space) < 2 and self.kind in (
            "reflection",
            "F reflect",
            "circular",
            "F circular",
        ):
            return modules.ZERO_PAD[rank](1), site.to(space=tuple(size + 2 for size in site.space))
        grown = tuple(size + 2 for size in site.space)
        if self.kind == "zero":
            return modules.ZERO_PAD[rank](1), site.to(space=grown)
        if self.kind == "constant":
            return modules.CONSTANT_PAD[rank](1, 0.5), site.to(space=grown)
        if self.kind == "reflection":
            return modules.REFLECTION_PAD[rank](1), site.to(space=grown)
        if self.kind == "replication":
            return modules.REPLICATION_PAD[rank](1), site.to(space=grown)
        if self.kind == "circular":
            return modules.CIRCULAR_PAD[rank](1), site.to(space=grown)
        if self.kind == "odd":
            space = (*site.space[:-1], site.space[-1] + site.space[-1] % 2)
            return modules.OddPad(), site.to(space=space)
        if self.kind == "same":
            layer = modules.SamePad(3, 2)
            return layer, site.to(space=tuple(layer(torch.zeros(1, 1, *site.space)).shape[2:]))
        mode = {"F reflect": "reflect", "F circular": "circular", "F replicate": "replicate"}.get(
            self.kind, "constant"
        )
        one = tuple(size + 1 for size in site.space)
        if self.kind == "channels":
            return modules.FunctionPad(rank, "channels"), site.to(site.channels + 1, one)
        return modules.FunctionPad(rank, mode), site.to(space=one)


@dataclass(frozen=True, repr=False)
class Drop(Step):
    """Dropout of elements, of channels, by function, or of whole paths."""

    kind: str = "nn"
    p: float = 0.3

    def build(self, site: Site) -> Built:
        if self.kind == "function":
            return modules.FunctionalDropout(self.p), site.to()
        if self.kind == "path":
            return modules.DropPath(self.p), site.to()
        if self.kind == "timm path":
            return timm.layers.DropPath(self.p), site.to()
        if self.kind == "channels":
            return modules.DROPOUT[site.rank](self.p), site.to()
        return nn.Dropout(self.p), site.to()


@dataclass(frozen=True, repr=False)
class SqueezeExcite(Step):
    reduced: int = 1
    form: str = "conv"

    def build(self, site: Site) -> Built:
        return modules.SqueezeExcite(site.channels, self.reduced, site.rank, self.form), site.to()


@dataclass(frozen=True, repr=False)
class SpatialGate(Step):
    swapped: bool = False

    def build(self, site: Site) -> Built:
        return modules.SpatialGate(site.channels, site.rank, self.swapped), site.to()


@dataclass(frozen=True, repr=False)
class Residual(Step):
    """body(x) + x, the shortcut fitted to the body's channels and image size."""

    body: tuple[Step, ...] = ()
    how: str = "add"

    def build(self, site: Site) -> Built:
        body, after = build_steps(self.body, site)
        shortcut = None
        more = after.channels - site.channels
        if more > 0 and self.how in ("pad", "zeros"):
            shortcut = modules.ZerosBeside(more // 2, more - more // 2, self.how)
        elif more:
            shortcut = modules.CONV[site.rank](site.channels, after.channels, 1, bias=False)
        how = "add" if self.how == "iadd" and not after.fresh else self.how
        pool = after.space != site.space
        return modules.Residual(body, shortcut, pool, how), replace(after, fresh=True)


@dataclass(frozen=True, repr=False)
class Downsample(Step):
    """ResNet's strided block: conv, norm, act, conv, norm, plus a strided 1x1 shortcut."""

    out: int = 2
    act: str = "ReLU"

    def build(self, site: Site) -> Built:
        rank = site.rank
        conv, after = convolution(
            site, self.out, 3 if min(site.space) > 2 else 1, 2, 1, "half", "zeros", False, 1
        )
        body = nn.Sequential(
            conv,
            modules.BATCH_NORM[rank](self.out),
            modules.as_module(modules.ACTIVATIONS[self.act]()),
            modules.CONV[rank](self.out, self.out, 1, bias=False),
            modules.BATCH_NORM[rank](self.out),
        )
        shortcut = nn.Sequential(
            modules.CONV[rank](site.channels, self.out, 1, 2, bias=False),
            modules.BATCH_NORM[rank](self.out),
        )
        return modules.Residual([body], shortcut, False, "add"), after


@dataclass(frozen=True, repr=False)
class Block(Step):
    """A user's module of its own around some steps."""

    body: tuple[Step, ...] = ()

    def build(self, site: Site) -> Built:
        body, after = build_steps(self.body, site)
        return modules.Chain(body), after


@dataclass(frozen=True, repr=False)
class Sequence(Step):
    """An nn.Sequential around some steps."""

    body: tuple[Step, ...] = ()

    def build(self, site: Site) -> Built:
        body, after = build_steps(self.body, site)
        return nn.Sequential(*[modules.as_module(step) for step in body]), after


@dataclass(frozen=True, repr=False)
class Branches(Step):
    """Branches side by side, joined by add, mul, or (wide family) cat."""

    bodies: tuple[tuple[Step, ...], ...] = ((), ())
    how: str = "add"

    def build(self, site: Site) -> Built:
        start = replace(site, fresh=False)
        branches, sites = [], []
        for body in self.bodies:
            steps, after = build_steps(body, start)
            if self.how != "cat" and sites and after.channels != sites[0].channels:
                conv = modules.CONV[site.rank](after.channels, sites[0].channels, 1)
                steps, after = [*steps, conv], after.to(sites[0].channels)
            branches.append(modules.Chain(steps))
            sites.append(after)
        channels = (
            sum(after.channels for after in sites) if self.how == "cat" else sites[0].channels
        )
        return modules.Branches(branches, self.how), sites[0].to(channels)


@dataclass(frozen=True, repr=False)
class Twice(Step):
    """One module called twice in a row."""

    body: tuple[Step, ...] = ()

    def build(self, site: Site) -> Built:
        start = replace(site, fresh=False)
        steps, after = build_steps(self.body, start)
        if after.channels != site.channels:
            steps, after = (
                [*steps, modules.CONV[site.rank](after.channels, site.channels, 1)],
                after.to(site.channels),
            )
        if after.space != site.space:  # the second call must meet the same image size
            steps, after = [*steps, modules.ADAPTIVE_AVG[site.rank](site.space)], start
        return modules.Twice(steps), after.to()


@dataclass(frozen=True, repr=False)
class Tied(Step):
    """Two convolutions that share one weight."""

    out: int = 2
    how: str = "beside"
    kernel: int = 1

    def build(self, site: Site) -> Built:
        out = site.channels if self.how == "chain" else self.out
        first, _ = convolution(site, out, self.kernel, 1, 1, "same", "zeros", True, 1)
        second, after = convolution(site, out, self.kernel, 1, 1, "same", "zeros", False, 1)
        return modules.TiedConvs(first, second, self.how), after.to(fresh=self.how == "chain")


@dataclass(frozen=True, repr=False)
class Unknown(Step):
    """An operator that no rule covers, in the middle of a network."""

    kind: str = "cumsum"

    def build(self, site: Site) -> Built:
        return modules.UNKNOWNS[self.kind], site.to()


# ---------------------------------------------------------------- the wide family: off by default


@dataclass(frozen=True, repr=False)
class Grouped(Step):
    """A grouped convolution; out is what each group gives."""

    groups: int = 2
    out: int = 1
    kernel: int = 1

    def build(self, site: Site) -> Built:
        groups = math.gcd(self.groups, site.channels)
        return convolution(
            site, self.out * groups, self.kernel, 1, 1, "same", "zeros", True, groups
        )


@dataclass(frozen=True, repr=False)
class Experts(Step):
    """A convolution whose kernel each sample mixes; depthwise with as many groups as channels."""

    out: int = 1
    groups: int = 1
    flat: bool = True
    bias: bool = False

    def build(self, site: Site) -> Built:
        groups = site.channels if self.groups > 2 else math.gcd(self.groups, site.channels)
        out = self.out * groups
        layer = modules.ExpertConv(site.channels, out, site.rank, 1, groups, self.flat, self.bias)
        return layer, site.to(out, fresh=True)


@dataclass(frozen=True, repr=False)
class Shuffle(Step):
    groups: int = 2
    how: str = "view"

    def build(self, site: Site) -> Built:
        return modules.ChannelShuffle(math.gcd(self.groups, site.channels), self.how), site.to()


@dataclass(frozen=True, repr=False)
class Gated(Step):
    """A gated linear unit: half of the channels gate the other half."""

    how: str = "chunk"

    def build(self, site: Site) -> Built:
        if site.channels % 2:
            widen = modules.CONV[site.rank](site.channels, site.channels + 1, 1)
            layer: nn.Module = nn.Sequential(widen, modules.GatedUnit(self.how))
            return layer, site.to((site.channels + 1) // 2)
        return modules.GatedUnit(self.how), site.to(site.channels // 2)


@dataclass(frozen=True, repr=False)
class Split(Step):
    """Some channels pass, the others go through a body (ShuffleNetV2)."""

    first: int = 1
    body: tuple[Step, ...] = ()

    def build(self, site: Site) -> Built:
        if site.channels < 2:
            return nn.Identity(), site
        first = min(self.first, site.channels - 1)
        rest = site.channels - first
        steps, after = build_steps(self.body, site.to(rest))
        if after.space != site.space:
            return nn.Identity(), site
        layer = modules.SplitTransform(first, rest, modules.Chain(steps))
        return layer, after.to(first + after.channels)


@dataclass(frozen=True, repr=False)
class Slice(Step):
    """The first channels, counted by a literal (GhostNet)."""

    count: int = 1

    def build(self, site: Site) -> Built:
        count = min(self.count, site.channels)
        return modules.LiteralSlice(count), site.to(count)


@dataclass(frozen=True, repr=False)
class GroupNorm(Step):
    groups: int = 1

    def build(self, site: Site) -> Built:
        return nn.GroupNorm(math.gcd(self.groups, site.channels), site.channels), site.to()


@dataclass(frozen=True, repr=False)
class Affine(Step):
    """Layer scale, a PReLU of C parameters, a channels-last norm or linear, a mean gate."""

    kind: str = "layer scale"

    def build(self, site: Site) -> Built:
        if self.kind == "prelu":
            return nn.PReLU(site.channels), site.to()
        if self.kind == "layer norm":
            return modules.ChannelsLastNorm(site.channels), site.to()
        if self.kind == "linear":
            return modules.ChannelsLastLinear(site.channels, 3), site.to(3)
        if self.kind == "mean gate":
            return modules.ChannelMeanGate(), site.to()
        if self.kind == "instance norm":
            norm = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[site.rank]
            return (
                norm(site.channels, affine=True) if math.prod(site.space) > 1 else nn.Identity()
            ), site.to()
        return modules.LayerScale(site.channels, site.rank), site.to()


@dataclass(frozen=True, repr=False)
class Rare(Step):
    """What few networks have, each with a rule of its own."""

    kind: str = "in parts"
    count: int = 1

    def build(self, site: Site) -> Built:
        count = min(self.count, site.channels)
        if self.kind == "in parts":
            if count == site.channels:
                return nn.Identity(), site
            return modules.InParts(count), site.to(site.channels + count)
        if self.kind == "attention":
            return modules.PixelAttention(site.channels, math.gcd(count, site.channels)), site.to()
        if self.kind == "group gate":
            return modules.GroupGate(site.channels, math.gcd(count, site.channels)), site.to()
        if self.kind == "foreign count":
            return modules.ForeignCount(site.channels, site.rank), site.to()
        if self.kind == "fixed variance":
            return modules.FixedVariance(site.channels), site.to()
        if self.kind == "down and up":
            return modules.DownAndUp(site.channels, count, site.rank), site.to()
        if self.kind == "running instance norm":
            if math.prod(site.space) == 1:
                return nn.Identity(), site
            norm = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[site.rank]
            return norm(site.channels, track_running_stats=True), site.to()
        if self.kind == "weight norm":
            conv, after = convolution(site, count, 3, 1, 1, "same", "zeros", True, 1)
            return parametrizations.weight_norm(conv), after
        layers: dict[str, modules.Step] = {
            "local response norm": nn.LocalResponseNorm(3),
            "written over": modules.WrittenOver(count),
            "root of count": modules.over_root_of_count,
            "cosine gate": modules.cosine_gate,
            "own shape": modules.in_its_own_shape,
            "merged with the batch": modules.merged_with_the_batch,
            "beyond the end": modules.beyond_the_end,
            "squeezed in place": modules.squeezed_in_place,
            "centred": modules.centred,
            "filtered": modules.filtered,
        }
        return layers[self.kind], site.to()


# ---------------------------------------------------------------- heads and whole networks


@dataclass(frozen=True, repr=False)
class Hidden(Spec):
    """A hidden linear layer of a head."""

    out: int = 2
    norm: bool = False
    act: str = "ReLU"
    drop: str = ""
    bias: bool = True


@dataclass(frozen=True, repr=False)
class Head(Spec):
    """From a map to logits: reduce to 1x1 or to a larger map, flatten, linears.

    Args:
        reduce: a key of `modules.REDUCTIONS`, "adaptive avg" or "adaptive max" to `size`, or ""
            for the whole map.
        flatten: a key of `modules.FLATTENS`, or "literal" for `view(-1, n)` with a number.
    """

    reduce: str = "mean"
    size: int = 1
    flatten: str = "torch.flatten"
    hidden: tuple[Hidden, ...] = ()
    out: int = 2

    def build(self, site: Site) -> tuple[list[modules.Step], Site]:
        steps: list[modules.Step] = []
        if self.reduce in modules.REDUCTIONS:
            steps.append(modules.REDUCTIONS[self.reduce]())
            site = site.to(space=(1,) * site.rank if "keepdim" in self.reduce else ())
        elif self.reduce:
            layer, site = Pool(kind=self.reduce, size=self.size).build(site)
            steps.append(layer)
        elif math.prod(site.space) > 64:  # keep the linear small
            layer, site = Pool(kind="adaptive avg", size=2).build(site)
            steps.append(layer)
        features = math.prod(site.shape)
        if site.space:
            if self.flatten == "literal":
                steps.append(modules.LiteralView(features))
            else:
                steps.append(modules.FLATTENS[self.flatten]())
        for hidden in self.hidden:
            steps.append(nn.Linear(features, hidden.out, bias=hidden.bias))
            if hidden.norm:
                steps.append(nn.BatchNorm1d(hidden.out))
            if hidden.act:
                steps.append(modules.ACTIVATIONS[hidden.act]())
            if hidden.drop:
                steps.append(
                    modules.FunctionalDropout(0.3) if hidden.drop == "function" else nn.Dropout(0.3)
                )
            features = hidden.out
        steps.append(nn.Linear(features, self.out))
        return steps, replace(site, shape=(self.out,), fresh=True)


@dataclass(frozen=True, repr=False)
class NetworkSpec(Spec):
    """A small network. `build` makes it, `inputs` makes what it eats; both are deterministic.

    Args:
        rank: spatial axes, 1 to 3.
        size: of every spatial axis, in pixels.
        channels: of each input.
        stems: the steps of each input, before all are merged.
        merge: "add", "mul" or (wide family) "cat".
        body: the steps after the merge.
        head: from the body's map to logits; none returns the map itself.
        output: "tensor", "tuple", "list", "dict" or "dataclass".
    """

    rank: int = 2
    size: int = 8
    channels: tuple[int, ...] = (2,)
    stems: tuple[tuple[Step, ...], ...] = ((),)
    merge: str = "add"
    body: tuple[Step, ...] = ()
    head: Head | None = None
    output: str = "tensor"

    @property
    def core(self) -> bool:
        """Inference alone must get it right."""
        words = (
            "Grouped",
            "Experts",
            "Shuffle",
            "Gated",
            "Split",
            "Slice",
            "GroupNorm",
            "Affine",
            "Rare",
            "how='pad'",
            "how='zeros'",
        )
        return not self._has(*words)

    @property
    def large(self) -> bool:
        return False

    @property
    def fused(self) -> bool:
        return False

    @property
    def mixes(self) -> bool:
        """Some operator mixes channels otherwise than by a weight: containment needs it restricted."""
        kinds = ("softmax", "cumsum", "layer_standardise", "layer norm", "mean gate")
        rare = ("attention", "weight norm", "local response norm", "cosine gate")
        return self._has("GroupNorm", "Experts", "Unknown()", *map(repr, (*kinds, *rare)))

    @property
    def flattening(self) -> Head | None:
        """The head; it does not view a map whose channels may come last in memory, which PyTorch refuses."""
        strided = self._has("'layer norm'", "Affine(kind='linear')", "'attention'")
        if self.head is not None and self.head.flatten == "view" and strided:
            return replace(self.head, flatten="reshape")
        return self.head

    def _has(self, *words: str) -> bool:
        return any(word in repr(self) for word in words)

    def build(self, seed: int = 0) -> nn.Module:
        """The network, float32, in training mode but for its frozen norms, its weights random."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stems: list[list[modules.Step]] = []
            sites: list[Site] = []
            for channels, stem in zip(self.channels, self.stems, strict=True):
                steps, after = build_steps(stem, Site((channels, *((self.size,) * self.rank))))
                if self.merge != "cat" and sites and after.channels != sites[0].channels:
                    conv = modules.CONV[self.rank](after.channels, sites[0].channels, 1)
                    steps, after = [*steps, conv], after.to(sites[0].channels)
                stems.append(steps)
                sites.append(after)
            merged = (
                sum(site.channels for site in sites) if self.merge == "cat" else sites[0].channels
            )
            body, site = build_steps(
                self.body, sites[0].to(merged, fresh=sites[0].fresh and len(sites) == 1)
            )
            head, site = self.flattening.build(site) if self.flattening else ([], site)
            kind = modules.OneInput if len(stems) == 1 else modules.TwoInputs
            network = kind(stems, body, head, self.merge, self.output)
        return modules.randomise(network, seed)

    def inputs(self, seed: int = 0, batch: int = 3, size: int | None = None) -> tuple[Tensor, ...]:
        """Inputs of shape `(batch, channels, size, ...)`, float32."""
        generator = torch.Generator().manual_seed(1000 + seed)
        space = (self.size if size is None else size,) * self.rank
        return tuple(
            torch.randn(batch, channels, *space, generator=generator) for channels in self.channels
        )

    def other_size(self) -> int | None:
        """Another image size that the network takes, or None where it takes only its own.

        With a literal in a view a network may take one, and give as many rows more as there are pixels more:
        it mixes its samples with each other there. Such a size is not one.
        """
        model = self.build().eval()
        rows = _rows(model(*self.inputs()))
        for size in (self.size + 3, self.size + 1, self.size + 2):
            try:
                found = model(*self.inputs(size=size))
            except RuntimeError:
                continue
            if _rows(found) == rows:
                return size
        return None


def _rows(output: Any) -> list[int]:
    return [len(y) for y in tree_leaves(output) if isinstance(y, Tensor) and y.dim()]


# ---------------------------------------------------------------- strategies

RARE = (
    *("in parts", "written over", "root of count", "running instance norm", "weight norm"),
    *("attention", "local response norm", "cosine gate", "group gate", "foreign count"),
    *("own shape", "merged with the batch", "beyond the end", "squeezed in place", "centred"),
    *("filtered", "fixed variance", "down and up"),
)
few = st.integers(1, 6)
acts = st.sampled_from(sorted(modules.ACTIVATIONS, key=lambda name: (name != "ReLU", name)))
any_acts = st.sampled_from(
    ["ReLU", *sorted(modules.ACTIVATIONS), *sorted(modules.INPLACE_ACTIVATIONS)]
)
odd_kernels = st.sampled_from([1, 3, 5])

convs = st.builds(
    Conv,
    out=few,
    kernel=st.integers(1, 5),
    stride=st.sampled_from([1, 1, 2]),
    dilation=st.sampled_from([1, 1, 2]),
    padding=st.sampled_from([0, "half", "same", 1, 2]),
    mode=st.sampled_from(["zeros", "zeros", "zeros", "circular", "reflect", "replicate"]),
    bias=st.booleans(),
    trainable=st.sampled_from([True, True, True, False]),
)
depthwises = st.builds(
    Depthwise,
    multiplier=st.sampled_from([1, 1, 2, 3]),
    kernel=odd_kernels,
    stride=st.sampled_from([1, 1, 2]),
    padding=st.sampled_from(["half", "same", 0]),
    mode=st.sampled_from(["zeros", "zeros", "circular"]),
    bias=st.booleans(),
)
norms = st.builds(
    Norm,
    affine=st.sampled_from([True, True, False]),
    track=st.sampled_from([True, True, False]),
    momentum=st.sampled_from([0.1, 0.01, None]),
    frozen=st.sampled_from([False, False, True]),
    trainable=st.sampled_from([True, True, False]),
)
norm_acts = st.builds(NormAct, act=acts, source=st.sampled_from(["own", "timm"]))
pools = st.one_of(
    st.builds(
        Pool,
        kind=st.sampled_from(["max", "avg"]),
        size=st.sampled_from([2, 3]),
        stride=st.sampled_from([2, 1]),
        padding=st.sampled_from([0, 1]),
        ceil=st.booleans(),
        function=st.booleans(),
    ),
    st.builds(
        Pool,
        kind=st.sampled_from(["adaptive avg", "adaptive max"]),
        size=st.integers(1, 4),
        function=st.booleans(),
    ),
)
pads = st.builds(
    Pad,
    kind=st.sampled_from(
        [
            "zero",
            "constant",
            "reflection",
            "replication",
            "circular",
            "odd",
            "same",
            "F constant",
            "F reflect",
            "F circular",
            "F replicate",
            "channels",
        ]
    ),
)
drops = st.builds(Drop, kind=st.sampled_from(["nn", "function", "path", "timm path", "channels"]))
squeezes = st.builds(
    SqueezeExcite,
    reduced=st.integers(1, 3),
    form=st.sampled_from(["conv", "conv pool", "linear view", "linear index", "linear unsqueeze"]),
)
gates = st.builds(SpatialGate, swapped=st.booleans())
tied = st.builds(
    Tied, out=few, how=st.sampled_from(["beside", "chain"]), kernel=st.sampled_from([1, 3])
)
unknowns = st.builds(Unknown, kind=st.sampled_from(sorted(modules.UNKNOWNS)))
downsamples = st.builds(Downsample, out=few, act=acts)

simple_steps = st.one_of(
    convs,
    norms,
    st.builds(Act, kind=any_acts),
    depthwises,
    pools,
    norm_acts,
    pads,
    squeezes,
    gates,
    drops,
    downsamples,
    tied,
)
wide_steps = st.one_of(
    st.builds(
        Grouped, groups=st.integers(2, 3), out=st.integers(1, 2), kernel=st.sampled_from([1, 3])
    ),
    st.builds(
        Experts,
        out=st.integers(1, 3),
        groups=st.integers(1, 3),
        flat=st.booleans(),
        bias=st.booleans(),
    ),
    st.builds(Shuffle, groups=st.integers(2, 3), how=st.sampled_from(["view", "nn"])),
    st.builds(Gated, how=st.sampled_from(["chunk", "split", "slice", "glu"])),
    st.builds(Slice, count=few),
    st.builds(GroupNorm, groups=st.integers(1, 3)),
    st.builds(Rare, kind=st.sampled_from(RARE), count=st.integers(1, 3)),
    st.builds(
        Affine,
        kind=st.sampled_from(
            ["layer scale", "prelu", "layer norm", "linear", "mean gate", "instance norm"]
        ),
    ),
)


def chains(
    wide_family: bool = False, depth: int = 2, most: int = 4
) -> st.SearchStrategy[tuple[Step, ...]]:
    """Tuples of steps, nested to some depth."""
    # Convolutions come often: between them there is something to widen.
    kinds: list[st.SearchStrategy[Any]] = [convs, simple_steps]
    padded = ("pad", "zeros") if wide_family else ()
    if wide_family:
        kinds.append(wide_steps)
    if depth > 0:
        inner = chains(wide_family, depth - 1, 3)
        nested: list[st.SearchStrategy[Any]] = [
            st.builds(
                Residual,
                body=inner,
                how=st.sampled_from(["add", "iadd", "torch.add", "alpha", *padded]),
            ),
            st.builds(Block, body=inner),
            st.builds(Sequence, body=inner),
            st.builds(
                Branches, bodies=st.tuples(inner, inner), how=st.sampled_from(["add", "mul"])
            ),
            st.builds(Twice, body=inner),
        ]
        if wide_family:
            nested += [
                st.builds(
                    Branches,
                    bodies=st.lists(inner, min_size=2, max_size=3).map(tuple),
                    how=st.just("cat"),
                ),
                st.builds(Split, first=st.integers(1, 3), body=inner),
            ]
        kinds.append(st.one_of(nested))
    return st.lists(st.one_of(kinds), max_size=most).map(tuple)


hiddens = st.builds(
    Hidden,
    out=few,
    norm=st.booleans(),
    act=st.one_of(acts, st.just("")),
    drop=st.sampled_from(["", "", "nn", "function"]),
    bias=st.booleans(),
)
heads = st.builds(
    Head,
    reduce=st.sampled_from(
        [*sorted(modules.REDUCTIONS), "adaptive avg", "adaptive max", "", "", ""]
    ),
    size=st.sampled_from([1, 1, 2]),
    flatten=st.sampled_from([*sorted(modules.FLATTENS), "literal"]),
    hidden=st.lists(hiddens, max_size=2).map(tuple),
    out=st.integers(1, 4),
)


@st.composite
def networks(
    draw: st.DrawFn, wide_family: bool = False, unknown: bool | None = None
) -> NetworkSpec:
    """Small random networks.

    Args:
        draw: given by Hypothesis.
        wide_family: also concatenation, splits, shuffles, groups, layer norms and raw parameters.
        unknown: whether an operator without a rule stands in the middle; None leaves it to chance.
    """
    inputs = draw(st.sampled_from([1, 1, 1, 2]))
    rank = draw(st.sampled_from([2, 2, 1, 3]))
    body = draw(chains(wide_family, 2, 6 if rank < 3 else 4))
    head = draw(st.one_of(heads, heads, heads, st.none()))
    if draw(st.integers(0, 9)) < 9:  # mostly there is something that can grow
        body = (draw(convs), *body) if head is not None else (draw(convs), *body, draw(convs))
    if unknown or (unknown is None and draw(st.integers(0, 9)) == 9):
        place = draw(st.integers(0, len(body)))
        body = (*body[:place], draw(unknowns), *body[place:])
    output = draw(st.sampled_from(["tensor", "tensor", "tuple", "list", "dict", "dataclass"]))
    return NetworkSpec(
        rank=rank,
        size=draw(st.sampled_from([8, 7, 5] if rank < 3 else [5, 4])),
        channels=tuple(draw(st.integers(1, 3)) for _ in range(inputs)),
        stems=tuple(draw(chains(wide_family, 0, 2)) for _ in range(inputs)),
        merge=draw(st.sampled_from(["add", "mul", "cat"] if wide_family else ["add", "mul"]))
        if inputs > 1
        else "add",
        body=body,
        head=head,
        output=output,
    )
