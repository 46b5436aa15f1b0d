"""What a run is made of: the model and its weights, optimiser, objective, average."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import netaugfx
from recipes.data import Data, near
from recipes.errors import RunError
from recipes.models import build_model
from recipes.netaug import NetAugTask, Sampler
from recipes.sandwich import SandwichTask
from recipes.spos.task import SinglePathTask
from recipes.tinytl import add_lite_residuals, freeze
from recipes.training.checkpoint import split_optimizer
from recipes.training.config import TrainConfig
from recipes.training.growth import kinds_of


def fresh_model(config: TrainConfig, data: Data, pretrained: bool | None = None) -> nn.Module:
    """The untouched model of a run, with weights from torch's global random state."""
    arguments = dict(config.model_args)
    if config.dropout:
        name = "dropout" if config.model.startswith("torchvision:") else "drop_rate"
        arguments[name] = config.dropout
    return build_model(
        config.model,
        num_classes=data.num_classes,
        channels=data.channels,
        model_args=arguments,
        pretrained=config.pretrained if pretrained is None else pretrained,
    )


def with_what_learns(model: nn.Module, config: TrainConfig, example: Tensor) -> nn.Module:
    """The model that `config.tune` asks for: `model` itself, with lite residuals or frozen weights."""
    if config.tune == "lite":
        add_lite_residuals(model, example)
    if config.tune != "all":
        freeze(model)
    return model


def laid_out(model: nn.Module, config: TrainConfig) -> nn.Module:
    """`model` with its weights in the layout that the features shall have; they follow the first."""
    return model.to(memory_format=torch.channels_last) if config.channels_last else model


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Load the weights in a safetensors file; those of a classifier for other classes are left out.

    Returns:
        The names of the entries that keep their fresh values.

    Raises:
        RunError: it is no such file, or it holds weights of another model: fewer than half of the
            model's entries fit.
    """
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"--init {path} is no safetensors file ({error}).") from error
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == value.shape
    }
    if 2 * len(fitting) < len(own):
        raise RunError(
            f"--init {path} holds the weights of another model: {len(fitting)} of the {len(own)} "
            f"entries fit. There is, for instance, {next(iter(weights), 'nothing')!r}; expected "
            f"{next(iter(own), 'nothing')!r}."
        )
    model.load_state_dict(own | fitting)
    return [name for name in own if name not in fitting]


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """timm's optimiser of that name, over the base's Parameters and, for NetAug, their blocks.

    Raises:
        RunError: timm has none of that name or cannot make it here, it needs second derivatives, or no checkpoint can
            hold its state.
    """
    if config.opt not in list_optimizers():
        raise RunError(
            f"timm has no optimiser {config.opt!r}. {near(config.opt, list_optimizers())}"
        )
    if get_optimizer_info(config.opt).second_order:
        raise RunError(
            f"--opt {config.opt} needs second derivatives, and a step computes first ones. Choose another --opt."
        )
    _refuse_unkept(config)
    return _new_optimizer(model, config)


def _new_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            model,
            config.opt,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            filter_bias_and_bn=not config.decay_norms,
        )
    except Exception as error:  # each optimiser asks for its own packages, devices and ranges
        message = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise RunError(
            f"timm cannot make the optimiser {config.opt!r} here: {message}. Choose another --opt."
        ) from error


def _refuse_unkept(config: TrainConfig) -> None:
    """Raise RunError if a checkpoint cannot hold the state after a step; it shows on a network of four weights."""
    with torch.random.fork_rng(devices=[]):
        tried = nn.Linear(2, 2)
        optimizer = _new_optimizer(tried, config)
        for parameter in tried.parameters():
            parameter.grad = torch.ones_like(parameter)
        try:
            optimizer.step()
        except Exception:  # one that steps on a GPU alone: the run will tell
            return
    split_optimizer(optimizer.state_dict())


def build_task(
    model: nn.Module, config: TrainConfig, sampler: Sampler, device: torch.device
) -> TrainingTask:
    """The objective of a run without a teacher: plain, NetAug, the sandwich rule, or single path."""
    criterion = nn.CrossEntropyLoss(label_smoothing=config.smoothing)
    if config.method == "baseline":
        return ClassificationTask(model, criterion, device=device, verbose=False)
    kinds = kinds_of(config, model)
    if config.method == "sandwich":
        return SandwichTask(model, criterion, samples=config.samples, kinds=kinds, seed=config.seed)
    if config.method == "spos":
        return SinglePathTask(
            model,
            criterion,
            ceiling=config.ceiling,
            path_dropout=config.path_dropout,
            kinds=kinds,
            seed=config.seed,
        )
    return NetAugTask(
        model,
        criterion,
        alpha=config.alpha,
        samples=config.samples,
        kinds=kinds,
        sampler=sampler,
        seed=config.seed,
    )


class BaseAverage(AveragedModel):
    """An exponential moving average of a network's Parameters and buffers; counters are copied."""

    def __init__(self, base: nn.Module, decay: float):
        super().__init__(base, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update_parameters(self, model: nn.Module) -> None:
        """Take up the weights of `model` as they are now."""
        super().update_parameters(model)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            if not mine.is_floating_point():
                mine.copy_(theirs)


def without_blocks(model: nn.Module) -> nn.Module:
    """The base of a wide model, sharing its weights; a plain model itself."""
    return model.base if isinstance(model, netaugfx.WideModel) else model


def example_images(data: Data) -> Tensor:
    """Two random images, always the same, float32 (2, channels, image_size, image_size)."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, data.channels, data.image_size, data.image_size, generator=generator)


def learning_rate(optimizer: Any) -> float:
    """The learning rate in force, of the first group."""
    return float(optimizer.param_groups[0]["lr"])
