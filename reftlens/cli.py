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
