"""What `verify` can check: models in parts, forwards of one dtype, inputs whose values decide lengths."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

import netaugfx
from netaugfx.parts import WideParts
from netaugfx.verify import judge

X = torch.zeros(2, 3, 8, 8)


class Single(nn.Module):
    """It runs in float32 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x)).relu().float())


class Twice(torch.autograd.Function):
    """x * 2, with a backward pass that one dtype alone has, or none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtypes: tuple[torch.dtype, ...]) -> Tensor:
        ctx.dtypes = dtypes
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if gradient.dtype not in ctx.dtypes:
            raise RuntimeError(f"no kernel for {gradient.dtype}")
        return gradient * 2, None


class Backward(Single):
    """A network whose backward pass runs in some dtypes."""

    dtypes: tuple[torch.dtype, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(Twice.apply(self.norm(self.conv(x)), self.dtypes))


def test_a_backward_pass_that_runs_in_float32_alone_is_checked_in_float32() -> None:
    model = Backward()
    model.dtypes = (torch.float32,)
    wide = netaugfx.widen(model, example_inputs=X)
    assert wide.pinned.keys() == {"out"}
    assert "checked in torch.float32, since the model does not run in float64" in str(
        netaugfx.verify(wide)
    )


def test_a_model_whose_own_backward_pass_fails_is_told_so() -> None:
    with pytest.raises(
        netaugfx.VerifyError,
        match=r"The backward pass of the model itself fails \(RuntimeError: no kernel for torch.float32\)",
    ):
        netaugfx.widen(Backward(), example_inputs=X)
    assert netaugfx.widen(Backward(), example_inputs=X, verify=False).widths


def test_a_forward_that_runs_in_float32_alone_is_checked_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = netaugfx.widen(Single(), example_inputs=X)
    report = netaugfx.verify(wide)
    assert report
    assert report.dtype == torch.float32
    assert "checked in torch.float32" in str(report)
    monkeypatch.setattr(judge, "extract", lambda wide, config: netaugfx.extract_base(wide))
    assert "is not what extract gives" in netaugfx.verify(wide).failures[3]


def test_float64_stays_where_a_law_is_broken_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = netaugfx.widen(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), example_inputs=X)
    monkeypatch.setattr(judge, "extract", lambda wide, config: netaugfx.extract_base(wide))
    report = netaugfx.verify(wide)
    assert set(report.failures) == {3}
    assert report.dtype == torch.float64


@pytest.mark.parametrize("enough", [True, False])
def test_where_memory_is_short_it_is_float32(monkeypatch: pytest.MonkeyPatch, enough: bool) -> None:
    wide = netaugfx.widen(Small(), example_inputs=X, verify=False)
    law_3 = judge.Judge.law_3

    def short(self: judge.Judge, config: Any) -> str | None:
        if self.dtype == torch.float64 or not enough:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return law_3(self, config)

    monkeypatch.setattr(judge.Judge, "law_3", short)
    if enough:
        report = netaugfx.verify(wide)
        assert report
        assert report.dtype == torch.float32
        assert "float64 takes more memory than there is (RuntimeError: Default" in str(report)
    else:
        with pytest.raises(netaugfx.VerifyError, match=r"Memory is short.* or verify=False"):
            netaugfx.widen(Small(), example_inputs=X)


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


class Normed(Halves):
    """With a batch norm of its own between its parts, and norms in them."""

    def __init__(self) -> None:
        super().__init__()
        for part, channels in ((self.body, 8), (self.head, 6)):
            part.insert(1, nn.BatchNorm2d(channels))
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(x))
        return self.head(x if x.mean() < 1e9 else -x)


@pytest.mark.parametrize("grown", [{}, {"body.0": 16}, {"body.0": 16, "head.0": 12}])
def test_only_a_pass_of_the_base_moves_the_statistics_around_parts(grown: dict[str, int]) -> None:
    wide = netaugfx.widen(Normed().train(), example_inputs=X)
    assert set(wide.widths) == {"body.0", "head.0"}
    before = {name: b.clone() for name, b in wide.base.named_buffers()}
    wide.at(grown)(torch.randn(2, 3, 8, 8)).sum().backward()
    moved = {name for name, b in wide.base.named_buffers() if not torch.equal(b, before[name])}
    assert ("norm.running_mean" in moved) == (not grown)
    assert bool(moved) == (not grown)
    assert wide.base.norm.weight.grad is not None


class Counts(Halves):
    """Its root has one counter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("same", self.passes)

    def forward(self, x: Tensor) -> Tensor:
        self.passes.add_(1)
        return super().forward(x) * (1 + self.passes - self.same)


def test_a_buffer_with_two_names_is_one_in_a_subnet_too() -> None:
    wide = netaugfx.widen(Counts(), example_inputs=X)
    x = torch.randn(2, 3, 8, 8)
    found = wide.at(wide.max_config)(x)
    body, head = (wide.wides[p].at(wide.wides[p].max_config) for p in ("body", "head"))
    assert torch.equal(found, head(body(x)))
    assert wide.base.passes == 0


def remember(module: nn.Module, _: object, output: Tensor) -> None:
    module.seen = output  # type: ignore[assignment]


class Reads(Halves):
    """Its root reads what a hook left on a layer of its first part."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0].register_forward_hook(remember)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.body[0].seen.mean()


@pytest.mark.parametrize("ran", [False, True])
def test_a_part_whose_hooks_the_whole_needs_is_pinned(ran: bool) -> None:
    model, x = Reads(), torch.randn(2, 3, 8, 8)
    if ran:  # what an earlier pass left would be read in its place
        model(x)
    wide = netaugfx.widen(model, example_inputs=x)
    assert set(wide.widths) == {"head.0"}
    assert "hooks ('body.0') change what the base computes" in wide.pinned["body.0"]
    wide.at(wide.max_config)(X)


class Tied(Halves):
    """What its parts share: a layer, a Parameter, a layer that the root names, the root's own Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), self.head[2])
        self.more = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
        self.more[0].weight = self.head[0].weight
        self.stem, self.bias, self.again = self.body[0], self.body[2].bias, self.body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.again(x) + self.stem(x) + self.bias[:, None, None]
        y = self.head(y) + self.twin(y) + self.more(y)
        return y if x.mean() < 1e9 else -y


def test_what_parts_share_stays_shared() -> None:
    model, x = Tied(), torch.randn(2, 3, 8, 8)
    wide = netaugfx.widen(model, example_inputs=x)
    assert set(wide.widths) == {"body.0", "head.0", "twin.0", "more.0"}
    names = list(dict(model.named_parameters()))
    assert list(dict(wide.named_base_parameters())) == names
    wide.load_base(model.state_dict())
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    (wide(x).square().mean() + wide.at(wide.max_config)(x).square().mean()).backward()
    optimizer.step()
    trained = netaugfx.extract_base(wide)
    assert trained.stem is trained.body[0]
    assert trained.twin[2] is trained.head[2]
    assert trained.again is trained.body
    assert list(dict(trained.named_parameters())) == names
    model.load_state_dict(trained.state_dict(), strict=True)
    assert torch.equal(model(x), trained(x))
    assert torch.equal(model(x), wide(x))


class Either(nn.Module):
    """Data decide which branch runs; an auxiliary head runs in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.auxiliary = block(), block(), block()
        self.branches = nn.ModuleList([block(), block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) if x.sum() > 0 else self.right(x)
        return self.branches[int(x.sum() > 1e9)](self.auxiliary(x) if self.training else x)


def block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))


def test_parts_that_the_example_does_not_reach_are_named() -> None:
    wide = netaugfx.widen(Either(), example_inputs=torch.ones(2, 3, 8, 8))
    assert wide.plan.parts == ("left", "branches.0")
    told = {path: why for path, why in wide.plan.opaque.items() if path}
    assert list(told) == ["right", "auxiliary", "branches.1"]
    assert all("is not called on the example in eval mode" in why for why in told.values())


def test_a_model_in_parts_inside_a_module_that_does_nothing_else() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = Either()

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x / 2)

    model, x = Around(), torch.ones(2, 3, 8, 8)
    wide = netaugfx.widen(model, example_inputs=x)
    assert wide.plan.parts == ("inside.left", "inside.branches.0")
    assert "reads tensor data (bool)" in wide.plan.opaque[""]
    assert type(netaugfx.extract_base(wide)) is Around
    config = wide.max_config
    assert torch.equal(netaugfx.extract(wide, config).eval()(x), wide.eval().at(config)(x))


def test_parts_tell_of_names_and_shapes_that_do_not_fit() -> None:
    with pytest.raises(netaugfx.PlanError, match="no module matches 'boddy'"):
        netaugfx.widen(Halves(), example_inputs=X, keep=("boddy",))
    with pytest.raises(netaugfx.PlanError, match="Nothing can grow"):
        netaugfx.widen(Halves(), example_inputs=X, keep=("*",))
    wide = netaugfx.widen(Halves(), example_inputs=X)
    with pytest.raises(netaugfx.InputError, match="another input_shape is not known"):
        wide.macs(wide.max_config, (1, 3, 16, 16))


class WantsTargets(Halves):
    """In training it returns its loss, and looks at its targets in both modes, as detectors do."""

    def forward(self, x: Tensor, targets: list[Tensor] | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets should not be None")
        if targets is not None and not all(bool(t.sum() == 1) for t in targets):
            raise ValueError("targets should sum to 1")
        y = super().forward(x)
        return y if targets is None else y.mean((2, 3)).sub(torch.stack(targets)).square().mean()


def test_a_model_that_wants_targets_in_training() -> None:
    targets = [torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])]
    images_alone = netaugfx.widen(WantsTargets().train(), example_inputs=X)
    both = netaugfx.widen(WantsTargets().train(), example_inputs=(X, targets))
    for wide in (images_alone, both):
        assert set(wide.widths) == {"body.0", "head.0"}
        assert netaugfx.verify(wide)
        wide.at(wide.max_config)(torch.randn(2, 3, 8, 8), targets).backward()
    with pytest.raises(netaugfx.TraceError, match="targets should sum to 1"):
        netaugfx.widen(WantsTargets().train(), example_inputs=(X, [torch.zeros(2)]))
    with pytest.raises(netaugfx.InputError, match=r"not be None.* expected input.* to have 3 chan"):
        netaugfx.widen(WantsTargets().train(), example_inputs=torch.zeros(2, 4, 8, 8))
    with pytest.raises(netaugfx.InputError) as found:
        netaugfx.widen(Single().train(), example_inputs=torch.zeros(2, 4, 8, 8))
    assert str(found.value).count("channels") == 2  # torch's own sentence, once


class Learns(nn.Module):
    """Its forward could be traced in eval mode; in training it wants a target."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        y = self.body(x)
        return F.mse_loss(y, target) if self.training else y


@pytest.mark.parametrize("mode", [True, False])
def test_what_runs_on_the_example_in_eval_mode_alone_is_widened_in_parts(mode: bool) -> None:
    wide = netaugfx.widen(Learns().train(mode), example_inputs=X)
    assert wide.plan.parts == ("body",)
    assert "runs on the example inputs in eval mode alone" in wide.plan.opaque[""]
    whole = netaugfx.widen(Learns().train(mode), example_inputs=(X, torch.zeros(2, 2, 8, 8)))
    assert not whole.plan.parts
    assert set(whole.widths) == {"body.0"}


class Asks(Halves):
    """Its root asks its part for what a wide model is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len(self.body) if type(self.body) is nn.Sequential else None + x


def test_a_root_that_does_not_run_around_wide_parts_is_told_before_it_runs() -> None:
    with pytest.raises(
        netaugfx.PlanError, match=r"Nothing can grow in Asks: verification failed.*NoneType"
    ):
        netaugfx.widen(Asks(), example_inputs=X)


def test_a_layer_of_a_wide_sequential_is_found_by_its_place() -> None:
    wide = netaugfx.widen(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), example_inputs=X)
    assert wide[0] is wide.base[0]
    assert list(wide) == list(wide.base)
    assert len(wide) == 2
    assert wide
    assert netaugfx.widen(Small(), example_inputs=X)
    with pytest.raises(TypeError, match="'Small' object is not subscriptable"):
        _ = netaugfx.widen(Small(), example_inputs=X)[0]


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


def hooked(hook: str, path: str, run: Callable[..., object]) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)))
    model.append(nn.Conv2d(5, 2, 1))
    getattr(model.get_submodule(path), f"register_{hook}")(run)
    return model


@pytest.mark.parametrize("path", ["0", "1", ""])
def test_hooks_that_change_what_passes_are_named(path: str) -> None:
    for hook, run in (
        ("forward_hook", lambda module, args, out: out * 2),
        ("forward_pre_hook", lambda module, args: (args[0] + 0.5,)),
    ):
        model = hooked(hook, path, run)
        with pytest.raises(
            netaugfx.VerifyError,
            match=re.escape(f"hooks ({path!r}" if path else "hooks (of the whole"),
        ):
            netaugfx.widen(model, example_inputs=X)
        assert 4 in netaugfx.verify(netaugfx.widen(model, example_inputs=X, verify=False)).failures


@pytest.mark.parametrize("path", ["0", "1", ""])
def test_hooks_that_watch_pin_nothing(path: str) -> None:
    seen: list[float] = []
    model = hooked("forward_hook", path, lambda module, args, out: seen.append(out.mean().item()))
    assert set(netaugfx.widen(model, example_inputs=X).widths) == {"0", "1.0"}


class Kept(nn.Module):
    """It reads data, so it stays as it is; what it computes depends on its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x) * (2 if self.training else 1)
        return y if y.sum() < 1e9 else -y


def test_a_module_kept_as_it_is_runs_with_its_hooks_and_in_its_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Kept(), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    model[1].register_forward_hook(lambda module, args, out: out * 3)
    for mode in (True, False):
        wide = netaugfx.widen(model.train(mode), example_inputs=X)
        assert set(wide.widths) == {"2"}
        subnet = netaugfx.extract(wide, wide.max_config)
        assert torch.equal(subnet(X + 1), wide.at(wide.max_config)(X + 1))


@pytest.mark.parametrize("mode", [True, False])
def test_a_layer_with_a_state_of_its_own_leaves_the_others_free(mode: bool) -> None:
    layers = [nn.Conv2d(3, 8, 1), spectral_norm(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 6, 1)]
    model = nn.Sequential(*layers, nn.Conv2d(6, 2, 1)).train(mode)
    wide = netaugfx.widen(model, example_inputs=X)
    assert set(wide.widths) == {"2"}
    before = {name: t.clone() for name, t in wide.state_dict().items()}
    subnet = netaugfx.extract(wide, wide.max_config)
    assert all(torch.equal(t, before[name]) for name, t in wide.state_dict().items())
    state = "1.parametrizations.weight.0._u"
    assert torch.equal(subnet.state_dict()[state], before[state])


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    "hook",
    [
        partial(prune.l1_unstructured, name="weight", amount=0.5),
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
    ids=["prune", "weight norm", "spectral norm"],
)
def test_a_layer_whose_weight_a_hook_computes_leaves_the_others_free(
    hook: Callable[..., nn.Module],
) -> None:
    kept = nn.Conv2d(8, 8, 1)
    hook(kept)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), kept, nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    model(X)  # the hook leaves a computed tensor
    wide = netaugfx.widen(model, example_inputs=X)
    assert set(wide.widths) == {"2"}
    assert "has its weight computed by a hook" in wide.plan.opaque["1"]
    (wide(X + 1).sum() + wide.at(wide.max_config)(X + 1).sum()).backward()
    assert all(p.grad is not None for p in wide.parameters())
    subnet, base = netaugfx.extract(wide.eval(), wide.max_config), netaugfx.extract_base(wide)
    assert torch.equal(subnet(X + 1), wide.at(wide.max_config)(X + 1))
    assert torch.equal(base(X + 1), wide(X + 1))
    assert list(base.state_dict()) == list(model.state_dict())


def test_where_new_tensors_lie_by_default_does_not_matter() -> None:
    model, x = hooked("forward_hook", "0", lambda *_: None), torch.randn(2, 3, 8, 8)
    expected = netaugfx.widen(model, example_inputs=x).eval()
    with torch.device("meta"):  # as torch.set_default_device("cuda") would have it
        wide = netaugfx.widen(model, example_inputs=x).eval()
        wide.recalibrate(wide.max_config, [x])
        wide.uncalibrate(wide.max_config)
        wide.permute({"0": list(range(wide.max_config["0"]))})
        found = wide.at(wide.max_config)(x)
        assert netaugfx.verify(wide)
    assert torch.equal(found, expected.at(expected.max_config)(x))


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
    with pytest.raises(
        netaugfx.VerifyError, match=r"hooks \('stem'\) change what the base computes"
    ):
        netaugfx.widen(model, example_inputs=X)
    seen: list[Tensor] = []
    model = Small()
    model.stem.register_forward_hook(lambda module, args, output: seen.append(output))
    assert set(netaugfx.widen(model, example_inputs=X).widths) == {"stem"}


class WritesByPosition(Small):
    """It writes to what it has used already, and the operator's name does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        twice = x * 2
        F.relu(twice, True)
        return self.head(self.norm(twice + x))


def test_what_is_written_to_unseen_is_compared_as_it_was() -> None:
    assert set(netaugfx.widen(WritesByPosition(), example_inputs=X).widths) == {"stem"}


class Drifts(Small):
    """A count of its own moves on at every pass, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(x) + self.passes


def test_a_base_that_never_computes_the_same_twice_can_grow() -> None:
    assert set(netaugfx.widen(Drifts(), example_inputs=X).widths) == {"stem"}


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
