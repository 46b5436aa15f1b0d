"""What each package needs: netaugfx only torch and networkx; the command line says what it lacks.

Each test runs in a fresh interpreter in which every other installed distribution is as if absent:
the finders of `sys.meta_path` do not find it.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = {"netaugfx", "recipes"}


def required_by(requirements: list[str]) -> set[str]:
    """Names of the distributions that these requirements bring, directly or through others."""
    found: set[str] = set()
    queue = [(Requirement(text), "") for text in requirements]
    seen = set()
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in ["", *requirement.extras]:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                further = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            found.add(name)
            queue += [(Requirement(text), wanted) for text in further]
    return found


def modules_beyond(requirements: list[str]) -> set[str]:
    """Top-level modules of every installed distribution that these requirements do not bring."""
    allowed = required_by(requirements)
    return {
        module
        for module, distributions in importlib.metadata.packages_distributions().items()
        if module not in OWN
        and not any(canonicalize_name(name) in allowed for name in distributions)
    }


def run_without(absent: set[str], code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds no module of these top-level names."""
    hide = f"""
import sys
absent = {sorted(absent)!r}
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
    del sys.modules[name]  # what a .pth file brought in before this line
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
    return subprocess.run(
        [sys.executable, "-c", hide + code, *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_dependencies_are_torch_and_networkx_alone() -> None:
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"torch", "networkx"}


def test_the_blockade_blocks() -> None:
    """Without this, the tests below could pass by blocking nothing."""
    absent = modules_beyond(PROJECT["dependencies"])
    extras = {"timm", "torchvision", "accelerate", "rich", "matplotlib", "sklearn", "safetensors"}
    assert extras | {"numpy"} <= absent
    assert not {"torch", "networkx", "sympy"} & absent
    result = run_without(absent, "import timm")
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named 'timm'" in result.stderr


def test_netaugfx_needs_only_torch_and_networkx() -> None:
    """Import every module, then do the work once: a lazy import would hide from an import alone."""
    code = """
import importlib, pkgutil
import netaugfx
for module in pkgutil.walk_packages(netaugfx.__path__, "netaugfx."):
    importlib.import_module(module.name)

import torch
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2),
)
wide = netaugfx.widen(model, example_inputs=(torch.zeros(2, 3, 8, 8),))
print(netaugfx.describe(wide))
graph = netaugfx.to_networkx(wide.plan)
netaugfx.extract(wide, wide.max_config)(torch.zeros(2, 3, 8, 8))
assert type(netaugfx.extract_base(wide)) is torch.nn.Sequential
print("done")
"""
    result = run_without(modules_beyond(PROJECT["dependencies"]) | {"recipes"}, code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("done\n")


def test_netaugfx_never_imports_recipes() -> None:
    code = """
import importlib, pkgutil, sys
import netaugfx
for module in pkgutil.walk_packages(netaugfx.__path__, "netaugfx."):
    importlib.import_module(module.name)
print([name for name in sys.modules if name.partition(".")[0] == "recipes"])
"""
    result = run_without(set(), code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    "argv",
    [["inspect", "resnet18"], ["train", "--model", "resnet18", "--data", "digits"]],
    ids=" ".join,
)
@pytest.mark.parametrize("lacking", ["every extra", "timm"])
def test_command_line_without_its_extra_says_what_to_install(
    argv: list[str], lacking: str, tmp_path: Path
) -> None:
    absent = modules_beyond(PROJECT["dependencies"]) if lacking == "every extra" else {lacking}
    code = """
import runpy
sys.argv[0] = "netaugfx"
runpy.run_module("recipes.cli", run_name="__main__")
"""
    out = ["--out", str(tmp_path / "run")] if argv[0] == "train" else []
    result = run_without(absent, code, *argv, *out)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "pip install '.[recipes]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_entry_point_is_the_command_line() -> None:
    assert PROJECT["scripts"] == {"netaugfx": "recipes.cli:main"}
    assert re.search(r"^def main\(", (ROOT / "recipes/cli/__init__.py").read_text(), re.MULTILINE)
