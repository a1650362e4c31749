"""`reftlens presets`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from reftlens.cli.options import AsJson
from reftlens.cli.output import print_json, print_table, say
from reftlens.paper.runs.presets import ROWS, Adapter, Preset, preset_named


def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset as a TOML file, to edit and train.")] = None,
    method: Annotated[str | None, typer.Option(help="List only this method, such as DiReFT or LoRA.")] = None,
    model: Annotated[
        str | None, typer.Option(help="List only models whose name contains this, such as llama-7b.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="List only this family or task, such as arithmetic or cola.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the rows of the paper's tables, or print one as a TOML file."""
    if name is not None:
        preset = preset_named(name)
        if as_json:
            print_json(asdict(preset))
            return
        say(f"# {preset.name}; the paper's row is the mean over the seeds {', '.join(map(str, preset.seeds))}")
        # Not `say`: the text already ends its last line.
        typer.echo(preset.config.to_toml(), nl=False)
        return
    rows = [row for row in ROWS.values() if _fits(row, method, model, task)]
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if not rows:
        raise ValueError("no preset matches all of these options: run `reftlens presets` without options to list all")
    print_table(["preset", "what is trained", "how", "% trained", "score"], [_line(row) for row in rows])
    say(
        f"{len(rows)} presets. Percentages and scores are those in the paper (?: unknown); none of the scores was reproduced "
        "here. LoRA and DoRA are listed only for their parameter counts."
    )


def _fits(row: Preset | Adapter, method: str | None, model: str | None, task: str | None) -> bool:
    tasks = [row.family, *((str(row.config.task).lower(), *row.name.split("-")) if isinstance(row, Preset) else ())]
    return (
        (method is None or row.method.lower() == method.lower())
        and (model is None or model.lower() in row.name or model.lower() in row.model.lower())
        and (task is None or task.lower() in tasks)
    )


def _line(row: Preset | Adapter) -> list[str]:
    how = ""
    if isinstance(row, Preset):
        batch = f"{row.config.batch_size}x{row.config.gradient_accumulation}"
        how = f"{row.config.epochs} epochs, batch {batch}, lr {row.config.lr:g}"
    return [row.name, row.trained, how, row.percent or "?", "" if row.score is None else f"{row.score:g}"]
