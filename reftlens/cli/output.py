"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from reftlens.text import harmless

if TYPE_CHECKING:
    import pandas as pd


def say(text: str, *, err: bool = False) -> None:
    """Prints a text. Names and tokens in it come from anywhere, and none of them commands the terminal."""
    typer.echo(harmless(text), err=err)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """The one thing on stdout where `--json` is given."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Such characters stand inside strings only, where JSON has an escape for them.
    typer.echo(harmless(text, escape=lambda char: f"\\u{ord(char):04x}"))


def print_frame(frame: pd.DataFrame, *, title: str | None = None) -> None:
    """A table for the terminal, wide where it is not one; reals with three digits."""
    texts = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    print_table(list(map(str, frame.columns)), texts, title=title)


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """The same of texts, without pandas."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title is not None:
        say(title)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(Text(harmless(column)))
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def prepare(model: str | None, *, quiet: bool) -> None:
    """Sets up torch and transformers for one command, and says which base it is about to load."""
    import torch
    from transformers.utils import logging

    from reftlens.organisms import ORGANISMS

    if model in ORGANISMS:
        # Its matrices are too small to share out: a second thread waits more than it works.
        torch.set_num_threads(1)
    if quiet or model in ORGANISMS:
        logging.disable_progress_bar()
    if model is not None and not quiet:
        where = "of the Hugging Face Hub, or its cache here"
        if Path(model).is_dir():
            where = f"the folder {Path(model).resolve()}"
        elif model in ORGANISMS:
            where = "it ships with reftlens"
        say(f"base model: {model} ({where})", err=True)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {harmless(str(message))}\n"
