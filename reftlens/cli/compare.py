"""`reftlens compare`."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    config: Annotated[str, typer.Argument(help="A preset, a TOML file or a run: model, task, tests, edit and budget.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help="Such as LoRA, 'full fine-tuning' or 'random subspace'; give it several times."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, seeds 0, 1, ...")] = 3,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting, such as epochs=3.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every run as JSON on stdout.")] = False,
) -> None:
    """Train other methods on what a run learns: scores, parameters, time and memory in one table."""
    from reftlens.paper.runs.config import parse_settings
    from reftlens.paper.runs.presets import read_settings

    chosen = read_settings(config, parse_settings(settings or ()))

    from reftlens.cli.output import prepare, print_frame, print_json, say
    from reftlens.paper.baselines import METHODS
    from reftlens.paper.baselines.configured import compare_configured

    prepare(chosen.model, quiet=quiet)
    names = method or ["random subspace", "steering vector", "LoRA", "full fine-tuning"]
    found = compare_configured(chosen, names, seeds=range(seeds), progress=not quiet)
    if as_json:
        runs = found.runs_to_dataframe().to_dict("records")
        print_json({"metric": found.metric, "base_score": found.base_score, "steps": found.steps, "runs": runs})
        return
    print_frame(found.to_dataframe(), title=repr(found))
    say(f"other methods: {', '.join(name for name in METHODS if name not in names)}")
