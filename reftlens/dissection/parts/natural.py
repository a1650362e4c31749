"""How natural are the edited states? Their place among unedited activations of other prompts."""

from __future__ import annotations

from typing import Any

from reftlens import analysis, plot
from reftlens.bridge import side_for_ends
from reftlens.data import as_batches
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.page import Section


def _manifolds(work: Work) -> dict[str, Any]:
    batches = work.batches
    # off_manifold fits on a third of the batches, compares with another and tests on the last.
    thirds = [sum(map(len, batches[part::3])) for part in range(3)]
    if min(thirds) < max(thirds) / 2:
        # A short last batch would leave few prompts to test, or none.
        third = -(-len(work.examples) // 3)
        prompts = [prompt for prompt, _ in work.examples]
        batches = as_batches(work.bridge, prompts, batch_size=third, padding_side=side_for_ends(work.bridge))
    return {"manifolds": tuple(analysis.off_manifold(work.bridge, work.reft, batches, seed=work.config.seed))}


def _draw(found: Found) -> Section | None:
    if not found.manifolds:
        return None
    return Section(
        NATURAL.heading,
        (
            "Natural activations of held-out prompts should have 5% beyond the 95th percentile. If they do not, compare edited ones "
            "with them and not with 5%; if they have far more, neither number counts. An unusual activation is no harm by itself: no later layer may read what is unusual in it.",
        ),
        (
            picture(
                "off_manifold",
                plot.off_manifold(found.manifolds),
                "Each curve: the part of tokens up to each percentile of natural activations. The lower the curve, the further the activations are from natural ones.",
                found.manifolds,
            ),
        ),
        (("Each site", table([item.to_dataframe() for item in found.manifolds])),),
    )


def _cost(sizes: Sizes) -> Spent:
    # A third of the prompts runs once, a third twice, and a third four times. The covariances are
    # factored.
    return Spent(
        cones=7 / 3 * sizes.batches * sizes.span,
        algebra=0.2 * sizes.sites,
        bytes_held=8 * sizes.width**2 * (sizes.sites + 1),
    )


NATURAL = Part(
    name="natural",
    heading="How natural are the edited states?",
    compute=_manifolds,
    cost=_cost,
    draw=_draw,
    preset="quick",
)
