"""`reftlens compare`."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    config: Annotated[
        str, typer.Argument(help="Preset, TOML file or run, which sets model, task, tests, edit and budget.")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to compare, such as LoRA, 'full fine-tuning' or 'random subspace'. Repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per method, with seeds 0, 1, ...")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as epochs=3. Repeatable."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every run as JSON on stdout.")] = False,
) -> None:
    """Train other methods on the same task: scores, parameters, time and memory in one table."""
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
