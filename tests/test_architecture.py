"""The house itself: imports go in one direction, and every public name is documented."""

import ast
import graphlib
import importlib
import pkgutil
import types
from pathlib import Path

import pytest

import netaugfx

ROOT = Path(__file__).parent.parent

# Each file or room (a folder) of netaugfx imports only from those that stand before it here.
ORDER = [
    *("errors", "copies", "checks", "examples", "axes", "plan", "unify"),
    *("trace", "rules", "infer", "storage", "rewrite"),
    *("cost", "sampling", "programs", "graphs", "entered", "shell", "model", "parts"),
    *("planning", "contract", "verify", "widen", "testing", "report"),
]
ROOMS = [room for room in ORDER if (ROOT / "netaugfx" / room).is_dir()]


def dotted(path: Path, root: Path = ROOT) -> str:
    """The module that a file defines: netaugfx/rules/norm.py is netaugfx.rules.norm."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as an absolute name.

    `from a import b` counts as a.b where a.b is a module, else as a.
    """
    package = dotted(path, root).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                part = root.joinpath(*source.split("."), alias.name)
                is_module = part.with_suffix(".py").exists() or (part / "__init__.py").exists()
                found.add(f"{source}.{alias.name}" if is_module else source)
    return found


def imports_upwards(root: Path = ROOT) -> list[str]:
    """Imports within netaugfx that go against ORDER, one line each."""
    wrong = []
    for path in sorted((root / "netaugfx").rglob("*.py")):
        parts = dotted(path, root).split(".")
        if len(parts) == 1:
            continue  # the package's own namespace gathers everything
        if parts[1] not in ORDER:
            wrong.append(f"{path.relative_to(root)} has no place in ORDER")
            continue
        for name in sorted(imports(path, root)):
            target = name.split(".")
            if target[0] != "netaugfx" or (target[1:2] == parts[1:2] and len(target) > 2):
                continue
            if len(target) == 1 or ORDER.index(target[1]) >= ORDER.index(parts[1]):
                wrong.append(f"{path.relative_to(root)} imports {name}")
    return wrong


def test_each_file_imports_only_from_files_above_it() -> None:
    assert imports_upwards() == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("axes.py", "from netaugfx.plan import Plan"),
        ("axes.py", "from .plan import Plan"),
        ("axes.py", "from . import plan"),
        ("axes.py", "import netaugfx.plan"),
        ("axes.py", "from netaugfx import plan"),
        ("axes.py", "from netaugfx import Plan"),
        ("axes.py", "import netaugfx"),
        ("axes.py", "def late():\n    from netaugfx.plan import Plan"),
        ("rules/conv.py", "from ..infer import infer"),
        ("helper.py", ""),
    ],
)
def test_an_import_upwards_is_seen(file: str, line: str, tmp_path: Path) -> None:
    for name in ["__init__.py", "plan.py", "infer.py", "rules/__init__.py", file]:
        (tmp_path / "netaugfx" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "netaugfx" / name).write_text(line if name == file else "")
    assert len(imports_upwards(tmp_path)) == 1


def test_a_room_is_entered_by_its_door() -> None:
    """What lies outside a room imports from its `__init__.py`, not from the files behind it."""
    for path in (ROOT / "netaugfx").rglob("*.py"):
        for name in imports(path) - {dotted(path)}:
            package, _, inner = name.partition(".")
            room, _, file = inner.partition(".")
            if package == "netaugfx" and room in ROOMS and file:
                assert dotted(path).split(".")[1:2] == [room], f"{path.relative_to(ROOT)}: {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_import_each_other_in_one_direction(room: str) -> None:
    files = {dotted(path): path for path in (ROOT / "netaugfx" / room).glob("*.py")}
    graph = {name: imports(path) & set(files) - {name} for name, path in files.items()}
    # The room's own namespace gathers what its files define, and a file may import from it.
    graph.pop(f"netaugfx.{room}")
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_netaugfx_never_imports_recipes() -> None:
    for path in (ROOT / "netaugfx").rglob("*.py"):
        assert "recipes" not in {name.partition(".")[0] for name in imports(path)}, path


def test_recipes_are_layered() -> None:
    """Parts that a user imports; a search; runs made of them; what is told of runs; the command line."""
    layers = ["parts", "spos", "training", "studies", "cli"]

    def layer(module: str) -> str:
        folder = module.split(".")[1] if "." in module else ""
        return folder if (ROOT / "recipes" / folder).is_dir() and folder else "parts"

    for path in sorted((ROOT / "recipes").rglob("*.py")):
        for name in imports(path):
            if name.startswith("recipes."):
                above, below = layers.index(layer(name)), layers.index(layer(dotted(path)))
                assert above <= below, f"{path.relative_to(ROOT)} imports {name}"


def public_names() -> list[str]:
    return sorted(getattr(netaugfx, "__all__", []))


def test_there_are_public_names() -> None:
    """As the parametrized tests below would pass on an empty list."""
    assert {
        *("plan", "widen", "extract", "extract_base", "verify", "describe", "to_networkx"),
        *("register_rule", "WideModel", "Width", "Plan", "NetAugFXError"),
    } <= set(public_names())


def test_every_error_is_public() -> None:
    from netaugfx import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= set(public_names())


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_is_documented(name: str) -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    value = getattr(netaugfx, name)
    assert (value.__doc__ or "").strip(), f"netaugfx.{name} has no docstring"
    assert f"`netaugfx.{name}`" in reference, f"netaugfx.{name} is on no page of docs/reference"


def test_no_public_name_is_hidden_by_the_module_of_the_same_name() -> None:
    """`netaugfx.plan`, `netaugfx.widen` and `netaugfx.verify` are functions and also files."""
    for module in pkgutil.walk_packages(netaugfx.__path__, "netaugfx."):
        importlib.import_module(module.name)
    for name in public_names():
        assert not isinstance(getattr(netaugfx, name), types.ModuleType), name
