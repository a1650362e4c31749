"""`reftlens generate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftlens.cli.options import AsJson, Base, Device, Quiet, Settings, Trained

if TYPE_CHECKING:
    from reftlens.data import Prompt


def generate(
    directory: Trained,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts, each in quotes. Default: one per line from --file or standard input."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="File with one prompt per line, or JSON Lines with a prompt or messages.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Show the base model's answer as well.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum length of an answer. Default: the run's, or 32.")
    ] = None,
    model: Base = None,
    device: Device = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Continue prompts with a trained edit."""
    from reftlens.paper.runs.config import parse_settings

    texts = prompts_of(prompts or [], file)
    overrides = {"max_new_tokens": max_new_tokens, "device": device}
    overrides = {name: value for name, value in overrides.items() if value is not None} | parse_settings(settings or ())

    from reftlens.cli.output import prepare, print_json, say
    from reftlens.data import written
    from reftlens.paper.runs.folder import config_of
    from reftlens.paper.runs.testing import answer

    prepare(config_of(directory, model=model).model, quiet=quiet)
    lines = answer(directory, texts, overrides, base=base, model=model, progress=not quiet)
    for line in lines:
        # A conversation is printed with one line per turn, and the answer is the last line.
        shown = line["prompt"] if isinstance(line["prompt"], str) else f"{written(line['prompt'])}\nassistant: "
        if as_json:
            print_json(line, indent=None)
        elif base:
            say(f"{shown}\n  base:   {line['base']}\n  edited: {line['completion']}")
        else:
            say(f"{shown}{line['completion']}")


def prompts_of(given: list[str], file: Path | None) -> Sequence[Prompt]:
    """Returns prompts from arguments, a file or standard input."""
    if given and file is not None:
        raise typer.BadParameter("pass prompts or --file, not both")
    if given:
        return given
    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("no prompts: pass them in quotes, with --file, or on standard input")
    if file is not None and file.suffix == ".jsonl":
        from reftlens.paper.tasks.records import read

        raws = read(file, within=(), split="")
        return [raw.asked() for raw in raws]
    text = file.read_text(encoding="utf-8") if file is not None else sys.stdin.read()
    # Not splitlines, which would also end a prompt at U+2028 and its like.
    found = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not found:
        raise ValueError(f"{file or 'standard input'} has no prompts")
    return found
