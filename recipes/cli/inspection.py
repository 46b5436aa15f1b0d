"""What can grow in a model, what cannot and why, and what both ends cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import netaugfx
from recipes.errors import RunError
from recipes.models import build_model


def inspect_model(
    name: str,
    *,
    picture: Path | None = None,
    num_classes: int = 1000,
    channels: int = 3,
    image_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    **width_arguments: Any,
) -> dict[str, Any]:
    """Widen the model that `name` names, with its verification, and tell what came out.

    Args:
        picture: where to draw the network, as SVG.
        image_size: pixels; None for the model's own, else 224.
        width_arguments: for `netaugfx.widen`: factor, diversity, keep.

    Returns:
        JSON: "widths" (name, kind, base, choices, layers), "pinned" (name -> reason),
        "opaque" (module that was left as it is -> reason), "elastic_share", and for "base" and
        "largest" their "parameters" and "macs" (for one image).
    """
    if picture is not None:
        _check_picture(picture)
    model = build_model(name, num_classes=num_classes, channels=channels, model_args=model_args)
    size = image_size or own_image_size(model)
    example = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    wide = netaugfx.widen(model, example_inputs=(example,), **width_arguments)
    if picture is not None:
        picture.write_text(netaugfx.picture(wide, title=name), encoding="utf-8")
    shape = (1, channels, size, size)
    base = sum(parameter.numel() for parameter in wide.base_parameters())
    blocks = sum(parameter.numel() for parameter in wide.augmented_parameters())
    return {
        "model": name,
        "input_shape": list(shape),
        "widths": [
            {
                "name": width.name,
                "kind": width.kind,
                "base": width.base,
                "choices": list(width.choices),
                "layers": list(width.layers),
            }
            for width in wide.widths.values()
        ],
        "pinned": dict(wide.pinned),
        "opaque": dict(wide.plan.opaque),
        "elastic_share": wide.elastic_share,
        "base": {"parameters": base, "macs": wide.macs(wide.base_config, shape)},
        "largest": {"parameters": base + blocks, "macs": wide.macs(wide.max_config, shape)},
    }


def _check_picture(path: Path) -> None:
    """Complain before the work rather than after it."""
    if path.suffix.lower() != ".svg":
        raise RunError(f"--picture {path}: the picture is SVG; give a name that ends in .svg.")
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a directory" if path.is_dir() else f"there is no directory {path.parent}"
        raise RunError(f"--picture {path}: {what}.")


def own_image_size(model: nn.Module) -> int:
    """The image size in pixels that the model says it is for, else 224."""
    for attribute in ("default_cfg", "pretrained_cfg"):
        settings = getattr(model, attribute, None)
        if isinstance(settings, Mapping) and settings.get("input_size"):
            return int(settings["input_size"][-1])
    return 224


def print_inspection(inspection: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print what `inspect_model` returned: tables for a person, or JSON."""
    if as_json:
        print(json.dumps(inspection, indent=2))
        return
    console = Console()
    widths = Table(title=f"{inspection['model']}: {len(inspection['widths'])} widths")
    for column in ("width", "kind", "base", "choices", "layers"):
        widths.add_column(column, justify="right" if column == "base" else "left", overflow="fold")
    for width in inspection["widths"]:
        choices, layers = map(str, width["choices"]), width["layers"]
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        widths.add_row(width["name"], width["kind"], str(width["base"]), " ".join(choices), shown)
    console.print(widths)
    for title, what in (("pinned", "width"), ("opaque", "module")):
        if inspection[title]:
            reasons = Table(title=f"{len(inspection[title])} {title}")
            reasons.add_column(what, overflow="fold")
            reasons.add_column("reason", overflow="fold")
            for name, reason in inspection[title].items():
                reasons.add_row(name, reason)
            console.print(reasons)
    cost = Table(title=f"cost for an input of {tuple(inspection['input_shape'])}")
    for column in ("", "parameters", "MACs"):
        cost.add_column(column, justify="right" if column else "left")
    for end in ("base", "largest"):
        cost.add_row(
            "base" if end == "base" else "largest subnet",
            f"{inspection[end]['parameters']:,}",
            f"{inspection[end]['macs']:,}",
        )
    console.print(cost)
    console.print(f"elastic share of output channels: {inspection['elastic_share']:.3f}")
