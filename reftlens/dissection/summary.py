"""A dissection in short: its findings as sentences, and its main numbers, each with its null or control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import pandas as pd

from reftlens.display import as_html
from reftlens.dissection.found import Found
from reftlens.dissection.names import with_short_names
from reftlens.dissection.parts.through import components
from reftlens.plot.labels import spoken
from reftlens.results import Finding
from reftlens.text import plain

Line = tuple[str, str, str, str]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Summary:
    """Sentences and a table. It prints and displays itself whole."""

    findings: tuple[Finding, ...]
    numbers: pd.DataFrame
    """One row per number: where, question, found, and its null or control."""

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the table of the main numbers."""
        return self.numbers

    def __repr__(self) -> str:
        sentences = "\n".join(
            "\n  ".join(line for line in (finding.question, _said(finding), plain(finding.code)) if line)
            for finding in self.findings
        )
        # By default pandas cuts long cells and wraps wide tables.
        if self.numbers.empty:  # pandas would print its own words about an empty table
            return sentences
        table = self.numbers.map(plain).to_string(index=False, max_colwidth=None, line_width=None)
        return f"{sentences}\n\n{table}"

    def _repr_html_(self) -> str:
        return as_html("\n".join(map(str, self.findings)), self.to_dataframe)


def _said(finding: Finding) -> str:
    return f"{plain(finding.answer)} {plain(finding.null)}".rstrip()


def summarize(result: Found) -> pd.DataFrame:
    """Returns one row per number: where, question, found, and its null or control."""
    result = with_short_names(result)
    lines = [*_whole(result), *_causes(result), *_sites(result), *_seeds(result)]
    return pd.DataFrame(lines, columns=["where", "question", "found", "beside it"])


def _whole(result: Found) -> Iterator[Line]:
    for outcome in result.outcomes:
        beside = f"base {outcome.base:.0%}, random directions {outcome.control:.0%}"
        yield outcome.group, f"first token of the answer right, of {outcome.n}", f"{outcome.edited:.0%}", beside
        if outcome.longer:
            beside = f"base {outcome.base_whole:.0%}, random directions {outcome.control_whole:.0%}"
            yield outcome.group, f"whole answer right, of {outcome.n}", f"{outcome.edited_whole:.0%}", beside
    if result.dose is not None:
        dose = result.dose
        yield "all sites", "slope at dose 0, nats", f"{dose.slope:.2f}", f"random directions {dose.control_slope:.2f}"


def _causes(result: Found) -> Iterator[Line]:
    """The strongest cell, the parts of the sites, and the component that carries most."""
    effect = result.effect
    if effect is not None and effect.control is not None:
        values, control = effect.values.nan_to_num(), effect.control.nan_to_num()
        site, place = divmod(int(values.abs().argmax()), values.shape[1])
        beside = (
            f"random directions {float(control[site, place]):.2f}, in any cell at most {float(control.abs().max()):.2f}"
        )
        cell = f"{effect.rows[site]} at {effect.labels[place]}"
        yield cell, f"largest of a cell: {effect.quantity}", f"{float(values[site, place]):.2f}", beside
    if result.ablation is not None:
        parts = result.ablation
        for name, alone, random in zip(parts.sites, parts.alone.tolist(), parts.control.tolist(), strict=True):
            question = f"this site alone, nats of {parts.whole:.1f}"
            yield name, question, f"{alone:.1f}", f"random directions {random:.2f}"
    carrying = components(result.heads, result.mlps)
    if carrying:
        component, value, _ = carrying[0]
        largest = max(abs(control) for _, _, control in carrying)
        question = "largest part of the effect that a head or MLP carries"
        yield spoken(component), question, f"{value:.0%}", f"random directions, any of them: at most {largest:.0%}"


def _sites(result: Found) -> Iterator[Line]:
    for operator, fresh in result.beside_untrained():
        for question, of in (
            ("effective rank", "effective_rank"),
            ("effective rank of the input-dependent part", "input_rank"),
        ):
            found = f"{getattr(operator, of):.2f} of {len(operator.write)}"
            yield operator.where, question, found, "" if fresh is None else f"untrained {getattr(fresh, of):.2f}"
    for overlap in result.overlaps:
        beside = ", ".join(
            f"{null} {float(draws.mean()):.3f} (p = {overlap.p(null):.2g})"
            for null, draws in overlap.null_scores.items()
        )
        yield overlap.first, f"overlap with the {overlap.second}", f"{overlap.score:.3f}", beside
    for swap in result.interchanges:
        random = sum(draw.moved for draw in swap.random) / len(swap.random)
        beside = f"random {random:.2f} (p = {swap.p:.2g}), complement {swap.complement.moved:.2f}"
        verdict = "illusion test: undecided" if swap.verdict == "no power" else swap.verdict
        found = f"{swap.inside.moved:.2f} ({verdict})"
        yield swap.where, "interchange inside it moves the base's answer by", found, beside
    for manifold in result.manifolds:
        natural, edited, control = manifold.beyond()
        beside = f"natural {natural:.0%}, random directions {control:.0%}"
        yield manifold.where, "edited tokens beyond the 95th percentile", f"{edited:.0%}", beside


def _seeds(result: Found) -> Iterator[Line]:
    for pair in result.agreements:
        found = f"cosine {pair.cosine:.2f}, angle {pair.angle:.0f}, raw R {pair.raw_angle:.0f}"
        beside = f"turned {pair.control_cosine:.2f}, no null edits, so no claim"
        if pair.n_null_edits:
            beside = (
                f"shuffled answers {pair.null_cosine:.2f} (p = {pair.p_cosine:.2g}), {pair.null_trained_angle:.0f} "
                f"(p = {pair.p_angle:.2g})"
            )
        yield f"{pair.first} and {pair.second}", "agreement of the changes", found, beside
