"""What a user may hand in by mistake: one clear error each, and nothing is changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netaugfx
from netaugfx import (
    ConfigError,
    ExtractError,
    InputError,
    PlanError,
    StateError,
    TraceError,
    VerifyError,
)

X = torch.zeros(2, 3, 8, 8)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


class ReadsData(nn.Module):
    """Its root cannot be traced, so that it is widened in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else -self.body(x)


def wide_of(model: nn.Module) -> netaugfx.WideModel:
    return netaugfx.widen(model, example_inputs=X, verify=False)


WIDE = wide_of(network())
PARTS = wide_of(ReadsData())
USES: dict[str, Callable[[Any], Any]] = {
    "at": WIDE.at,
    "extract": lambda config: netaugfx.extract(WIDE, config),
    "macs": WIDE.macs,
    "recalibrate": lambda config: WIDE.recalibrate(config, [X]),
    "verify": lambda config: netaugfx.verify(WIDE, [config]),
    "parts": lambda config: netaugfx.extract(PARTS, config),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("config", [None, 5, [], "max"])
def test_a_config_is_a_mapping(use: Callable[[Any], Any], config: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        use(config)
    assert str(raised.value) == f"A config is a mapping from width name to size; {config!r} came."


@pytest.mark.parametrize("use", list(USES.values())[:-1], ids=list(USES)[:-1])
@pytest.mark.parametrize("size", [8.0, 4.0, True, "8", math.nan, None])
def test_a_size_is_a_whole_number(use: Callable[[Any], Any], size: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        use({"0": size})
    expected = f"Width '0' cannot be {size!r}: its choices are 4, 8, 12, whole numbers."
    assert str(raised.value) == expected
    with pytest.raises(ConfigError):
        use(netaugfx.Config({"0": size, "3": 8}))


CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: WIDE.macs(WIDE.max_config, (1, 4, 8, 8)), InputError, r"inputs of shape input: \(1, 4, 8, 8\)"),
    (lambda: WIDE.macs(WIDE.max_config, (1, 3, 8)), InputError, r"inputs of shape input: \(1, 3, 8\)"),
    (lambda: WIDE.macs(WIDE.max_config, (1, 3, 0, 8)), InputError, r"whole numbers from 1 on.*\(1, 3, 0, 8\) came"),
    (lambda: WIDE.macs(WIDE.max_config, ()), InputError, r"whole numbers from 1 on.*\(\) came"),
    (lambda: WIDE.macs(WIDE.max_config, "x"), InputError, "whole numbers from 1 on.*'x' came"),  # type: ignore[arg-type]
    (lambda: WIDE.permute(5), ConfigError, "orders must be a mapping.*; 5 came"),  # type: ignore[arg-type]
    (lambda: WIDE.permute({"a": None}), ConfigError, "permute: no width is called 'a'"),  # type: ignore[dict-item]
    (lambda: WIDE.permute({"0": None}), ConfigError, "must hold each of 0 to 11 once.*; None came"),  # type: ignore[dict-item]
    (lambda: WIDE.permute({"0": "abc"}), ConfigError, "must hold each of 0 to 11 once.*; 'abc' came"),  # type: ignore[dict-item]
    (lambda: WIDE.permute({"0": range(12)}, 5), ConfigError, "a torch Optimizer was expected; 5"),  # type: ignore[arg-type]
    (lambda: WIDE.permute({"0": range(12)}, ema=5), ConfigError, "a torch Module was expected; 5"),  # type: ignore[arg-type]
    (lambda: WIDE.recalibrate(WIDE.max_config, X), ConfigError, "batches must be a list.*; Tensor came"),
    (lambda: WIDE.recalibrate(WIDE.max_config, None), ConfigError, "batches must be a list"),  # type: ignore[arg-type]
    (lambda: netaugfx.verify(WIDE, 5), VerifyError, "configs must be a list of configs; 5 came"),  # type: ignore[arg-type]
    (lambda: netaugfx.verify(WIDE, {"0": 8}), VerifyError, "configs must be a list"),  # type: ignore[arg-type]
    (lambda: netaugfx.verify(WIDE, seed="x"), ConfigError, "verify: seed must be a whole number"),  # type: ignore[arg-type]
    (lambda: netaugfx.extract_base(None), ExtractError, "None came"),  # type: ignore[arg-type]
    (lambda: netaugfx.to_networkx(X), PlanError, "to_networkx expects .* widen.. returned; Tensor came"),  # type: ignore[arg-type]
    *((lambda seed=seed: netaugfx.widen(network(), example_inputs=X, seed=seed), ConfigError,
       "widen: seed must be a whole number of at most 64 bits") for seed in ("x", None, 1.5, True, 2**70)),
    (lambda: netaugfx.widen(network(), example_inputs=X, plan=5), PlanError, "what netaugfx.plan returned; 5"),  # type: ignore[arg-type]
    (lambda: netaugfx.plan(network(), example_inputs=X, keep=[5]), PlanError, r"keep must be globs.*\[5\]"),  # type: ignore[list-item]
    (lambda: netaugfx.plan(network(), example_inputs=X, factor={5: 2}), PlanError, "as a key; 5 came"),  # type: ignore[dict-item]
    *((lambda bad=bad: netaugfx.plan(network(), example_inputs=X, choices=bad), PlanError,
       r"choices must be .*ratios \(floats\) or sizes \(ints\)") for bad in ("x", 2.0, [None], ["x"], [math.nan])),
    (lambda: netaugfx.plan(network(), example_inputs=X, max_config="x"), ConfigError, "max_config: a mapping"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_a_mistake_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    before = copy.deepcopy(WIDE.state_dict())
    with pytest.raises(error, match=message):
        call()
    assert all(torch.equal(t, before[name]) for name, t in WIDE.state_dict().items())


def test_one_shape_does_not_stand_for_several_inputs() -> None:
    wide = wide_of_two()
    with pytest.raises(InputError, match="macs: Two takes 2 tensors"):
        wide.macs(wide.max_config, (1, 3, 8, 8))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x + y)


def wide_of_two() -> netaugfx.WideModel:
    return netaugfx.widen(Two(), example_inputs=(X, X), verify=False)


# ------------------------------------------------------------------------------------------------ checkpoints


def other() -> dict[str, Any]:
    """A checkpoint of the base with other values."""
    return {name: t + 1 for name, t in network().state_dict().items()}


CHECKPOINTS: list[tuple[Callable[[], Any], str]] = [
    (lambda: {k: v for k, v in other().items() if k != "3.weight"}, r"1 missing: 3\.weight\."),
    (lambda: {**other(), "odd": X}, r"1 unexpected: odd\.$"),
    (lambda: {**other(), "3.weight": X}, r"size mismatch for 3\.weight"),
    (lambda: {f"module.{k}": v for k, v in other().items()}, "Every entry starts with 'module.'"),
    (lambda: WIDE.state_dict(), "is loaded by wide.load_state_dict"),
    (lambda: dict.fromkeys(other()), 'parameter named "0.weight", expected torch.Tensor'),
    (lambda: None, "NoneType came. Give a state_dict"),
    (network, "Sequential came. Give a state_dict"),
]


@pytest.mark.parametrize(("checkpoint", "message"), CHECKPOINTS)
def test_a_wrong_checkpoint_is_refused_whole(checkpoint: Any, message: str) -> None:
    before = copy.deepcopy(WIDE.state_dict())
    with pytest.raises(StateError, match="no checkpoint of the base, Sequential: .*" + message):
        WIDE.load_base(checkpoint())
    assert all(torch.equal(t, before[name]) for name, t in WIDE.state_dict().items())


def test_a_model_in_parts_refuses_a_wrong_checkpoint_too() -> None:
    before = copy.deepcopy(PARTS.state_dict())
    right = {name: t + 1 for name, t in ReadsData().state_dict().items()}
    with pytest.raises(StateError, match=r"1 missing: body\.0\.bias"):
        PARTS.load_base({k: t for k, t in right.items() if k != "body.0.bias"})
    assert all(torch.equal(t, before[name]) for name, t in PARTS.state_dict().items())
    wide = copy.deepcopy(PARTS)
    wide.load_base(right)
    assert torch.equal(
        netaugfx.extract_base(wide).state_dict()["body.0.bias"], right["body.0.bias"]
    )


def test_statistics_of_a_subnet_follow_the_model_to_another_dtype() -> None:
    wide = wide_of(network()).eval()
    x = torch.randn(4, 3, 8, 8)
    wide.recalibrate(wide.max_config, [x])
    before = wide.at(wide.max_config)(x)
    wide.double()
    assert torch.allclose(wide.at(wide.max_config)(x.double()), before.double(), atol=1e-5)
    assert netaugfx.verify(wide)


class OwnLoading(nn.Sequential):
    """Its `load_state_dict` returns nothing (once-for-all networks)."""

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super().load_state_dict(state_dict, strict=False)


def test_a_base_that_loads_in_a_way_of_its_own() -> None:
    model = OwnLoading(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    wide = netaugfx.widen(model, example_inputs=X)
    other = {name: t + 1 for name, t in model.state_dict().items()}
    wide.load_base(other)
    assert all(torch.equal(wide.base.state_dict()[name], t) for name, t in other.items())


# --------------------------------------------------------------------------------------------------------- wrappers
@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_a_wrapped_model_is_refused(wrap: Any) -> None:
    with pytest.raises(PlanError, match=r"wraps the model; widen the model itself \(\.\w+\) first"):
        netaugfx.plan(
            wrap(nn.Sequential(nn.Conv2d(3, 4, 1))), example_inputs=torch.zeros(2, 3, 4, 4)
        )


def test_what_a_subnet_does_not_have_and_what_to_use_instead() -> None:
    with pytest.raises(AttributeError, match=r"A subnet has no 'eval'.*Use wide\.eval"):
        WIDE.at(WIDE.max_config).eval()
    with pytest.raises(InputError, match=r"leave them out: \[images for images, _ in loader\]"):
        WIDE.recalibrate(WIDE.max_config, [(X, torch.zeros(2))])


class OfBatches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.layers(batch["image"])


def test_a_dict_that_the_forward_takes_goes_into_a_tuple() -> None:
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(
        InputError, match=r"forward's keyword arguments; .* example_inputs=\(batch,\)"
    ):
        netaugfx.plan(OfBatches(), example_inputs={"image": x})
    assert netaugfx.plan(OfBatches(), example_inputs=({"image": x},)).widths


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
def test_a_torchscript_module_is_refused_by_name() -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 1)), X, check_trace=False)
    with pytest.raises(TraceError, match=r"a TorchScript module, .*\. Give the module that it was"):
        netaugfx.plan(traced, example_inputs=X)


def test_inputs_without_a_tensor_say_what_came() -> None:
    with pytest.raises(InputError, match="hold no tensor: pass at least one; ndarray came"):
        netaugfx.plan(network(), example_inputs=X.numpy())


def test_what_a_forward_raises_itself_is_passed_on() -> None:
    class Unfinished(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError("to do")

    line = r"\(test_bad_input\.py:\d+\)"
    with pytest.raises(InputError, match=rf"Unfinished does not run on .*float32: to do {line}"):
        netaugfx.plan(Unfinished(), example_inputs=X)


def test_an_input_that_torchs_own_module_refuses_has_the_line_that_called_it() -> None:
    with pytest.raises(
        InputError, match=r"OfBatches does not run on .* \(test_bad_input\.py:\d+\)"
    ):
        netaugfx.plan(OfBatches(), example_inputs=({"image": torch.zeros(2, 5, 8, 8)},))


def test_a_plan_says_what_memory_its_blocks_take() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 3))
    x = torch.empty(2, 3, 16, 16)
    plan = netaugfx.plan(model, factor=1e6, diversity=2, example_inputs=x)
    assert plan.block_memory() == "147 PB"
    assert "147 PB in float32" in netaugfx.describe(plan)
    with pytest.raises(PlanError, match=r"blocks of this plan take 147 PB.*smaller factor"):
        netaugfx.widen(model, plan=plan, example_inputs=x)
    small = netaugfx.plan(model, factor=2.0, diversity=2, example_inputs=x)
    assert small.augmented_elements == 3 * 64 * 9 + 64 + 3 * 64 * 64 * 9 + 64 + 4 * 64 * 9
    assert small.block_memory() == "459 kB"
    assert small.block_memory(bytes_each=2) == "230 kB"
