"""Arguments that several commands have, so that they are called and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reftlens.paper.runs.config import parse_settings


def _written_as_settings(settings: list[str] | None) -> list[str] | None:
    try:
        parse_settings(settings or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return settings


def _there(place: Path) -> Path:
    """Refuses a folder that does not exist before anything heavy is imported."""
    if not place.exists():
        raise ValueError(f"{place}: there is no such folder")
    return place


def data_there(source: str | None) -> str | None:
    """Refuses a data file that does not exist before anything heavy is imported. A name without an ending may be on the hub."""
    if source is not None and Path(source).suffix and "://" not in source and not Path(source).exists():
        raise ValueError(f"there is no file or folder {source}")
    return source


Trained = Annotated[Path, typer.Argument(help="A run, or a saved edit.", callback=_there)]
Base = Annotated[str | None, typer.Option(help="The base model, where it is now somewhere else than it was.")]
Source = Annotated[str | None, typer.Option(help="Folder with the tasks' files, instead of the published ones.")]
OwnTest = Annotated[
    str | None,
    typer.Option(help="Your own examples to test on, in the forms that train --data takes.", callback=data_there),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="How outputs on your own examples are compared: prefix, exact, 'first word', rouge-l, chrf or module:function."
    ),
]
NEval = Annotated[int | None, typer.Option(help="Only the first so many examples of each test.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; auto takes a GPU where there is one. The run's if not given.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_written_as_settings,
        help="Any other setting, by its name in config.toml; give it several times.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
