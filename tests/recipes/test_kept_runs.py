"""A run that is killed, refused or cut off: nothing is lost, and it ends as if it had never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from recipes.errors import RunError
from recipes.training import run as runs
from recipes.training.config import TrainConfig
from recipes.training.run import Cadence
from recipes.training.rundir import RunDirectory
from tests.recipes.images import make_folder
from tests.recipes.test_training import NET, everything, outcome, quiet, small_config, snapshot

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["tests.recipes.test_training"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    (folder / "net.py").write_text(NET)
    return folder


def long(files: Path) -> TrainConfig:
    """Six batches an epoch, three steps."""
    return replace(everything(files), epochs=8, batch_size=4)


def alone(files: Path, out: Path) -> None:
    """A run in a process of its own, a checkpoint after each step."""
    torch.set_num_threads(1)
    quiet(long(files), out, resume=True, cadence=Cadence(steps=1))


def stands_at(path: Path) -> tuple[int, int]:
    """Whole epochs, and batches of the next, in a checkpoint."""
    with safe_open(path, framework="pt") as file:
        done = json.loads(file.metadata()["state"])["progress"]["done"]
    return done["epochs"], done["batches"]


def test_sigkill_at_any_moment_is_resumed_exactly(files: Path, tmp_path: Path) -> None:
    quiet(long(files), tmp_path / "whole")
    out, moments = tmp_path / "killed", random.Random(0)
    checkpoint, killed_at = out / "checkpoint.safetensors", []
    while True:
        process = FORKSERVER.Process(target=alone, args=(files, out))
        process.start()
        if len(killed_at) < 6:  # while it trains, evaluates or writes
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            while process.is_alive() and not (
                checkpoint.exists() and checkpoint.stat().st_mtime_ns > before
            ):
                time.sleep(0.0005)
            process.join(moments.uniform(0.0, 0.1))
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(stands_at(checkpoint))
    assert len(killed_at) >= 3
    assert any(batches for _, batches in killed_at), f"no kill came within an epoch: {killed_at}"
    assert outcome(out) == outcome(tmp_path / "whole")


def test_a_second_process_is_refused(files: Path, tmp_path: Path) -> None:
    config, out = small_config(files, "baseline"), tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for resume in (False, True):
            with pytest.raises(RunError, match=r"run is in use: another process trains in it\. "):
                quiet(config, out, resume=resume)
        assert set(snapshot(out)) == {".lock"}
    finally:
        holder.kill()
        holder.communicate()
    quiet(replace(config, epochs=1), out)  # a killed process lets go


HOLD = """
import sys, time
from pathlib import Path
from filelock import FileLock
Path(sys.argv[1]).mkdir()
lock = FileLock(Path(sys.argv[1]) / ".lock")
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Called, no file of more than 16,000 bytes can be written, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_last_good_checkpoint(
    files: Path,
    tmp_path: Path,
    full_disk: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = replace(small_config(files, "netaug"), opt="adamw", lr=0.01), tmp_path / "run"
    quiet(config, tmp_path / "whole")
    saved = runs.save_checkpoint
    good: list[bytes] = []

    def save(path: Path, *rest: Any) -> None:
        saved(path, *rest)
        good.append(path.read_bytes())
        full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save_checkpoint", save)
        message = r"Cannot write .*checkpoint\.safetensors \([\d,]+ bytes\): File too large\. What "
        with pytest.raises(
            RunError, match=message + r"checkpoint\.safetensors held before is intact"
        ):
            quiet(config, out)
    assert [(out / "checkpoint.safetensors").read_bytes()] == good
    assert not list(out.glob(".*.part"))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # room again
    quiet(config, out, resume=True)
    assert outcome(out) == outcome(tmp_path / "whole")


def test_a_directory_that_cannot_be_written(files: Path, tmp_path: Path) -> None:
    config = small_config(files, "baseline")
    with pytest.raises(RunError, match=r"Cannot write in /proc/run: .*\. Choose another --out\."):
        quiet(config, Path("/proc/run"))
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match=r"Cannot write in .*closed: Permission denied"):
            quiet(config, tmp_path / "closed")


def test_the_best_weights_are_kept(files: Path, tmp_path: Path) -> None:
    result = quiet(replace(small_config(files, "baseline"), epochs=6, lr=0.2), tmp_path / "run")
    reached = [line["val_top1"] for line in RunDirectory(tmp_path / "run").read_metrics()]
    assert result["best_top1"] == max(reached)
    assert result["best_epoch"] == 1 + reached.index(max(reached))
    best = load_file(tmp_path / "run" / "best.safetensors")
    last = load_file(tmp_path / "run" / "base.safetensors")
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (result["best_epoch"] == 6)
    quiet(
        replace(small_config(files, "baseline"), epochs=result["best_epoch"], lr=0.2, sched="none"),
        tmp_path / "b",
    )
