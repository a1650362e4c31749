"""What else changes? The answers that the edit should leave alone."""

from __future__ import annotations

from reftlens import plot
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, picture, table
from reftlens.dissection.parts.works import cost_outcome, outcomes
from reftlens.plot.page import Section
from reftlens.results import outcomes_to_dataframe


def _draw(found: Found) -> Section | None:
    kept = found.outcomes_of("old answer")
    if not kept:
        return None
    return Section(
        ELSE.heading,
        (
            "The examples that the base already answers as wanted, which the edit should leave alone. Control: the same edit "
            "turned to random directions (one draw). KL divergence: how far the distribution of the next token moves.",
        ),
        (
            picture(
                "else",
                plot.outcomes(kept),
                "Bars: the part of the prompts with an unchanged answer, for the base, the edited model and the control.",
                kept,
            ),
        ),
        (("Examples that should stay", table([outcomes_to_dataframe(kept)])),),
    )


ELSE = Part(
    name="else",
    heading="What else changes?",
    compute=lambda work: outcomes(work, kept=True),
    cost=lambda sizes: cost_outcome((1 - sizes.wanted) * sizes.batches),
    draw=_draw,
    preset="quick",
)
