"""The packages of airllm know only what lies below them (table in docs/pages/development.md)."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "airllm"

# Bottom up. A package may import itself and those in earlier rows, and nothing else of airllm.
LAYERS = (
    ("util", "flash_attention"),
    ("numpy_ops", "hub"),
    ("tensor_ops_hybrid",),
    ("text",),
    ("formats",),
    ("graph",),
    ("models", "backends"),
    ("state",),
    ("weights",),
    ("engine",),
    ("layer_engine",),
    ("tools", "cluster", "server"),
    ("cli",),
    ("__main__",),
)
# Of those below it, what each package knows: no more, so that a new arrow is a decision.
KNOWS = {
    "util": (),
    "flash_attention": (),
    "numpy_ops": ("util",),
    "tensor_ops_hybrid": ("numpy_ops",),
    "text": ("util",),
    "formats": ("tensor_ops_hybrid", "text", "util"),
    "graph": ("util",),
    "models": ("formats", "graph", "numpy_ops", "util"),
    "backends": ("graph", "numpy_ops", "tensor_ops_hybrid", "util"),
    "state": ("graph", "numpy_ops", "util"),
    "weights": ("backends", "formats", "graph", "models", "state", "util"),
    "engine": ("backends", "models", "state", "tensor_ops_hybrid", "text", "util", "weights"),
    "layer_engine": (
        "backends",
        "engine",
        "graph",
        "hub",
        "models",
        "state",
        "text",
        "util",
        "weights",
    ),
    "hub": ("util",),
    "tools": ("engine", "util"),
    "cluster": ("backends", "graph", "numpy_ops", "state", "util", "weights"),
    "server": ("engine", "text", "util"),
    "cli": (
        "backends",
        "cluster",
        "engine",
        "formats",
        "hub",
        "layer_engine",
        "models",
        "server",
        "tensor_ops_hybrid",
        "text",
        "tools",
        "util",
        "weights",
    ),
    "__main__": ("cli",),
}
FLOOR = {package: floor for floor, row in enumerate(LAYERS) for package in row}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> set[str]:
    """What a module imports of airllm, at any depth of its code, TYPE_CHECKING included."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.add(node.module or "")
            if node.module == "airllm":
                found |= {f"airllm.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("airllm.")}


def package_of(module: str) -> str:
    return module.split(".")[1]


def arrows() -> list[tuple[str, str, Path]]:
    """(package, package that it imports, the file) for all files of airllm."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own != "__init__":
            found += [(own, package_of(name), path) for name in imported(path)]
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_each_package_has_its_row() -> None:
    there = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"}
    assert there == set(FLOOR)


def test_a_package_imports_only_what_lies_below_it() -> None:
    up = [
        f"{path.relative_to(ROOT)} imports {target}"
        for own, target, path in arrows()
        if own != target and FLOOR[target] >= FLOOR[own]
    ]
    assert not up


@pytest.mark.parametrize("package", FLOOR)
def test_a_package_knows_what_the_table_says(package: str) -> None:
    found = {target for own, target, _ in arrows() if own == package} - {package}
    assert found == set(KNOWS[package])


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {module_of(path): imported(path) for path in ROOT.rglob("*.py")}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in modules[name] & modules.keys():
                # A package's own face may name its modules, and they the face's protocols.
                if target != name and not name.startswith(target + "."):
                    walk(target, (*way, name))
            done.add(name)

    for name in modules:
        walk(name, ())


@pytest.mark.parametrize("package", sorted(path.parent for path in ROOT.glob("*/__init__.py")))
def test_a_package_says_what_it_is_for(package: Path) -> None:
    assert ast.get_docstring(tree(package / "__init__.py"))


def test_no_two_public_classes_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for path in ROOT.rglob("*.py"):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: places for name, places in found.items() if len(places) > 1}
