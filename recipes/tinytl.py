"""TinyTL: fine-tune biases, norms and the classifier, and small modules beside frozen blocks.

Source: H. Cai, C. Gan, L. Zhu, S. Han, "TinyTL: Reduce Activations, Not Trainable Parameters for
Efficient On-Device Learning", NeurIPS 2020, sections 3.2 and 3.3. Deviations: batch norm instead of
group norm; activations of frozen layers are kept in memory, as PyTorch does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.errors import ModelError

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


class LiteResidual(nn.Module):
    """block(x) + lite(x), with lite at half the resolution, in two groups; at first lite(x) = 0.

    Args:
        block: a module of one tensor (N, in_channels, H, W).
        in_channels: of the block.
        out_channels: of the block.
        stride: of the block, in pixels.
    """

    def __init__(self, block: nn.Module, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.block = block
        groups = 2 if in_channels % 2 == 0 else 1
        conv = nn.Conv2d(in_channels, in_channels, 5, stride, 2, groups=groups, bias=False)
        point = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        last = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(last.weight)
        self.lite = nn.Sequential(conv, nn.BatchNorm2d(in_channels), nn.ReLU(), point, last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> what the block gives, (N, out_channels, H', W')."""
        y = self.block(x)
        lite = self.lite(F.avg_pool2d(x, 2, ceil_mode=True))
        return y + F.interpolate(lite, size=y.shape[-2:], mode="bilinear")


def add_lite_residuals(model: nn.Module, example: Tensor) -> nn.Module:
    """Put a LiteResidual around each block of `model`, in place.

    A block is a module with two convolutions or more in a sequence of modules, that maps a feature
    map to a feature map.

    Args:
        example: images, from which the shapes of the blocks are found.

    Returns:
        `model`.

    Raises:
        ModelError: the model has no such block.
    """
    parents = {
        child: (parent, name)
        for parent in model.modules()
        if isinstance(parent, nn.Sequential | nn.ModuleList)
        for name, child in parent.named_children()
        if not isinstance(child, nn.Sequential | nn.ModuleList)
        and sum(isinstance(each, nn.Conv2d) for each in child.modules()) > 1
    }
    shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            shapes[module] = inputs[0].shape, output.shape

    hooks = [module.register_forward_hook(look) for module in parents]
    training = model.training
    with torch.no_grad():
        model.eval()(example)
    model.train(training)
    for hook in hooks:
        hook.remove()
    if not shapes:
        raise ModelError(
            f"{type(model).__name__} has no blocks to put lite residuals beside: no sequence of "
            "modules that hold two convolutions or more. Use --tune bias."
        )
    for module, (before, after) in shapes.items():
        parent, name = parents[module]
        stride = max(1, round(before[-1] / after[-1]))
        setattr(parent, name, LiteResidual(module, before[1], after[1], stride))
    return model


def freeze(model: nn.Module) -> None:
    """Let only biases, norms, lite residuals and the last linear layer learn."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    learning = {id(p) for module in linear[-1:] for p in module.parameters()}
    for module in model.modules():
        if isinstance(module, NORMS):
            learning |= {id(p) for p in module.parameters()}
        elif isinstance(module, LiteResidual):
            learning |= {id(p) for p in module.lite.parameters()}
    for name, parameter in model.named_parameters():
        is_bias = name.rpartition(".")[2] == "bias"
        parameter.requires_grad_(is_bias or id(parameter) in learning)
