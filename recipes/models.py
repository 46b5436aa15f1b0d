"""Models by name: timm's, torchvision:NAME, netaugfx:NAME (recipes/tiny.py), file.py:function."""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.errors import ModelError, near


def parse_model_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs; a value is a Python literal, or else a string.

    >>> parse_model_args(["drop_rate=0.1", "act_layer=relu"])
    {'drop_rate': 0.1, 'act_layer': 'relu'}
    """
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ModelError(f"--model-arg expects key=value, got {pair!r}.")
        try:
            arguments[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[name] = value
    return arguments


def build_model(
    name: str,
    *,
    num_classes: int,
    channels: int = 3,
    model_args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """Build the model that `name` names, with fresh weights from torch's global random state.

    Args:
        name: a timm name, `torchvision:NAME`, `netaugfx:NAME` or `path/to/file.py:function`.
        num_classes: outputs of its classifier, passed as `num_classes`.
        channels: of its input, passed as `in_chans` (timm's word) where the constructor has it; to
            one that has **keywords alone, where they are not 3.
        model_args: more arguments for its constructor.
        pretrained: load timm's or torchvision's trained weights.

    Raises:
        ModelError: there is no such model, or its constructor refuses the arguments.
    """
    import timm

    arguments = dict(model_args or {})
    kind, colon, rest = name.partition(":")
    if name.partition(":")[0].endswith(".py") or kind == "netaugfx":
        constructor = _own(rest) if kind == "netaugfx" else _function_in(Path(kind), rest)
        takes = inspect.signature(constructor).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in takes.values())
        defaults: dict[str, Any] = {}
        if "num_classes" in takes or anything:
            defaults["num_classes"] = num_classes
        if "in_chans" in takes or (anything and channels != 3):
            defaults["in_chans"] = channels
        elif channels != 3:
            raise ModelError(
                f"{name} takes no in_chans, and the data has {channels} channel(s). "
                "Give --channels 3."
            )
        if pretrained:
            raise ModelError(f"{name} has no pretrained weights.")
    elif kind == "torchvision" and colon:
        import torchvision.models

        known = torchvision.models.list_models()
        if rest not in known:
            raise ModelError(f"torchvision has no model {rest!r}. {near(rest, known)}")
        if channels != 3:
            raise ModelError(
                f"torchvision's models take 3 channels, and the data has {channels}. "
                "Give --channels 3."
            )
        constructor = _torchvision_constructor(rest)
        defaults = {"num_classes": num_classes, "weights": "DEFAULT" if pretrained else None}
    else:
        if not timm.is_model(name):
            raise ModelError(f"timm has no model {name!r}. {near(name, timm.list_models())}")

        def constructor(**options: Any) -> nn.Module:
            return timm.create_model(name, **options)

        defaults = {"num_classes": num_classes, "in_chans": channels, "pretrained": pretrained}
    try:
        model = constructor(**(defaults | arguments))
    except Exception as error:  # a constructor may raise anything
        raise ModelError(
            f"{name} cannot be built with {defaults | arguments}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returns a {type(model).__name__}, not a torch.nn.Module.")
    return model


def check_logits(model: nn.Module, name: str, images: Tensor, num_classes: int) -> None:
    """Run a copy of `model` on images once.

    Raises:
        ModelError: it does not take them, or gives something else than logits (N, num_classes).
    """
    shape = tuple(images.shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = copy.deepcopy(model).eval()(images)
    except Exception as error:  # a forward may raise anything
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(f"{name} does not take images of shape {shape}: {message}") from error
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (len(images), num_classes):
        raise ModelError(f"{name} gives {found}; expected logits {(len(images), num_classes)}.")


def _torchvision_constructor(name: str) -> Callable[..., nn.Module]:
    """torchvision's constructor; trained weights that fit are loaded, the classifier's do not."""
    from torchvision.models import get_model, get_model_builder, get_model_weights

    parted = "weights_backbone" in inspect.signature(get_model_builder(name)).parameters

    def constructor(*, weights: Any, **options: Any) -> nn.Module:
        if parted:  # a detector's backbone would be loaded trained otherwise
            options.setdefault("weights_backbone", None)
        model = get_model(name, weights=None, **options)
        if weights is not None:
            trained = get_model_weights(name)[weights].get_state_dict()
            own = model.state_dict()
            fitting = {
                key: value
                for key, value in trained.items()
                if key in own and value.shape == own[key].shape
            }
            model.load_state_dict(own | fitting)
        return model

    return constructor


def _own(name: str) -> Callable[..., nn.Module]:
    from recipes import tiny

    known = [each for each in tiny.__all__ if inspect.isfunction(getattr(tiny, each))]
    if name not in known:
        raise ModelError(f"netaugfx has no model {name!r}. {near(name, known)}")
    return getattr(tiny, name)


def _function_in(path: Path, name: str) -> Callable[..., nn.Module]:
    """The function `name` of the Python file at `path`, which is run."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}. Expected path/to/file.py:function.")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None  # a .py file has one
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # the file may raise anything
        raise ModelError(f"{path} does not run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        known = [
            each
            for each in vars(module)
            if callable(getattr(module, each)) and not each.startswith("_")
        ]
        raise ModelError(
            f"{path} has no function {name!r}. {near(name, known) if known else ''}".rstrip()
        )
    return getattr(module, name)
