"""Regularisers to compare with: MixUp and CutMix of a batch, DropBlock in any network.

A tiny network underfits, so the paper finds that they hurt it where NetAug helps (tables 3 and 6).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropBlock2d
from torch import Tensor, nn
from torchvision.transforms import v2

from recipes.errors import ModelError
from recipes.training.config import TrainConfig


def mix(
    images: Tensor, labels: Tensor, config: TrainConfig, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of a batch: one draw, from `seed` alone, for all networks that see it.

    Returns:
        Images (N, C, H, W) and labels: int64 (N,) as they came, or float (N, num_classes).

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; S. Yun et al.,
    "CutMix", ICCV 2019; as in torchvision.
    """
    ways: list[Any] = []
    if config.mixup:
        ways.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        ways.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    if not ways:
        return images, labels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        way = ways[int(torch.randint(len(ways), ()))]
        return way(images, labels)


def add_dropblock(model: nn.Module, drop_prob: float) -> None:
    """Drop contiguous regions of what each block of `model` puts out, while it trains.

    A block is a module with two convolutions or more in a sequence of modules. Regions are 7 pixels
    wide, or half of the feature map where that is less.

    Raises:
        ModelError: the model has no such block.

    Source: G. Ghiasi, T. Lin, Q. Le, "DropBlock", NeurIPS 2018, as in timm. Deviation: the
    probability is constant, not scheduled.
    """
    blocks = [
        child
        for parent in model.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for child in parent.children()
        if not isinstance(child, nn.Sequential | nn.ModuleList)
        and sum(isinstance(each, nn.Conv2d) for each in child.modules()) > 1
    ]
    if not blocks:
        raise ModelError(
            f"{type(model).__name__} has no blocks to drop from: no sequence of modules that hold "
            "two convolutions or more. Leave out dropblock."
        )

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        if not module.training or not isinstance(output, Tensor) or output.dim() != 4:
            return output
        size = min(7, max(1, min(output.shape[-2:]) // 2))
        return DropBlock2d(drop_prob, block_size=size).train()(output)

    for block in blocks:
        block.register_forward_hook(drop)
