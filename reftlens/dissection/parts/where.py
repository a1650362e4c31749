"""Where does it act? The effect of each site and token alone, of each site, and how far the change spreads."""

from __future__ import annotations

from typing import Any

from reftlens import analysis, plot
from reftlens.analysis.ablate import MOST_EXACT
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.page import Section

_N_CONTROL = 4
"""Number of random-direction controls of each map."""
_N_ORDERS = 200
"""Number of sampled orders of the sites, where not all subsets are run."""


def _effect(work: Work) -> dict[str, Any]:
    prompts, metric = work.mapped
    found = analysis.effect_map(
        work.bridge, work.reft, prompts, metric, n_control=_N_CONTROL, seed=work.config.seed, progress=False
    )
    return {"effect": found}


def _sites(work: Work) -> dict[str, Any]:
    prompts, metric = work.mapped
    found = analysis.ablate(
        work.bridge,
        work.reft,
        prompts,
        metric,
        n_orders=_N_ORDERS,
        n_control=_N_CONTROL,
        seed=work.config.seed,
        progress=False,
    )
    return {"ablation": found}


def _spread(work: Work) -> dict[str, Any]:
    prompts, _ = work.mapped
    found = analysis.spread(work.bridge, work.reft, prompts, n_control=_N_CONTROL, seed=work.config.seed)
    return {"spread": found}


def _draw_effect(found: Found) -> Section | None:
    if found.effect is None:
        return None
    return Section(
        WHERE.heading,
        (
            "The edit cut down to one site and one token at a time. Effect: how much the edit raises the wanted answer's logit "
            "relative to the base's own answer. Cells need not sum to 1: edits at two cells can help each other, or do the same "
            "work twice. Control: the same changes turned to random directions. Where prompts have different words, a column "
            "is a place in the prompt; choose one prompt to see its words.",
        ),
        tables=(("Each cell", table([found.effect.to_dataframe().dropna(subset="value")])),),
        maps=(("Each cell of the edit alone", found.effect),),
    )


def _draw_sites(found: Found) -> Section | None:
    if found.ablation is None:
        return None
    return Section(
        SITES.heading,
        (
            "Each site alone, the edit without it, and its Shapley value: what it adds, averaged over all orders of adding "
            "sites. The parts sum to the whole effect. A small part does not show that a site is idle: another may stand in for it.",
        ),
        (
            picture(
                "sites",
                plot.ablation(found.ablation),
                "Bars: the part of the effect that each site adds (its Shapley value). Marks: the effect of this site alone, the effect lost without it, and the control.",
                [found.ablation],
            ),
        ),
        (("Each site", table([found.ablation.to_dataframe()])),),
    )


def _draw_spread(found: Found) -> Section | None:
    if found.spread is None:
        return None
    return Section(
        SPREAD.heading,
        (
            "The residual stream of the edited run beside that of the base. A large distance is no effect: later layers do not "
            "read much of what an edit changes. Control: changes of the same length in random directions.",
        ),
        tables=(("Each layer and token", table([found.spread.to_dataframe()])),),
        maps=(
            ("Distance of the edited run from the base run", found.spread.distance),
            ("Prompts where the likeliest token changes, by the logit lens", found.spread.mind),
        ),
    )


def _cost_effect(sizes: Sizes) -> Spent:
    cells = sizes.sites * sizes.edited
    # Cells of later tokens run on fewer tokens, about half of the edit's cone, and those of later
    # sites on fewer layers.
    tokens = (1 + 1 / max(1.0, sizes.edited)) / 2
    return Spent(sizes.mapped, variants=sizes.mapped * (1 + _N_CONTROL) * (1 + cells * sizes.depth * tokens))


def _cost_sites(sizes: Sizes) -> Spent:
    # As `ablate` chooses: all subsets of a few sites, else those along sampled orders.
    sets = 2**sizes.sites if sizes.sites <= MOST_EXACT else _N_ORDERS * sizes.sites
    # The control: each site alone, and all together.
    return Spent(sizes.mapped, variants=sizes.mapped * (sets + _N_CONTROL * (sizes.sites + 1)) * sizes.depth)


def _cost_spread(sizes: Sizes) -> Spent:
    # The logit lens reads every state of the base, and the changed ones of each edited run.
    edited = 1 + _N_CONTROL
    states = (sizes.layers + 1) * sizes.tokens + edited * (sizes.behind + 1) * sizes.cone
    return Spent((1 + edited) * sizes.mapped, readouts=round(sizes.mapped * sizes.config.batch_size * states))


WHERE = Part(
    name="where", heading="Where does it act?", compute=_effect, cost=_cost_effect, draw=_draw_effect, preset="quick"
)
SITES = Part(
    name="sites",
    heading="Which sites does it need?",
    compute=_sites,
    cost=_cost_sites,
    draw=_draw_sites,
    preset="quick",
)
SPREAD = Part(
    name="spread",
    heading="How far does the change spread?",
    compute=_spread,
    cost=_cost_spread,
    draw=_draw_spread,
)
