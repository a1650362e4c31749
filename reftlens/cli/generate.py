"""`reftlens generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reftlens.cli.options import AsJson, Base, Device, Quiet, Settings, Trained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reftlens.data import Prompt
    from reftlens.paper.runs.config import RunConfig

RECORDS = (".jsonl", ".json", ".csv", ".parquet")
"""Endings of files with a record per prompt. Any other file has a prompt per line."""


def generate(
    directory: Trained,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="Prompts, each in quotes. Default: one per line from --file or standard input."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="File with one prompt per line; or records as train --data reads them (.jsonl, .json, .csv, .parquet)."
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="Each prompt is what a user says, and is written by the model's chat template."),
    ] = False,
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

    records = None if prompts or file is None or file.suffix.lower() not in RECORDS else file
    texts: Sequence[Prompt] = prompts_of(prompts or [], file) if records is None else ()
    overrides = {"max_new_tokens": max_new_tokens, "device": device}
    overrides = {name: value for name, value in overrides.items() if value is not None} | parse_settings(settings or ())

    from reftlens.cli.output import prepare, print_json, say
    from reftlens.data import written
    from reftlens.paper.runs.folder import config_of
    from reftlens.paper.runs.testing import answer

    config = config_of(directory, model=model)
    if records is not None:
        texts = prompts_in(records, config.prompt_field)
    elif not chat and not quiet:
        _tell_of_template(config)
    if chat:
        texts = [({"role": "user", "content": text},) if isinstance(text, str) else text for text in texts]
    prepare(config.model, quiet=quiet)
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


def prompts_in(file: Path, prompt_field: str | None) -> list[Prompt]:
    """Returns the prompts of a file of records, whether or not they have completions."""
    from reftlens.paper.tasks.records import read

    return [raw.asked(prompt_field=prompt_field) for raw in read(file, within=(), split="")]


def _tell_of_template(config: RunConfig) -> None:
    """Says so if training put its prompts into a template, because prompts that are typed are used as they are."""
    from reftlens.cli.output import say
    from reftlens.data.layouts import layout_of
    from reftlens.paper.tasks.records import read

    if config.prompt_field is not None or config.data is None or not Path(config.data).is_file():
        return
    try:
        layout = layout_of(read(config.data, within=(), split="", limit=1)[0].fields)
    except (OSError, ValueError):
        return  # The file has changed since, which does not matter here.
    if layout != "prompt and completion":
        ways = "--chat or --file" if layout == "messages" else "--file"
        say(
            f"note: the run was trained on records with {layout}, and these prompts get no template: see {ways}",
            err=True,
        )


def prompts_of(given: list[str], file: Path | None) -> list[str]:
    """Returns texts from arguments, a file or standard input."""
    if given and file is not None:
        raise typer.BadParameter("pass prompts or --file, not both")
    if given:
        return given
    if file is None and sys.stdin.isatty():
        raise typer.BadParameter("no prompts: pass them in quotes, with --file, or on standard input")
    text = file.read_text(encoding="utf-8") if file is not None else sys.stdin.read()
    # Not splitlines, which would also end a prompt at U+2028 and its like.
    found = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    if not found:
        raise ValueError(f"{file or 'standard input'} has no prompts")
    return found
