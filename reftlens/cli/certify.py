"""`reftlens certify`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.generate import prompts_of
from reftlens.cli.options import AsJson, Base, Device, Quiet, Trained


def certify(
    directory: Trained,
    file: Annotated[
        Path | None, typer.Option(help="Population: one prompt per line, or JSON Lines with a prompt or messages.")
    ] = None,
    sampled: Annotated[
        int | None, typer.Option(min=2, help="Instead of --file: so many prompts, drawn from the base model itself.")
    ] = None,
    cap: Annotated[float, typer.Option(help="Nats at which KL is cut for its mean.")] = 1.0,
    threshold: Annotated[
        list[float] | None, typer.Option(help="Nats whose exceedance is bounded. Repeatable. Default: 0.01, 0.1, 1.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that all bounds hold together.")] = 0.95,
    n_searched: Annotated[int, typer.Option(min=0, help="Prompts from which the worst one is searched; 0: none.")] = 8,
    rounds: Annotated[int, typer.Option(min=0, help="Token swaps of each of them, at most.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the certificate, and for the edit with it in its card.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws and the search.")] = 0,
    model: Base = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Bound what a trained edit changes on a population of prompts, and search for the prompt that it changes most."""
    if (file is None) == (sampled is None):
        raise typer.BadParameter("pass --file with the population, or --sampled with a number of prompts")
    texts = None if file is None else prompts_of([], file)

    from reftlens import analysis
    from reftlens.analysis.certify import THRESHOLDS
    from reftlens.cli.output import prepare, print_frame, print_json, say
    from reftlens.edit.checkpoint import CONFIG_NAME
    from reftlens.files.folder import Replacement
    from reftlens.paper.runs.folder import config_of, open_run
    from reftlens.results.saving import RESULT

    places = {} if out is None else {out / "certificate": RESULT.json_name, out / "edit": CONFIG_NAME}
    with ExitStack() as writing:
        # Opened first: a folder that cannot be replaced is refused before anything is computed.
        folders = [writing.enter_context(Replacement(place, marker=marker)) for place, marker in places.items()]
        prepare(config_of(directory, model=model).model, quiet=quiet)
        opened = open_run(directory, {} if device is None else {"device": device}, model=model)
        population = analysis.sampled_prompts(opened.bridge, sampled or 2, seed=seed) if texts is None else texts
        found = analysis.certify(
            opened.bridge,
            opened.reft,
            population,
            cap=cap,
            confidence=confidence,
            n_searched=n_searched,
            rounds=rounds,
            seed=seed,
            thresholds=threshold or THRESHOLDS,
        )
        if folders:
            found.save(folders[0])
            opened.reft.save_pretrained(folders[1], bridge=opened.bridge, certificate=found)
    if as_json:
        print_json(
            {
                "digest": found.digest,
                "n": found.n,
                "confidence": found.confidence,
                "bounds": found.to_dataframe().to_dict("records"),
                "largest": found.largest,
                "found_by_search": [worst.to_dataframe().to_dict("records")[0] for worst in found.worst],
            }
        )
        return
    print_frame(found.to_dataframe(), title=found.headline())
    for worst in found.worst[:3]:
        say(f"found by the search, no part of the bounds: {worst.headline()}")
