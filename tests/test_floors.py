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
    "text",
    "display",
    "numbers",
    "arguments",
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


ASKS = {"results/base.py": "`result.plot()`: results know no figures, and ask the package for its plots when called"}
"""Files that ask the package itself for a name, and why. A name of it may come from any floor."""


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


def test_few_files_ask_the_package_itself() -> None:
    asking = [
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import) and "reftlens" in [alias.name for alias in node.names]
    ]
    assert asking == list(ASKS)


def arrows() -> dict[str, set[str]]:
    """Each module of the package, with the modules that it imports anywhere but for type checkers."""
    names = {file: ".".join(["reftlens", *file.relative_to(ROOT).with_suffix("").parts]) for file in ROOT.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for file, name in names.items()}
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        tree = ast.parse(file.read_text())
        guarded = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ]
        skipped = {id(node) for guard in guarded for node in ast.walk(guard)}
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None and id(node) not in skipped:
                parts = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (parts & modules.keys()) | (
                    {node.module} & modules.keys() if parts - modules.keys() else set()
                )
    return found


def test_no_file_takes_part_in_a_circle() -> None:
    """What is left after files without unvisited imports are taken away, one after another."""
    left = arrows()
    while free := [name for name, needs in left.items() if not needs & left.keys() - {name}]:
        for name in free:
            del left[name]
    assert not left


def test_every_floor_is_real() -> None:
    there = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")}
    assert set(ORDER) == there - {"__init__"}


def test_every_public_name_loads() -> None:
    for name in reftlens.__all__:
        assert getattr(reftlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = reftlens.nothing


LONG = 40
"""Lines of code of a function, without its signature, docstring and comments."""
MOST = 10
"""Functions that may be longer: each is one sequence whose parts nothing else uses. (`ruff` bounds the complexity.)"""


def long_functions(text: str) -> list[str]:
    """The functions of a module whose bodies have more lines than `LONG`."""
    found, lines = [], text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[min(ast.get_docstring(node) is not None, len(node.body) - 1)]
            body = lines[first.lineno - 1 : node.end_lineno]
            if sum(not line.lstrip().startswith("#") for line in body) > LONG:
                found.append(node.name)
    return found


def test_few_functions_are_long() -> None:
    found = [name for file in ROOT.rglob("*.py") for name in long_functions(file.read_text())]
    assert len(found) <= MOST, found
    longest = "def f():\n    'says'\n" + "    x = 1\n" * LONG
    assert not long_functions(longest + "    # a comment\n")
    assert long_functions(longest + "    x = 1\n") == ["f"]


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
