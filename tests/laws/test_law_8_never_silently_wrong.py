"""Law 8. What is not known is pinned and named; a rule that lies is caught, pinned and reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

import netaugfx
from netaugfx.rules import registry
from netaugfx.unify import fixed
from tests import measure
from tests.laws.subject import Growth, Source, config_of, few, growths, widen
from tests.laws.test_law_4_base_is_contained import cut_augmented_inputs
from tests.networks import CASES, Case, OldWeightNorm
from tests.strategies import Act, Conv, Head, NetworkSpec, Norm, Unknown, networks

# ---------------------------------------------------------------- unknown operators


def around(kind: str) -> NetworkSpec:
    """Two convolutions before an operator and one after it."""
    body = (Conv(out=6), Act(), Conv(out=4, kernel=3), Unknown(kind), Conv(out=5), Norm())
    return NetworkSpec(body=body, head=Head())


@pytest.mark.parametrize(
    ("kind", "operator"),
    [("sort channels", "sort"), ("flip channels", "flip")],
)
def test_an_unknown_operator_pins_and_is_named(kind: str, operator: str) -> None:
    wide = widen(around(kind), Growth(), verify=True)
    assert "body2" in wide.pinned
    assert operator in wide.pinned["body2"], wide.pinned
    assert {"body0", "body4"} <= set(wide.widths), "what lies before and beyond stays elastic"
    with pytest.raises(netaugfx.PinnedError, match=operator):
        widen(around(kind), Growth(), strict=True)


def check_never_wrong(source: Source, growth: Growth) -> None:
    """A verified wide model, whatever it is made of, is lawful; the base runs as before."""
    model = source.build(growth.seed)
    wide = widen(source, growth, model, verify=True)
    inputs = source.inputs(growth.seed)
    base = measure.run(wide, wide, inputs, seed=3)
    expected = measure.run(model, model, inputs, seed=3)
    measure.same_output(base, expected, "base")
    config = config_of(wide, growth)
    try:
        netaugfx.extract(wide, config)
    except netaugfx.ExtractError:
        return  # said, not silently wrong
    check_lawful(source, growth, verify=True)


def check_lawful(source: Source, growth: Growth, **arguments: Any) -> None:
    """Laws 3 and 4, in float64."""
    model = measure.without_dropout(source.build(growth.seed)).double()
    inputs = measure.as_double(source.inputs(growth.seed))
    wide = widen(source, growth, model, example_inputs=inputs, **arguments)
    config = config_of(wide, growth)
    network = netaugfx.extract(wide, config)
    found = measure.run(wide.at(config), wide, inputs)
    measure.close_output(found, measure.run(network, network, inputs), f"law 3 at {config}")
    if source.mixes:
        return
    cut_augmented_inputs(wide)
    found = measure.run(wide.at(config), wide, inputs)
    measure.close_output(found, measure.run(model, model, inputs), f"law 4 at {config}")


class Magnifies(nn.Module):
    """Rounding grows beyond any tolerance, as behind many batch norms of two values; then the result is cut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Linear(3, channels)
        self.mix = nn.Linear(channels, channels)
        self.head = nn.Linear(channels // 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.mix(self.stem(x)).mul(1e10).sin().chunk(2, 1)
        return self.head(left * right)


@pytest.mark.parametrize("channels", [18, 22, 26, 30])
def test_verification_is_not_misled_by_rounding(channels: int) -> None:
    model, x = Case("", lambda: Magnifies(channels)).build(), torch.zeros(2, 3)
    wide = netaugfx.widen(model, example_inputs=x, factor=1.5, verify=False)
    assert netaugfx.verify(wide, [wide.max_config])


@few
@given(networks(unknown=True), growths)
def test_random_networks_with_an_unknown_operator(spec: NetworkSpec, growth: Growth) -> None:
    check_never_wrong(spec, growth)


@few
@given(networks(wide_family=True), growths)
def test_random_networks_of_the_wide_family(spec: NetworkSpec, growth: Growth) -> None:
    check_never_wrong(spec, growth)


@few
@given(networks(), growths)
def test_inference_needs_no_verification(spec: NetworkSpec, growth: Growth) -> None:
    """On operators that have rules, verification finds nothing to pin."""
    assert widen(spec, growth, verify=True).plan == widen(spec, growth, verify=False).plan


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_networks_by_hand(case: Source) -> None:
    check_never_wrong(case, Growth())
    check_never_wrong(case, Growth(2.0, 1, 1, 2, eval=True))


# ---------------------------------------------------------------- rules that lie


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A registry that forgets what a test teaches it."""
    monkeypatch.setattr(registry, "_rules", dict(registry._rules))
    return


class Lied(nn.Module):
    """Convolutions around an operator that some rule lies about."""

    def __init__(self, operator: Any) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 4, 1)
        self.left = nn.Conv2d(4, 5, 3)
        self.right = nn.Conv2d(4, 5, 3)
        self.after = nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 2)
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        x = self.operator(self.left(x), self.right(x))
        return self.head(F.relu(self.after(x)).mean((2, 3)))


def flipped(a: Tensor, b: Tensor) -> Tensor:
    return a + torch.flip(b, (1,))


def rolled(a: Tensor, b: Tensor) -> Tensor:
    return torch.roll(a, 1, 1) * b


def normalised(a: Tensor, b: Tensor) -> Tensor:
    return a + torch.softmax(b, 1)


def hypotenuse(a: Tensor, b: Tensor) -> Tensor:
    return torch.hypot(a, b)


def like_its_input(op: Any) -> Any:
    """What elementwise operators do."""
    return op.tensors[0].axes


def like_nothing(op: Any) -> Any:
    """Says that what comes out does not grow with what goes in."""
    return tuple(fixed(n) for n in op.result.shape)


LIES = [
    (flipped, torch.flip, like_its_input),
    (rolled, torch.roll, like_its_input),
    (normalised, torch.softmax, like_its_input),
    (hypotenuse, torch.hypot, like_its_input),
    (flipped, torch.flip, like_nothing),
]


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("diversity", [1, 2, 3])
@pytest.mark.parametrize(("operator", "target", "lie"), LIES)
def test_a_lying_rule_is_caught_pinned_and_reported(
    operator: Any, target: Any, lie: Any, diversity: int
) -> None:
    netaugfx.register_rule(target)(lie)
    case = Case("lied", lambda: Lied(operator))
    wide = widen(case, Growth(3.0, diversity), verify=True)
    reasons = {name: why for name, why in wide.pinned.items() if "verif" in why}
    assert reasons, f"nothing is reported: {wide.pinned}"
    assert set(reasons) <= {"left", "right"}, f"more is pinned than the lie is about: {reasons}"
    assert {"before", "after"} <= set(wide.widths)
    assert netaugfx.verify(wide)
    for config in range(6):
        check_lawful(case, Growth(3.0, diversity, config=config), verify=True)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(("operator", "target", "lie"), LIES)
def test_the_lie_breaks_a_law_where_nothing_is_verified(
    operator: Any, target: Any, lie: Any
) -> None:
    netaugfx.register_rule(target)(lie)
    case = Case("lied", lambda: Lied(operator))
    assert not netaugfx.verify(widen(case, Growth()))
    broken = 0
    for config in range(6):
        try:
            check_lawful(case, Growth(config=config))
        except (AssertionError, RuntimeError, netaugfx.NetAugFXError):
            broken += 1
    assert broken


def test_old_style_weight_norm_is_a_clear_error() -> None:
    model = OldWeightNorm()
    model(torch.zeros(2, 3, 8, 8))
    with pytest.raises(netaugfx.NetAugFXError, match="parametrizations"):
        netaugfx.widen(model, example_inputs=torch.zeros(2, 3, 8, 8))


def test_a_model_without_widths_is_a_clear_error() -> None:
    with pytest.raises(netaugfx.PlanError, match="Nothing can grow"):
        netaugfx.widen(nn.Linear(3, 2), example_inputs=torch.zeros(2, 3))
