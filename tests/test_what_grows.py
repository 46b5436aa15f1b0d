"""What grows together and what is pinned: the real models in full, the traps by name."""

from __future__ import annotations

import pytest

import netaugfx
from tests.networks import CORE, WHOLE, Case
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
    "same padded": ("conv1 conv3", ""),
    "checkpointed": ("stem block.0", ""),
    "reserved": ("augmented base.0 plan sample example", ""),
    "unused": ("conv", ""),
    "maps out": ("stage1.0 stage2.0", ""),
    "unknown in the middle": ("before conv2", "conv1"),
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


def test_kinds() -> None:
    """Inner widths lie within one block and are not its output; every other is a stream."""
    audio, video, _ = (netaugfx.plan(c.build(), example_inputs=c.inputs()) for c in WHOLE)
    inner = {"blocks.0.expand", "blocks.1.expand"}
    assert {width.name for width in audio.widths if width.kind == "inner"} == inner
    inner = {"layer1.spatial", "layer2.spatial", "layer1.squeeze.reduce", "layer2.squeeze.reduce"}
    assert {width.name for width in video.widths if width.kind == "inner"} == inner
