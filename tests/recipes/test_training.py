"""A run from start to end: metrics, base.safetensors, and resuming as if it had never stopped."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recipes.augment import build_transforms
from recipes.data import load_data
from recipes.errors import LossError, RunError
from recipes.models import build_model
from recipes.training import checkpoint, ingredients, loop
from recipes.training import run as runs
from recipes.training.config import TrainConfig
from recipes.training.loop import train
from tests.recipes.images import make_folder

NET = """
import torch
from torch import nn
from timm.layers import DropPath

class Net(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.path = DropPath(0.2)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.path(self.inner(x))
        return self.head(self.drop(x.mean((2, 3))))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(params=["baseline", "netaug"])
def config(request: pytest.FixtureRequest, files: Path) -> TrainConfig:
    return small_config(files, request.param)


def everything(files: Path) -> TrainConfig:
    """All at once: what must be kept and taken up again is a lot."""
    return replace(
        small_config(files, "netaug"),
        ratios={"stream": (1.0, 2.0), "inner": (1.0, 1.6, 2.2)},
        coupling="expand",
        alpha_end=0.5,
        samples=2,
        stop_stream=0.7,
        sort=True,
        accumulate=2,
        clip_grad=1.0,
        ema=0.9,
        mixup=0.2,
        cutmix=1.0,
        opt="adamw",
        lr=0.01,
        warmup_epochs=1,
        decay_norms=False,
        channels_last=True,
        augment="randaugment",
    )


def small_config(files: Path, method: str) -> TrainConfig:
    return TrainConfig(
        model=f"{files}/net.py:Net",
        data=f"folder:{files}/images",
        method=method,
        epochs=3,
        batch_size=8,
        lr=0.05,
    )


def quiet(config: TrainConfig, out: Path, **options: Any) -> dict[str, Any]:
    return train(config, out, device="cpu", console=Console(file=StringIO()), **options)


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took."""
    with safe_open(out / "checkpoint.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(file.metadata()["state"])
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((out / "result.json").read_text())
    for line in [*state["progress"]["done"]["history"], *metrics, result]:
        del line["seconds"]
    return {
        "tensors": {name: (str(each.dtype), each.tolist()) for name, each in tensors.items()},
        "state": state,
        "metrics": metrics,
        "result": result,
        "base": (out / "base.safetensors").read_bytes(),
    }


def test_base_safetensors_is_what_the_run_reports(config: TrainConfig, tmp_path: Path) -> None:
    result = quiet(config, tmp_path / "run")
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert [line["step"] for line in metrics] == [3, 6, 9]
    for name in ("lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5", "seconds"):
        assert all(name in line for line in metrics), name
    assert ("train_augmented_loss" in metrics[0]) == (config.method == "netaug")
    assert (tmp_path / "run" / "plan.json").exists() == (config.method == "netaug")

    data = load_data(config.data)
    untouched = build_model(config.model, num_classes=3, channels=3)
    weights = load_file(tmp_path / "run" / "base.safetensors")
    untouched.load_state_dict(weights, strict=True)
    untouched.eval()
    assert not any(name.startswith("augmented") for name in weights)
    transform = build_transforms(data)[1]
    hits = [
        int(untouched(transform(image)[None]).argmax()) == label for image, label in data.validation
    ]
    assert result["top1"] == metrics[-1]["val_top1"] == 100 * sum(hits) / len(hits)
    assert result == json.loads((tmp_path / "run" / "result.json").read_text())


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_lays_its_weights_out_as_asked(
    config: TrainConfig, asked: bool, tmp_path: Path
) -> None:
    config = replace(config, channels_last=asked)
    run = runs.set_up(
        *(config, load_data(config.data), runs.RunDirectory(tmp_path / "run")),
        *(Accelerator(cpu=True), Console(file=StringIO()), runs.Cadence()),
        workers=0,
    )
    weights = [p for p in run.model.parameters() if p.dim() == 4 and min(p.shape[1:3]) > 1]
    assert weights
    assert all(p.is_contiguous(memory_format=torch.channels_last) == asked for p in weights)


def test_alpha_zero_is_the_baseline(files: Path, tmp_path: Path) -> None:
    quiet(small_config(files, "baseline"), tmp_path / "baseline")
    quiet(replace(small_config(files, "netaug"), alpha=0.0), tmp_path / "netaug")
    plain, netaug = (
        load_file(tmp_path / each / "base.safetensors") for each in ("baseline", "netaug")
    )
    assert plain.keys() == netaug.keys()
    for name in plain:
        assert torch.equal(plain[name], netaug[name]), name


class Killed(BaseException):
    """Stands for the end of the process, which nothing can catch."""


@pytest.mark.parametrize("which", ["baseline", "netaug", "everything"])
def test_a_crash_at_a_write_is_resumed_exactly(
    which: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of a simple run; with everything, and a checkpoint after each step, some."""
    config = everything(files) if which == "everything" else small_config(files, which)
    config = replace(config, epochs=2)
    cadence, stride = (runs.Cadence(1, None), 3) if which == "everything" else (None, 1)
    quiet(config, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    replace_file = os.replace
    writes = 0

    def count(source: Path, target: Path) -> None:
        nonlocal writes
        writes += 1
        if writes == stop:
            raise Killed
        replace_file(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", count)
    stop, complete = 0, False
    while not complete:
        stop += stride
        writes = 0
        out = tmp_path / f"crash-{stop}"
        try:
            quiet(config, out, cadence=cadence)
            complete = True  # all writes of a run have been tried
        except Killed:
            torch.manual_seed(stop)  # a new process starts elsewhere
            quiet(config, out, resume=True)
        assert outcome(out) == expected, f"stopped at write {stop}"
    assert stop > 8


@pytest.mark.parametrize("opt", ["lamb", "adafactorbv"])
def test_what_an_optimiser_keeps_beside_tensors_of_weights_is_resumed_exactly(
    opt: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step as a tensor, a dtype; and norms, which see the layout of channels-last weights in memory."""
    config = replace(small_config(files, "netaug"), opt=opt, lr=0.01, channels_last=True, epochs=2)
    quiet(config, tmp_path / "whole")
    keep = loop.keep

    def keep_and_die(*arguments: Any) -> None:
        keep(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "keep", keep_and_die)
        with pytest.raises(Killed):
            quiet(config, tmp_path / "stopped")
    quiet(config, tmp_path / "stopped", resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def test_an_optimisers_state_is_split_and_joined_as_it_was() -> None:
    """As kron's: lists of tensors, tuples in tuples, and a random state beside the groups."""
    one, two = torch.rand(3, 4, 2, 2).to(memory_format=torch.channels_last), torch.rand(2).double()
    held = {
        "state": {0: {"Q": [one, two], "exprs": ("a", ("b", None)), "mean": one}, 3: {"step": 2}},
        "param_groups": [{"params": [0, 3], "betas": (0.9, 0.99), "dtype": torch.bfloat16}],
        "rng_state": (3, (1, 2), None),
    }
    tensors, rest = checkpoint.split_optimizer(held)
    tensors, rest = checkpoint.own_storage(tensors), json.loads(json.dumps(rest))
    joined = checkpoint.join_optimizer(tensors, rest)
    first = joined["state"][0]
    for found, expected in ((first["Q"][0], one), (first["Q"][1], two), (first["mean"], one)):
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)
    assert isinstance(first["Q"], list)
    for name in ("Q", "mean"):
        del first[name], held["state"][0][name]
    assert joined == held


def test_optimisers_that_no_run_can_use(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(files, "baseline"), tmp_path / "run"
    with pytest.raises(RunError, match=r"--opt adahessian needs second derivatives.*another --opt"):
        quiet(replace(config, opt="adahessian"), out)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RunError, match=r"timm cannot make the optimiser 'fusedlamb' here: \w+: .*"):
        quiet(replace(config, opt="fusedlamb"), out)

    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.state[self.param_groups[0]["params"][0]]["rule"] = print

    monkeypatch.setattr(
        ingredients, "create_optimizer_v2", lambda model, *_, **__: Odd(model.parameters())
    )
    with pytest.raises(
        RunError, match=r"'0/rule' holds a builtin_function_or_method, and .* --opt"
    ):
        quiet(config, out)
    assert not out.exists()


def test_a_finished_run_resumes_to_the_same(config: TrainConfig, tmp_path: Path) -> None:
    first = quiet(config, tmp_path / "run")
    (tmp_path / "run" / "base.safetensors").unlink()
    assert quiet(config, tmp_path / "run", resume=True) == first
    assert (tmp_path / "run" / "base.safetensors").exists()


def snapshot(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_directories_that_hold_something_else(
    config: TrainConfig, files: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    quiet(replace(config, epochs=1), out)
    before = snapshot(out)
    with pytest.raises(RunError, match=r"run holds this run already\. Add --resume"):
        quiet(replace(config, epochs=1), out)
    for resume in (False, True):
        with pytest.raises(
            RunError, match=r"holds another run: config\.seed is 0 there and 1 here"
        ):
            quiet(replace(config, epochs=1, seed=1), out, resume=resume)
    with pytest.raises(RunError, match=r"is not a directory\. Choose another --out"):
        quiet(config, files / "net.py")
    with pytest.raises(RunError, match=r"holds no run but other files \(net\.py|\(images"):
        quiet(config, files, resume=True)
    assert snapshot(out) == before


def test_damaged_and_foreign_checkpoints(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quiet(replace(config, epochs=1), out)
    path = out / "checkpoint.safetensors"
    whole = path.read_bytes()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weights/conv.weight": torch.zeros(1)}, foreign)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    renamed = {name.replace("stem", "trunk"): each for name, each in tensors.items()}
    save_file(renamed, tmp_path / "renamed.safetensors", metadata=metadata)
    widened = tensors | {"weights/head.bias": torch.zeros(9)}
    save_file(widened, tmp_path / "widened.safetensors", metadata=metadata)
    for content, message in {
        whole[: len(whole) // 2]: "is truncated or no checkpoint",
        b"": "is truncated or no checkpoint",
        foreign.read_bytes(): "is no checkpoint of this version: expected",
        (tmp_path / "renamed.safetensors").read_bytes(): "of another model: the .* has no '",
        (tmp_path / "widened.safetensors").read_bytes(): r"'head.bias' is \(9,\) there and \(3,\)",
    }.items():
        path.write_bytes(content)
        before = snapshot(out)
        with pytest.raises(RunError, match=message):
            quiet(replace(config, epochs=1), out, resume=True)
        assert snapshot(out) == before


def test_a_loss_that_is_not_finite_stops_the_run(config: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(LossError, match=r"loss is (nan|inf) at step \d+\. Try a lower --lr\.$"):
        quiet(replace(config, lr=1e30), out)
    assert not (out / "checkpoint.safetensors").exists()


def test_the_last_good_checkpoint_is_kept(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    saved = runs.save_checkpoint
    good: list[bytes] = []

    def save(path: Path, model: torch.nn.Module, *rest: Any) -> None:
        saved(path, model, *rest)
        good.append(path.read_bytes())
        next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(runs, "save_checkpoint", save)
    with pytest.raises(LossError, match=r"nan at step 4\..* The last good checkpoint stays: .*run"):
        quiet(config, out)
    assert (out / "checkpoint.safetensors").read_bytes() == good[-1]
    assert len(good) == 1
