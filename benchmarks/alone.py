"""A subnet of the tiny network as a plain one with fresh weights, for benchmarks/search.py to train alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

import netaugfx
from recipes.tiny import tiny_mobilenet


def alone(num_classes: int, in_chans: int, sizes: Mapping[str, int]) -> nn.Module:
    """The tiny network at a config; its weights come from torch's global random state."""
    base = tiny_mobilenet(num_classes, in_chans)
    wide = netaugfx.widen(base, max_config=sizes, diversity=1, verify=False)
    network = netaugfx.extract(wide, wide.max_config)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return network
