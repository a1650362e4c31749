"""`reftlens convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reftlens.cli.options import Device, Quiet


def convert(
    directory: Annotated[Path, typer.Argument(help="A folder that pyreft saved, or a checkpoint of its trainer.")],
    model: Annotated[str, typer.Option(help="The base model: a local directory or a hub name.")],
    positions: Annotated[
        str, typer.Option(help="The prompt tokens that it was trained on, such as f5+l5. pyreft does not save them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the edit.")] = Path("edit"),
    method: Annotated[
        str | None, typer.Option(help="The class, if the folder does not record it: LoReFT, NoReFT, DiReFT, ...")
    ] = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Convert a pyreft checkpoint to an edit that every other command takes."""
    if not directory.is_dir():
        raise ValueError(f"{directory} does not exist")
    from reftlens.edit.checkpoint import CONFIG_NAME
    from reftlens.files.folder import Replacement

    # Opened first: a folder that cannot be replaced is refused before the model is loaded.
    with Replacement(out, marker=CONFIG_NAME) as folder:
        from reftlens.cli.output import prepare, say
        from reftlens.edit.pyreft import load_pyreft
        from reftlens.paper.runs.config import RunConfig
        from reftlens.paper.runs.folder import load_base
        from reftlens.paper.runs.parameters import method_named

        prepare(model, quiet=quiet)
        bridge = load_base(RunConfig(model=model, device=device or "auto"))
        kind = None if method is None else method_named(method)
        reft = load_pyreft(directory, bridge=bridge, positions=positions, intervention=kind)
        reft.save_pretrained(folder, bridge=bridge)
    say(f"{reft!r}\nwrote {out}: `reftlens eval {out} --data FILE` tests it, `reftlens generate {out} PROMPT` runs it")
