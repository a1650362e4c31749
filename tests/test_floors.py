"""The house: a module imports from lower floors alone, and `import reftlens` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import reftlens

ROOT = Path(reftlens.__file__).parent
ORDER = [
    "_version",
    "display",
    "numbers",
    "files",
    "positions",
    "interventions",
    "results",
    "organisms",
    "bridge",
    "data",
    "plot",
    "edit",
    "cone",
    "training",
    "analysis",
    "benchmark",
    "dissection",
    "paper",
    "demo",
    "cli",
    "__main__",
]
"""The rooms, lowest first: each imports only from those above it in this list."""


def top(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> set[str]:
    """Modules of this package that a file imports, by the name under `reftlens`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "reftlens":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("reftlens."):
            found.add(top(str(node.module)))
        elif isinstance(node, ast.Import):
            found |= {top(alias.name) for alias in node.names if alias.name.startswith("reftlens.")}
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_imports_from_lower_floors_alone(file) -> None:
    place = file.relative_to(ROOT)
    module = place.parts[0].removesuffix(".py")
    if module == "__init__":
        return
    assert module in ORDER, f"{module} has no place yet: name it in ORDER"
    for other in imports(file) - {module}:
        assert ORDER.index(other) < ORDER.index(module), f"{place} imports {other}, which is not on a lower floor"


def test_every_floor_is_real() -> None:
    there = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert set(ORDER) == there - {"__init__"}


def test_every_public_name_loads() -> None:
    for name in reftlens.__all__:
        assert getattr(reftlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reftlens.nothing


HEAVY = {"torch", "transformers", "transformer_lens", "matplotlib", "pandas", "numpy", "datasets"}
"""Packages whose import takes seconds."""


def run(*command: str) -> str:
    """What a command prints."""
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy() -> None:
    bare = set(run("-c", "import sys; print(*sys.modules)").split())
    loaded = set(run("-c", "import sys, reftlens; print(*sys.modules)").split()) - bare
    assert not HEAVY & loaded
    assert len(loaded) < 30


def test_the_commands_and_presets_load_nothing_heavy() -> None:
    assert not HEAVY & set(
        run("-c", "import sys, reftlens.cli, reftlens.paper.runs.presets; print(*sys.modules)").split()
    )


def test_help_loads_nothing_heavy_and_shows_an_example() -> None:
    asked = "import runpy, sys; sys.argv = ['reftlens', {words}]\ntry: runpy.run_module('reftlens', run_name='__main__')\nexcept SystemExit: print(*sys.modules)"
    assert not HEAVY & set(run("-c", asked.format(words="'--help'")).split())
    assert "reftlens demo --model gpt2" in run("-m", "reftlens", "demo", "--help")
