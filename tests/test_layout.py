"""The folder rules: who may import whom, every folder is packaged, triton and numba stay in theirs."""

import ast
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "quant": set(),
    "loaders": {"quant"},
    "triton_kernels": {"quant"},
    "runtime": {"quant", "loaders", "triton_kernels"},
}


def folder_imports(file: Path) -> set[str]:
    """Other top-level folders that this file imports, by relative import or by naiad.folder."""
    depth = len(file.relative_to(ROOT).parts) - 1
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth + 1 and node.module:
            found.add(node.module.split(".")[0])
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name and name.startswith("naiad.")}
    return found


def imported_modules(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 0 and n.module}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_layers(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        if file.parent.name != "naiad":
            assert folder_imports(file) <= MAY_IMPORT[folder], file


def test_triton_only_in_its_folder() -> None:
    for folder in MAY_IMPORT.keys() - {"triton_kernels"}:
        for file in (ROOT / folder).rglob("*.py"):
            assert not any(m == "triton" or m.startswith("triton.") for m in imported_modules(file)), file


def test_numba_only_in_its_folder() -> None:
    for folder in MAY_IMPORT:
        for file in (ROOT / folder).rglob("*.py"):
            modules = {m.partition(".")[0] for m in imported_modules(file)}
            assert file.parent.name == "cpu_kernels" or not modules & {"numba", "llvmlite"}, file


def test_every_folder_is_packaged() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    on_disk = {p.parent.relative_to(ROOT) for f in MAY_IMPORT for p in (ROOT / f).rglob("*.py")}
    names = {"naiad." + ".".join(d.parts) for d in on_disk} - {"naiad.runtime.naiad"} | {"naiad"}
    assert set(project["tool"]["setuptools"]["packages"]) == names
