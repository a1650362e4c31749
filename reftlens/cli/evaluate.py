"""`reftlens eval`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from reftlens.cli.options import AsJson, Base, Device, Metric, NEval, OwnTest, Quiet, Settings, Source, Trained


def evaluate(
    directory: Trained,
    task: Annotated[
        list[str] | None, typer.Option(help="Task to test, such as boolq. Repeatable. Default: the run's tests.")
    ] = None,
    data: OwnTest = None,
    split: Annotated[str | None, typer.Option(help="Split of the task. Default: the run's, or test.")] = None,
    source: Source = None,
    n_eval: NEval = None,
    metric: Metric = None,
    base: Annotated[bool, typer.Option("--base", help="Test the base model without the edit, for comparison.")] = False,
    model: Base = None,
    device: Device = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the outputs on every example, one JSON Lines file per task.")
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Test a trained edit on a task or on your own examples."""
    from reftlens.paper.runs.config import parse_settings

    chosen: dict[str, Any] = {
        "eval_split": split,
        "source": source,
        "n_eval": n_eval,
        "metric": metric,
        "device": device,
    }
    if task or data is not None:
        # Either replaces the run's tests, those held out of its own data included.
        chosen |= {"eval_tasks": task or [], "eval_data": data, "eval_fraction": 0}
    overrides = {name: value for name, value in chosen.items() if value is not None} | parse_settings(settings or ())
    # A named task takes the place of the run's own test examples.
    if task and data is None:
        overrides["eval_data"] = None

    from reftlens.cli.output import prepare, print_frame, print_json
    from reftlens.files.folder import Replacement
    from reftlens.paper.runs.folder import config_of
    from reftlens.paper.runs.testing import score_run, scores, write_outputs

    with ExitStack() as opened:
        # Opened first: a folder that cannot be replaced is refused before anything is computed.
        folder = None if out is None else opened.enter_context(Replacement(out, marker="scores.json"))
        prepare(config_of(directory, model=model).model, quiet=quiet)
        found = score_run(directory, overrides, base=base, model=model, progress=not quiet)
        frame = scores(found)
        result = {"run": str(directory), "edited": not base, "scores": frame.to_dict("records")}
        if folder is not None:
            write_outputs(folder, found)
            (folder / "scores.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(result)
        return
    print_frame(frame, title=f"the base of {directory}" if base else str(directory))
