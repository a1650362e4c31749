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
    "edit": ("Edits", ["reftlens/edit", "reftlens.serving"]),
    "training": ("Training", ["reftlens/training", "reftlens.objectives", "reftlens.training.lofit"]),
    "cone": ("Light cone", ["reftlens/cone"]),
    "analysis": ("Analysis", ["reftlens.analysis", "reftlens/analysis"]),
    "results": ("Results", ["reftlens.results"]),
    "plot": ("Plots", ["reftlens.plot"]),
    "dissection": ("Dissection", ["reftlens/dissection"]),
    "paper": ("The paper", ["reftlens.tasks", "reftlens.baselines", "reftlens.paper.runs"]),
    "benchmark": ("Known answers", ["reftlens.benchmark"]),
    "organisms": (
        "Embedded models",
        ["reftlens.organisms", "reftlens.organisms.landmarks", "reftlens.organisms.topics"],
    ),
}
"""Room -> title and sources. `reftlens/room` means the names that `reftlens` takes from that room; `reftlens.module` means
the public names of a module."""
SECTIONS = ("reftlens.analysis.", "reftlens.edit.pyreft.")
"""Where docstrings of modules have the question, the equation, or a table: a section for each module."""
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
    sections: dict[str, list[str]] = defaultdict(list)
    for at in anchors(source).values():
        module, _, name = at.rpartition(".")
        if at.startswith(SECTIONS):
            sections[module].append(name)
        else:
            yield directive(at, {"show_root_heading": "true"})
    for module, names in sections.items():
        yield directive(module, {"members": f"[{', '.join(names)}]"})


def anchors(source: str) -> dict[str, str]:
    """Full name, as a user writes it -> where the page has it. A module that does not list its names stands for itself."""
    package, _, room = source.partition("/")
    if room:
        homes = {name: home for name, home in constant(package, "_HOME").items() if home.split(".")[0] == room}
        return {f"{package}.{name}": anchor(package, name, f"{package}.{home}") for name, home in homes.items()}
    module = source.removeprefix("reftlens.")
    module = f"reftlens.{constant('reftlens', '_ROOMS').get(module, module)}"
    homes = imported(module)
    names = constant(module, "__all__")
    return {f"{source}.{name}": anchor(source, name, homes.get(name)) for name in names} if names else {source: source}


def anchor(package: str, name: str, home: str | None) -> str:
    """Where a name is documented: in its package, unless that has a file of this name, or its home is a section."""
    # `analysis.patch` is a function, and to who reads the sources a file too.
    hidden = home is not None and home.endswith(f".{name}") and home.startswith("reftlens.")
    return f"{home}.{name}" if home and (hidden or f"{home}.".startswith(SECTIONS)) else f"{package}.{name}"


def every_anchor() -> dict[str, str]:
    """Public name -> its anchor, over all pages."""
    return {name: at for _, sources in PAGES.values() for source in sources for name, at in anchors(source).items()}


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
