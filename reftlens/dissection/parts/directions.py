"""How many directions does it use? The edit as an operator on real inputs, and the terms that its changes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from reftlens import analysis, plot
from reftlens.analysis.identify import identify_runs
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.interventions import NotAffineError
from reftlens.plot.page import Picture, Section
from reftlens.results import Operator

_N_UNTRAINED = 5
"""Number of initialisations of the untrained edit: one alone would have no spread."""


def _directions(work: Work) -> dict[str, Any]:
    config = work.config
    operators = tuple(analysis.decompose(work.bridge, work.reft, work.batches, at=config.at))
    try:
        fresh = [
            tuple(analysis.decompose(work.bridge, analysis.untrained(work.reft, seed=seed), work.batches, at=config.at))
            for seed in range(config.seed, config.seed + _N_UNTRAINED)
        ]
    except ValueError as error:
        # An edit that is the identity at initialisation has nothing to decompose.
        work.left_out.append(("directions: the untrained edit", str(error)))
        return {"operators": operators, "untrained": ()}
    ranks = tuple(tuple(operator.effective_rank for operator in site) for site in zip(*fresh, strict=True))
    return {"operators": operators, "untrained": fresh[0], "untrained_ranks": ranks}


def _identified(work: Work) -> dict[str, Any]:
    """Prompts alone, because what a person asks of an edit is its next token."""
    config = work.config
    prompts = [prompt for prompt, _ in work.examples][: config.n_identified]
    try:
        found = analysis.identify(
            work.bridge,
            work.reft,
            prompts,
            at=config.at,
            toward=_random_direction(work),
            n_walked=config.directions,
            batch_size=config.batch_size,
            seed=config.seed,
        )
    except NotAffineError as error:
        work.left_out.append(("identified", str(error)))
        return {}
    return {"identified": found}


def _random_direction(work: Work) -> dict[str, torch.Tensor]:
    """A direction that has nothing to do with the outputs, towards which directions are turned for comparison."""
    widths = {intervention.d_model for _, intervention in work.reft}
    if len(widths) > 1:
        return {}
    generator = torch.Generator().manual_seed(work.config.seed)
    return {"random": torch.randn(*widths, generator=generator)}


def _terms(work: Work) -> dict[str, Any]:
    prompt = (work.wanted or work.kept)[0][0]
    found: dict[str, Any] = {"sizes": analysis.edit_size(work.bridge, work.reft, prompt)}
    try:
        found["ledger"] = analysis.ledger(work.bridge, work.reft, prompt)
    except NotAffineError as error:
        work.left_out.append(("terms: erased, constant, from the input", str(error)))
    return found


def _draw_directions(found: Found) -> Section | None:
    if not found.operators:
        return None
    ranges = found.untrained_ranks or ((),) * len(found.operators)
    lines = [
        _line(operator, fresh, draws) for (operator, fresh), draws in zip(found.beside_untrained(), ranges, strict=True)
    ]
    return Section(
        DIRECTIONS.heading,
        (
            "The edit's rank is what it may use. What it does use is the spectrum of its changes on real inputs; R and W are "
            "known only up to a change of coordinates and say nothing by themselves. A constant push, the same for every input, "
            "counts in the effective rank of the whole, and may hide how many directions depend on the input: both are given. "
            "Beside each: the same edit with fresh weights, on the same inputs, which has a low effective rank too. A few "
            "initialisations show how far it varies; they are too few for a test.",
        ),
        (
            picture(
                "spectrum",
                plot.spectrum(found.operators, null=found.untrained, identified=found.identified_sites),
                "Bars: how far the edit moves activations along each write direction, strongest first. Dashed lines: the same edit with fresh weights, the control.",
                found.operators,
            ),
        ),
        (
            ("Each site, trained and untrained", table([pd.DataFrame(lines)])),
            ("Each write direction", table([_directions_table(found)])),
        ),
    )


def _directions_table(found: Found) -> pd.DataFrame:
    """One row per write direction."""
    frame = pd.concat([operator.to_dataframe() for operator in found.operators], ignore_index=True)
    return found.with_identified(frame, "write", "read")


def _draw_identified(found: Found) -> Section | None:
    identified = found.identified
    if identified is None:
        return None
    sites = [site.to_dataframe() for site in identified.sites]
    if len(sites) == 1:
        sites = [sites[0].drop(columns="traded")]
    return Section(
        IDENTIFIED.heading,
        (
            f"Other edits may do the same with other directions. Each direction is turned until the outputs move by "
            f"{identified.eps:g} nats, on {identified.n_prompts} prompts; the same turn on {identified.n_held_out} held-out "
            "prompts stands beside it. It is turned toward where outputs change soonest, toward where they change latest, and "
            "toward one random direction. These angles are walked: the real KL divergence of the turned edit is measured. The "
            "counts of dimensions are local: they come from the quadratic form of small changes, with axes from one half of "
            "the prompts and values from the other.",
        ),
        (),
        (
            ("How far the directions may turn", table([identified.to_dataframe()])),
            ("Dimensions in which each direction is identified (local)", table(sites)),
        ),
    )


def _line(operator: Operator, fresh: Operator | None, draws: Sequence[float]) -> dict[str, object]:
    nan = float("nan")
    size = float(operator.spectrum.square().sum().sqrt()) / operator.rms_norm
    return {
        "site": operator.where,
        "effective_rank": operator.effective_rank,
        "effective_rank_untrained": nan if fresh is None else fresh.effective_rank,
        "effective_rank_untrained_low": min(draws, default=nan),
        "effective_rank_untrained_high": max(draws, default=nan),
        "input_rank": operator.input_rank,
        "input_rank_untrained": nan if fresh is None else fresh.input_rank,
        "rank_99": operator.rank_for(0.99),
        "relative_change": size,
        "relative_change_untrained": nan
        if fresh is None
        else float(fresh.spectrum.square().sum().sqrt()) / operator.rms_norm,
    }


def _draw_terms(found: Found) -> Section | None:
    if found.sizes is None:
        return None
    pictures: list[Picture] = []
    tables: list[tuple[str, pd.DataFrame]] = []
    if found.ledger is not None:
        pictures.append(
            picture(
                "ledger",
                plot.ledger(found.ledger),
                "Above: the length of each term at each token, and of their sum (line). Below: the cosine of each two terms, with a grey band for random directions: -1 if they cancel, 1 if they add.",
                [found.ledger],
            )
        )
        tables.append(("The terms at each edited token", table([found.ledger.to_dataframe()])))
    return Section(
        TERMS.heading,
        (
            "The change of a token is the sum of three terms: what is erased, what is written always, and what is written "
            "from the input. They share a space and can cancel, so none is a share of the whole. Random cosine: what two "
            "unrelated terms have in that space.",
        ),
        tuple(pictures),
        tuple(tables),
        (("Size of the edit at each token of one example", found.sizes),),
    )


def _cost_directions(sizes: Sizes) -> Spent:
    # The edit, and its untrained copies.
    return Spent(cones=(1 + _N_UNTRAINED) * sizes.batches * sizes.span, bytes_held=8 * sizes.width**2 * sizes.sites)


def _cost_identified(sizes: Sizes) -> Spent:
    config = sizes.config
    batches = min(config.n_identified, sizes.examples) / config.batch_size
    alone, together = identify_runs(config.directions, n_toward=1)
    # And the base runs, which are shared by all that follows.
    return Spent(batches, batches * alone, batches * together, bytes_held=8 * sizes.width**2)


DIRECTIONS = Part(
    name="directions",
    heading="How many directions does it use?",
    compute=_directions,
    cost=_cost_directions,
    draw=_draw_directions,
    preset="quick",
)
IDENTIFIED = Part(
    name="identified",
    heading="How far are the directions determined?",
    compute=_identified,
    cost=_cost_identified,
    draw=_draw_identified,
    preset="quick",
)
TERMS = Part(
    name="terms",
    heading="Which terms is each change made of?",
    compute=_terms,
    # One prompt, for its sizes and for its terms.
    cost=lambda sizes: Spent(2 / sizes.config.batch_size),
    draw=_draw_terms,
    preset="quick",
)
