"""`reftlens eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    directory: Annotated[Path, typer.Argument(help="A run, or a saved edit.")],
    task: Annotated[
        list[str] | None, typer.Option(help="Such as boolq; give it several times. The run's own tests if not given.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Your own examples: JSON lines, prompt and completion.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the task; the run's, or test.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Folder with the tasks' files, instead of the published ones.")
    ] = None,
    n_eval: Annotated[int | None, typer.Option(help="Only the first so many examples of each.")] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model without the edit, for comparison.")] = False,
    model: Annotated[str | None, typer.Option(help="The base, where it is now somewhere else.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; the run's if not given.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of decoding, or eval_batch_size.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for one JSON-lines file a task: every example.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON on stdout.")] = False,
) -> None:
    """Test a trained edit on a task, or on examples of your own."""
    from reftlens.runs.config import parse_settings

    chosen = {"eval_split": split, "source": source, "n_eval": n_eval, "device": device}
    if task or data is not None:
        chosen |= {"eval_tasks": task or [], "eval_data": data and str(data)}
    overrides = {name: value for name, value in chosen.items() if value is not None} | parse_settings(settings or ())
    if task and data is None:
        overrides["eval_data"] = None

    from reftlens.cli.output import prepare, print_frame, print_json
    from reftlens.folder import Replacement
    from reftlens.runs.folder import config_of
    from reftlens.runs.testing import score_run, scores, write_outputs

    prepare(config_of(directory, model=model).model, quiet=quiet)
    found = score_run(directory, overrides, base=base, model=model, progress=not quiet)
    frame = scores(found)
    result = {"run": str(directory), "edited": not base, "scores": frame.to_dict("records")}
    if out is not None:
        with Replacement(out, marker="scores.json") as folder:
            write_outputs(folder, found)
            (folder / "scores.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
        return
    print_frame(frame, title=f"the base of {directory}" if base else str(directory))
