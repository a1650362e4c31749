"""`reftlens demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.options import Quiet


def demo(
    model: Annotated[
        str, typer.Option(help="Base model: an embedded organism (facts-small), a local directory or a hub name.")
    ] = "facts-small",
    out: Annotated[Path, typer.Option(help="Folder for the figures, the report and the numbers.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the edit, the order of examples and all controls.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Move some landmarks to another city with a LoReFT, then show where and how the edit works."""
    from reftlens.files.folder import Replacement

    with Replacement(out, marker="results.json") as folder:
        from reftlens.cli.output import prepare
        from reftlens.demo.page import print_table, write_all
        from reftlens.demo.run import DemoConfig, run_demo

        prepare(model, quiet=quiet)
        result = run_demo(DemoConfig(model=model, seed=seed, progress=not quiet), folder)
        write_all(result, folder)
    # Only now are the files in the folder that the table names.
    print_table(result, out)
