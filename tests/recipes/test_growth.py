"""What grows, when and how far: ratios, the authors' coupling, the schedule, sorting."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netaugfx
from netaugfx.plan import KINDS
from recipes.errors import RunError
from recipes.netaug import NetAugTask
from recipes.tiny import tiny_mobilenet
from recipes.training.config import TrainConfig
from recipes.training.growth import (
    ExpandSampler,
    alpha_at,
    importance_orders,
    kinds_at,
    kinds_of,
    sort_channels,
    sorts_at,
    widen,
    widths_read,
)

AUTHORS = {"stream": (1, 2, 3), "inner": (1, 1.6, 2.2, 2.8)}
EXAMPLE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def config(**fields: Any) -> TrainConfig:
    return TrainConfig(**{"model": "none", "data": "none", "method": "netaug"} | fields)


def small() -> nn.Module:
    torch.manual_seed(0)
    return tiny_mobilenet(channels=(4, 4, 6), strides=(1, 1, 2), expand_ratio=2, head=8)


def test_ratios_by_kind() -> None:
    wide, _ = widen(small(), config(ratios=AUTHORS), EXAMPLE)
    for width in wide.widths.values():
        expected = [int(width.base * ratio + 0.5) for ratio in AUTHORS[width.kind]]
        assert list(width.choices) == expected, width.name


def test_an_inner_width_is_its_ratio_times_the_stream_before_it() -> None:
    wide, sampler = widen(small(), config(ratios=AUTHORS, coupling="expand"), EXAMPLE)
    reads = {"blocks.0.layers.0": "stem.0", "blocks.1.layers.0": "stem.0"}
    assert widths_read(wide.plan) == reads
    generator = torch.Generator().manual_seed(0)
    seen: dict[str, set[tuple[float, float]]] = {name: set() for name in reads}
    for _ in range(300):
        drawn = sampler(wide, generator, ("stream", "inner"))
        for inner, stream in reads.items():
            growth = drawn[stream] / wide.widths[stream].base
            possible = [int(int(8 * ratio + 0.5) * growth + 0.5) for ratio in AUTHORS["inner"]]
            assert drawn[inner] in possible
            seen[inner].add((growth, drawn[inner]))
    assert {len(each) for each in seen.values()} == {12}  # every stream with every ratio
    largest = {inner: wide.max_config[inner] for inner in reads}
    assert largest == dict.fromkeys(reads, int(8 * 2.8 + 0.5) * 3)
    for _ in range(20):  # alone, each kind as the authors have it
        streams = sampler(wide, generator, ("stream",))
        assert all(streams[inner] == 8 * streams["stem.0"] // 4 for inner in reads)
        inner = sampler(wide, generator, ("inner",))
        assert inner["stem.0"] == 4
        assert inner["blocks.0.layers.0"] in (8, 13, 18, 22)
    wide.at(wide.max_config)(EXAMPLE)
    NetAugTask(wide, nn.CrossEntropyLoss(), sampler=sampler)(EXAMPLE, torch.tensor([0, 1]))


def test_squeeze_and_excite_follows_what_it_reads() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=4)
    plan = netaugfx.plan(model, choices={k: tuple(map(float, v)) for k, v in AUTHORS.items()})
    sampler = ExpandSampler.of(plan)
    inner, squeeze = "blocks.2.0.conv_pw", "blocks.2.0.se.conv_reduce"
    assert sampler.reads[squeeze] == inner
    assert sampler.reads[inner] == "blocks.1.0.conv_pwl"
    base = plan.base_config
    for stream, own, expected in ((16, 64, 16), (48, 64, 48), (32, 102, 51)):
        size = sampler._size(inner, own, sampler.reads[inner], stream)
        assert size == own * stream // 16
        assert sampler._size(squeeze, 45, inner, size) == expected
    coupled = sampler.coupled(plan)
    assert coupled.by_name[squeeze].choices[-1] == int(179 * 3 * base[squeeze] / base[inner] + 0.5)


def test_the_schedule() -> None:
    run = config(epochs=10, stop_stream=0.5, stop_inner=0.8, alpha=1.0, alpha_end=0.1, sort=True)
    both = ("stream", "inner")
    kinds = [kinds_at(run, epoch, both) for epoch in range(10)]
    assert kinds == [("stream", "inner")] * 5 + [("inner",)] * 3 + [()] * 2
    assert [alpha_at(run, epoch) for epoch in (0, 9)] == [1.0, pytest.approx(0.1)]
    assert alpha_at(run, 4) == pytest.approx(0.6)
    assert [sorts_at(run, epoch, both) for epoch in range(10)] == [True] * 5 + [False] * 5
    assert not sorts_at(replace(run, pretrained=True), 0, both)
    assert not sorts_at(replace(run, init="weights.safetensors"), 0, both)
    assert kinds_at(run, 7, ("stream",)) == ()
    assert alpha_at(config(alpha=0.3), 5) == 0.3


def test_what_grows_unless_it_is_said() -> None:
    """Inner widths; streams where no block has widths of its own; whatever else the config speaks of."""
    wide = netaugfx.widen(small(), example_inputs=torch.zeros(2, 3, 8, 8), verify=False)
    assert {w.kind for w in wide.widths.values()} == set(KINDS)
    for fields, kinds in (
        ({}, ("inner",)),
        ({"kinds": ("stream",)}, ("stream",)),
        ({"factor": {"stream": 2.0}}, ("stream",)),
        ({"factor": {"stream": 2.0}, "diversity": {"inner": 3}}, KINDS),
        ({"ratios": {"inner": (1.0, 2.0)}}, ("inner",)),
        ({"factor": {"stem.*": 2.0}}, ("stream",)),
        ({"factor": {"blocks.*.layers.0": 2.0}}, ("inner",)),
        ({"sort": True}, KINDS),
        ({"coupling": "expand"}, KINDS),
        ({"max_config": {"stem.0": 8}}, KINDS),
        ({"method": "sandwich"}, KINDS),
        ({"method": "spos"}, KINDS),
    ):
        assert kinds_of(config(**fields), wide) == kinds, fields
    flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    flat_wide = netaugfx.widen(flat, example_inputs=torch.zeros(2, 3, 8, 8), verify=False)
    assert kinds_of(config(), flat_wide) == ("stream",)
    assert NetAugTask(wide, F.cross_entropy).kinds == ("inner",)
    assert NetAugTask(flat_wide, F.cross_entropy).kinds == ("stream",)


def test_values_that_no_run_can_have() -> None:
    for fields, message in (
        ({"coupling": "both"}, r"coupling is 'both'; one of \('independent', 'expand'\)"),
        ({"stop_inner": -0.1}, r"stop_inner is a share from 0 to 1; -0\.1 came"),
        ({"clip_grad": 0.0}, r"clip_grad is a norm above 0; 0\.0 came"),
    ):
        with pytest.raises(RunError, match=message):
            config(**fields)


def test_sorting_brings_the_most_important_channels_into_the_base() -> None:
    wide = netaugfx.widen(small().double(), example_inputs=(EXAMPLE.double(),), verify=False)
    whole = netaugfx.extract(wide, wide.max_config).state_dict()
    readers = {  # by hand: the weights that read each width
        "blocks.0.layers.0": ["blocks.0.layers.6.weight"],
        "stem.0": ["blocks.0.layers.0.weight", "blocks.1.layers.0.weight"],
        "head.0": ["classifier.weight"],
    }
    by_hand = {
        name: sum(whole[each].abs().transpose(0, 1).flatten(1).sum(1) for each in read)
        for name, read in readers.items()
    }
    orders = importance_orders(wide)
    assert orders.keys() == wide.widths.keys()
    for name, importance in by_hand.items():
        sorted_by_hand = importance[orders[name]]
        assert torch.equal(sorted_by_hand, importance.sort(descending=True).values), name

    images = torch.rand(8, 3, 16, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1, momentum=0.9)
    wide.train()
    before = wide.at(wide.max_config)(images)
    state = torch.get_rng_state()
    batches: list[tuple[Tensor, Tensor]] = [(images, torch.zeros(8)), (images * 2, torch.zeros(8))]
    sort_channels(wide, optimizer, None, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert (wide.at(wide.max_config)(images) - before).abs().max() <= 1e-9 * before.abs().max()
    first = orders["head.0"][:8]
    assert torch.equal(wide.base.classifier.weight, whole["classifier.weight"][:, first])
    # the base's statistics are those of the base on these batches
    norm = wide.base.stem[1]
    maps = [wide.base.stem[0](each) for each, _ in batches]
    means = torch.stack([each.mean((0, 2, 3)) for each in maps]).mean(0)
    assert (norm.running_mean - means).abs().max() < 1e-12
    assert importance_orders(wide) == {name: list(range(len(o))) for name, o in orders.items()}


def test_sorting_leaves_what_cannot_be_permuted() -> None:
    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.over = nn.Conv2d(3, 4, 1), nn.Conv1d(1, 1, 3, padding=1)
            self.b, self.c = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x * self.over(x.mean((2, 3))[:, None]).transpose(1, 2)[..., None]
            return self.c(self.b(x)).mean((2, 3))

    wide = netaugfx.widen(Shuffled(), example_inputs=(EXAMPLE,))
    assert not wide.widths["a"].permutable
    assert set(importance_orders(wide)) == {"b"}
    before = copy.deepcopy(wide.base.a.state_dict())
    sort_channels(wide, torch.optim.SGD(wide.parameters(), lr=0.1), None, [(EXAMPLE, EXAMPLE)])
    assert all(torch.equal(before[name], value) for name, value in wide.base.a.state_dict().items())
