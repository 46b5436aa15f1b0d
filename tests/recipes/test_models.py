"""Models by name, and names that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recipes.errors import ModelError
from recipes.models import build_model, parse_model_args
from recipes.tiny import tiny_mobilenet


def test_timm() -> None:
    model = build_model("lcnet_035", num_classes=7, channels=1, model_args={"drop_rate": 0.3})
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert model.drop_rate == 0.3


def test_torchvision() -> None:
    model = build_model("torchvision:mobilenet_v3_small", num_classes=7)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_a_detector_is_built_without_fetching_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    model = build_model("torchvision:ssdlite320_mobilenet_v3_large", num_classes=7)
    assert len(model.eval()(torch.zeros(1, 3, 64, 64))) == 1


def test_own() -> None:
    model = build_model("netaugfx:tiny_mobilenet", num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 13_154
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def net(num_classes, in_chans=3, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(in_chans, width, 3), nn.Flatten(),\n"
        "                         nn.LazyLinear(num_classes))\n"
        "def anything(**options):\n    return net(**options)\n"
        "def colour(num_classes):\n    return nn.Linear(3, num_classes)\n"
        "def text(num_classes):\n    return 'text'\n"
    )
    model = build_model(f"{file}:net", num_classes=7, channels=1, model_args={"width": 6})
    assert model[0].weight.shape == (6, 1, 3, 3)
    model = build_model(f"{file}:anything", num_classes=7, channels=1)
    assert model[0].weight.shape == (4, 1, 3, 3)
    for name, message in {
        f"{file}:nett": r"has no function 'nett'\. Near: net",
        f"{tmp_path}/none.py:net": r"There is no file .*/none\.py",
        f"{file}:text": "returns a str, not a torch.nn.Module",
        f"{file}:colour": r"takes no in_chans, and the data has 1 channel",
    }.items():
        with pytest.raises(ModelError, match=message):
            build_model(name, num_classes=7, channels=3 if "text" in name else 1)
    file.write_text("1 / 0")
    with pytest.raises(ModelError, match=r"net\.py does not run: ZeroDivisionError: division by"):
        build_model(f"{file}:net", num_classes=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv3_smal_050", r"timm has no model 'mobilenetv3_smal_050'\. Near: mobilenetv3_"),
        ("torchvision:resnet19", r"torchvision has no model 'resnet19'\. Near: resnet1"),
        ("netaugfx:tiny", r"netaugfx has no model 'tiny'\. .*tiny_mobilenet"),
    ],
)
def test_unknown_names_suggest_near_ones(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build_model(name, num_classes=10)


def test_refused_arguments() -> None:
    with pytest.raises(ModelError, match=r"tiny_mobilenet cannot be built with .*TypeError"):
        build_model("netaugfx:tiny_mobilenet", num_classes=10, model_args={"nonsense": 1})
    with pytest.raises(ModelError, match="take 3 channels, and the data has 1"):
        build_model("torchvision:resnet18", num_classes=10, channels=1)
    with pytest.raises(ModelError, match="--model-arg expects key=value, got 'drop'"):
        parse_model_args(["drop"])
    with pytest.raises(ValueError, match="channels and strides differ in length"):
        tiny_mobilenet(channels=(4, 4), strides=(1,))


def test_model_args_are_literals_or_text() -> None:
    parsed = parse_model_args(["a=1", "b=(1, 2)", "c=relu", "d=None", "e=x=y"])
    assert parsed == {"a": 1, "b": (1, 2), "c": "relu", "d": None, "e": "x=y"}
