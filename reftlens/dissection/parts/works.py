"""Does it work? What the model answers with and without the edit, and how that depends on the dose."""

from __future__ import annotations

from typing import Any

from reftlens import analysis, plot
from reftlens.analysis.dose import ALPHAS
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import BACKWARD, Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.page import Section
from reftlens.results import outcomes_to_dataframe

WANTED, KEPT = "the base answers otherwise", "the base agrees"
"""Names of the two groups of examples."""
_N_CONTROL = 2
"""Number of random-direction controls of the dose curve."""


def outcomes(work: Work, *, kept: bool) -> dict[str, Any]:
    """Measures the examples that the edit should change, or those that it should leave alone.

    Args:
        work: the dissection.
        kept: whether to measure the latter.

    Raises:
        ValueError: If there are none.
    """
    group, wanted, pairs = (KEPT, "old answer", work.should_stay) if kept else (WANTED, "new answer", work.wanted)
    if not pairs:
        raise ValueError(f"there is no example where {group}")
    result = analysis.outcome(
        work.bridge,
        work.reft,
        [prompt for prompt, _ in pairs],
        [answer for _, answer in pairs],
        group=group,
        wanted=wanted,
        batch_size=work.config.batch_size,
        seed=work.config.seed,
    )
    return {"outcomes": (*work.found.get("outcomes", ()), result)}


def _dose(work: Work) -> dict[str, Any]:
    # The prompts of "else", so that the KL divergence at dose 1 is the one given there. With
    # nothing to change, the kept ones are the target, and cannot be the other curve too.
    kept = [prompt for prompt, _ in work.should_stay] if work.wanted else []
    result = analysis.dose(
        work.bridge,
        work.reft,
        work.wanted or work.kept,
        kept=kept,
        n_control=_N_CONTROL,
        batch_size=work.config.batch_size,
        seed=work.config.seed,
    )
    return {"dose": result}


def _draw_works(found: Found) -> Section | None:
    wanted = found.outcomes_of("new answer")
    if not wanted:
        return None
    return Section(
        WORKS.heading,
        (
            "Right: the most likely next token begins the expected answer. Control: the same edit turned to random directions "
            "(one draw). These are the examples that the base answers otherwise.",
        ),
        (
            picture(
                "outcomes",
                plot.outcomes(wanted),
                "Bars: the part of the prompts answered as wanted, by the base, by the edited model and by the control, the same edit turned to random directions.",
                wanted,
            ),
        ),
        (("Examples that should change", table([outcomes_to_dataframe(wanted)])),),
    )


def _draw_dose(found: Found) -> Section | None:
    if found.dose is None:
        return None
    dose = found.dose
    return Section(
        DOSE.heading,
        (
            f"At dose 0, the log-probability of the wanted answer rises by {dose.slope:.2g} nats per unit of dose; with random "
            f"directions (mean of {dose.n_control} draws) by {dose.control_slope:.2g}. Above the straight line, the edit does more than its "
            "small-dose effect scaled up. Below it near 0, the probability is simply close to 1.",
            f"KL divergence: on the {dose.n_kept} prompts of 'What else changes?'.",
        ),
        tables=(("Each dose", table([dose.to_dataframe()])),),
        doses=(("The wanted answer, and what else moves, against the dose", dose),),
    )


def cost_outcome(batches: float) -> Spent:
    """Returns the cost of `outcomes` for so many batches: base, edit and control side by side."""
    return Spent(cones=batches, variants=3 * batches)


def _cost_dose(sizes: Sizes) -> Spent:
    edits, answered, kept = 1 + _N_CONTROL, sizes.wanted * sizes.batches, (1 - sizes.wanted) * sizes.batches
    if not answered:
        answered, kept = kept, 0.0
    # The slope of each edit is one more run, and a backward one.
    return Spent(
        cones=answered + kept,
        variants=answered * edits * (len(ALPHAS) + 1 + BACKWARD) + kept * (1 + edits * len(ALPHAS)),
    )


WORKS = Part(
    name="works",
    heading="Does it work?",
    compute=lambda work: outcomes(work, kept=False),
    cost=lambda sizes: cost_outcome(sizes.wanted * sizes.batches),
    draw=_draw_works,
    preset="quick",
)
DOSE = Part(
    name="dose", heading="What if the edit is scaled?", compute=_dose, cost=_cost_dose, draw=_draw_dose, preset="quick"
)
