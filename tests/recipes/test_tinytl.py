"""TinyTL: what is frozen stays, what learns is small, and it goes with NetAug."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import netaugfx
from recipes.errors import ModelError
from recipes.tiny import tiny_mobilenet
from recipes.tinytl import LiteResidual, add_lite_residuals, freeze
from recipes.training.config import TrainConfig
from tests.recipes.images import make_folder
from tests.recipes.test_training import quiet

ARGUMENTS = {"channels": (4, 4, 6), "strides": (1, 1, 2), "expand_ratio": 2, "head": 8}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    return TrainConfig(
        model="netaugfx:tiny_mobilenet",
        model_args=ARGUMENTS,
        data=f"folder:{folder}/images",
        epochs=1,
        batch_size=8,
    )


@pytest.mark.parametrize("method", ["baseline", "netaug"])
@pytest.mark.parametrize("tune", ["bias", "lite"])
def test_only_some_of_it_learns(
    method: str, tune: str, config: TrainConfig, tmp_path: Path
) -> None:
    quiet(config, tmp_path / "source")
    source = load_file(tmp_path / "source" / "base.safetensors")
    init = str(tmp_path / "source" / "best.safetensors")
    quiet(replace(config, method=method, tune=tune, init=init, epochs=2), tmp_path / "tuned")
    found = load_file(tmp_path / "tuned" / "base.safetensors")
    if tune == "lite":
        assert any(".lite." in name for name in found)
        model = add_lite_residuals(tiny_mobilenet(3, **ARGUMENTS), torch.rand(2, 3, 8, 8))
        model.load_state_dict(found, strict=True)
        found = {
            name.replace(".block.", "."): value
            for name, value in found.items()
            if ".lite." not in name
        }
    assert found.keys() == source.keys()
    norms = ("stem.1", "layers.1.", "layers.4.", "layers.7.", "head.1")
    for name, value in source.items():
        learns = "classifier" in name or any(each in name for each in norms)
        assert torch.equal(found[name], value) != learns, name


def test_lite_residuals_begin_as_nothing() -> None:
    images = torch.rand(2, 3, 33, 33)
    for model in (tiny_mobilenet(), timm.create_model("resnet18", num_classes=4)):
        model.eval()
        before = model(images)
        add_lite_residuals(model, images)
        assert torch.equal(model(images), before)
        lite = [module for module in model.modules() if isinstance(module, LiteResidual)]
        assert len(lite) == (3 if before.shape[1] == 10 else 8)
        with torch.no_grad():
            lite[1].lite[-1].weight.fill_(1.0)
        assert not torch.allclose(model(images), before)
    with pytest.raises(ModelError, match=r"Linear has no blocks .* Use --tune bias"):
        add_lite_residuals(nn.Linear(2, 2), torch.rand(1, 2))


def test_what_learns_widens() -> None:
    images = torch.rand(2, 3, 16, 16)
    model = add_lite_residuals(tiny_mobilenet(3, **ARGUMENTS), images)
    freeze(model)
    wide = netaugfx.widen(model, example_inputs=(images,))
    assert set(wide.pinned) == {"classifier"}
    wide.at(wide.max_config)(images).sum().backward()
    learning = {name for name, p in wide.named_augmented_parameters() if p.grad is not None}
    assert any(".lite." in name for name in learning)
    assert not any("block.layers.0.weight" in name for name in learning)
