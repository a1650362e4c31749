"""`reftlens explain-finetune`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from reftlens.cli.generate import RECORDS, prompts_in, prompts_of
from reftlens.cli.options import AsJson, OwnDevice, Quiet, there

if TYPE_CHECKING:
    from reftlens.results import ExplainedFinetune

_NAME = "explain-finetune"


def _there_if_given(place: Path | None) -> Path | None:
    return None if place is None else there(place)


def explain_finetune(
    model: Annotated[str, typer.Option(help="Base model: an embedded organism, a local directory or a hub name.")],
    finetuned: Annotated[
        str,
        typer.Option(
            help="Folder of an adapter (LoRA, DoRA) that peft saved, of a whole finetuned model, or a hub name."
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="Examples to distil the finetuned model on, in any form that train --data accepts.", callback=there
        ),
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            callback=_there_if_given,
            help="Examples that shares are reported on. Default: those of a fifth of the prompts of --data, not trained on.",
        ),
    ] = None,
    far: Annotated[
        Path | None,
        typer.Option(
            callback=_there_if_given,
            help="Prompts far from the finetune's training data: one per line, or records as train --data reads them.",
        ),
    ] = None,
    labelled: Annotated[
        bool,
        typer.Option(
            "--labelled", help="The completions of --data are the task's answers: train the first control on them."
        ),
    ] = False,
    layers: Annotated[str, typer.Option(help="Blocks that may be edited: all, or a list such as 3,9.")] = "all",
    hook: Annotated[
        list[str] | None, typer.Option(help="Point that may be edited. Repeatable. Default: hook_resid_post.")
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Edited tokens of a prompt, such as f1+l1, or all with generated ones.")
    ] = "all",
    ranks: Annotated[str, typer.Option(help="Ranks that are tried, in ascending order.")] = "1,2,4,8",
    max_sites: Annotated[int, typer.Option(min=1, help="Sites of the edit, at most.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the examples, in each training.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in one step.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-3,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of what is held out, of the first weights and of the controls.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the edit, the result, the figure and the numbers.")] = Path(
        _NAME
    ),
    device: OwnDevice = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the smallest edit that reproduces a finetuned model's outputs, and say how much of them it explains."""
    sizes = _numbers("--ranks", ranks)
    blocks: Sequence[int] | Literal["all"] = "all" if layers == "all" else _numbers("--layers", layers)
    from reftlens.files.folder import Replacement

    # Opened first: a folder that cannot be replaced is refused before torch is imported.
    with Replacement(out, marker=f"{_NAME}.json") as folder:
        from reftlens import analysis
        from reftlens.bridge import load_bridge, own_device
        from reftlens.cli.output import leave_writing_to_main, prepare, print_frame, print_json, say
        from reftlens.paper.runs.testing import pairs_in
        from reftlens.positions import All, Generated
        from reftlens.results.words import labelled as with_labels
        from reftlens.training.train import TrainConfig

        prompts = None if far is None else _far(far)
        pairs, unseen = _divided(pairs_in(data), seed) if held_out is None else (pairs_in(data), pairs_in(held_out))
        prepare(model, quiet=quiet)
        bridge = load_bridge(model, device=own_device(device))
        reft, found = analysis.explain_finetune(
            bridge,
            finetuned,
            pairs,
            unseen,
            far=prompts,
            labels=pairs if labelled else None,
            layers=blocks,
            hooks=tuple(hook or ("hook_resid_post",)),
            positions=All() | Generated() if positions == "all" else positions,
            ranks=sizes,
            max_sites=max_sites,
            config=TrainConfig(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, progress=not quiet),
        )
        leave_writing_to_main()
        reft.save_pretrained(folder / "edit", bridge=bridge)
        numbers = _written(found, folder, {"model": model, "finetuned": finetuned})
    if as_json:
        print_json(numbers)
        return
    print_frame(with_labels(found.to_dataframe()), title=found.headline())
    say("equal outputs are not evidence of an equal mechanism: compare the controls")
    say(f"wrote {out}: {_NAME}.png, {_NAME}.json, result, and edit for `reftlens dissect {out / 'edit'}`")


def _written(found: ExplainedFinetune, folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Writes the result, its figure and its numbers, and returns these."""
    from reftlens.plot import png

    frames = {"shares": found.to_dataframe(), "replaced": found.rest_to_dataframe(), "path": found.path_to_dataframe()}
    # pandas writes NaN as null; json would write NaN, which is not JSON.
    tables = {name: json.loads(frame.to_json(orient="records")) for name, frame in frames.items()}
    numbers = {**about, "headline": found.headline(), **tables}
    (folder / f"{_NAME}.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (folder / f"{_NAME}.png").write_bytes(png(found.plot()))
    found.save(folder / "result")
    return numbers


def _far(file: Path) -> Sequence[Any]:
    return prompts_in(file, None) if file.suffix.lower() in RECORDS else prompts_of([], file)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise typer.BadParameter(
            f"{option} must be whole numbers with commas between them, such as 1,2,4, got {text!r}"
        )
    return tuple(map(int, text.split(",")))


def _divided(pairs: Sequence[Any], seed: int) -> tuple[list[Any], list[Any]]:
    """Returns the pairs without those of a fifth of the prompts, and the others."""
    # By prompt: one that occurs twice would be trained on and held out.
    prompts = list(dict.fromkeys(repr(prompt) for prompt, _ in pairs))
    if len(prompts) < 3:
        raise ValueError(
            f"--data needs at least three examples with different prompts if none are held out by --held-out, got {len(prompts)}"
        )
    drawn = set(random.Random(seed).sample(prompts, max(1, len(prompts) // 5)))
    known, unseen = ([one for one in pairs if (repr(one[0]) in drawn) is held] for held in (False, True))
    return known, unseen
