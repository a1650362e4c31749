"""`reftlens compare`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.generate import prompts_of
from reftlens.cli.options import AsJson, Quiet, Resume, Settings, Space


def compare(
    config: Annotated[
        str, typer.Argument(help="Preset, TOML file or run, which sets model, task, tests, edit and budget.")
    ],
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to compare, such as LoRA, 'full fine-tuning' or 'random subspace'. Repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs per method, with seeds 0, 1, ...")] = 3,
    trials: Annotated[
        int,
        typer.Option(
            min=0, help="First search each method's settings on validation examples, in this number of trials."
        ),
    ] = 0,
    space: Space = None,
    kept: Annotated[
        Path | None,
        typer.Option(help="Prompts whose answers should not change, one per line. Scales each method to --kl on them."),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="Mean KL from the base on --kept, in nats: the side effect that all methods get."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the comparison and the trials. Default: none.")] = None,
    settings: Settings = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train other methods on the same task: scores, parameters, time and memory in one table."""
    if not trials and (space or resume):
        raise typer.BadParameter("--space and --resume belong to a search: pass --trials as well")
    if resume and out is None:
        raise typer.BadParameter("--resume needs the folder of the search: pass --out")
    if (kept is None) != (kl is None):
        raise typer.BadParameter("an equal side effect needs both: --kept with prompts, and --kl in nats")
    texts = None if kept is None else prompts_of([], kept)
    from reftlens.paper.runs.config import parse_settings
    from reftlens.paper.runs.presets import read_settings

    chosen = read_settings(config, parse_settings(settings or ()))

    from reftlens.cli.output import prepare, print_frame, print_json, say
    from reftlens.files.folder import Replacement
    from reftlens.paper.baselines import METHODS
    from reftlens.paper.baselines.configured import Tuning, compare_configured
    from reftlens.paper.baselines.space import parse_space
    from reftlens.results.saving import RESULT

    prepare(chosen.model, quiet=quiet)
    names = method or ["random subspace", "steering vector", "LoRA", "full fine-tuning"]
    tuning = None
    if trials:
        folder = None if out is None else out.absolute() / "tuning"
        tuning = Tuning(trials, parse_space(space) if space else None, folder=folder, resume=resume)
    with ExitStack() as opened:
        # Opened first: a folder that cannot be replaced is refused before anything is trained.
        place = None if out is None else opened.enter_context(Replacement(out / "comparison", marker=RESULT.json_name))
        found = compare_configured(
            chosen, names, seeds=range(seeds), tuning=tuning, kept=texts, kl=kl, progress=not quiet
        )
        if place is not None:
            found.save(place)
    if as_json:
        runs = found.runs_to_dataframe().to_dict("records")
        print_json(
            {
                "metric": found.metric,
                "base_score": found.base_score,
                "steps": found.steps,
                "tuned": found.tuned,
                "budget": found.budget,
                "runs": runs,
            }
        )
        return
    print_frame(found.to_dataframe(), title=repr(found))
    say(f"other methods: {', '.join(name for name in METHODS if name not in names)}")
