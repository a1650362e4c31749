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
    """Prints a text. Escapes control characters, because names and tokens in it may come from anywhere."""
    typer.echo(harmless(text), err=err)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints a value as JSON, which is the only output on stdout with `--json`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # These characters occur only inside strings, where JSON has an escape for them.
    typer.echo(harmless(text, escape=lambda char: f"\\u{ord(char):04x}"))


def print_frame(frame: pd.DataFrame, *, title: str | None = None) -> None:
    """Prints a table, with floats to three digits; 200 columns wide if stdout is not a terminal."""
    texts = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    print_table(list(map(str, frame.columns)), texts, title=title)


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Prints a table of texts, without importing pandas."""
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


def leave_writing_to_main() -> None:
    """Ends the command here in all processes of `torchrun` or `accelerate launch` but the main one.

    Raises:
        Exit: In those, with code 0.
    """
    from reftlens.bridge import is_main_process

    if not is_main_process():
        raise typer.Exit


def prepare(model: str | None, *, quiet: bool) -> None:
    """Sets up torch and transformers for a command, and prints which base it loads."""
    import torch
    from transformers.utils import logging

    from reftlens.bridge import is_main_process
    from reftlens.organisms import ORGANISMS

    if model in ORGANISMS:
        # Its matrices are too small to parallelise: a second thread would mostly wait.
        torch.set_num_threads(1)
    quiet = quiet or not is_main_process()
    if quiet or model in ORGANISMS:
        logging.disable_progress_bar()
    if model is not None and not quiet:
        where = "from the Hugging Face Hub or its local cache"
        if Path(model).is_dir():
            where = f"the folder {Path(model).resolve()}"
        elif model in ORGANISMS:
            where = "ships with reftlens"
        say(f"base model: {model} ({where})", err=True)
    # By default a warning shows a line of this package's source, which tells a user nothing.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {harmless(str(message))}\n"
