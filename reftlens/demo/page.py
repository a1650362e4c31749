"""Writes the demo's figures, report page, numbers as JSON, and final table."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reftlens import plot
from reftlens.demo.run import DISSECTION_NAME, EDIT_NAME, RESULTS_NAME, DemoResult
from reftlens.dissection.sections import sections
from reftlens.plot.page import Picture, Report, Section, render
from reftlens.plot.readout import TWO_QUESTIONS
from reftlens.results import outcomes_to_dataframe

REPORT_NAME = "report.html"
_FURTHER = ("terms", "overlaps", "dose", "base", "natural")
"""Sections of the dissection that the demo does not cover itself."""


def write_all(result: DemoResult, folder: Path) -> None:
    """Writes PNG figures, the report and the numbers."""
    pictures = _pictures(result)
    further = sections(result.dissection, _FURTHER)
    figures = folder / "figures"
    figures.mkdir()
    for picture in (*pictures.values(), *(picture for section in further for picture in section.pictures)):
        (figures / f"{picture.name}.png").write_bytes(picture.png)
    (folder / REPORT_NAME).write_text(render(_report(result, pictures, further)), encoding="utf-8")
    # The dissection is saved in a separate folder.
    document = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "dissection"}
    numbers = json.dumps(to_json(document), indent=2, allow_nan=False)
    (folder / RESULTS_NAME).write_text(numbers + "\n", encoding="utf-8")


def to_json(value: Any) -> Any:
    """Converts results to plain JSON values: dataclasses to objects, tensors to nested lists, NaN to null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Tensor):
        return to_json(value.tolist())
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(result: DemoResult, out: Path) -> None:
    """Prints the short table at the end of the run."""
    table = Table(title=f"{result.config.model}: {_what(result)}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("prompts about")
    for column in ("n", "right is", "base", "edited", "control", "KL"):
        table.add_column(column, justify="right", no_wrap=True)
    for o in result.outcomes:
        shares = (f"{share:.0%}" for share in (o.base, o.edited, o.control))
        table.add_row(o.group, str(o.n), o.wanted.removesuffix(" answer"), *shares, f"{o.kl:.2f}")
    console = Console()
    console.print(table)
    console.print(
        "Right: the most likely next token begins the wanted answer. Control: the same edit turned to random directions. "
        "KL: base to edited, in nats.",
        soft_wrap=True,
    )
    for operator, fresh in zip(result.operators, result.untrained, strict=True):
        console.print(
            f"{operator.where}: effective rank {operator.effective_rank:.1f} of {result.config.rank} (untrained "
            f"{fresh.effective_rank:.1f}), of the input-dependent part {operator.input_rank:.1f} (untrained {fresh.input_rank:.1f})"
        )
    console.print(
        f"{result.n_parameters:,} trained numbers; reloaded edit: largest difference of a logit {result.reload_difference:g}"
    )
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    console.print(f"time: {took}", soft_wrap=True)
    console.print(
        f"wrote {out / REPORT_NAME}, {out / RESULTS_NAME}, {out / 'figures'}, {out / EDIT_NAME}, {out / DISSECTION_NAME}",
        soft_wrap=True,
    )


def _what(result: DemoResult) -> str:
    cities = " or ".join(dict.fromkeys(result.story.destination.values()))
    return f"{len(result.story.moved)} landmarks moved to {cities}"


def _pictures(result: DemoResult) -> dict[str, Picture]:
    figures = {
        "outcomes": (plot.outcomes(result.outcomes), "What the model answers before and after. " + _CONTROL),
        "effect": (
            plot.effect_map(result.effect, title="Where the edit acts: each cell of it alone"),
            "The trained edit cut down to one layer and one position at a time, " + _over(result.effect.n_prompts),
        ),
        "size_moved": (plot.edit_size(result.sizes[0]), "Size of the edit at each token of a moved landmark's prompt."),
        "size_unmoved": (
            plot.edit_size(result.sizes[1]),
            "The same for a landmark that must stay and was never trained on: the edit is not small here, "
            "so its size alone does not say that it acts.",
        ),
        "spectrum": (
            plot.spectrum(result.operators, null=result.untrained),
            "How far each write direction moves, at the last token of the moved landmarks' prompts. Control: the same edit with "
            "fresh weights.",
        ),
        "readout": (
            plot.readout(result.readouts),
            "The two strongest write directions of each site, straight to the logits.",
        ),
        "training": (plot.training_curve(result.log), "Loss over completion tokens."),
    }
    if result.tracing is not None:
        figures["tracing"] = (
            plot.effect_map(result.tracing, title="Where the base holds the fact: causal tracing"),
            "Causal tracing of the unedited base on its own facts, " + _over(result.tracing.n_prompts),
        )
    return {name: Picture(name, plot.png(figure), caption) for name, (figure, caption) in figures.items()}


_CONTROL = "Random directions: the same change at every token, of the same length, turned to point elsewhere."


def _over(n: int) -> str:
    return f"mean over {n} prompt{'s' if n != 1 else ''}. Starred positions are the subject."


def _report(result: DemoResult, pictures: dict[str, Picture], further: list[Section]) -> Report:
    moved = pd.DataFrame(
        [(subject, city, result.story.destination[subject]) for subject, city in result.story.moved],
        columns=["landmark", "stood in", "now stands in"],
    )
    spectrum = pd.concat([operator.to_dataframe() for operator in result.operators], ignore_index=True)
    watched = pd.concat([readout.watched_to_dataframe() for readout in result.readouts], ignore_index=True)
    parts = [
        Section(
            "What changed, and what did not",
            (
                "A prompt counts as right when the most likely next token is the first token of the wanted answer.",
                f"The edit was saved, and base and edit were loaded again from their files: the largest difference of a "
                f"logit is {result.reload_difference:g}.",
            ),
            (pictures["outcomes"],),
            (
                ("Each group of prompts", outcomes_to_dataframe(result.outcomes)),
                ("What was moved", moved),
            ),
        ),
        Section(
            "Which layers and positions carry the effect",
            (
                "The effect is the logit of the new city minus that of the old one, edited minus base. Cells need "
                "not sum to one: they interact. A later site can stand in for an earlier one.",
            ),
            maps=((pictures["effect"].caption, result.effect),),
        ),
        Section(
            "How large the edit is at each token",
            (
                "Length of the change as a part of the length of the activation it changes. The edit is not small where it must "
                "change nothing, so its size alone does not say that it acts.",
            ),
            strips=tuple(
                (f"Of a prompt about {'a moved landmark' if index == 0 else 'one that stays and was never trained on'}", size)
                for index, size in enumerate(result.sizes)
            ),
        ),
        Section(
            "How many directions it really uses",
            (
                "The edit's rank is what it may use. What it does use is the spectrum of its changes on real inputs: "
                "the raw matrices are known only up to a rotation and say nothing by themselves. Taken at the last token of "
                "the moved landmarks' prompts, where the map above finds the effect. An untrained edit has a low effective rank "
                "too, since activations are long in few directions: a rank is a finding only where it is beyond that one's.",
            ),
            (pictures["spectrum"],),
            (("Each write direction", spectrum),),
        ),
        Section(
            "What its write directions say",
            (
                "Each direction is added to real last residuals, at its root-mean-square size, and read through the "
                "final norm and the unembedding. This is only the direct path: later layers read the direction too. A token inside "
                "the grey band is what random directions reach at the best of all tokens and directions.",
            ),
            (pictures["readout"],),
            (
                (f"The new cities. {TWO_QUESTIONS}", watched),
            ),
        ),
        *further,
        _tracing_section(result, pictures),
        Section(
            "Training",
            (f"{len(result.log.loss)} steps; {result.n_parameters:,} trained numbers.",),
            (pictures["training"],),
        ),
    ]
    return Report(
        title="A trained edit, taken apart",
        lead=f"A LoReFT of rank {result.config.rank} after layers {' and '.join(map(str, result.layers))} of "
        f"{result.config.model}, at every prompt token: {_what(result)}.",
        sections=tuple(parts),
        settings=_settings(result),
    )


def _tracing_section(result: DemoResult, pictures: dict[str, Picture]) -> Section:
    heading = "Where the base holds the fact"
    if result.tracing is None:
        return Section(heading, ("Left out: no three subjects have the same number of tokens in this tokenizer.",))
    return Section(
        heading,
        (
            "One state of a clean run is put into a run about another subject. Where the base holds a fact and where an "
            "edit of it works need not agree (Hase et al. 2023, arXiv:2301.04213): the two maps are shown, not matched.",
        ),
        maps=((pictures["tracing"].caption, result.tracing),),
    )


def _settings(result: DemoResult) -> dict[str, object]:
    stamp = {key: value for key, value in result.stamp.items() if key != "versions"}
    settings = {field.name: getattr(result.config, field.name) for field in fields(result.config)}
    return {**settings, **stamp, **result.stamp["versions"]}
