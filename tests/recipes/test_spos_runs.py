"""Runs by single paths, and searches of kept runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.optim.swa_utils import update_bn

import netaugfx
from recipes.augment import build_transforms
from recipes.data import load_data, split
from recipes.errors import DistillError, RunError, SearchError
from recipes.spos.scores import top1
from recipes.studies.reevaluation import evaluate_run
from recipes.studies.searching import kept_images, search_run
from recipes.training import checkpoint
from recipes.training import run as runs
from recipes.training.config import TrainConfig
from recipes.training.distillation import Distillation
from recipes.training.finished import base_of, data_of, held_out_of, open_run, wide_of
from tests.recipes.images import make_folder
from tests.recipes.test_training import NET, Killed, outcome, quiet, small_config

BLOCK = """
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.path = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return x + self.path(self.inner(x).relu())


def net(num_classes, in_chans=3):
    pool = nn.AdaptiveAvgPool2d(1)
    stem = nn.Conv2d(in_chans, 4, 3)
    return nn.Sequential(stem, Block(), pool, nn.Flatten(), nn.Linear(4, num_classes))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_folder(folder / "images", per_class=8)
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture
def config(files: Path) -> TrainConfig:
    return replace(small_config(files, "spos"), hold_out=0.25, ceiling="4x", path_dropout=0.1)


def test_a_run_by_single_paths_evaluates_a_base_with_statistics_of_its_own(
    config: TrainConfig, tmp_path: Path
) -> None:
    result = quiet(config, tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert run.described["train"] == len(data_of(run).train) == 18
    wide, base = wide_of(run), base_of(run)
    data = load_data(config.data)
    transform = build_transforms(data)[1]
    validation = [(transform(x)[None], torch.tensor([y])) for x, y in data.validation]
    assert result["top1"] == pytest.approx(top1(base, validation))
    for name, t in base.state_dict().items():
        assert torch.equal(t, wide.state_dict()[name]), name
    assert not torch.equal(base.stem[1].running_mean, torch.zeros(4))
    held = outcome(tmp_path / "run")["tensors"]
    assert sum(held["task/counts"][1]) == len(wide.widths) * 6  # two steps in each of three epochs


def test_a_run_by_single_paths_resumes_exactly(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cadence, replace_file, writes, stop = runs.Cadence(1, None), os.replace, 0, 0
    config = replace(config, epochs=2)
    quiet(config, tmp_path / "whole")

    def count(source: Path, target: Path) -> None:
        nonlocal writes
        writes += 1
        if writes == stop:
            raise Killed
        replace_file(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", count)
    for stop in (5, 8, 10):
        writes, out = 0, tmp_path / f"crash-{stop}"
        with pytest.raises(Killed):
            quiet(config, out, cadence=cadence)
        torch.manual_seed(stop)
        quiet(config, out, resume=True)
        assert outcome(out) == outcome(tmp_path / "whole"), f"stopped at write {stop}"


def test_a_run_grows_to_the_config_that_it_is_given(files: Path, tmp_path: Path) -> None:
    config = replace(small_config(files, "netaug"), epochs=1, max_config={"stem.0": 10})
    quiet(config, tmp_path / "run")
    wide = wide_of(open_run(tmp_path / "run"))
    assert wide.max_config == {"stem.0": 10, "inner.0": 8}
    held = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert held["max_config"] == {"stem.0": 10}
    again = quiet(config, tmp_path / "run", resume=True)
    assert again["epochs"] == 1
    with pytest.raises(RunError, match="give no ratios or coupling"):
        replace(config, coupling="expand")
    with pytest.raises(RunError, match="max_config maps widths to sizes; 'file' came"):
        replace(config, max_config="file")
    with pytest.raises(RunError, match="Single paths draw each width by itself"):
        replace(config, max_config=None, method="spos", coupling="expand")
    with pytest.raises(RunError, match="hold_out is a share from 0 to below 1"):
        replace(config, hold_out=1.0)
    plain = small_config(files, "netaug").identity()
    assert not {"max_config", "hold_out", "ceiling", "path_dropout"} & plain.keys()


def test_single_paths_take_no_teacher(config: TrainConfig, tmp_path: Path) -> None:
    taught = replace(config, distill=Distillation(teacher="widest"))
    with pytest.raises(DistillError, match="Single paths are trained on labels alone"):
        quiet(taught, tmp_path / "run")


def test_what_is_judged_by_is_what_was_held_out(config: TrainConfig, tmp_path: Path) -> None:
    quiet(replace(config, epochs=1), tmp_path / "run")
    run = open_run(tmp_path / "run")
    images = kept_images(run, torch.device("cpu"), batches=2, batch_size=8)
    assert [len(y) for _, y in images.train] == [8, 8]
    data = load_data(config.data)
    held_out = split(data, 0.25)[1]
    transform = build_transforms(data)[1]
    expected = torch.stack([transform(image) for image, _ in held_out])
    assert torch.equal(torch.cat([x for x, _ in images.held_out]), expected)
    tests = torch.stack([transform(image) for image, _ in data.validation])
    assert not any(torch.equal(x, y) for x in expected for y in tests)


def test_a_search_of_a_run_scores_what_can_be_had_from_its_files(
    config: TrainConfig, tmp_path: Path
) -> None:
    quiet(replace(config, epochs=1), tmp_path / "run")
    said = StringIO()
    found = search_run(
        tmp_path / "run", "subnet", budget="4x", trials=6, population=3, batches=2, batch_size=8,
        console=Console(file=said, width=200),
    )  # fmt: skip
    folder = tmp_path / "run" / "search"
    sizes = json.loads((folder / "subnet-evolution.json").read_text())
    assert sizes == dict(found.best_config)
    held = json.loads((folder / "subnet-evolution.result.json").read_text())
    assert held["best"]["value"] == found.best.value
    assert (held["candidates"], held["score"], held["constraint"]) == (6, "subnet", "4x macs")
    assert "candidates per minute" in said.getvalue()

    run = open_run(tmp_path / "run")
    wide = wide_of(run)
    images = kept_images(run, torch.device("cpu"), batches=2, batch_size=8)
    best = wide.plan.config(sizes)
    plain = base_of(run) if best == wide.base_config else netaugfx.extract(wide, best)
    update_bn([x for x, _ in images.train], plain)
    assert found.best.value == top1(plain.eval(), images.held_out)

    resumed = search_run(
        tmp_path / "run", "subnet", budget="4x", trials=6, population=3, batches=2, batch_size=8,
        console=Console(file=StringIO()),
    )  # fmt: skip
    assert resumed.candidates == found.candidates  # none was evaluated again


def test_of_a_run_that_grew_inner_widths_these_alone_are_searched_and_evaluated(
    files: Path, tmp_path: Path
) -> None:
    """The blocks of its streams are as they were drawn."""
    (tmp_path / "block.py").write_text(BLOCK)
    config = small_config(files, "netaug")
    config = replace(config, model=f"{tmp_path}/block.py:net", epochs=1, hold_out=0.25)
    quiet(config, tmp_path / "run")
    run = open_run(tmp_path / "run")
    wide = wide_of(run)
    kinds = {name: width.kind for name, width in wide.widths.items()}
    assert set(kinds.values()) == {"stream", "inner"}

    def at_base(sizes: Mapping[str, int]) -> set[str]:
        return {name for name, size in sizes.items() if size == wide.base_config[name]}

    streams = {name for name, kind in kinds.items() if kind == "stream"}
    how = {"batches": 2, "batch_size": 8, "console": Console(file=StringIO())}
    found = search_run(tmp_path / "run", "subnet", trials=6, population=3, **how)
    assert found.identity["widths"].keys() == kinds.keys() - streams
    both = search_run(
        tmp_path / "run", "subnet", trials=2, population=2, kinds=("stream", "inner"),
        out=tmp_path / "both", **how,
    )  # fmt: skip
    assert both.identity["widths"].keys() == kinds.keys()

    quietly = {"recalibrate": 1, "console": Console(file=StringIO())}
    assert at_base(evaluate_run(tmp_path / "run", "widest", **quietly)["config"]) == streams
    taught = replace(config, kinds=("stream", "inner"))
    quiet(taught, tmp_path / "taught")
    assert not at_base(evaluate_run(tmp_path / "taught", "widest", **quietly)["config"])
    lesson = replace(config, distill=Distillation("widest", objectives=("kd",)))
    quiet(lesson, tmp_path / "lesson")
    assert not at_base(evaluate_run(tmp_path / "lesson", "widest", **quietly)["config"])


def test_runs_that_cannot_be_searched(files: Path, tmp_path: Path) -> None:
    quiet(replace(small_config(files, "netaug"), epochs=1), tmp_path / "all")
    with pytest.raises(
        RunError, match=r"held-out split has size zero\. Train with --hold-out 0\.1"
    ):
        search_run(tmp_path / "all", "subnet", trials=2)
    with pytest.raises(SearchError, match=r"Nothing meets the budget of 0\.5x macs"):
        search_run(tmp_path / "all", "subnet", trials=2, hold_out=0.25, budget="0.5x")
    with pytest.raises(RunError, match=r"lies between 0 and 1, e\.g\. 0\.1; 1\.5 came"):
        search_run(tmp_path / "all", "subnet", trials=2, hold_out=1.5)
    held = open_run(tmp_path / "all")
    held = replace(held, config=replace(held.config, hold_out=0.25))
    with pytest.raises(RunError, match=r"held out 0\.25 of its images"):
        held_out_of(held, 0.5)
    quiet(replace(small_config(files, "baseline"), epochs=1), tmp_path / "plain")
    with pytest.raises(RunError, match="plain grew no widths"):
        search_run(tmp_path / "plain", "subnet", trials=2)
    with pytest.raises(RunError, match="holds no run"):
        search_run(tmp_path / "none", "subnet", trials=2)
    assert not (tmp_path / "plain" / "search").exists()
