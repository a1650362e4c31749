"""The command line. Heavy imports wait until a command runs, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Train representation edits (ReFT) on language models, and take them apart.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> bool:
    if wanted:
        from reftlens import __version__

        typer.echo(f"reftlens {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Train representation edits (ReFT) on language models, and take them apart."""


@app.command(epilog="Example: reftlens demo --model gpt2 --out demo-gpt2")
def demo(
    model: Annotated[
        str, typer.Option(help="An embedded organism (facts-small), a local directory or a hub name.")
    ] = "facts-small",
    out: Annotated[Path, typer.Option(help="Folder for the figures, the report and the numbers.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the edit, the order of examples and every control.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Move some landmarks to another city with a LoReFT, then show where and how the edit works."""
    from reftlens.folder import Replacement
    from reftlens.organisms import ORGANISMS

    try:
        with Replacement(out, marker="results.json") as folder:
            import torch

            from reftlens.demo import DemoConfig, run_demo
            from reftlens.demo_report import print_table, write_all

            if model in ORGANISMS:
                # Its matrices are too small to share out: a second thread waits more than it works.
                torch.set_num_threads(1)
            result = run_demo(DemoConfig(model=model, seed=seed, progress=not quiet), folder)
            write_all(result, folder)
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(code=1) from error
    print_table(result, out)


@app.command(epilog="Example: reftlens benchmark --only handmade --only nulls --out known.csv")
def benchmark(
    only: Annotated[
        list[str] | None, typer.Option(help="handmade, sites, planted, equality or nulls; all of them if not given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A CSV file for the table.")] = None,
) -> None:
    """Plant truths in small models, and print what the analyses find of them, misses included (minutes)."""
    from reftlens.benchmark import PARTS, run

    try:
        import torch
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from tqdm import tqdm

        from reftlens.benchmark.known import known_to_dataframe

        torch.set_num_threads(1)
        rows = list(tqdm(run(tuple(only or PARTS)), desc="planting and finding", unit="answer"))
        if out is not None:
            known_to_dataframe(rows).to_csv(out, index=False)
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(code=1) from error
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("", "planted", "found", "error", "allowed", "unit", "found?"):
        table.add_column(column, justify="right" if column in ("error", "allowed") else "left")
    for place, row in enumerate(rows):
        group = row.group if place == 0 or rows[place - 1].group != row.group else ""
        verdict = "yes" if row.holds else "MISSED"
        table.add_row(group, row.planted, row.found, f"{row.error:.3g}", f"{row.allowed:.3g}", row.unit, verdict)
    Console(width=None if Console().is_terminal else 180).print(table)
    missed = sum(not row.holds for row in rows)
    typer.echo(f"{len(rows) - missed} of {len(rows)} found; {missed} missed")
