"""The MACs of a config, and the configs that stay within some."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import netaugfx
from netaugfx.cost import Cost, Term, cost
from tests.networks import CASES, Case
from tests.real import FAST

# said once where oneDNN is switched off and on again
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")


def deformable(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """A deformable convolution's, of which torch knows nothing."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def counted(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    others = {torch.ops.torchvision.deform_conv2d: deformable}
    with (
        FlopCounterMode(display=False, custom_mapping=others) as counter,
        torch.no_grad(),
        torch.backends.mkldnn.flags(enabled=False),  # its recurrent layers hide what they multiply
    ):
        network(*inputs)
    return counter.get_total_flops() // 2


def configs(wide: netaugfx.WideModel, random: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [wide.base_config, wide.max_config, *(wide.sample(generator) for _ in range(random))]


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_macs_are_those_of_the_extracted_network(case: Case) -> None:
    inputs, training = case.inputs(), len(case.name) % 2 == 0
    try:
        wide = netaugfx.widen(
            case.build().train(training), example_inputs=inputs, verify=not case.core
        )
    except netaugfx.PlanError as error:
        pytest.skip(str(error))
    for config in configs(wide, 1):
        network = netaugfx.extract(wide, config)
        program, bound = wide.program(inputs, {})
        polynomial = cost(program, wide.plan, bound.tensors)
        assert polynomial is not None
        assert polynomial.macs(config) == counted(network, inputs)


@pytest.mark.parametrize("case", FAST, ids=repr)
def test_macs_of_real_models_also_at_other_image_sizes(case: Case) -> None:
    inputs = tuple(x.to("meta") for x in case.inputs())
    wide = netaugfx.widen(case.build().to("meta").eval(), example_inputs=inputs, verify=False)
    for config in (wide.base_config, wide.sample()):
        network = netaugfx.extract(wide, config)
        for shape in ((1, *case.shapes[0]), (3, 3, case.other, case.other)):
            x = torch.zeros(shape, device="meta")
            assert wide.macs(config, shape) == counted(network, (x,))
        assert wide.macs(config) == wide.macs(config, (1, *case.shapes[0]))


class Restless(nn.Module):
    """Python decides by the image size what is computed: macs traces it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[-1] > 8:
            x = F.avg_pool2d(x, 2)
        return self.head(self.body(x).mean((2, 3)))


class FiveWidths(nn.Module):
    """A linear map from the products of three layers' channels to those of two widths of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv1d(3, 2, 1) for _ in range(3))
        self.kernel = nn.Parameter(torch.randn(3, 2, 2, 2, 2))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("nat,nbt,nct->nabc", self.a(x), self.b(x), self.c(x)).flatten(1)
        o, p, a, b, c = self.kernel.shape
        return self.head(F.linear(y, self.kernel.reshape(o * p, a * b * c)))


def test_a_product_of_five_widths_is_within_a_budget() -> None:
    wide = netaugfx.widen(FiveWidths(), example_inputs=torch.zeros(2, 3, 6))
    config = wide.sample(torch.Generator().manual_seed(0), budget=1.5)
    assert wide.macs(config) <= 1.5 * wide.macs(wide.base_config)
    largest = netaugfx.extract(wide, wide.max_config)
    assert wide.macs(wide.max_config) == counted(largest, (torch.zeros(1, 3, 6),))


def test_another_image_size_may_take_another_graph() -> None:
    wide = netaugfx.widen(Restless(), example_inputs=torch.zeros(2, 3, 8, 8), verify=False)
    for side, body in ((8, 8), (16, 8), (8, 8), (32, 16)):
        expected = 9 * (3 * 12 * side**2 + 12 * 12 * body**2) + 12 * 2
        assert wide.macs(wide.max_config, (1, 3, side, side)) == expected


def test_a_polynomial_is_the_sum_of_its_terms() -> None:
    polynomial = Cost((Term(3, ((("a",), (2,)), (("b",),))), Term(5, ())))
    assert polynomial.macs({"a": 4, "b": 7}) == 3 * (4 + 2) * 7 + 5


# ------------------------------------------------------------------------------------------------ within a budget


def small() -> netaugfx.WideModel:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    return netaugfx.widen(model, example_inputs=torch.zeros(1, 3, 6, 6), verify=False)


def every_config(wide: netaugfx.WideModel) -> list[dict[str, int]]:
    names = list(wide.widths)
    choices = [wide.widths[name].choices for name in names]
    return [dict(zip(names, sizes, strict=True)) for sizes in itertools.product(*choices)]


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.5, 20.0])
def test_configs_within_a_budget_are_drawn_uniformly(budget: float) -> None:
    wide = small()
    limit = budget * wide.macs(wide.base_config)
    fitting = [c for c in every_config(wide) if wide.macs(c) <= limit]
    generator = torch.Generator().manual_seed(0)
    draws = 150 * len(fitting)
    counts = {wide.plan.config(c): 0 for c in fitting}
    for _ in range(draws):
        counts[wide.sample(generator, budget=budget)] += 1  # KeyError: one that does not fit
    chi2 = sum((n - 150) ** 2 / 150 for n in counts.values())
    freedom = len(fitting) - 1
    assert chi2 <= freedom + 4 * math.sqrt(2 * freedom)
    assert len(fitting) == {1.0: 1, 20.0: 27}.get(budget, len(fitting))


def test_a_budget_leaves_other_kinds_and_the_global_random_state_alone() -> None:
    wide = netaugfx.widen(
        timm.create_model("mobilenetv3_small_050").to("meta"),
        example_inputs=torch.zeros(2, 3, 32, 32),
        verify=False,
    )
    before = torch.get_rng_state()
    limit = 2 * wide.macs(wide.base_config)
    for _ in range(5):
        config = wide.sample(torch.Generator().manual_seed(0), "inner", budget=2)
        assert wide.macs(config) <= limit
        grown = {name for name, n in config.items() if n > wide.base_config[name]}
        assert grown
        assert {wide.widths[name].kind for name in grown} == {"inner"}
        assert config == wide.sample(torch.Generator().manual_seed(0), "inner", budget=2)
    assert torch.equal(before, torch.get_rng_state())
    assert wide.sample(budget=3) != wide.sample(budget=3)  # the model's own generator moves on


# ------------------------------------------------------------------------------------------------ from a pool


def test_a_pool_is_always_the_same_and_of_the_size_asked_for() -> None:
    wide, again = small(), small()
    generator = torch.Generator().manual_seed(5)
    drawn = {wide.sample(generator, pool=4) for _ in range(100)}
    assert len(drawn) == 4
    assert wide.base_config not in drawn
    assert {again.sample(torch.Generator().manual_seed(i), pool=4) for i in range(50)} == drawn
    limit = 2.5 * wide.macs(wide.base_config)
    within = {wide.sample(generator, pool=3, budget=2.5) for _ in range(50)}
    assert len(within) == 3
    assert all(wide.macs(c) <= limit for c in within)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": 3}, "sample: generator must be a torch.Generator; 3 came. Make one with"),
        ({"kinds": "wide"}, "No width has the kind 'wide'; kinds are stream and inner."),
        ({"kinds": 3}, "sample: kinds must be among stream and inner; 3 came."),
        ({"budget": 0.5}, "sample: budget must be a number from 1 on, in MACs of the base; 0.5 came."),
        ({"budget": float("nan")}, "sample: budget must be a number from 1 on"),
        ({"budget": "2"}, "sample: budget must be a number from 1 on"),
        ({"pool": 0}, "sample: pool must be a whole number of configs from 1 on; 0 came."),
        ({"pool": 2.5}, "sample: pool must be a whole number of configs from 1 on; 2.5 came."),
        ({"kinds": ()}, "sample: kinds is empty, so nothing can be drawn; give 'stream' or 'inner'"),
        ({"budget": math.inf}, "sample: budget must be finite; inf came. Leave it out for none."),
        ({"pool": 27}, "sample: a pool of 27 configs was asked for, but only 26 wider than the base exist"),
        ({"pool": 10**6}, "sample: a pool of 1000000 configs was asked for, but only 26 wider than the base exist"),
        ({"pool": 1, "budget": 1}, "sample: a pool of 1 configs was asked for, but only 0 wider than the base "
                                   "come within the budget of 1 in 101 draws"),
        ({"pool": 1, "kinds": "inner"}, "sample: a pool of 1 configs was asked for, but no width of the kinds inner "
                                        "has a choice, so the base is all there is; grow those that are stream."),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(netaugfx.ConfigError) as raised:
        small().sample(**arguments)
    assert str(raised.value).startswith(message)


def test_a_pool_is_refused_at_once_where_it_would_be_too_large_to_list() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(41)))
    wide = netaugfx.widen(model, example_inputs=torch.zeros(1, 3, 2, 2), verify=False)
    with pytest.raises(
        netaugfx.ConfigError, match=r"it may have 10000 at most.* about 10\^19 wider"
    ):
        wide.sample(pool=10**6)
    assert len({wide.sample(pool=20) for _ in range(200)}) == 20


def test_a_pool_may_hold_every_config_that_there_is() -> None:
    wide = small()
    assert len({wide.sample(torch.Generator().manual_seed(i), pool=26) for i in range(400)}) == 26


class TwoLayers(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Chooses(nn.Module):
    """Calls its parts twice, on as many rows as data decide, on one row without a batch, and on none."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        )
        self.head, self.one, self.none = TwoLayers(4), TwoLayers(4), TwoLayers(4)

    def forward(self, x: Tensor) -> Any:
        large, small = self.body(x), self.body(x[..., ::2, ::2])
        rows = large.permute(0, 2, 3, 1)[x[:, 0] > 0]
        return self.head(rows), self.one(small.mean((0, 2, 3))), self.none(rows[:0])


def test_macs_of_a_model_in_parts_are_those_of_every_call_of_them() -> None:
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = Chooses().eval()
    wide = netaugfx.widen(model, factor=2, example_inputs=x)
    assert wide.plan.parts == ("body", "head", "one", "none")
    limit = 1.5 * counted(model, (x,))
    for config in (*configs(wide, 3), wide.sample(budget=1.5)):
        assert wide.macs(config) == counted(netaugfx.extract(wide, config), (x,))
    assert all(wide.macs(wide.sample(budget=1.5)) <= limit for _ in range(20))
    assert copy.deepcopy(wide).half().macs(wide.max_config) == wide.macs(wide.max_config)


class Shaped(nn.Module):
    """A convolution and a linear layer around what makes a batch of one of the input."""

    def __init__(self, before: Any, after: Any, conv: nn.Module) -> None:
        super().__init__()
        self.before, self.after, self.conv, self.head = before, after, conv, nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.after(self.conv(self.before(x)).relu()))


SOUND, IMAGE = nn.Conv1d(1, 12, 3), nn.Conv2d(3, 12, 3)


@pytest.mark.parametrize(
    ("model", "shape", "samples"),
    [
        (TwoLayers(4), (4,), 1),
        (TwoLayers(4), (3, 4), 3),
        (Shaped(lambda x: x[None], lambda x: x.amax(1), SOUND), (64,), 1),
        (Shaped(lambda x: x[:, None], lambda x: x.amax(2), SOUND), (5, 64), 5),
        (Shaped(lambda x: x, lambda x: x.amax((1, 2)), IMAGE), (3, 8, 8), 1),
        (Shaped(lambda x: x.permute(2, 0, 1), lambda x: x.amax((1, 2)), IMAGE), (8, 8, 3), 1),
        (Shaped(lambda x: x, lambda x: x.amax((2, 3)).mean(0), IMAGE), (5, 3, 8, 8), 1),
        (Shaped(lambda x: x, lambda x: x.amax((2, 3)), IMAGE), (5, 3, 8, 8), 5),
    ],
)
def test_macs_are_those_of_one_sample(
    model: nn.Module, shape: tuple[int, ...], samples: int
) -> None:
    x = torch.randn(shape)
    wide = netaugfx.widen(model, factor=2, example_inputs=x)
    for config in configs(wide, 1):
        assert samples * wide.macs(config) == counted(netaugfx.extract(wide, config), (x,))


def test_the_macs_of_one_sample_keep_what_is_no_sample() -> None:
    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = TwoLayers(4)

        def forward(self, x: Tensor, bias: Tensor, temperature: Tensor) -> Tensor:
            return (self.layers(x) + self.layers(bias).mean(0)) / temperature

    inputs = torch.randn(3, 4), torch.randn(7, 4), torch.tensor(2.0)
    wide = netaugfx.widen(Tempered(), factor=2, example_inputs=inputs)
    one = (inputs[0][:1], *inputs[1:])
    assert wide.macs({}) == counted(wide.base, one)
