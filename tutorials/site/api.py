"""Makes a page of the API for each room: the docstring of the room, then every public name in it.

The names are read from the sources, so a new one has its place without a line here. `tutorials/site/check.py` tests that.
"""

from __future__ import annotations

import ast
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
OPENING = "    options:\n      members: false\n      show_root_heading: false"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for room, (title, sources) in PAGES.items():
        parts = [f"# {title}", f"::: reftlens.{room}\n{OPENING}"]
        parts += [f"::: {name}" for source in sources for name in public_names(source)]
        files.append(File.generated(config, f"tutorials/reference/{room}.md", content="\n\n".join(parts)))
    return files


def public_names(source: str) -> list[str]:
    """The full names, as a user writes them; the module itself if it does not list its names."""
    package, _, room = source.partition("/")
    if room:
        return [f"{package}.{name}" for name, home in constant(package, "_HOME").items() if home.split(".")[0] == room]
    rooms = {f"reftlens.{name}": f"reftlens.{home}" for name, home in constant("reftlens", "_ROOMS").items()}
    listed = constant(rooms.get(source, source), "__all__")
    return [f"{source}.{name}" for name in listed] if listed else [source]


def every_public_name() -> Iterator[str]:
    for _, sources in PAGES.values():
        for source in sources:
            yield from public_names(source)


def constant(module: str, name: str) -> Any:
    """The literal that a module assigns to a name, or None. Nothing is imported."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return ast.literal_eval(node.value)
    return None
