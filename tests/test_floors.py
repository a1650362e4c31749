"""The house: a module imports from lower floors alone, and `import reftlens` loads nothing heavy."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import reftlens

ROOT = Path(reftlens.__file__).parent
ORDER = [
    "_version",
    "display",
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


def run(*command: str) -> tuple[float, str]:
    """CPU seconds of a command (wall-clock time of a shared machine says little), and what it printed."""
    before = os.times()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, done.stdout


def test_import_is_quick_and_loads_nothing_heavy() -> None:
    _, loaded = run("-c", "import sys, reftlens; print(*sys.modules)")
    assert not {"torch", "transformers", "transformer_lens", "matplotlib", "pandas"} & set(loaded.split())
    bare = min(run("-c", "pass")[0] for _ in range(3))
    assert min(run("-c", "import reftlens")[0] for _ in range(3)) - bare < 0.3


def test_the_commands_and_presets_load_nothing_heavy() -> None:
    _, loaded = run("-c", "import sys, reftlens.cli, reftlens.paper.runs.presets; print(*sys.modules)")
    assert not {"torch", "transformers", "transformer_lens", "matplotlib", "pandas"} & set(loaded.split())


def test_help_is_quick_and_shows_an_example() -> None:
    assert min(run("-m", "reftlens", "--help")[0] for _ in range(3)) < 1.0
    assert "reftlens demo --model gpt2" in run("-m", "reftlens", "demo", "--help")[1]
