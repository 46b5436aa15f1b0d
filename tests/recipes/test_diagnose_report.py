"""What the curves of a run say, and runs as one page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree

import numpy
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from recipes import cli
from recipes.errors import RunError
from recipes.studies.diagnose import diagnose, judge
from recipes.training.config import TrainConfig
from recipes.training.rundir import RunDirectory
from tests.recipes.test_training import quiet

TINY = {"channels": (3, 3, 4), "strides": (1, 2, 2), "expand_ratio": 2, "head": 8}  # 419 parameters


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real images, few of them: four of each digit to train on, ten to validate."""
    root, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for label in range(10):
        images = digits.images[digits.target == label][:14] * (255 / 16)
        for index, image in enumerate(images.round().astype(numpy.uint8)):
            folder = root / ("train" if index < 4 else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def runs(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is too small for its data, one that is too large for its, and NetAug."""
    out = tmp_path_factory.mktemp("runs")
    small = TrainConfig(
        model="netaugfx:tiny_mobilenet", model_args=TINY, data="digits", epochs=3, batch_size=64
    )
    quiet(small, out / "small")
    large = TrainConfig(
        model="netaugfx:tiny_mobilenet",
        model_args={"strides": (1, 2, 2, 1)},
        data=f"folder:{few_digits}",
        epochs=15,
        batch_size=20,
        lr=0.05,
        augment="none",
    )
    quiet(large, out / "large")
    quiet(replace(large, method="netaug", epochs=1), out / "netaug")
    return out


def test_both_kinds_of_network(runs: Path) -> None:
    small, large = diagnose(runs / "small"), diagnose(runs / "large")
    assert small.verdict == "underfits", small
    assert "--method netaug" in small.advice
    assert large.verdict == "overfits", large
    assert large.advice == ""
    assert "NetAug may hurt" in large.reasons[-1]
    assert small.share < 0.25 < 0.5 < large.share


def line(val: float, train: float = 50.0, loss: float = 1.0) -> dict[str, float]:
    return {"val_top1": val, "train_top1": train, "val_loss": loss}


@pytest.mark.parametrize(
    ("lines", "train", "verdict", "reason"),
    [
        ([line(60), line(60)], 62.0, "underfits", "38.0 % of training .* 40.0 % of validation"),
        ([line(60), line(60)], 75.0, "between", "may help or hurt"),
        ([line(60), line(60)], 85.0, "overfits", "NetAug may hurt"),
        ([line(10), line(12)], 12.0, "untrained", "hardly better than chance"),
        ([line(50), line(60)], 60.0, "underfits", "rose by 10.0 points .* longer training"),
        ([line(60, loss=a / 10) for a in (9, 5, 6, 7, 8)], 80.0, "overfits", "since epoch 2"),
        ([line(70, 71.0), line(70, 71.0)], None, "underfits", "on augmented images as they came"),
        ([line(100), line(100)], 100.0, "underfits", "wrong on 0.0 % of training"),
    ],
)
def test_verdicts(
    lines: list[dict[str, float]], train: float | None, verdict: str, reason: str
) -> None:
    found = judge(lines, 10, train)
    assert found.verdict == verdict
    assert re.search(reason, " ".join(found.reasons)), found.reasons


def test_what_cannot_be_diagnosed(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run: expected what"):
        diagnose(tmp_path)
    with pytest.raises(RunError, match=r"is a run of netaug\. Give one of the same network"):
        diagnose(runs / "netaug")
    taught = json.loads((runs / "small/config.json").read_text())
    taught["config"]["distill"] = {"teacher": "elsewhere"}
    (tmp_path / "config.json").write_text(json.dumps(taught))
    with pytest.raises(RunError, match=r"is a run of distillation\. Give one of the same network"):
        diagnose(tmp_path)
    (tmp_path / "config.json").write_bytes((runs / "small/config.json").read_bytes())
    with pytest.raises(RunError, match=r"has 0 epochs so far; curves need two or more"):
        diagnose(tmp_path)


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diagnose", str(runs / "large")]) == 0
    assert capsys.readouterr().out.startswith("The network overfits.\n- It is wrong on ")
    assert cli.main(["diagnose", str(runs / "small"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "underfits"


class Page(HTMLParser):
    """The tags of a page, the text of its table cells, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td":
            self.cells.append(data)


def test_the_page_needs_nothing_else(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["report", str(runs), "--out", str(page)]) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    found = Page(text)
    assert found.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(found.tags)
    assert "@import" not in text
    assert "url(http" not in text
    for name in ("small", "large", "netaug"):
        result = json.loads((runs / name / "result.json").read_text())
        at = found.cells.index(name)
        assert found.cells[at + 1] == ("netaug" if name == "netaug" else "baseline")
        assert found.cells[at + 2] == f"{result['top1']:.2f}"
        assert found.cells[at + 6] == f"{result['parameters']:,}"
    assert found.tags.count("svg") == 2  # the curves, and the widths of NetAug
    assert "widths</summary>" in text
    assert '"netaugfx:tiny_mobilenet"' in " ".join(found.cells)
    assert str(RunDirectory(runs / "small").held()["config"]["epochs"]) in found.cells


def test_damaged_and_missing_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "netaug"
    copytree(runs / "netaug", run)
    page = tmp_path / "page.html"
    (run / "plan.json").unlink()
    assert cli.main(["report", str(run), "--out", str(page)]) == 0
    assert "plan.json is missing" in page.read_text()
    assert cli.main(["evaluate", str(run), "--config", "widest"]) == 2
    assert re.search(r"plan\.json is missing: the widths", capsys.readouterr().err)
    for name in ("metrics.jsonl", "result.json", "environment.json", "config.json"):
        before = (run / name).read_text()
        (run / name).write_text(before + "{bad")
        assert cli.main(["report", str(run), "--out", str(page)]) == 2
        error = capsys.readouterr().err
        assert f"{name} does not read as JSON" in error, error
        assert "Traceback" not in error
        (run / name).write_text(before)


def test_a_page_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "holds no run: expected what `netaugfx train --out` wrote" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "No epoch of" in capsys.readouterr().err
