"""`reftlens sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reftlens.cli.options import AsJson, Device, Metric, Quiet, Resume, Settings, Space, data_there


def sweep(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Preset, TOML file or run, whose settings the search starts from. Without it, pass --model and --data."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the trials, their picture, and the best settings: `reftlens train FOLDER`.")
    ] = Path("sweep"),
    model: Annotated[str | None, typer.Option(help="Base model: an organism, a local directory or a hub name.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Your own examples, in any form that train --data accepts.", callback=data_there)
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials, those of a continued search included.")] = 20,
    space: Space = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the proposals.")] = 0,
    metric: Metric = None,
    device: Device = None,
    settings: Settings = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search rate, rank, layers and positions on validation examples, which are held out of the training data."""
    if config is None and (model is None or data is None):
        raise typer.BadParameter("pass a preset, a TOML file or a run; or --model and --data")
    from reftlens.paper.runs.config import RunConfig, parse_settings
    from reftlens.paper.runs.presets import read_settings

    flags: dict[str, Any] = {"model": model, "data": data, "metric": metric, "device": device}
    overrides = {name: value for name, value in flags.items() if value is not None} | parse_settings(settings or ())
    if data is not None:
        # New data replace the task of the preset or file, and its tests.
        overrides = {"task": None, "eval_tasks": [], **overrides}
    chosen = RunConfig.from_values(overrides) if config is None else read_settings(config, overrides)

    from reftlens.cli.output import prepare, print_frame, print_json, say
    from reftlens.paper.baselines.configured import Tuning
    from reftlens.paper.baselines.configured import sweep as search
    from reftlens.paper.baselines.space import parse_space
    from reftlens.paper.runs.run import with_whole_paths

    prepare(chosen.model, quiet=quiet)
    tuning = Tuning(
        n_trials=trials, space=parse_space(space) if space else None, seed=seed, folder=out.absolute(), resume=resume
    )
    try:
        found, best = search(with_whole_paths(chosen), tuning, progress=not quiet)
    except KeyboardInterrupt as interrupt:
        say(f"interrupted: {out} has the trials that ended: the same command with --resume goes on", err=True)
        # 128 + SIGINT, as shells report an interrupted command.
        raise typer.Exit(code=130) from interrupt
    from reftlens.files.folder import write_whole
    from reftlens.plot import png

    write_whole(out / "trials.png", png(found.plot()))
    if as_json:
        rows = found.to_dataframe().to_dict("records")
        settings_of_best = {name: getattr(best, name) for name in found.space}
        print_json({"metric": found.metric, "best": settings_of_best, "trials": rows})
        return
    print_frame(found.to_dataframe(), title=repr(found))
    say(f"wrote {out}: trials.png, and config.toml for `reftlens train {out} --out run`")
