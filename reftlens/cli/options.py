"""Arguments shared by several commands, so that they have the same names and help."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from reftlens.paper.runs.config import RunConfig, parse_settings


def default_of(name: str) -> str:
    """Returns the default of a setting as help shows it. It is that of `RunConfig`, unless a preset or a file has another.

    Args:
        name: of the setting.
    """
    if name == "epochs":
        return "3; with --data as many as make 300 steps"
    value = {field.name: field.default for field in fields(RunConfig)}[name]
    return f"{value:g}" if isinstance(value, float) else "all" if value is None else str(value)


def _written_as_settings(settings: list[str] | None) -> list[str] | None:
    try:
        # Only to refuse a malformed one early; the command parses them itself.
        parse_settings(settings or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return settings


def there(place: Path) -> Path:
    """Refuses a file or folder that does not exist before anything heavy is imported."""
    if not place.exists():
        raise ValueError(f"{place} does not exist")
    return place


def data_there(source: str | None) -> str | None:
    """Refuses a data file that does not exist before anything heavy is imported. A name without an ending may be on the hub."""
    if source is not None and Path(source).suffix and "://" not in source and not Path(source).exists():
        raise ValueError(f"no such file or folder: {source}")
    return source


Trained = Annotated[Path, typer.Argument(help="Folder of a run or a saved edit.", callback=there)]
Base = Annotated[str | None, typer.Option(help="Base model, if its location has changed since training.")]
Source = Annotated[str | None, typer.Option(help="Folder with the tasks' files, instead of the published files.")]
OwnTest = Annotated[
    str | None,
    typer.Option(help="Your own test examples, in any form that train --data accepts.", callback=data_there),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="How to score outputs on your own examples: prefix, exact, 'first word', rouge-l, chrf or module:function.",
        show_default=default_of("metric"),
    ),
]
NEval = Annotated[
    int | None, typer.Option(help="Use only the first N examples of each test.", show_default=default_of("n_eval"))
]
Device = Annotated[
    str | None, typer.Option(help="Device: cpu, cuda, ..., or auto for a GPU if there is one. Default: the run's.")
]
OwnDevice = Annotated[str, typer.Option(help="Device: cpu, cuda, ..., or auto for a GPU if there is one.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_written_as_settings,
        help="Any setting, by its name in config.toml. Repeatable. Names: "
        + ", ".join(field.name for field in fields(RunConfig))
        + ".",
    ),
]
Space = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUES",
        help="What to search, such as lr=1e-4..1e-2, rank=1|2|4, 'layers=all|1,4' or dropout=0|0.1. Repeatable. "
        "Default: rate, rank, layers and positions.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted search, or one with fewer trials.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
