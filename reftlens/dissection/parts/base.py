"""Does the base model represent the answer along the edit's directions? Interchanges inside the edit's directions, in the unedited model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from reftlens import analysis, plot
from reftlens.analysis.engine.pathways import PROBES
from reftlens.bridge import side_for_ends
from reftlens.data import Batch, encode
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.edit.site import Site
from reftlens.plot.cells import interchanges
from reftlens.plot.page import Section
from reftlens.positions import Last
from reftlens.results import Interchanged, Operator, ReadSpace

_PATHWAYS = 4
"""Number of runs with gradients in one interchange."""
_ALGEBRA = 10.0
"""Decompositions of the read space and of the gradients of one interchange, in eigendecompositions."""


def _interchanges(work: Work) -> dict[str, Any]:
    prompts = [prompt for prompt, _ in work.examples][: work.config.n_pairs]
    side = side_for_ends(work.bridge)
    # The source of each prompt is the next one; interchange leaves out pairs with one answer.
    base, source = (encode(work.bridge, texts, padding_side=side) for texts in (prompts, prompts[1:] + prompts[:1]))
    # The read space is found from one batch of them, which limits the memory of its graph.
    some = encode(work.bridge, prompts[: work.config.batch_size], padding_side=side)
    spaces: list[ReadSpace] = []
    results: list[Interchanged] = []
    sites: list[tuple[Operator, Site]] = []
    for index, (operator, site) in enumerate(zip(work.operators, work.reft.sites, strict=True)):
        what = f"base at {operator.where}"
        if site.head is not None or operator.write.shape[1] != work.bridge.cfg.d_model:
            work.left_out.append((what, "only whole activations as wide as the residual stream are interchanged"))
        elif not bool((work.reft.edits(base)[index].mask & Last(1).mask(base.prompts)).any()):
            work.left_out.append((what, "it does not edit the last token of the prompt"))
        else:
            sites.append((operator, site))
    reads = analysis.read_spaces(work.bridge, [site.hook_name for _, site in sites], some, seed=work.config.seed)
    for (operator, _), read in zip(sites, reads, strict=True):
        try:
            results.append(replace(_interchange(work, operator, base, source), site=operator.site))
            spaces.append(replace(read, site=operator.site))
        except ValueError as error:
            work.left_out.append((f"base at {operator.where}", str(error)))
    return {"interchanges": tuple(results), "read_spaces": tuple(spaces)}


def _interchange(work: Work, operator: Operator, base: Batch, source: Batch) -> Interchanged:
    return analysis.interchange(
        work.bridge,
        operator.hook_name,
        analysis.directions(operator, work.rank(operator)),
        base,
        source,
        n_random=work.config.n_random,
        n_placebo=work.config.n_random,
        batch_size=work.config.batch_size,
        seed=work.config.seed,
    )


def _draw(found: Found) -> Section | None:
    if not found.interchanges:
        return None
    shares = [
        {
            "site": space.where,
            "direction": index,
            "read_share": float(share),
            "random_share": len(space.basis) / operator.write.shape[1],
        }
        for space in found.read_spaces
        for operator in found.operators
        if operator.where == space.where
        for index, share in enumerate(space.split(operator.write))
    ]
    return Section(
        BASE.heading,
        (
            "In the unedited model, a source prompt's coordinates inside the edit's strongest write directions are put into "
            "a base prompt, at its last token. A subspace is illusory if most of the move comes from a difference that nothing "
            "reads and passes through units that are dormant otherwise (Makelov et al. 2023). Where a direction made to be "
            "illusory at this point would not be found either, the verdict is 'no power'. An "
            "edit may well write where the base keeps nothing.",
        ),
        (
            picture(
                "interchange",
                plot.interchange(found.interchanges),
                "How far each interchange moves the answer, from the base prompt's (0) to the source's (1). Short lines: single random subspaces and placebos.",
                found.interchanges,
            ),
        ),
        (
            ("Each interchange", table([item.to_dataframe() for item in found.interchanges])),
            (
                "Write directions, by what the next-token logits depend on",
                table([found.with_identified(pd.DataFrame(shares), "write")]),
            ),
        ),
        maps=(("Each interchange, and each pair of prompts", interchanges(found.interchanges)),),
    )


def _cost(sizes: Sizes) -> Spent:
    config = sizes.config
    pairs = min(config.n_pairs, sizes.examples)
    batches = pairs / config.batch_size
    # Two gradients for each coordinate, from the prompts of one batch. One backward run gives those
    # of all sites.
    rows = min(config.n_pairs, config.batch_size, sizes.examples)
    read_space = 2 * sizes.width / config.batch_size * max(1.0, config.batch_size / rows / 2)
    # The whole activations, those inside the subspace in four ways, and the controls; base and
    # source before them.
    moves = 7 + 2 * config.n_random
    sites = sizes.sites * sizes.depth * batches
    return Spent(
        # Cones are cut for base, source, swaps, and two sets of runs with gradients.
        cones=5 * sizes.sites * batches,
        swaps=sites * (moves + _PATHWAYS) + 1,
        gradients=sites * _PATHWAYS * (1 + PROBES) + read_space,
        algebra=_ALGEBRA * sizes.sites,
        bytes_held=8 * 2 * sizes.width**2,
    )


BASE = Part(
    name="base",
    heading="Does the base model represent the answer along these directions?",
    compute=_interchanges,
    cost=_cost,
    draw=_draw,
    preset="quick",
    needs=("directions",),
)
