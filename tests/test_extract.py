"""What a fresh pair of eyes broke once."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import netaugfx
from tests.networks import CASES

X = torch.randn(2, 3, 32, 32)


class TwoWays(nn.Module):
    """Its forward holds channel counts, and takes another way for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[-1] > 40:
            y = y * 3
        n, _, h, w = y.shape
        y = self.b(y).reshape(n, 2, 4, h * w).transpose(1, 2).reshape(n, 8, h, w)
        return self.head(y.mean((2, 3)))


def test_an_extracted_graph_refuses_inputs_that_go_another_way() -> None:
    wide = netaugfx.widen(TwoWays(), example_inputs=X).eval()
    network = pickle.loads(pickle.dumps(netaugfx.extract(wide, wide.max_config)))
    assert isinstance(network, torch.fx.GraphModule)
    for side in (32, 36):
        x = torch.randn(3, 3, side, side)
        assert torch.equal(network(x), wide.at(wide.max_config)(x))
    with pytest.raises(AssertionError, match="extracted for inputs at which this is False"):
        network(torch.randn(2, 3, 48, 48))


class ToSize(nn.Module):
    """Its forward holds channel counts, and brings a map back to the image's size, odd or even."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        y = y.view(-1, 2, 4, *y.shape[2:]).transpose(1, 2).reshape(-1, 8, *y.shape[2:])
        return self.head(self.up(y, output_size=x.size()))


def test_a_transposed_convolution_to_a_size_follows_other_images() -> None:
    wide = netaugfx.widen(ToSize(), example_inputs=X)
    network = pickle.loads(pickle.dumps(netaugfx.extract(wide, wide.max_config)))
    assert isinstance(network, torch.fx.GraphModule)
    assert "netaugfx" not in network.code
    for side in (32, 31, 18):
        x = torch.randn(3, 3, side, side)
        assert network(x).shape == (3, 5, side, side)
        assert torch.equal(network(x), wide.at(wide.max_config)(x))
    wide.macs(wide.max_config)


@pytest.mark.parametrize("traced", [1, 2])
def test_kernels_of_each_sample_at_any_batch_size(traced: int) -> None:
    case = next(case for case in CASES if case.name == "expert convs")
    inputs = case.inputs(batch=traced)
    wide = netaugfx.widen(case.build().eval(), example_inputs=inputs)
    config = wide.max_config
    network = netaugfx.extract(wide, config)
    for batch in (1, 2, 5):
        inputs = case.inputs(batch=batch)
        assert torch.equal(network(*inputs), wide.at(config)(*inputs))
        assert torch.equal(wide(*inputs), wide.base(*inputs))


class ByChannel(nn.Module):
    """Pools each channel of each image by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        x = F.max_pool2d(x.reshape(b * c, 1, h, w), 3, 1, 1)
        return self.head(x.reshape(b, c, h, w))


@pytest.mark.parametrize("traced", [1, 2])
def test_channels_merged_with_the_batch_at_any_batch_size(traced: int) -> None:
    wide = netaugfx.widen(ByChannel(), example_inputs=X[:1].repeat(traced, 1, 1, 1))
    assert set(wide.widths) == {"stem"}
    images = [torch.randn(batch, 3, 8, 8) for batch in (1, 2, 5)]
    subnet = [wide.at(wide.max_config)(x) for x in images]
    network = netaugfx.extract(wide, wide.max_config)
    for x, y in zip(images, subnet, strict=True):
        assert torch.equal(network(x), y)


class CountsItsBatches(nn.Module):
    """A batch norm that averages over all batches, a decision by a length, and a channel count in a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8, momentum=None)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x * 2 if x.shape[2] % 2 else x
        n, _, h, w = x.shape
        return self.head(x.view(n, 2, 4, h * w).transpose(1, 2).reshape(n, 8, h, w))


@pytest.mark.parametrize("training", [True, False])
def test_guards_of_a_graph_with_a_norm_that_counts_its_batches(training: bool) -> None:
    wide = netaugfx.widen(CountsItsBatches().train(training), example_inputs=X)
    network = netaugfx.extract(wide, wide.max_config)
    assert isinstance(network, torch.fx.GraphModule)
    assert torch.equal(network.eval()(X), wide.eval().at(wide.max_config)(X))
    with pytest.raises(AssertionError, match="extracted for inputs"):
        network(torch.randn(2, 3, 31, 32))


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_counts_its_batches_keeps_the_class(training: bool) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None), nn.ReLU(), nn.Conv2d(4, 5, 1))
    ).train(training)
    wide = netaugfx.widen(model, example_inputs=X)
    network = netaugfx.extract(wide, wide.max_config)
    assert type(network) is nn.Sequential
    assert torch.equal(network(X), wide.at(wide.max_config)(X))


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_the_class_that_asks_for_its_device_is_kept(where: str) -> None:
    case = next(case for case in CASES if case.name == "asks for its device")
    example = tuple(x.to(where) for x in case.inputs())
    wide = netaugfx.widen(case.build(), example_inputs=example, verify=False)
    config = wide.max_config
    wide.macs(config)  # traces on the meta device
    network = netaugfx.extract(wide, config)
    assert type(network) is type(wide.base)
    x = case.inputs()[0]
    assert torch.equal(network.eval()(x), wide.eval().at(config)(x))


class Attention(nn.Module):
    """Channel counts read from shapes, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.qkv = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 48)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        n, t, d = x.shape
        q, k, v = (z.view(n, t, 4, d // 4).transpose(1, 2) for z in self.qkv(x).chunk(3, -1))
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        return self.out(x.mean(1))


class ScaledWeight(nn.Module):
    """A weight computed from a Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(8, 8, 3, 3))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.conv2d(self.a(x).relu(), self.w * 0.5, padding=1).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "widths"), [(Attention(), ["patch", "qkv"]), (ScaledWeight(), ["a", "w"])]
)
def test_widens_in_full(model: nn.Module, widths: list[str]) -> None:
    wide = netaugfx.widen(model, example_inputs=X)
    assert list(wide.widths) == widths
    assert wide.elastic_share == 1.0


class Counter(nn.Module):
    """A buffer that is no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
        return self.head(self.a(x).relu().mean((2, 3)))


def test_a_counter_is_no_width() -> None:
    assert list(netaugfx.plan(Counter(), example_inputs=X).by_name) == ["a"]


class Normed(nn.Module):
    """Parametrised layers alone."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a = norm(nn.Conv2d(3, 8, 3, padding=1))
        self.b = norm(nn.Conv2d(8, 8, 3, groups=8))
        self.head = norm(nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x)).mean((2, 3)))


def test_layers_with_weight_norm_are_extracted_as_they_are() -> None:
    wide = netaugfx.widen(Normed(weight_norm), example_inputs=X)
    network = netaugfx.extract(wide, wide.max_config)
    assert isinstance(network, Normed)
    assert (network.a.out_channels, network.b.groups, network.head.in_features) == (24, 24, 24)
    assert torch.allclose(network(X), wide.at(wide.max_config)(X), atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_a_transformer_is_extracted_in_both_modes(train: bool) -> None:
    case = next(c for c in CASES if c.name == "transformer")
    wide = netaugfx.widen(case.build().train(train), example_inputs=case.inputs())
    assert {w.name: w.kind for w in wide.widths.values()} == {
        "patches": "stream",
        "attention": "inner",
        "layer.self_attn": "inner",
        "layer.linear1": "inner",
    }
    network = netaugfx.extract(wide, wide.max_config).eval()
    x = case.inputs()
    assert torch.allclose(network(*x), wide.eval().at(wide.max_config)(*x), atol=1e-5)


def test_the_fused_kernel_of_attention_computes_the_subnet_too() -> None:
    case = next(c for c in CASES if c.name == "transformer")
    x = tuple(t.double() for t in case.inputs())
    wide = netaugfx.widen(case.build().double(), example_inputs=x).eval()
    network = netaugfx.extract(wide, {"layer.linear1": wide.max_config["layer.linear1"]})
    torch.backends.mha.set_fastpath_enabled(True)
    try:
        with torch.no_grad(), torch.profiler.profile() as profile:
            found = network(*x)
    finally:
        torch.backends.mha.set_fastpath_enabled(False)
    assert any("_transformer_encoder_layer_fwd" in e.key for e in profile.key_averages())
    with torch.no_grad():
        expected = wide.at({"layer.linear1": wide.max_config["layer.linear1"]})(*x)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


class Sentences(nn.Module):
    """An encoder whose eval mode has a way of its own, through one fused kernel and nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.words(x), src_key_padding_mask=padding)[:, 0])


@pytest.fixture
def fast_path() -> Iterator[None]:
    """Torch's fused inference kernel, which the other tests leave off."""
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(False)


@pytest.mark.usefixtures("fast_path")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("train", [True, False])
def test_an_encoder_is_extracted_by_its_ordinary_way(train: bool) -> None:
    inputs = torch.randn(2, 4, 6), torch.tensor([[False] * 4, [False, False, True, True]])
    wide = netaugfx.widen(Sentences().train(train), example_inputs=inputs)
    assert wide.elastic_share == 1.0
    report = netaugfx.verify(wide)
    assert str(report) == "laws 2, 3 and 4 hold at 2 configs"
    assert not report.unchecked
    network = netaugfx.extract(wide, wide.max_config).eval()
    expected = wide.eval().at(wide.max_config)(*inputs)
    assert torch.allclose(network(*inputs), expected, atol=1e-5)


class TwoWaysByMode(nn.Module):
    """Holds a channel count, so that no wider network of its class runs, and takes another way in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).reshape(-1, 2, 4, 64).transpose(1, 2).reshape(-1, 8, 64).mean(2)
        return self.head(y if self.training else y * 0.5)


def test_a_law_that_cannot_be_checked_is_said() -> None:
    wide = netaugfx.widen(TwoWaysByMode(), example_inputs=torch.zeros(2, 3, 8, 8))
    with pytest.raises(netaugfx.ExtractError, match="differs between train and eval"):
        netaugfx.extract(wide, wide.max_config)
    report = netaugfx.verify(wide)
    assert report, "no law is broken"
    assert set(report.unchecked) == {3}
    assert str(report).startswith(
        "laws 2 and 4 hold at 2 configs; law 3 was not checked: Cannot extract"
    )


class Attends(nn.Module):
    """Attention over as many places as the image has."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).mT
        return self.head(self.attention(y, y, y, need_weights=False)[0].mean(1))


def test_attention_at_another_image_size() -> None:
    wide = netaugfx.widen(Attends(), example_inputs=torch.zeros(4, 3, 16, 16)).eval()
    other = torch.randn(4, 3, 32, 24)
    again = netaugfx.widen(wide.base, plan=wide.plan, example_inputs=other).eval()
    again.load_state_dict(wide.state_dict())
    found = wide.at(wide.max_config)(other)
    assert found.shape == (4, 5)
    assert torch.allclose(found, again.at(wide.max_config)(other), atol=1e-6)
    assert torch.equal(netaugfx.extract(wide, wide.max_config)(other), found)


def test_layers_whose_weight_has_a_state_are_named() -> None:
    with pytest.raises(netaugfx.PlanError, match=r"'a' .* divides its weight by the largest"):
        netaugfx.widen(Normed(spectral_norm), example_inputs=X)


def test_wrong_things_are_refused_by_name() -> None:
    model = Counter()
    wide = netaugfx.widen(model, example_inputs=X, verify=False)
    with pytest.raises(netaugfx.ConfigError, match="'max' came"):
        wide.at("max")  # type: ignore[arg-type]
    for function in (netaugfx.verify, netaugfx.describe):
        with pytest.raises(netaugfx.NetAugFXError, match="Counter came"):
            function(model)
    with pytest.raises(netaugfx.ExtractError, match="Counter came"):
        netaugfx.extract(model, {})  # type: ignore[arg-type]
    model.a.weight.data[0] = math.nan
    with pytest.raises(netaugfx.VerifyError, match=r"'a.weight' holds NaN"):
        netaugfx.widen(model, example_inputs=X)


class Stores(nn.Module):
    """Leaves what it computed on itself: a tensor, and tensors in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        self.feature = y.mean((2, 3))
        self.log = [y, *self.log[:1]]
        return self.b(y)


@pytest.mark.parametrize("ran", ["never", "with a gradient", "without"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_stores_tensors_is_trained_and_extracted(ran: str, nested: bool) -> None:
    model = nn.Sequential(Stores(), nn.Conv2d(2, 2, 1)) if nested else Stores()
    fresh = netaugfx.plan(model, example_inputs=X)
    if ran != "never":
        with torch.set_grad_enabled(ran == "with a gradient"):
            model(X)
    assert netaugfx.plan(model, example_inputs=X) == fresh
    wide = netaugfx.widen(model, example_inputs=X)
    config = wide.max_config
    for _ in range(2):
        wide(X).sum().backward()
        wide.at(config)(X).sum().backward()
    assert netaugfx.verify(wide)
    assert torch.equal(netaugfx.extract_base(wide)(X), wide(X))
    network = netaugfx.extract(wide, config)
    assert type(network) is type(model)
    assert torch.equal(network(X), wide.at(config)(X))
    assert torch.equal(copy.deepcopy(wide).at(config)(X), wide.at(config)(X))
    assert wide.load_base(model.state_dict()) is None
