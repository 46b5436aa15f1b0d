"""The demo, short: what it writes and prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from recipes.models import build_model
from recipes.studies import demo


def test_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    assert demo.main(["--quick", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "handwritten digits, 419 parameters, 2 epochs" in shown
    assert "netaug - baseline" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["baseline"]["top1"]) == len(report["netaug"]["top1"]) == 1
    assert (report["epochs"], report["params"]) == (2, 419)
    assert report["seconds"] > 0
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mine.txt").read_text() == "stays"
    name, arguments = report["model"]["name"], report["model"]["args"]
    model = build_model(name, num_classes=10, channels=1, model_args=arguments)
    model.load_state_dict(load_file(tmp_path / "base.safetensors"), strict=True)


def test_an_unwritable_directory_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert demo.main(["--quick", "--out", str(tmp_path / "file" / "demo")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("recipes.studies.demo: error: ")
    assert error.count("\n") == 1
