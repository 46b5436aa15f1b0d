"""What grows together and what is pinned: the real models in full, the traps by name."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

import netaugfx
from netaugfx.rules import norm, registry
from tests.networks import CASES, CORE, WHOLE, Asserts, Case
from tests.real import REAL

# name: the widths that grow, the widths that are pinned (network outputs left out)
TRAPS = {
    "audio": ("stem.0 blocks.0.expand blocks.1.expand down hidden", ""),
    "video": (
        "stem layer1.spatial layer1.squeeze.reduce layer2.downsample.0 layer2.spatial "
        "layer2.squeeze.reduce",
        "",
    ),
    "image and table": ("table.0 table.3 mix", ""),
    "auxiliary head": ("stem body", ""),
    "dropout everywhere": ("conv1 conv2 fc1", ""),
    "attention gate": ("conv out", "query"),
    "flatten then linear": ("features.0 classifier.1", ""),
    "literal batch view": ("conv fc1 fc2", ""),
    "literal channel view": ("conv mix", ""),
    "called twice": ("stem", ""),
    "shared head": ("stem tower.0", ""),
    "tied parameter": ("stem conv1", ""),
    "tied across widths": ("encode", "encode.weight:1"),
    "counts batches": ("conv1 conv2", ""),
    "frozen": ("stem.0 conv", ""),
    "watched": ("conv block.0", ""),
    "inplace alias": ("stem", ""),
    "shape arithmetic": ("conv1 conv2", ""),
    "asserts": ("any fours", "eights"),
    "reads in eval": ("stem", "body head.hidden"),
    "same padded": ("conv1 conv3", ""),
    "checkpointed": ("stem block.0", ""),
    "reserved": ("augmented base.0 plan sample example", ""),
    "unused": ("conv", ""),
    "maps out": ("stage1.0 stage2.0", ""),
    "unknown in the middle": ("before conv2", "conv1"),
    "channel padded": ("stem conv[0] conv[2]", ""),
    "zero-padded shortcuts": (
        "stem blocks.0.conv1 blocks.0.conv2[0] blocks.0.conv2[2] blocks.1.conv1 blocks.1.conv2[3] "
        "blocks.2.conv1 blocks.2.conv2[4] squeeze again.0.conv1 again.0.conv2[0] again.0.conv2[1] "
        "again.1.conv1 again.2.conv1",
        "",
    ),
    "padded sequences": ("stem conv[1] lift deep[0] deep[2] last", "last[0] last[4]"),
}


@pytest.mark.parametrize("case", [c for c in CORE if c.name in TRAPS], ids=repr)
def test_the_traps_couple_what_must_be_coupled_and_no_more(case: Case) -> None:
    plan = netaugfx.plan(case.build(), example_inputs=case.inputs())
    grow, stay = (set(names.split()) for names in TRAPS[case.name])
    pinned = {name for name, why in plan.pinned.items() if "output of the network" not in why}
    assert ({width.name for width in plan.widths}, pinned) == (grow, stay)


@pytest.mark.parametrize("case", [*WHOLE, *REAL], ids=repr)
def test_what_must_be_widened_in_full_is(case: Case) -> None:
    plan = netaugfx.plan(case.make(), example_inputs=case.inputs())
    assert plan.elastic_share == 1.0
    assert not plan.opaque
    assert set(plan.pinned.values()) <= {"it is an output of the network"}


def test_what_recurrent_layers_take_in_grows() -> None:
    case = next(case for case in CASES if case.name == "recurrent")
    wide = netaugfx.widen(case.build(), example_inputs=case.inputs())
    assert set(wide.widths) == {"stem", "middle", "up", "hidden"}
    assert wide.elastic_share == 1.0
    reasons = " ".join(wide.pinned.values())
    assert reasons.count("computes its state from itself, its gates stacked in one axis") == 4
    network = netaugfx.extract(wide, {"stem": 18, "up": 18})
    assert (network.lstm.input_size, network.cell.input_size) == (18, 18)
    assert wide.base.lstm.input_size == 6


def test_kinds() -> None:
    """Inner widths lie within one block and are not its output; every other is a stream."""
    audio, video, _ = (netaugfx.plan(c.build(), example_inputs=c.inputs()) for c in WHOLE)
    inner = {"blocks.0.expand", "blocks.1.expand"}
    assert {width.name for width in audio.widths if width.kind == "inner"} == inner
    inner = {"layer1.spatial", "layer2.spatial", "layer1.squeeze.reduce", "layer2.squeeze.reduce"}
    assert {width.name for width in video.widths if width.kind == "inner"} == inner


# ------------------------------------------------------------------------------------------------ reasons


class Padded(nn.Module):
    """Channels with zeros on both sides, each seen by a depthwise layer (the shortcut of CIFAR's ResNets)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 1), nn.Conv2d(8, 8, 3, groups=8)
        self.out, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem(x), (0, 0, 0, 0, 2, 2))
        return self.head(self.out(self.depthwise(x)))


@pytest.mark.parametrize(
    ("keep", "widths"),
    [((), {"stem", "depthwise[0]", "depthwise[2]", "out"}), (("stem",), {"out"})],
)
def test_zeros_beside_channels_grow_where_these_do(keep: tuple[str, ...], widths: set[str]) -> None:
    wide = netaugfx.widen(Padded(), example_inputs=torch.randn(2, 3, 8, 8), keep=keep)
    assert set(wide.widths) == widths
    assert wide.at(wide.max_config)(torch.randn(2, 3, 8, 8)).shape == (2, 2, 6, 6)


def test_layers_in_opaque_modules_count_as_what_does_not_grow() -> None:
    case = next(case for case in CASES if case.name == "reads in eval")
    plan = netaugfx.plan(case.build(), example_inputs=case.inputs())
    assert plan.opaque["head"]
    assert plan.elastic_share == 4 / (4 + 5 + 6)
    everything = nn.Sequential(Opaque(), nn.Conv2d(3, 2, 1))
    assert netaugfx.plan(everything, example_inputs=torch.zeros(2, 3, 4, 4)).elastic_share == 0


# ------------------------------------------------------------------------------------------------ several processes


def normed(sync: type[nn.Module] = nn.SyncBatchNorm, **arguments: Any) -> nn.Module:
    layers = [nn.Conv2d(3, 4, 1), sync(4, **arguments), nn.ReLU(), nn.Conv2d(4, 2, 1)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("training", [True, False])
def test_synchronised_batch_norms_grow_as_others_do(training: bool) -> None:
    x = torch.randn(4, 3, 5, 5)
    synced, plain = normed().train(training), normed(nn.BatchNorm2d).train(training)
    plain.load_state_dict(synced.state_dict())
    a, b = (netaugfx.widen(m, example_inputs=x) for m in (synced, plain))
    assert set(a.widths) == {"0"}
    torch.testing.assert_close(a.at(a.max_config)(x), b.at(b.max_config)(x), rtol=0, atol=0)
    for wide in (a, b):
        wide.recalibrate(wide.max_config, [x])
    torch.testing.assert_close(a.at(a.max_config)(x), b.at(b.max_config)(x), rtol=0, atol=0)
    subnet = netaugfx.extract(a, a.max_config)
    assert isinstance(subnet[1], nn.SyncBatchNorm)
    assert subnet[1].num_features == a.max_config["0"]
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(b).base[1], nn.SyncBatchNorm)
    torch.testing.assert_close(a.at(a.max_config)(x), b.at(b.max_config)(x), rtol=0, atol=0)


def test_subnets_synchronise_in_training_among_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(4, 3, 5, 5)
    wide = netaugfx.widen(normed(), example_inputs=x)
    called: list[tuple[Any, ...]] = []

    def over_two(*args: Any) -> Tensor:  # stands for torch's own, which runs on GPUs alone
        called.append(args)
        y, weight, bias, mean, var, eps, momentum, *_ = args
        return F.batch_norm(y, mean, var, weight, bias, True, momentum, eps)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(norm.SyncBatchNorm, "apply", over_two)
    wide.at(wide.max_config)(x)
    ((_, weight, _, mean, var, *_, world),) = called
    assert len(weight) == wide.max_config["0"]
    assert mean is None
    assert var is None
    assert world == 2
    wide.eval().at(wide.max_config)(x)
    assert len(called) == 1


def test_a_synchronised_batch_norm_of_some_processes_alone_stays() -> None:
    model = nn.Sequential(normed(process_group="others"), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 5, 5))
    assert plan.pinned["0.0"].endswith("has a process group of its own")
    assert plan.opaque["0.1"].endswith("SyncBatchNorm has a process group of its own")
    assert [w.name for w in plan.widths] == ["0.3", "1"]


class Squeezed(nn.Module):
    """A squeeze of one channel, laid out by hand."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.stem, self.reduce, self.expand = (
            nn.Conv2d(3, 4, 1),
            nn.Linear(4, 1),
            nn.Conv2d(1, 4, 1),
        )
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        squeezed = self.reduce(x.mean((2, 3)))
        return (x * self.expand(squeezed.view(len(x), *self.shape))).sum(1)


def test_one_channel_among_axes_of_length_1_grows_where_one_length_is_open() -> None:
    x = torch.empty(2, 3, 4, 4)
    plan = netaugfx.plan(Squeezed(-1, 1, 1), factor=2.0, example_inputs=x)
    assert {w.name for w in plan.widths} == {"stem", "reduce"}
    plan = netaugfx.plan(Squeezed(1, 1, 1), factor=2.0, example_inputs=x)
    assert {w.name for w in plan.widths} == {"stem"}
    assert "cannot tell it from its other axes of length 1" in plan.pinned["reduce"]


class Noisy(nn.Module):
    """Noise between two convolutions, in training or always."""

    def __init__(self, noise: Any, always: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.noise, self.always = noise, always

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(self.noise(x) if self.training or self.always else x)


NOISES = {
    "randn": lambda x: x + torch.randn(x.shape),
    "rand of sizes": lambda x: x * torch.rand(x.size(0), x.size(1), 1, 1),
    "rand of literals": lambda x: x * torch.rand(2, 4, 1, 1),
    "randint": lambda x: x * torch.randint(0, 2, x.shape),
    "normal of a size": lambda x: x + torch.normal(0.0, 1.0, x.shape),
    "normal": lambda x: torch.normal(x, 1),
    "exponential": lambda x: x - torch.empty_like(x).exponential_().log(),
    "bernoulli": lambda x: x * x.new_empty(x.shape).bernoulli_(0.5),
    "bernoulli of its own": lambda x: torch.zeros_like(x).bernoulli_(x.sigmoid()),
    "poisson": lambda x: torch.poisson(x.abs()),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
    "rrelu": lambda x: F.rrelu(x, training=True),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_in_training_lets_channels_grow_and_in_eval_mode_pins_them(name: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    wide = netaugfx.widen(Noisy(NOISES[name], always=False), factor=2.0, example_inputs=x)
    assert wide.elastic_share == 1
    wide.at(wide.max_config)(x)  # in train mode, where it draws
    plan = netaugfx.plan(Noisy(NOISES[name], always=True), factor=2.0, example_inputs=x)
    assert "draws random numbers for it in eval mode" in plan.pinned["conv1"]


def test_a_parameter_with_the_name_of_a_noise_draws_none() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.normal = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4, 1, 1))
            self.out = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.conv(x) * self.normal)
            return y

    plan = netaugfx.plan(Named(), factor=2.0, example_inputs=torch.zeros(2, 3, 4, 4))
    assert plan.elastic_share == 1


def test_modules_that_draw_in_training_only_let_channels_grow() -> None:
    x = torch.randn(2, 3, 4, 4)
    wide = netaugfx.widen(Noisy(nn.RReLU(), always=True), factor=2.0, example_inputs=x)
    assert wide.elastic_share == 1
    hard = Noisy(lambda x: F.gumbel_softmax(x, hard=True, dim=1), always=False)
    plan = netaugfx.plan(hard, factor=2.0, example_inputs=x)
    assert "takes the largest of it" in plan.pinned["conv1"]


class Opaque(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum() > -1e9 else x


class CutUnevenly(nn.Module):
    """Channels that a shuffle has made 3 groups of 2, halved; what takes a half cannot grow either."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 3, 1, groups=3)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)
        return self.head(self.depthwise(x.chunk(2, 1)[0]))


class Experts(nn.Module):
    """A convolution whose weight is a mixture, its output and input channels laid out as one axis (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.route = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)
        self.experts = nn.Parameter(torch.randn(2, 5 * 4))
        self.depthwise, self.head = nn.Conv2d(5, 5, 1, groups=5), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weight = (self.route(x.mean((2, 3))).sigmoid() @ self.experts).view(-1, 4, 1, 1)
        y = F.conv2d(x.view(1, -1, *x.shape[2:]), weight, groups=x.shape[0])
        return self.head(self.depthwise(y.view(x.shape[0], 5, *x.shape[2:])))


class Ruleless(nn.Conv2d):
    """A layer of torch's that has no rule, such as those of torch.ao.nn.qat."""

    __module__ = "torch.nn.unknown"


def test_a_layer_without_a_rule_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Ruleless(8, 8, 1), nn.Conv2d(8, 4, 1))
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 4, 4))
    assert "has no rule" in plan.opaque["1"]
    assert plan.elastic_share == 0


class Pooled(nn.Module):
    """Attention over a map as CLIP has it: torch's function, with weights of four linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        weights = {f"{name}_proj_weight": getattr(self, name).weight for name in "qkv"}
        bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
        rest = (None, None, False, 0.0, self.out.weight, self.out.bias)
        x = F.multi_head_attention_forward(
            *(x, x, x, x.shape[-1], 2, None, bias, *rest),
            training=self.training,
            use_separate_proj_weight=True,
            **weights,
        )[0]
        return self.head(x.mean(0))


def test_attention_by_separate_weights_runs_where_its_heads_alone_grow() -> None:
    wide = netaugfx.widen(Pooled(), example_inputs=torch.zeros(2, 3, 4, 4))
    assert netaugfx.verify(wide, [{"q": wide.max_config["q"]}])


class Heads(nn.Module):
    def __init__(self, split: Any, merge: Any) -> None:
        super().__init__()
        self.embed, self.query, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 4)
        self.split, self.merge = split, merge

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(self.embed(x).flatten(2).transpose(1, 2))
        q = self.split(q).transpose(1, 2).softmax(-1).transpose(1, 2)
        return self.head(self.merge(q.contiguous()).mean(1))


@pytest.mark.parametrize(
    "split",
    [
        lambda q: q.view(q.size()[:-1] + (2, 4)),  # noqa: RUF005
        lambda q: q.view(*(q.shape[:2] + (-1, 4))),  # noqa: RUF005
        lambda q: q.view((*q.shape[:-1], -1, 4)),
        lambda q: q.view((q.shape[0],) + q.shape[1:2] + (2, -1)),  # noqa: RUF005
    ],
)
@pytest.mark.parametrize(
    "merge",
    [
        lambda q: q.view(q.size()[:-2] + (8,)),  # noqa: RUF005
        lambda q: q.view(*(q.shape[:-2] + (8,))),  # noqa: RUF005
    ],
)
def test_shapes_that_are_sums_of_tuples(split: Any, merge: Any) -> None:
    wide = netaugfx.widen(Heads(split, merge), example_inputs=torch.zeros(2, 3, 4, 4))
    assert set(wide.widths) == {"embed", "query"}


def test_both_factors_of_a_computed_weight_grow() -> None:
    plan = netaugfx.plan(Experts(), example_inputs=torch.zeros(2, 3, 4, 4))
    assert {w.name: w.base for w in plan.widths} == {"stem": 4, "route": 2, "experts": 5}
    assert plan.axes["experts"] == ((("route",),), (("experts", "stem"),))
    assert set(plan.pinned) == {"head"}


@pytest.mark.parametrize(
    ("name", "widths", "pinned"),
    [
        ("hyper network", {"stem", "kernel"}, {"head"}),
        ("bilinear pooling", {"a", "b", "c"}, {"projection", "head"}),
        ("dynamic relu", {"stem", "first"}, {"second", "head"}),
    ],
)
def test_products_of_widths_grow(name: str, widths: set[str], pinned: set[str]) -> None:
    case = next(case for case in CASES if case.name == name)
    wide = netaugfx.widen(case.build(), example_inputs=case.inputs())  # verification pins nothing
    assert set(wide.widths) == widths
    assert set(wide.pinned) <= pinned
    assert wide.elastic_share == 1.0


class Detector(nn.Module):
    """Its root reads data: its children are traced apart, and nothing grows in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))
        self.head = nn.Sequential(nn.Conv2d(5, 5, 1, groups=5), nn.Conv2d(5, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.backbone(x))
        return x if x.sum() > 0 else -x


APART = "it leaves '{}', which is traced apart, since the model around it cannot be traced"


@pytest.mark.parametrize(
    ("model", "reasons"),
    [
        (CutUnevenly(), {"depthwise": "chunk() (test_what_grows.py) cuts it into 2 equal parts, which its 3 groups of "
                                      "2 channels do not divide into"}),
        (Asserts(), {"eights": "_assert() (networks.py) does not hold at other sizes"}),
        (Detector(), {"backbone.2": APART.format("backbone"), "head.1": APART.format("head"),
                      "head.0": "'0' (container.py) combines it with channels that no layer makes: an input"}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)  # fmt: skip
def test_a_pin_names_the_first_cause(model: nn.Module, reasons: dict[str, str]) -> None:
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 4, 4))
    for name, reason in reasons.items():
        assert reason in re.sub(r"\.py:\d+", ".py", plan.pinned[name])


# ------------------------------------------------------------------------------------------------ own backwards


class Function(torch.autograd.Function):
    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError


class Divides(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum(2, keepdim=True).expand_as(x) / x.shape[1]


class Means(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.sum(1, keepdim=True) / x.shape[1]


class Decides(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x if x.shape[1] > 4 else x * 2


class Noise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class PerSample(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if not x.is_contiguous():
            x = x.contiguous()
        return x * torch.rand(x.size(0), 1, 1, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class Holds(Function):
    scale = torch.ones(6, 1, 1)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * Holds.scale


class Given(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        return x.unflatten(1, (n, -1)).sum(2)


class Scales(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> Tensor:
        return x / n


class FromEnd(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x[:, -6:] * 2


class Views(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Any) -> Tensor:
        return (x * 2).flatten(1).view(shape)


class Normalises(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class Unknown(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.flip(x, (1,))


class Nested(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return PerSample.apply(x) * 2


class Applies(nn.Module):
    def __init__(self, function: Any, *arguments: Any) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.function, self.arguments = function, arguments

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        known = {"channels": x.shape[1], "shape": x.shape}
        given = [known.get(a, a) for a in self.arguments]
        return self.head(self.function.apply(x, *given))


HERE = "(test_what_grows.py)"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Applies(PerSample), None),
        (Applies(Nested), None),
        (Applies(Divides), f"Divides.apply() {HERE} computes with a length {HERE}"),
        (Applies(Means), f"Means.apply() {HERE} computes with a length {HERE}"),
        (Applies(Decides), f"Decides.apply() {HERE} decides by a length {HERE}"),
        (Applies(Noise), f"Noise.apply() {HERE} draws numbers for channels {HERE}"),
        (Applies(Given, 6), f"Given.apply() {HERE} holds a count of channels {HERE}"),
        (Applies(Given, "channels"), f"Given.apply() {HERE} holds a count of channels {HERE}"),
        (Applies(Scales, "channels"), f"Scales.apply() {HERE} is given a length"),
        (Applies(FromEnd), f"FromEnd.apply() {HERE} computes with a length {HERE}"),
        (Applies(Views, "shape"), f"Views.apply() {HERE} holds a count of channels {HERE}"),
        (Applies(Normalises), f"Normalises.apply() {HERE} calls batch_norm(), which subnets call otherwise {HERE}"),
        (Applies(Unknown), f"flip() {HERE} runs along it"),
    ],
    ids=lambda x: x.function.__name__ if isinstance(x, Applies) else "",
)  # fmt: skip
def test_what_a_function_with_an_own_backward_lets_grow(model: Any, reason: str | None) -> None:
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 4, 4))
    assert not plan.opaque
    told = re.sub(r"\.py:\d+", ".py", plan.pinned.get("stem", "it grows"))
    assert told.startswith(reason or "it grows"), told


class Shakes(nn.Module):
    """Noise per sample, drawn in place and by a Function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = (nn.Conv2d(*n, 1) for n in ((3, 6), (6, 5), (5, 2)))

    def forward(self, x: Tensor) -> Tensor:
        x = PerSample.apply(self.stem(x))
        x = self.body(x) * torch.empty(x.size(0)).view(-1, 1, 1, 1).uniform_(-1.0, 1.0)
        return self.head(x)


def test_noise_per_sample_is_the_same_in_base_and_subnet() -> None:
    wide = netaugfx.widen(Shakes(), example_inputs=torch.zeros(2, 3, 4, 4))  # verified
    assert set(wide.widths) == {"stem", "body"}


def test_a_function_that_fails_without_data_leaves_its_module_as_it_is() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Holds.apply(x)

    model = nn.Sequential(nn.Conv2d(3, 6, 1), Inner(), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 2, 1))
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 4, 4))
    assert list(plan.opaque) == ["1"]
    assert [w.name for w in plan.widths] == ["2"]


def test_a_rule_for_a_function_with_an_own_backward() -> None:
    netaugfx.register_rule(Unknown)(lambda op: op.tensors[0].axes)
    try:
        plan = netaugfx.plan(Applies(Unknown), example_inputs=torch.zeros(2, 3, 4, 4))
    finally:
        del registry._rules[Unknown]
    assert [w.name for w in plan.widths] == ["stem"]


def test_a_layer_without_a_rule_is_named_where_nothing_reaches_it() -> None:
    quantised = SimpleNamespace(weight=lambda **_: nn.Identity())
    model = nn.Sequential(nn.Sequential(torch.ao.nn.qat.Conv2d(3, 4, 1, qconfig=quantised)))
    plan = netaugfx.plan(model, example_inputs=torch.zeros(2, 3, 4, 4))
    assert plan.elastic_share == 0
    assert plan.opaque == {"0.0": "torch.ao.nn.qat.modules.conv.Conv2d has no rule"}
    with pytest.raises(netaugfx.PlanError, match=r"Nothing can grow .*qat.*Conv2d has no rule"):
        netaugfx.widen(model, example_inputs=torch.zeros(2, 3, 4, 4))
