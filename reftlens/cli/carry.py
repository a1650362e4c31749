"""`reftlens carry`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from reftlens.cli.generate import prompts_of
from reftlens.cli.options import AsJson, Base, Device, Quiet, Trained


def carry(
    directory: Trained,
    target: Annotated[
        str, typer.Option(help="Model to carry it to: an embedded organism, a local directory or a hub name.")
    ],
    file: Annotated[
        Path,
        typer.Option(help="Prompts that maps are fitted on: one per line, or JSON Lines with a prompt or messages."),
    ],
    examples: Annotated[
        Path, typer.Option(help="Held-out JSON Lines with prompt and completion, the answer that the edit should give.")
    ],
    fit: Annotated[Literal["ridge", "orthogonal"], typer.Option(help="Kind of the maps.")] = "ridge",
    at: Annotated[str, typer.Option(help="Tokens that maps are fitted on, such as all or l1.")] = "all",
    hook: Annotated[
        list[str] | None, typer.Option(help="Point in the target for each site. Repeatable. Default: the same names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the carried edit and the result.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the controls.")] = 0,
    model: Base = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Carry a trained edit to another model by maps between their states, and say what is lost."""
    texts = prompts_of([], file)
    if not examples.exists():
        raise ValueError(f"no such file: {examples}")

    from reftlens import analysis
    from reftlens.cli.output import prepare, print_frame, print_json
    from reftlens.edit.checkpoint import CONFIG_NAME
    from reftlens.files.folder import Replacement
    from reftlens.paper.runs.config import RunConfig
    from reftlens.paper.runs.folder import config_of, load_base, open_run
    from reftlens.paper.runs.testing import pairs_in
    from reftlens.positions import parse
    from reftlens.results.saving import RESULT

    config = config_of(directory, model=model)
    held_out = pairs_in(examples, config)
    places = {} if out is None else {out / "result": RESULT.json_name, out / "edit": CONFIG_NAME}
    with ExitStack() as writing:
        # Opened first: a folder that cannot be replaced is refused before anything is computed.
        folders = [writing.enter_context(Replacement(place, marker=marker)) for place, marker in places.items()]
        prepare(config.model, quiet=quiet)
        opened = open_run(directory, {} if device is None else {"device": device}, model=model)
        other = load_base(RunConfig(model=target, device=device or "auto"))
        carried, result = analysis.carry(
            opened.bridge, opened.reft, other, texts, held_out, fit=fit, at=parse(at), hook_names=hook, seed=seed
        )
        if folders:
            result.save(folders[0])
            carried.save_pretrained(folders[1], bridge=other)
    if as_json:
        frames = {"effects": result.to_dataframe(), "directions": result.directions_to_dataframe()}
        # pandas writes NaN as null; json would write NaN, which is not JSON.
        lines = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
        print_json({"score": result.score, "fits": list(result.fits), **lines})
        return
    print_frame(result.to_dataframe().round(3), title=result.headline())
    print_frame(
        result.directions_to_dataframe().round(3), title="R^2 of the maps along each direction, on held-out prompts"
    )
