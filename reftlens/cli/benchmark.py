"""`reftlens benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftlens.cli.options import AsJson, Quiet
from reftlens.cli.output import say

if TYPE_CHECKING:
    from reftlens.benchmark.known import Known


def benchmark(
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Part to run: handmade, sites, planted, equality, nulls, false-alarms or readouts. Repeatable. Default: all."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV file for the table. A .jsonl file beside it stores finished pieces, from which the same command resumes."
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Plant known truths in small models and report whether the analyses find them, misses included."""
    import torch

    from reftlens.benchmark import PARTS, units
    from reftlens.benchmark.known import known_to_dataframe
    from reftlens.benchmark.store import run_kept
    from reftlens.cli.output import print_json

    # The models are too small to parallelise: a second thread would mostly wait.
    torch.set_num_threads(1)
    kept = None if out is None else out.with_suffix(".jsonl")
    rows, group = [], ""
    for row in run_kept(units(tuple(only or PARTS)), kept):
        rows.append(row)
        if not as_json and not quiet:
            group = _print(row, group)
    frame = known_to_dataframe(rows)
    if out is not None:
        found = frame["holds"].map({True: "yes", False: "MISSED"})
        frame.drop(columns="holds").assign(**{"found?": found}).to_csv(out, index=False)
    if as_json:
        print_json(frame.to_dict("records"))
        return
    missed = sum(not row.holds for row in rows)
    say(f"{len(rows) - missed} of {len(rows)} found; {missed} missed")


def _print(row: Known, group: str) -> str:
    """Prints one line at once, below its group's name if that is new. Returns the group."""
    if row.group != group:
        say(row.group)
    mark = "found " if row.holds else "MISSED"
    say(f"  {mark}  {row.planted}: {row.found} (off by {row.error:.3g} {row.unit}, {row.allowed:g} allowed)")
    return row.group
