"""Makes a page of the API for each room: the docstring of the room, then every public name in it.

The names are read from the sources, so a new one has its place without a line here. `check.py` tests that it is there.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "interventions": ("Interventions", ["reftlens/interventions"]),
    "positions": ("Positions", ["reftlens/positions"]),
    "data": ("Models and data", ["reftlens/data", "reftlens/bridge"]),
    "edit": ("Edits", ["reftlens/edit"]),
    "training": ("Training", ["reftlens/training", "reftlens.objectives", "reftlens.training.lofit"]),
    "cone": ("Light cone", ["reftlens/cone"]),
    "analysis": ("Analysis", ["reftlens.analysis", "reftlens/analysis"]),
    "results": ("Results", ["reftlens.results"]),
    "plot": ("Plots", ["reftlens.plot"]),
    "dissection": ("Dissection", ["reftlens/dissection"]),
    "paper": ("The paper", ["reftlens.tasks", "reftlens.baselines"]),
    "organisms": ("Embedded models", ["reftlens.organisms", "reftlens.organisms.landmarks"]),
}
"""Room -> title and sources. `reftlens/room` means the names that `reftlens` takes from that room; `reftlens.module` means
the public names of a module."""
BY_FILE = "reftlens.analysis"
"""A package whose files open with the question and the equation: a section for each file."""
OPENING = {"members": "false", "show_root_heading": "false", "show_root_toc_entry": "false"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for room, (title, sources) in PAGES.items():
        parts = [f"# {title}", directive(f"reftlens.{room}", OPENING)]
        parts += [part for source in sources for part in directives(source)]
        files.append(File.generated(config, f"tutorials/reference/{room}.md", content="\n\n".join(parts)))
    return files


def directive(identifier: str, options: dict[str, str]) -> str:
    """The lines that mkdocstrings replaces by a documentation."""
    return "\n".join([f"::: {identifier}", "    options:", *(f"      {key}: {options[key]}" for key in options)])


def directives(source: str) -> Iterator[str]:
    found = anchors(source)
    if source != BY_FILE:
        yield from (directive(anchor, {"show_root_heading": "true"}) for anchor in found.values())
        return
    files: dict[str, list[str]] = defaultdict(list)
    for anchor in found.values():
        module, _, name = anchor.rpartition(".")
        files[module].append(name)
    for module, names in files.items():
        yield directive(module, {"members": f"[{', '.join(names)}]"})


def anchors(source: str) -> dict[str, str]:
    """Full name, as a user writes it -> where the page has it. A module that does not list its names stands for itself."""
    package, _, room = source.partition("/")
    if room:
        homes = constant(package, "_HOME")
        return {f"{package}.{name}": f"{package}.{name}" for name in homes if homes[name].split(".")[0] == room}
    rooms = constant("reftlens", "_ROOMS")
    module = f"reftlens.{rooms.get(source.removeprefix('reftlens.'), source.removeprefix('reftlens.'))}"
    names, homes = constant(module, "__all__"), imported(module)
    if names is None:
        return {source: source}
    # `analysis.patch` is a function, and to who reads the sources a file too.
    files = {path.stem for path in path_of(module).parent.glob("*.py")}
    moved = source == BY_FILE or not files.isdisjoint(names)
    return {
        f"{source}.{name}": f"{homes[name]}.{name}" if moved and name in homes else f"{source}.{name}" for name in names
    }


def every_anchor() -> dict[str, str]:
    """Public name -> its anchor, over all pages."""
    return {
        name: anchor for _, sources in PAGES.values() for source in sources for name, anchor in anchors(source).items()
    }


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def constant(module: str, name: str) -> Any:
    """The literal that a module assigns to a name, or None. Nothing is imported."""
    for node in ast.parse(path_of(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    return None


def imported(module: str) -> dict[str, str]:
    """Name -> the module that it is imported from."""
    nodes = ast.parse(path_of(module).read_text(encoding="utf-8")).body
    return {
        alias.name: node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
