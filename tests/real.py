"""Real models: those that every change is tested on, and all that the promise names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torchvision
from torch import nn

from tests.networks import Case

EVERY_MODEL = os.environ.get("HYPOTHESIS_PROFILE", "dev") in ("deep", "sweep")


def timm_model(name: str, **arguments: Any) -> nn.Module:
    return timm.create_model(name, pretrained=False, num_classes=10, **arguments)


def torchvision_model(name: str, **arguments: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)


def case(make: Callable[..., nn.Module], name: str, size: int, other: int | None) -> Case:
    prefix = "torchvision:" if make is torchvision_model else ""
    large = name.startswith(("vgg", "alexnet"))
    return Case(prefix + name, partial(make, name), ((3, size, size),), other, large=large)


FAST = (
    case(timm_model, "mobilenetv2_035", 32, 64),
    case(timm_model, "mobilenetv3_small_050", 32, 64),
    case(timm_model, "lcnet_035", 32, 64),
    case(timm_model, "resnet18", 32, 48),
)
OTHERS = (
    case(timm_model, "mobilenetv3_large_100", 32, 64),
    case(timm_model, "mobilenetv4_conv_small", 32, 64),
    case(timm_model, "mnasnet_small", 32, 64),
    case(timm_model, "efficientnet_b0", 32, 64),
    case(timm_model, "tf_efficientnet_b0", 33, 64),
    case(timm_model, "tinynet_e", 32, 64),
    case(timm_model, "resnet50", 32, 48),
    case(timm_model, "vgg11_bn", 32, 64),
    case(timm_model, "repvgg_a0", 32, 64),
    case(torchvision_model, "mobilenet_v2", 32, 64),
    case(torchvision_model, "mobilenet_v3_small", 32, 64),
    case(torchvision_model, "resnet18", 32, 48),
    case(torchvision_model, "vgg11", 32, 64),
    case(torchvision_model, "alexnet", 64, 96),
)
REAL = FAST + OTHERS
TESTED = REAL if EVERY_MODEL else FAST
