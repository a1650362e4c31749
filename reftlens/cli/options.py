"""Arguments shared by several commands, so that they have the same names and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reftlens.paper.runs.config import parse_settings


def _written_as_settings(settings: list[str] | None) -> list[str] | None:
    try:
        # Only to refuse a malformed one early; the command parses them itself.
        parse_settings(settings or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return settings


def _there(place: Path) -> Path:
    """Refuses a folder that does not exist before anything heavy is imported."""
    if not place.exists():
        raise ValueError(f"{place} does not exist")
    return place


def data_there(source: str | None) -> str | None:
    """Refuses a data file that does not exist before anything heavy is imported. A name without an ending may be on the hub."""
    if source is not None and Path(source).suffix and "://" not in source and not Path(source).exists():
        raise ValueError(f"no such file or folder: {source}")
    return source


Trained = Annotated[Path, typer.Argument(help="Folder of a run or a saved edit.", callback=_there)]
Base = Annotated[str | None, typer.Option(help="Base model, if its location has changed since training.")]
Source = Annotated[str | None, typer.Option(help="Folder with the tasks' files, instead of the published files.")]
OwnTest = Annotated[
    str | None,
    typer.Option(help="Your own test examples, in any form that train --data accepts.", callback=data_there),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="How to score outputs on your own examples: prefix, exact, 'first word', rouge-l, chrf or module:function."
    ),
]
NEval = Annotated[int | None, typer.Option(help="Use only the first N examples of each test.")]
Device = Annotated[
    str | None, typer.Option(help="Device: cpu, cuda, ..., or auto for a GPU if there is one. Default: the run's.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=_written_as_settings,
        help="Any other setting, by its name in config.toml. Repeatable.",
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
