"""Two processes on gloo train what one process does."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from recipes.data import load_data
from recipes.training.config import TrainConfig
from recipes.training.run import Cadence, set_up
from recipes.training.rundir import RunDirectory
from tests.recipes.images import make_folder
from tests.recipes.test_training import quiet

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.recipes.test_training"])

NET = """
from torch import nn

def net(num_classes, in_chans=3, norm=False):
    between = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), *between, nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes),
    )
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    (folder / "net.py").write_text(NET)
    return TrainConfig(
        model=f"{folder}/net.py:net",
        data=f"folder:{folder}/images",
        method="netaug",
        epochs=2,
        batch_size=4,
        lr=0.1,
    )


def rank(index: int, port: int, config: TrainConfig, out: Path) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    quiet(config, out)
    torch.distributed.destroy_process_group()


def in_two(config: TrainConfig, out: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [FORKSERVER.Process(target=rank, args=(i, port, config, out)) for i in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]


def wide_weights(out: Path) -> dict[str, Tensor]:
    held = load_file(out / "checkpoint.safetensors")
    return {name: value for name, value in held.items() if name.startswith("weights/")}


def agree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].double() - value.double()).abs().max() <= 1e-5, name


def test_two_processes_agree_with_one(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, clip_grad=1.0, ema=0.9, sort=True)
    in_two(config, tmp_path / "two")
    quiet(replace(config, batch_size=8), tmp_path / "one")
    found, expected = wide_weights(tmp_path / "two"), wide_weights(tmp_path / "one")
    assert any("augmented" in name for name in expected)
    agree(found, expected)
    agree(*(load_file(tmp_path / each / "base.safetensors") for each in ("two", "one")))
    lines = [RunDirectory(tmp_path / each).read_metrics() for each in ("two", "one")]
    for two, one in zip(*lines, strict=True):
        assert two.keys() == one.keys()
        for name in set(one) - {"seconds"}:
            assert two[name] == pytest.approx(one[name], abs=1e-4), name


def test_with_batch_norm_they_normalise_their_halves_apart(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, model_args={"norm": True})
    in_two(config, tmp_path / "two")
    expected = by_halves(replace(config, batch_size=8), tmp_path / "one")
    found = wide_weights(tmp_path / "two")
    agree(found, {f"weights/{name}": value for name, value in expected.items()})
    assert any("running_var" in name for name in found)
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["device"] == "cpu"


def by_halves(config: TrainConfig, out: Path) -> dict[str, Tensor]:
    """What one process trains that normalises the halves of a batch apart."""
    accelerator, console = Accelerator(cpu=True), Console(file=StringIO())
    data = load_data(config.data)
    run = set_up(config, data, RunDirectory(out), accelerator, console, Cadence(), 0)
    wide, task, step = run.plain, run.task, 0
    task.train()
    for epoch in range(config.epochs):
        run.keys.epoch = epoch
        for images, labels in run.loaders[0]:
            before = {name: b.clone() for name, b in wide.named_buffers()}
            generator = task.generator.get_state()
            after: list[dict[str, Tensor]] = []
            for x, y in zip(images.chunk(2), labels.chunk(2), strict=True):
                task.generator.set_state(generator)  # both sample the same network
                for name, b in wide.named_buffers():
                    b.copy_(before[name])
                task.backward(x, y, lambda loss: (loss / 2).backward())
                after.append({name: b.clone() for name, b in wide.named_buffers()})
            for name, b in wide.named_buffers():
                if b.is_floating_point():
                    b.copy_((after[0][name] + after[1][name]) / 2)
            run.optimizer.step()
            run.optimizer.zero_grad()
            step += 1
            run.scheduler.step_update(step)
    return wide.state_dict()
