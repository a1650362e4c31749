"""The command line. Heavy imports wait until a command runs, so that help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

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


@app.command(epilog="Example: reftlens inspect demo/edit --examples examples.jsonl --out inspect")
def inspect(
    directory: Annotated[Path, typer.Argument(help="A saved edit, or a saved dissection.")],
    examples: Annotated[
        Path | None, typer.Option(help="JSON lines with prompt and completion, for a saved edit.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The base model; the one in the edit's stamp if not given.")] = None,
    at: Annotated[str | None, typer.Option(help="Weight directions by these tokens alone, such as l1.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, its figures and the numbers.")] = Path("inspect"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No cost beforehand, no progress bar.")] = False,
) -> None:
    """Take a saved edit apart: what it reads, what it writes, and whether that is more than chance."""
    from reftlens.folder import Replacement

    try:
        with Replacement(out, marker="report.html") as folder:
            import torch

            from reftlens.dissection import DissectConfig
            from reftlens.dissection.inspect import inspect as take_apart
            from reftlens.dissection.inspect import write_report
            from reftlens.organisms import ORGANISMS
            from reftlens.positions import parse

            if model in ORGANISMS:
                torch.set_num_threads(1)
            config = DissectConfig(at=None if at is None else parse(at), progress=not quiet)
            result = take_apart(directory, examples=examples, model=model, config=config)
            write_report(result, folder)
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(code=1) from error
    _print_frame(result.summary(), title=repr(result))
    typer.echo(f"wrote {out / 'report.html'}, {out / 'figures'}, {out / 'dissection'}")


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
        from tqdm import tqdm

        from reftlens.benchmark.known import known_to_dataframe

        torch.set_num_threads(1)
        rows = list(tqdm(run(tuple(only or PARTS)), desc="planting and finding", unit="answer"))
        frame = known_to_dataframe(rows)
        frame["found?"] = frame.pop("holds").map({True: "yes", False: "MISSED"})
        if out is not None:
            frame.to_csv(out, index=False)
    except (ValueError, OSError) as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(code=1) from error
    frame["group"] = frame["group"].where(frame["group"] != frame["group"].shift(), "")
    _print_frame(frame)
    missed = sum(not row.holds for row in rows)
    typer.echo(f"{len(rows) - missed} of {len(rows)} found; {missed} missed")


def _print_frame(frame: "pd.DataFrame", *, title: str | None = None) -> None:
    """A table for the terminal, wide where it is not one; reals with three digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(column)
    for row in frame.itertuples(index=False):
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)
