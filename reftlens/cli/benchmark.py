"""`reftlens benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.options import AsJson, Quiet


def benchmark(
    only: Annotated[
        list[str] | None, typer.Option(help="handmade, sites, planted, equality or nulls; all of them if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A CSV file for the table.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Plant truths in small models, and print what the analyses find of them, misses included (minutes)."""
    import torch
    from tqdm import tqdm

    from reftlens.benchmark import PARTS, run
    from reftlens.benchmark.known import known_to_dataframe
    from reftlens.cli.output import print_frame, print_json

    torch.set_num_threads(1)
    rows = list(tqdm(run(tuple(only or PARTS)), desc="planting and finding", unit="answer", disable=quiet))
    frame = known_to_dataframe(rows)
    if as_json:
        print_json(frame.to_dict("records"))
        return
    frame["found?"] = frame.pop("holds").map({True: "yes", False: "MISSED"})
    if out is not None:
        frame.to_csv(out, index=False)
    frame["group"] = frame["group"].where(frame["group"] != frame["group"].shift(), "")
    print_frame(frame)
    missed = sum(not row.holds for row in rows)
    typer.echo(f"{len(rows) - missed} of {len(rows)} found; {missed} missed")
