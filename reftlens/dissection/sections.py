"""Renders a dissection as report sections. Each number has its null or control in the same table or figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from reftlens import plot
from reftlens.dissection.findings import Findings
from reftlens.plot.page import Picture, Report, Section
from reftlens.plot.readout import TWO_QUESTIONS
from reftlens.results import agreements_to_dataframe, outcomes_to_dataframe


def report(result: Findings) -> Report:
    """Renders the whole page."""
    settings: dict[str, object] = {"model": result.model, "edit": result.edit, **dict(result.settings)}
    settings |= {f"seconds: {part}": f"{seconds:.1f}" for part, seconds in result.seconds}
    return Report(
        title="A trained edit, taken apart",
        lead=f"{result.edit.splitlines()[0]} on {result.model}: {result.n_wanted} examples that the base answers "
        f"otherwise, {result.n_kept} that it answers as wanted already.",
        sections=tuple(sections(result)),
        settings=settings,
    )


def sections(result: Findings, names: Sequence[str] | None = None) -> list[Section]:
    """Renders the results in the order of the questions, then a list of the parts left out, with reasons.

    Args:
        result: a dissection.
        names: names from `PARTS`; all by default. A part without a result is left out.
    """
    chosen = [make for name, make in PARTS.items() if names is None or name in names]
    return [section for make in chosen if (section := make(result)) is not None]


def _picture(name: str, figure: Figure, caption: str) -> Picture:
    return Picture(name, plot.png(figure), caption)


def _table(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(list(frames), ignore_index=True)


def _outcomes(result: Findings) -> Section | None:
    if not result.outcomes:
        return None
    figure = plot.outcomes(result.outcomes)
    return Section(
        "What it does",
        (
            "Right: the most likely next token begins the wanted answer. Control: the same edit turned to random directions.",
        ),
        (_picture("dissect_outcomes", figure, "What the model answers before and after."),),
        (("Each group of examples", outcomes_to_dataframe(result.outcomes)),),
    )


def _directions(result: Findings) -> Section | None:
    if not result.operators:
        return None
    lines = [
        {
            "site": operator.where,
            "effective rank": operator.effective_rank,
            "untrained": float("nan") if fresh is None else fresh.effective_rank,
            "effective rank of the input-dependent part": operator.input_rank,
            "of it, untrained": float("nan") if fresh is None else fresh.input_rank,
            "directions for 99% of the energy": operator.rank_for(0.99),
            "rms change / rms |h|": float(operator.spectrum.square().sum().sqrt()) / operator.rms_norm,
            "untrained change": float("nan")
            if fresh is None
            else float(fresh.spectrum.square().sum().sqrt()) / operator.rms_norm,
        }
        for operator, fresh in result.beside_untrained()
    ]
    return Section(
        "How many directions it really uses",
        (
            "The edit's rank is what it may use. What it does use is the spectrum of its changes on real inputs; R and W are "
            "known only up to a change of coordinates and say nothing by themselves. A constant push, the same for every input, "
            "counts in the effective rank of the whole, and may hide how many directions depend on the input: both are given. "
            "Beside each: the same edit with fresh weights, on the same inputs, which has a low effective rank too.",
        ),
        (
            _picture(
                "dissect_spectrum",
                plot.spectrum(result.operators, null=result.untrained),
                "How far each write direction moves; dashed, with fresh weights.",
            ),
        ),
        (
            ("Each site, trained and untrained", pd.DataFrame(lines)),
            ("Each write direction", _table([operator.to_dataframe() for operator in result.operators])),
        ),
    )


def _ledger(result: Findings) -> Section | None:
    if result.sizes is None:
        return None
    pictures = [
        _picture("dissect_sizes", plot.edit_size(result.sizes), "Size of the edit at each token of one example.")
    ]
    tables: list[tuple[str, pd.DataFrame]] = []
    if result.ledger is not None:
        pictures.append(_picture("dissect_ledger", plot.ledger(result.ledger), "Its terms, and how they meet."))
        tables.append(("The terms at each edited token", result.ledger.to_dataframe()))
    return Section(
        "What each change is made of",
        (
            "The change of a token is the sum of three terms: what is erased, what is written always, and what is written "
            "from the input. They share a space and can cancel, so none is a share of the whole. Random cosine: what two "
            "unrelated terms have in that space.",
        ),
        tuple(pictures),
        tuple(tables),
        (("The same text: pointed at, a token says its size at each site", result.sizes),),
    )


def _readouts(result: Findings) -> Section | None:
    if not result.readouts and not result.contexts:
        return None
    drawn: tuple[Picture, ...] = ()
    if result.readouts:
        drawn = (
            _picture("dissect_readout", plot.readout(result.readouts), "Write directions, straight to the logits."),
        )
    watched = _table([readout.watched_to_dataframe() for readout in result.readouts] or [pd.DataFrame()])
    tables = [(f"Wanted answers. {TWO_QUESTIONS}", watched)]
    if result.contexts:
        contexts = _table([item.to_dataframe() for item in result.contexts])
        tables.append(("Tokens (in brackets) that move furthest along each direction", contexts))
    return Section(
        "What its directions say, and what they answer to",
        (
            "A write direction is added to real last residuals and read through the final norm and the unembedding: the "
            "direct path alone. A reading is in standard deviations; beside it, the largest that random readings of the "
            "same tokens reach.",
        ),
        drawn,
        tuple(tables),
    )


def _overlaps(result: Findings) -> Section | None:
    if not result.overlaps:
        return None
    return Section(
        "What its directions share with others",
        (
            "score: mean squared cosine of the principal angles. A random subspace (Haar) is the weaker null: activations "
            "are long in few directions, and whatever follows them overlaps. The covariance-matched null follows them too.",
        ),
        (_picture("dissect_overlaps", plot.overlap(result.overlaps), "Each overlap, over what its nulls give."),),
        (("Each overlap with its nulls", _table([item.to_dataframe() for item in result.overlaps])),),
    )


def _dose(result: Findings) -> Section | None:
    if result.dose is None:
        return None
    dose = result.dose
    return Section(
        "More and less of it",
        (
            f"Slope at 0: {dose.slope:.3f} nats per alpha; with random directions {dose.control_slope:.3f}. A curve that "
            "leaves its slope works by more than a small push would.",
        ),
        (_picture("dissect_dose", plot.dose(dose), "The wanted answer, and what else moves, against the dose."),),
        (("Each dose", dose.to_dataframe()),),
    )


def _interchange(result: Findings) -> Section | None:
    if not result.interchanges:
        return None
    shares = [
        (space.where, index, float(share), len(space.basis) / operator.write.shape[1])
        for space in result.read_spaces
        for operator in result.operators
        if operator.where == space.where
        for index, share in enumerate(space.split(operator.write))
    ]
    columns = ["site", "direction", "part that later layers read", "of a random direction"]
    return Section(
        "Whether the base keeps the answer there",
        (
            "In the unedited model, a source prompt's coordinates inside the edit's strongest write directions are put into "
            "a base prompt, at its last token. A subspace is illusory if most of the move comes from a difference that nothing "
            "reads and passes through units that are dormant otherwise (Makelov et al. 2023). Where a direction made to be "
            "illusory at this point would not be found either, the verdict is 'no power'. An "
            "edit may well write where the base keeps nothing.",
        ),
        (_picture("dissect_interchange", plot.interchange(result.interchanges), "Interchanges and their controls."),),
        (
            ("Each interchange", _table([item.to_dataframe() for item in result.interchanges])),
            ("Write directions, by what the next-token logits depend on", pd.DataFrame(shares, columns=columns)),
        ),
    )


def _manifold(result: Findings) -> Section | None:
    if not result.manifolds:
        return None
    return Section(
        "Whether edited activations are still natural",
        (
            "Natural activations of held-out prompts should have 5% beyond the 95th percentile: if they do not, neither number counts.",
        ),
        (
            _picture(
                "dissect_off_manifold", plot.off_manifold(result.manifolds), "Percentiles among natural activations."
            ),
        ),
        (("Each site", _table([item.to_dataframe() for item in result.manifolds])),),
    )


def _seeds(result: Findings) -> Section | None:
    if not result.agreements:
        return None
    return Section(
        "Whether another seed finds the same",
        (
            "Pairs are compared as functions first, then by their strongest write directions; raw R is there to show why it "
            "misleads. The null is edits trained on shuffled answers: p is the part of all pairs with or among them, and this "
            "pair, that are as close. An edit turned to random directions is no null of trained ones.",
        ),
        (_picture("dissect_seeds", plot.agreement(result.agreements), "How far the edits agree, pair by pair."),),
        (("Each pair of edits", agreements_to_dataframe(result.agreements)),),
    )


def _left_out(result: Findings) -> Section | None:
    if not result.left_out:
        return None
    return Section("Left out", (), (), (("What, and why", pd.DataFrame(result.left_out, columns=["what", "why"])),))


PARTS: dict[str, Callable[[Findings], Section | None]] = {
    "outcomes": _outcomes,
    "directions": _directions,
    "ledger": _ledger,
    "readouts": _readouts,
    "overlaps": _overlaps,
    "dose": _dose,
    "interchange": _interchange,
    "off-manifold": _manifold,
    "seeds": _seeds,
    "left out": _left_out,
}
"""Sections by name, in order."""
