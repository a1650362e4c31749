"""`reftlens dissect`: dissects a saved edit, or shows a saved dissection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reftlens.bridge import load_bridge
from reftlens.data.texts import Prompt
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.result import Dissection, load_dissection
from reftlens.dissection.run import dissect
from reftlens.dissection.saving import JSON_NAME
from reftlens.dissection.sections import report
from reftlens.edit.checkpoint import CONFIG_NAME, base_named, refuse_pyreft
from reftlens.edit.reft import Reft
from reftlens.plot.page import render

REPORT_NAME = "report.html"


def dissect_saved(
    directory: Path,
    *,
    examples: Sequence[tuple[Prompt, str]] | None,
    model: str | None,
    config: DissectConfig = DissectConfig(),
    device: str = "cpu",
) -> Dissection:
    """Dissects the edit saved in a folder, or reads a saved dissection.

    Args:
        directory: folder of `Reft.save_pretrained`, or of `Dissection.save`, which is only read.
        examples: prompts and completions; required for an edit.
        model: the base. The default is the base that the edit names, if it is available.
        config: parts and budgets.
        device: where the base runs.

    Raises:
        ValueError: If the folder is neither, its base is not available, or the examples are
            missing.
    """
    # Asked first: a folder that a dissection wrote has no edit in it.
    if (directory / JSON_NAME).is_file():
        return load_dissection(directory)
    if not (directory / CONFIG_NAME).is_file():
        refuse_pyreft(directory)
        raise ValueError(f"{directory} holds neither a saved edit ({CONFIG_NAME}) nor a saved dissection ({JSON_NAME})")
    if examples is None:
        raise ValueError(
            "a saved edit is dissected on examples: pass --examples FILE, in any form that train --data accepts"
        )
    bridge = load_bridge(model or base_named(directory), device=device)
    return dissect(bridge, Reft.from_pretrained(directory, bridge=bridge), examples, config)


def write_report(result: Dissection, folder: Path) -> None:
    """Writes the page, its figures as PNG, and the dissection itself to a folder."""
    page = report(result)
    figures = folder / "figures"
    figures.mkdir()
    for section in page.sections:
        for picture in section.pictures:
            (figures / f"{picture.name}.png").write_bytes(picture.png)
    (folder / REPORT_NAME).write_text(render(page), encoding="utf-8")
    result.save(folder / "dissection")
