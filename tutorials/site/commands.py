"""Makes the page of the command line from its own help. Importing the commands does not import torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    import typer
    from mkdocs.structure.files import File

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from reftlens.cli import app

    parts = ["# Command line", *described("reftlens", typer.main.get_command(app))]
    files.append(File.generated(config, "tutorials/reference/cli.md", content="\n\n".join(parts)))
    return files


def described(name: str, command: Any) -> Iterator[str]:
    """Yields the text of a command and of those below it."""
    if name != "reftlens":
        yield f"## {name}"
    yield plain(command.help)
    if command.epilog:
        yield f"```\n{command.epilog.removeprefix('Example: ')}\n```"
    rows = [row(parameter) for parameter in command.params]
    if rows:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    for key, below in getattr(command, "commands", {}).items():
        yield from described(f"{name} {key}", below)


def row(parameter: Any) -> str:
    value = parameter.metavar or ""
    # A text in place of a value: what the command takes if the option is left out.
    shown = getattr(parameter, "show_default", None)
    default = shown if isinstance(shown, str) else parameter.default
    said = "" if default is None or isinstance(default, bool) or callable(default) else f" Default: `{default}`."
    names = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    return f"| {names} {value} | {plain(parameter.help or '')}{said} |"


def plain(text: str) -> str:
    """The text with what Markdown would take for a mark escaped."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("$", "\\$")
