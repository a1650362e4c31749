"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


def print_json(value: Any) -> None:
    """The one thing on stdout where `--json` is given."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_frame(frame: pd.DataFrame, *, title: str | None = None) -> None:
    """A table for the terminal, wide where it is not one; reals with three digits."""
    texts = [[f"{value:.3g}" if isinstance(value, float) else str(value) for value in row] for row in frame.to_numpy()]
    print_table(list(map(str, frame.columns)), texts, title=title)


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """The same of texts, without pandas."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if title is not None:
        typer.echo(title)
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def prepare(model: str | None, *, quiet: bool) -> None:
    """Sets up torch and transformers for one command."""
    import torch
    from transformers.utils import logging

    from reftlens.organisms import ORGANISMS

    if model in ORGANISMS:
        # Its matrices are too small to share out: a second thread waits more than it works.
        torch.set_num_threads(1)
    if quiet or model in ORGANISMS:
        logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
