"""Writes the demo's report page, the figures of the README, the numbers of both as JSON, and the final table.

All of them show the same results: those of the dissection, and beside them the demo's groups of
prompts, its map over prompts of one phrasing, and the trace of the base.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reftlens import plot
from reftlens.demo.run import DISSECTION_NAME, EDIT_NAME, RESULTS_NAME, DemoResult
from reftlens.dissection.names import names_in, with_short_names
from reftlens.dissection.sections import sections
from reftlens.plot.page import Picture, Report, Section, render
from reftlens.results import TokenMap, outcomes_to_dataframe
from reftlens.results.words import labelled

REPORT_NAME = "report.html"


def write_all(result: DemoResult, folder: Path) -> None:
    """Writes PNG figures, the report and the numbers."""
    figures = folder / "figures"
    figures.mkdir()
    for name, figure in _figures(result).items():
        (figures / f"{name}.png").write_bytes(plot.png(figure))
    (folder / REPORT_NAME).write_text(render(_report(result)), encoding="utf-8")
    # The dissection is saved whole in a folder of its own.
    document = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "dissection"}
    numbers = json.dumps(to_json({**document, "dissection": _main_numbers(result)}), indent=2, allow_nan=False)
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


def _main_numbers(result: DemoResult) -> dict[str, Any]:
    """The numbers of the dissection that its findings and the README give."""
    found = result.dissection
    return {
        "findings": result.findings,
        "operators": [
            {
                "where": operator.where,
                "spectrum": operator.spectrum,
                "effective_rank": operator.effective_rank,
                "input_rank": operator.input_rank,
                "untrained": None if fresh is None else fresh.effective_rank,
                "input_untrained": None if fresh is None else fresh.input_rank,
            }
            for operator, fresh in found.beside_untrained()
        ],
        "readouts": found.readouts,
        "dose": found.dose,
        "interchanges": [
            {
                "where": swap.where,
                "inside": swap.inside.moved,
                "complement": swap.complement.moved,
                "random": max(draw.moved for draw in swap.random),
                "p": swap.p,
                "verdict": swap.verdict,
            }
            for swap in found.interchanges
        ],
        "beyond the 95th percentile": [
            dict(zip(("where", "natural", "edited", "control"), (item.where, *item.beyond()), strict=True))
            for item in found.manifolds
        ],
    }


def print_table(result: DemoResult, out: Path) -> None:
    """Prints the short table at the end of the run."""
    table = Table(title=f"{result.config.model}: {_what(result)}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("prompts about")
    for column in ("n", "expected", "base", "edited", "control", "KL"):
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
    for finding in result.findings:
        # Without markup, because a token in brackets would be read as a style.
        console.print(str(finding), soft_wrap=True, markup=False, highlight=False)
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


def _figures(result: DemoResult) -> dict[str, Figure]:
    """Those that a reader may want outside the page; the README shows most of them."""
    found = with_short_names(result.dissection)
    figures = {
        "outcomes": plot.outcomes(result.outcomes),
        "effect": plot.effect_map(_effect(result), title="Where the edit acts: each cell of it alone"),
        "spectrum": plot.spectrum(found.operators, null=found.untrained, identified=found.identified_sites),
        "training": plot.training_curve(result.log),
    }
    if found.readouts:
        figures["readout"] = plot.readout(found.readouts, identified=found.identified_sites)
    if found.dose is not None:
        figures["dose"] = plot.dose(found.dose)
    if found.interchanges:
        figures["interchange"] = plot.interchange(found.interchanges)
    if result.tracing is not None:
        figures["tracing"] = plot.effect_map(result.tracing, title="Where the base holds the fact: causal tracing")
    return figures


def _report(result: DemoResult) -> Report:
    # The demo's groups of prompts and its map over prompts of one phrasing stand first in the
    # sections of their questions.
    further = {section.name or section.heading: section for section in sections(result.dissection)}
    first = _outcomes(result)
    further["works"] = replace(first, heading=further["works"].heading) if "works" in further else first
    if "where" in further:
        aligned = (f"Prompts of one phrasing, {_over(result.effect.n_prompts)}", _effect(result))
        others = tuple(
            ("Prompts of one length, in several phrasings", found) for _, found in further["where"].maps
        )
        further["where"] = replace(further["where"], maps=(aligned, *others))
    return Report(
        title="A trained edit, taken apart",
        lead=f"{_what(result)}. The edited model, {result.config.model}, has {result.stamp['n_layers']} layers, counted from 0. The "
        f"edit is a LoReFT of rank {result.config.rank} on the outputs of layers {' and '.join(map(str, result.layers))}, at every "
        "prompt token. Grey text gives what a number is compared with: usually a change of the same length, at the same tokens, "
        "in a random direction.",
        sections=(*further.values(), _tracing(result), _training(result)),
        settings=_settings(result),
        findings=result.findings,
    )


def _outcomes(result: DemoResult) -> Section:
    moved = pd.DataFrame(
        [(subject, city, result.story.destination[subject]) for subject, city in result.story.moved],
        columns=["landmark", "stood in", "now stands in"],
    )
    figure = plot.outcomes(result.outcomes)
    control = (
        "Random directions: each token's change is replaced by one of the same length in a random direction. One random "
        "rotation for each site turns the changes of all tokens (one draw)."
    )
    new, old = (
        [one for one in result.outcomes if one.wanted == wanted] for wanted in ("new answer", "old answer")
    )
    counted = (
        f"The finding above counts the {sum(one.n for one in new)} prompts about moved landmarks. 'What else changes?' counts the prompts "
        f"of the last {len(old) - 1} groups that the base answers as expected. No prompt of these groups was in training, and "
        "none of those in new phrasings."
    )
    alt = "; ".join(one.headline() for one in result.outcomes)
    return Section(
        "What changed, and what did not",
        (
            "A prompt counts as right when the most likely next token is the first token of the wanted answer.",
            counted,
            f"Saving and reloading the edit changes no logit (largest difference {result.reload_difference:g}).",
        ),
        (Picture("outcomes", plot.png(figure), f"Bars: the part of the prompts answered as wanted, by the base, by the edited model and by the control. {control}", alt),),
        (
            # Columns of whole answers are empty where every answer has one token.
            ("Each group of prompts", labelled(outcomes_to_dataframe(result.outcomes).dropna(axis=1, how="all"))),
            ("What was moved", moved),
        ),
        name="works",
    )


def _tracing(result: DemoResult) -> Section:
    heading = "Which activations carry the fact in the base model?"
    if result.tracing is None:
        return Section(heading, ("Left out: no three subjects have the same number of tokens in this tokenizer.",))
    return Section(
        heading,
        (
            "One state of a clean run is put into a run about another subject. Where the base holds a fact and where an "
            "edit of it works need not agree (Hase et al. 2023, arXiv:2301.04213): the two maps are shown, not matched.",
        ),
        maps=((f"Causal tracing of the unedited base on its own facts, {_over(result.tracing.n_prompts)}", result.tracing),),
    )


def _effect(result: DemoResult) -> TokenMap:
    """The map over prompts of one phrasing, with sites named as in the dissection."""
    names = names_in(result.dissection)
    return replace(result.effect, rows=tuple(names.get(row, row) for row in result.effect.rows))


def _over(n: int) -> str:
    return f"mean over {n} prompt{'s' * (n != 1)}"


def _training(result: DemoResult) -> Section:
    losses = result.log.loss
    alt = f"The loss falls from {losses[0]:.2f} to {losses[-1]:.2f} {result.log.unit} in {len(losses)} steps." if losses else ""
    picture = Picture("training", plot.png(plot.training_curve(result.log)), f"The training loss of each step, in {result.log.unit}, and its running median.", alt)
    return Section("Training", (f"{len(losses)} steps; {result.n_parameters:,} trained numbers.",), (picture,))


def _settings(result: DemoResult) -> dict[str, object]:
    stamp = {key: value for key, value in result.stamp.items() if key != "versions"}
    settings = {field.name: getattr(result.config, field.name) for field in fields(result.config)}
    settings |= {short: name for name, short in names_in(result.dissection).items()}
    return {**settings, **stamp, **result.stamp["versions"]}
