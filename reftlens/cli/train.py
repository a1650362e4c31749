"""`reftlens train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from reftlens.cli.options import AsJson, Device, Metric, NEval, OwnTest, Quiet, Settings, Source, data_there, default_of


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Preset, TOML file, or folder of a run to repeat. Without it, --model and --task or --data are required."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the run.")] = Path("run"),
    model: Annotated[str | None, typer.Option(help="Base model: an organism, a local directory or a hub name.")] = None,
    task: Annotated[str | None, typer.Option(help="Task to train on, such as commonsense_170k or cola.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your own examples: JSON, JSON Lines, CSV, Parquet, a datasets folder or a hub id.",
            callback=data_there,
        ),
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(help="Field with the prompt, if it does not have one of the usual names.")
    ] = None,
    completion_field: Annotated[str | None, typer.Option(help="Field with the completion.")] = None,
    eval_task: Annotated[list[str] | None, typer.Option(help="Task to test on after training. Repeatable.")] = None,
    eval_data: OwnTest = None,
    eval_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Keep this fraction of --data for the test, such as 0.2. Not trained on.",
            show_default=default_of("eval_fraction"),
        ),
    ] = None,
    source: Source = None,
    method: Annotated[
        str | None,
        typer.Option(help="Class of the edit: LoReFT, DiReFT, NoReFT, ...", show_default=default_of("method")),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Edited layers: all, or a list such as 3,9,18,24.", show_default=default_of("layers")),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of each edit.", show_default=default_of("rank"))] = None,
    positions: Annotated[
        str | None,
        typer.Option(help="Edited prompt tokens, such as f7+l7, l1 or all.", show_default=default_of("positions")),
    ] = None,
    tied: Annotated[
        bool | None,
        typer.Option("--tied/--untied", help="One edit for prefix and suffix, or two.", show_default="tied"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the examples.", show_default=default_of("epochs"))
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples in one forward pass.", show_default=default_of("batch_size"))
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default=default_of("lr"))] = None,
    n_train: Annotated[
        int | None, typer.Option(help="Use only the first N training examples.", show_default=default_of("n_train"))
    ] = None,
    n_eval: NEval = None,
    metric: Metric = None,
    report_to: Annotated[
        str | None,
        typer.Option(
            help="A logger of transformers: wandb, tensorboard, trackio, mlflow, ...",
            show_default=default_of("report_to"),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the initial weights and the order of examples.", show_default=default_of("seed")),
    ] = None,
    device: Device = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a finished run.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train an edit, test it, and write a folder that is enough to repeat the run.

    Defaults in brackets are those without a preset, a file or a run, which have their own.
    """
    if config is None and (model is None or (task is None and data is None)):
        raise typer.BadParameter("pass a preset, a TOML file or a run; or --model, and --task or --data")
    flags: dict[str, Any] = {
        "model": model,
        "task": task,
        "data": data,
        "prompt_field": prompt_field,
        "completion_field": completion_field,
        "eval_tasks": eval_task or None,
        "eval_data": eval_data,
        "eval_fraction": eval_fraction,
        "source": source,
        "method": method,
        "layers": layers,
        "rank": rank,
        "positions": positions,
        "tied": tied,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "n_train": n_train,
        "n_eval": n_eval,
        "metric": metric,
        "report_to": report_to,
        "seed": seed,
        "device": device,
    }
    from reftlens.paper.runs.config import RunConfig, parse_settings
    from reftlens.paper.runs.presets import read_settings

    overrides = {name: value for name, value in flags.items() if value is not None} | parse_settings(settings or ())
    # A new task or data set replaces that of the preset or file, including its tests.
    if data is not None:
        overrides = {"task": None, "eval_tasks": [], **overrides}
    if eval_fraction:
        overrides = {"eval_data": None, **overrides}
    elif eval_data is not None:
        overrides = {"eval_fraction": 0, **overrides}
    elif task is not None:
        overrides = {"data": None, **overrides}
    chosen = RunConfig.from_values(overrides) if config is None else read_settings(config, overrides)

    from reftlens.cli.output import prepare, print_frame, print_json, say
    from reftlens.paper.runs.run import checkpoints_of, train_run

    prepare(chosen.model, quiet=quiet)
    try:
        result = train_run(chosen, out, resume=resume, overwrite=overwrite, progress=not quiet)
    except KeyboardInterrupt as interrupt:
        kept = checkpoints_of(out.absolute())
        what = (
            f"{kept} has the checkpoints: the same command with --resume goes on"
            if kept.exists()
            else "nothing was kept"
        )
        say(f"interrupted: {what}", err=True)
        # 128 + SIGINT, as shells report an interrupted command.
        raise typer.Exit(code=130) from interrupt
    if as_json:
        print_json({"run": str(out), **result.to_dict()})
        return
    if result.evaluations:
        print_frame(result.to_dataframe(), title=repr(result))
    else:
        say(
            f"{result!r}\nnot tested: pass --eval-fraction 0.2 to keep a fifth of the data for a test, or --eval-data FILE"
        )
    if result.log.fall < 0.2:
        say(
            f"The loss fell by only {max(result.log.fall, 0):.0%}. Try more epochs, a higher --lr (now {chosen.lr:g}), a higher --rank, "
            "more --layers or other --positions."
        )
    say(f"wrote {out}: the edit, config.toml, log.jsonl, outputs, result.json")
