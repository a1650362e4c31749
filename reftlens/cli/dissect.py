"""`reftlens dissect`."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.options import AsJson, Base, OwnDevice, Quiet


def dissect(
    directory: Annotated[Path, typer.Argument(help="Folder of a run, a saved edit or a saved dissection.")],
    examples: Annotated[
        Path | None,
        typer.Option(help="Examples, in any form that train --data accepts. Default: the training data of the run."),
    ] = None,
    model: Base = None,
    at: Annotated[str | None, typer.Option(help="Compute directions only from these tokens, such as l1.")] = None,
    preset: Annotated[str | None, typer.Option(help="quick, standard or full. Default: standard.")] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="A part by name, such as where or through, in place of a preset. Repeatable."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report, its figures and the numbers.")] = Path("dissect"),
    device: OwnDevice = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Dissect a trained edit: whether it works, where and through what, and whether that exceeds chance."""
    if preset is not None and parts:
        raise typer.BadParameter("give a preset or parts, not both")
    for place in (directory, examples):
        if place is not None and not place.exists():
            raise ValueError(f"no such file or folder: {place}")
    from reftlens.files.folder import Replacement

    with Replacement(out, marker="report.html") as folder:
        from reftlens.bridge import own_device
        from reftlens.cli.output import leave_writing_to_main, prepare, print_frame, print_json, say
        from reftlens.dissection import DissectConfig
        from reftlens.dissection.from_files import dissect_saved, write_report
        from reftlens.dissection.parts import chosen
        from reftlens.edit.checkpoint import CONFIG_NAME as EDIT_CONFIG_NAME
        from reftlens.edit.checkpoint import base_named
        from reftlens.paper.runs.folder import config_of, edit_in, is_run
        from reftlens.paper.runs.testing import pairs_in, training_pairs
        from reftlens.positions import parse

        if model is None and (directory / EDIT_CONFIG_NAME).is_file():
            model = base_named(directory)
        prepare(model, quiet=quiet)
        asked = preset or tuple(parts or ()) or "standard"
        # Raises for an unknown part before the model is loaded.
        chosen(asked)
        device = own_device(device)
        config = DissectConfig(parts=asked, at=None if at is None else parse(at), progress=not quiet)
        if is_run(directory):
            run = config_of(directory, model=model)
            prepare(run.model, quiet=quiet)
            pairs = training_pairs(run) if examples is None else pairs_in(examples, run)
            result = dissect_saved(edit_in(directory), examples=pairs, model=run.model, config=config, device=device)
        else:
            given = None if examples is None else pairs_in(examples)
            result = dissect_saved(directory, examples=given, model=model, config=config, device=device)
        leave_writing_to_main()
        write_report(result, folder)
    if as_json:
        numbers = result.summary().to_dataframe().to_dict("records")
        found = [asdict(finding) for finding in result.findings]
        print_json({"report": str(out / "report.html"), "findings": found, "summary": numbers})
        return
    for finding in result.findings:
        say(
            f"{finding.question}\n  {finding.answer} {finding.null or _command(finding.code, directory, examples)}".rstrip()
        )
    print_frame(result.summary().to_dataframe(), title=f"\n{result!r}")
    say(f"wrote {out / 'report.html'}, {out / 'figures'}, {out / 'dissection'}")


def _command(code: str, directory: Path, examples: Path | None) -> str:
    """Returns the command that does what a call of `dissect` would. What has no option of its own stays a call."""
    part = re.fullmatch(r"""dissect\(\.\.\., DissectConfig\(parts=\["([^"]+)"\]\)\)""", code)
    if part is None:
        return code
    given = f" --examples {shlex.quote(str(examples))}" if examples is not None else ""
    return f"reftlens dissect {shlex.quote(str(directory))}{given} --part {part[1]}"
