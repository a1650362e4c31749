"""`reftlens dissect`: dissects a saved edit on a file of examples, or shows a saved dissection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reftlens.bridge import load_bridge
from reftlens.data.chat import split_conversation
from reftlens.data.texts import Prompt, is_conversation
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.result import Dissection, load_dissection
from reftlens.dissection.run import dissect
from reftlens.dissection.saving import JSON_NAME
from reftlens.dissection.sections import report
from reftlens.edit.checkpoint import CONFIG_NAME, base_named
from reftlens.edit.reft import Reft
from reftlens.files.reading import json_lines
from reftlens.plot.page import render

REPORT_NAME = "report.html"


def dissect_saved(
    directory: Path,
    *,
    examples: Path | Sequence[tuple[Prompt, str]] | None,
    model: str | None,
    config: DissectConfig = DissectConfig(),
    device: str = "cpu",
) -> Dissection:
    """Dissects the edit saved in a folder, or reads a saved dissection.

    Args:
        directory: folder of `Reft.save_pretrained`, or of `Dissection.save`, which is only read.
        examples: JSON Lines with "prompt" and "completion", or such pairs; required for an edit.
        model: the base. The default is the base that the edit names, if it is available.
        config: parts and budgets.
        device: where the base runs.

    Raises:
        ValueError: If the folder is neither, its base is not available, or the examples are missing or malformed.
    """
    # Asked first: a folder that a dissection wrote has no edit in it.
    if (directory / JSON_NAME).is_file():
        return load_dissection(directory)
    if not (directory / CONFIG_NAME).is_file():
        raise ValueError(f"{directory} holds neither a saved edit ({CONFIG_NAME}) nor a saved dissection ({JSON_NAME})")
    if examples is None:
        raise ValueError(
            "a saved edit is dissected on examples: pass --examples with a JSON Lines file, each line with a "
            '"prompt" and a "completion"'
        )
    pairs = read_lines(examples) if isinstance(examples, Path) else examples
    bridge = load_bridge(model or base_named(directory), device=device)
    return dissect(bridge, Reft.from_pretrained(directory, bridge=bridge), pairs, config)


def read_lines(file: Path) -> list[tuple[Prompt, str]]:
    """Reads (prompt, completion) pairs from JSON Lines. In a conversation in "messages" the last turn is the completion.

    Raises:
        ValueError: If a line is not such an object. The message names the line.
        OSError: If the file cannot be read.
    """
    pairs: list[tuple[Prompt, str]] = []
    for number, line in json_lines(file):
        prompt, completion = (line.get("prompt"), line.get("completion")) if isinstance(line, dict) else (None, None)
        turns = line.get("messages") if isinstance(line, dict) else None
        if is_conversation(prompt) and is_conversation(completion):
            turns = [*prompt, *completion]
        if turns is not None:
            try:
                prompt, completion = split_conversation(turns)
            except ValueError as error:
                raise ValueError(f"line {number} of {file}: {error}") from error
        if not (isinstance(prompt, str) or is_conversation(prompt)) or not isinstance(completion, str):
            raise ValueError(
                f'line {number} of {file} must be an object with the texts "prompt" and "completion", got {line!r:.80}'
            )
        pairs.append((prompt, completion))
    return pairs


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
