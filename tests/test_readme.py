"""What the README and the documentation show is so.

Every Python block runs, in the order a reader meets it, and the command line has the options named.

The blocks of a page share one namespace, in which `loader` is the reader's own data: two batches of
random images and labels.
"""

import functools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The page's Python blocks, each padded so that an error names the page's own line."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, match.start(1)) + match.group(1)
        for match in BLOCK.finditer(text)
    ]


PAGES = [
    page.relative_to(ROOT).as_posix()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if blocks(page)
]


def test_the_readme_has_its_loop() -> None:
    assert "README.md" in PAGES
    assert "NetAugTask" in blocks(ROOT / "README.md")[0]


def run(page: str) -> dict[str, Any]:
    """Run a page's blocks and return the namespace that they leave."""
    torch.manual_seed(0)
    loader = [(torch.randn(4, 3, 64, 64), torch.randint(10, (4,))) for _ in range(2)]
    namespace: dict[str, Any] = {"__name__": "reader", "loader": loader}
    for code in blocks(ROOT / page):
        exec(compile(code, str(ROOT / page), "exec"), namespace)
    return namespace


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)


def test_the_readme_loop_trains_the_model_that_it_started_with() -> None:
    namespace = run("README.md")
    model, tiny = namespace["model"], namespace["tiny"]
    untrained = namespace["timm"].create_model("mobilenetv3_small_050", num_classes=10)
    assert type(tiny) is type(model) is type(untrained)
    shapes = {key: value.shape for key, value in untrained.state_dict().items()}
    assert {key: value.shape for key, value in tiny.state_dict().items()} == shapes
    assert model.get_buffer("bn1.num_batches_tracked") == len(namespace["loader"])


COMMANDS = (
    *("train", "search", "distill", "rank-augmentations", "evaluate"),
    *("inspect", "diagnose", "report"),
)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@functools.cache
def options_of(*command: str) -> set[str]:
    """The options that a subcommand's own help names."""
    help_text = subprocess.run(
        [sys.executable, "-m", "recipes.cli", *command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    return set(OPTION.findall(help_text)) - {"--help"}


def test_the_reference_has_every_option_and_no_other() -> None:
    page = (ROOT / "docs/reference/command-line.md").read_text()
    documented = set(OPTION.findall(page)) - {"--help"}
    assert documented == set().union(*map(options_of, COMMANDS))


def test_commands_shown_use_options_that_exist() -> None:
    known = {command: options_of(command) for command in COMMANDS}
    shown = [
        line.strip()
        for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        for line in page.read_text().replace("\\\n", " ").splitlines()
        if line.startswith("    netaugfx ") and "COMMAND" not in line
    ]
    assert shown
    for line in shown:
        assert set(OPTION.findall(line)) <= known[line.split()[1]], line


def test_files_named_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    path = re.compile(r"`((?:netaugfx|recipes|tests|docs|benchmarks)/[\w./*-]+)`")
    named = {name for page in pages for name in path.findall(page.read_text())}
    assert named
    # N stands for a law's number.
    assert [name for name in named if not any(ROOT.glob(name.replace("_N_", "_[1-8]_")))] == []
