"""Checkpoints: one safetensors file, written beside and renamed. Nothing in it is unpickled.

Tensors lie in the file under "weights/", "average/", "optimizer/", "random/" and "task/";
everything else is JSON in its metadata.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from recipes.errors import RunError

FORMAT = "netaugfx checkpoint 2"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside `path`, then rename it: `path` holds the old content or the new one.

    Raises:
        RunError: it cannot be written, as on a full disk; `path` is as it was.
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        kept = f" What {path.name} held before is intact." if path.exists() else ""
        raise RunError(
            f"Cannot write {path} ({len(content):,} bytes): {error.strerror}.{kept} "
            "Make room, or choose another --out."
        ) from error


def make_directory(path: Path) -> Path:
    """Make a directory for what is going to be written.

    Raises:
        RunError: it cannot be made, or not be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot write in {path}: {error.strerror}. Choose another --out."
        ) from error
    if not os.access(path, os.W_OK):
        raise RunError(f"Cannot write in {path}: it may not be written to. Choose another --out.")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file; of a .jsonl file, a list of its lines.

    Raises:
        RunError: it cannot be read, or is damaged.
    """
    try:
        text = path.read_text()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines()]
        return json.loads(text)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"{path} does not read as JSON ({error}): it is damaged, or no file of netaugfx's."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON a person can read, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def own_storage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as safetensors asks; tied ones are stored twice."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def save_weights(path: Path, model: nn.Module) -> None:
    """Write what `model.load_state_dict(load_file(path), strict=True)` takes."""
    write_atomically(path, save(own_storage(model.state_dict())))


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global random states of torch, its devices, Python and numpy: tensors and JSON."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {
            f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())
        }
    version, python, gauss = random.getstate()
    tensors["python"] = torch.tensor(python)
    _, words, position, has_gauss, cached = numpy.random.get_state()
    tensors["numpy"] = torch.from_numpy(words.astype("int64"))
    return tensors, {
        "python": [version, gauss],
        "numpy": [int(position), int(has_gauss), float(cached)],
    }


def set_random_state(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(tensors["torch"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda:{index}"], index)
    version, gauss = rest["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    numpy.random.set_state(("MT19937", tensors["numpy"].numpy().astype("uint32"), *rest["numpy"]))


def split_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors, those of a Parameter named "INDEX/KEY", and the rest as JSON.

    Raises:
        RunError: it holds a value that is neither.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for index, values in state_dict["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                scalars[f"{index}/{name}"] = _packed(value, tensors, f"{index}/{name}")
    groups = [
        {name: _packed(value, tensors, f"group/{i}/{name}") for name, value in group.items()}
        for i, group in enumerate(state_dict["param_groups"])
    ]
    more = {
        name: _packed(value, tensors, f"more/{name}")
        for name, value in state_dict.items()
        if name not in ("state", "param_groups")
    }
    laid_out = {name: list(each.stride()) for name, each in tensors.items() if _has_layout(each)}
    return tensors, {
        "scalars": scalars,
        "param_groups": groups,
        "more": more,
        "strides": laid_out,
    }


def _has_layout(tensor: Tensor) -> bool:
    """Whether its elements lie in memory in another order than a file's, as those of channels-last weights do."""
    of_a_file = torch.empty(tensor.shape, device="meta").stride()
    return (
        tensor.stride() != of_a_file
        and tensor.stride() == torch.empty_like(tensor, device="meta").stride()
    )


def _in_layout(tensor: Tensor, strides: Sequence[int]) -> Tensor:
    """A copy whose elements lie in memory as they did: the order in which a norm adds them tells in its last bits."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _packed(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A value as JSON, with what JSON has no word for as {kind: content}; tensors go to `tensors`."""
    if isinstance(value, Tensor):
        tensors[f"inside/{path}"] = value
        return {"tensor": f"inside/{path}"}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        packed = [_packed(each, tensors, f"{path}/{i}") for i, each in enumerate(value)]
        return packed if isinstance(value, list) else {"tuple": packed}
    if isinstance(value, bool | int | float | str | None):
        return value
    raise RunError(
        f"The optimiser's state cannot be kept: {path!r} holds a {type(value).__name__}, and a checkpoint tensors, "
        "numbers and text. Choose another --opt."
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_packed`."""
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    return getattr(torch, content) if kind == "dtype" else tuple(_unpacked(content, tensors))


def join_optimizer(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `split_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    strides = rest["strides"]
    tensors = dict(tensors) | {name: _in_layout(tensors[name], strides[name]) for name in strides}
    own = {name: value for name, value in tensors.items() if not name.startswith("inside/")}
    scalars = {name: _unpacked(value, tensors) for name, value in rest["scalars"].items()}
    for name, value in (own | scalars).items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    groups = [
        {name: _unpacked(value, tensors) for name, value in group.items()}
        for group in rest["param_groups"]
    ]
    more = {name: _unpacked(value, tensors) for name, value in rest["more"].items()}
    return {"state": state, "param_groups": groups} | more


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task_state: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    average: nn.Module | None = None,
) -> None:
    """Write all that a later process needs to go on as if it had never stopped.

    Args:
        task_state: tensors that the training task owns, e.g. the state of its generator.
        progress: JSON: epochs and steps done, metrics so far.
        average: an average of the weights (EMA).
    """
    optimizer_tensors, optimizer_rest = split_optimizer(optimizer.state_dict())
    random_tensors, random_rest = random_state()
    parts = {
        "weights": model.state_dict(),
        "average": average.state_dict() if average is not None else {},
        "optimizer": optimizer_tensors,
        "random": random_tensors,
        "task": task_state,
    }
    tensors = own_storage(
        {
            f"{part}/{name}": tensor
            for part, named in parts.items()
            for name, tensor in named.items()
        }
    )
    rest = {"optimizer": optimizer_rest, "random": random_rest, "progress": dict(progress)}
    write_atomically(path, save(tensors, metadata={"format": FORMAT, "state": json.dumps(rest)}))


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore model, average, optimiser and global random state from `path`.

    Returns:
        The task's state and the progress, as they were saved.

    Raises:
        RunError: the file is truncated, no checkpoint, or one of another model; nothing has been
            changed then.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is truncated or no checkpoint ({error}).") from error
    if metadata.get("format") != FORMAT:
        raise RunError(
            f"{path} is no checkpoint of this version: expected {FORMAT!r}, "
            f"got {metadata.get('format')!r}."
        )
    rest = json.loads(metadata["state"])
    names = ("weights", "average", "optimizer", "random", "task")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for name, tensor in tensors.items():
        part, _, name_in_part = name.partition("/")
        parts[part][name_in_part] = tensor
    check_weights(path, parts["weights"], model)
    if average is not None:
        check_weights(path, parts["average"], average)
        average.load_state_dict(parts["average"], strict=True)
    model.load_state_dict(parts["weights"], strict=True)
    optimizer.load_state_dict(join_optimizer(parts["optimizer"], rest["optimizer"]))
    set_random_state(parts["random"], rest["random"])
    return parts["task"], rest["progress"]


def check_weights(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise RunError where `weights`, read from `path`, do not fit `model`."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            where = "the model" if name not in own else "the checkpoint"
            raise RunError(f"{path} is a checkpoint of another model: {where} has no {name!r}.")
        if weights[name].shape != own[name].shape:
            raise RunError(
                f"{path} is a checkpoint of another model: "
                f"{name!r} is {tuple(weights[name].shape)} there "
                f"and {tuple(own[name].shape)} here."
            )
