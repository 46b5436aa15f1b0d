"""`netaugfx search`: from a supernet to a config, to a run that grows to it, to a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import cli
from tests.cli.test_cli import NET, fails, train
from tests.recipes.images import make_folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    make_folder(tmp_path / "images")
    Path("net.py").write_text(NET)


def search(*more: str) -> int:
    return cli.main(
        [
            *("search", "--run", "run", "--score", "subnet", "--trials", "4", "--population", "2"),
            *("--batches", "1", "--batch-size", "6", "--device", "cpu", *more),
        ]
    )


def test_the_circle(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--method", "spos", "--hold-out", "0.3", "--ceiling", "4x") == 0
    for method in ("evolution", "nsga2", "random"):
        assert search("--budget", "3.0x", "--method", method) == 0
    assert search("--score", "alignment", "--budget", "3.0x", "--trials", "3") == 0
    assert search("--score", "base", "--budget", "3.0x", "--trials", "2", "--lr", "0.1") == 0
    said = capsys.readouterr().out
    assert "candidate    1 of 4  score" in said
    found = Path("run/search/base-evolution.json")
    assert f"netaugfx train --method netaug --max-config {found}" in said
    sizes = json.loads(found.read_text())
    more = ("--max-config", str(found), "--out", "grown")
    grows = any(size > base for size, base in zip(sizes.values(), (4, 6), strict=True))
    code = train("--method", "netaug", *more)
    if grows:
        assert code == 0
        plan = json.loads(Path("grown/plan.json").read_text())
        assert {w["name"]: w["choices"][-1] for w in plan["widths"]} == sizes
    else:
        fails(capsys, code, "Nothing to augment.*")
    assert cli.main(["evaluate", "run", "--config", str(found), "--device", "cpu"]) == 0
    assert cli.main(["report", "run", "--out", "report.html"]) == 0
    page = Path("report.html").read_text()
    assert page.count("Pareto front") == page.count("Convergence") == 3  # of three scores
    assert page.count("widths grow. One number") == 5  # of five searches
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )  # fmt: skip


def test_bad_input_of_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--method", "spos") == 0
    capsys.readouterr()
    fails(capsys, search(), r"run trained on all of its images, so the held-out split has size.*")
    hold = ("--hold-out", "0.3")
    fails(capsys, search(*hold, "--budget", "much"), "A budget is a multiple of the base.*")
    fails(capsys, search(*hold, "--budget", "0.9x"), "Nothing meets the budget of 0.9x macs.*")
    fails(capsys, search("--hold-out", "0.001"), "A share of 0.001 of 18 training images is 0: .*")
    fails(capsys, search("--run", "nowhere"), "nowhere holds no run.*")
    assert search(*hold) == 0
    capsys.readouterr()
    fails(capsys, search(*hold, "--seed", "1"), ".*its seed are 0 there and 1 here.*")
    fails(capsys, search("--hold-out", "0.35"), ".*its held_out are .* there and .* here.*")
    code = search(*hold, "--epochs", "3", "--lr", "1")
    fails(capsys, code, "--epochs, --lr would have no effect with --score subnet.*")
    code = train("--method", "spos", "--alpha", "0.5", "--out", "other")
    fails(capsys, code, "--alpha would have no effect with --method spos.*")
    Path("text.db").write_text("text")
    fails(capsys, search(*hold, "--storage", "text.db"), "text.db cannot be used as a study file.*")
    for content, message in {
        "{": "--max-config c.json does not read as JSON.*",
        "[]": '--max-config c.json: expected {"WIDTH": SIZE, ...}.*',
        '{"nowhere": 8}': "max_config: no width is called 'nowhere'.*",
        '{"0": 3}': "max_config: '0' cannot be 3; its base is 4.*",
        '{"0": 4}': "Nothing to augment.*",
    }.items():
        Path("c.json").write_text(content)
        code = train("--method", "netaug", "--max-config", "c.json", "--out", "other")
        fails(capsys, code, message)
        assert not Path("other").exists()
    fails(capsys, train("--method", "netaug", "--max-config", "d.json"), ".*d.json: cannot be.*")
    code = train("--method", "spos", "--ceiling", "0.1x", "--out", "other")
    fails(capsys, code, "Nothing meets the budget of 0.1x macs.*")
