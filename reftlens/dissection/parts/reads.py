"""What do its directions read and write? Tokens, examples, subspaces of the activations, and one plane of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reftlens import analysis, plot
from reftlens.analysis.engine.activations import edited_in
from reftlens.data import first_tokens
from reftlens.dissection.found import Found
from reftlens.dissection.parts.part import Part, Sizes, Spent, picture, table
from reftlens.dissection.work import Work
from reftlens.plot.page import Picture, Section
from reftlens.plot.readout import TWO_QUESTIONS
from reftlens.results import DirectionReadout, Operator, Overlap

_READ_OUT = 8
"""Number of prompts whose last residuals the write directions are added to."""


def _reads(work: Work) -> dict[str, Any]:
    config, pairs = work.config, work.wanted or work.kept
    prompts = [prompt for prompt, _ in pairs[:_READ_OUT]]
    readable = []
    for operator in work.operators:
        if operator.write.shape[1] != work.bridge.cfg.d_model:
            work.left_out.append((f"reads: writes at {operator.where}", "it is not as wide as the residual stream"))
            continue
        readable.append(_strongest(operator, config.directions))
    readouts: list[DirectionReadout] = []
    try:
        readouts = analysis.read_directions(
            work.bridge, readable, prompts, watch=_watched(work), n_null=config.n_null, seed=config.seed
        )
    except ValueError as error:
        work.left_out.append(("reads: writes", str(error)))
    contexts = analysis.top_contexts(
        work.bridge,
        work.reft,
        work.operators,
        work.batches,
        at=config.at,
        directions=config.directions,
        n_null=config.n_null,
        seed=config.seed,
    )
    return {"readouts": tuple(readouts), "contexts": tuple(contexts)}


def _watched(work: Work) -> list[str]:
    """Returns up to four wanted answers that begin with different tokens."""
    pairs = work.wanted or work.kept
    # Reversed, because the last one stays: the first prompt with each answer.
    asked = {answer: prompt for prompt, answer in reversed(pairs)}
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    tokens = first_tokens(work.bridge, [asked[answer] for answer in answers], answers).tolist()
    return [answer for place, answer in enumerate(answers) if tokens[place] not in tokens[:place]][:4]


def _strongest(operator: Operator, n: int) -> Operator:
    """Keeps only the first n directions of a result."""
    return replace(
        operator,
        write=operator.write[:n],
        read=operator.read[:n],
        constant=operator.constant[:n],
        spectrum=operator.spectrum[:n],
        constant_share=operator.constant_share[:n],
        pattern=operator.pattern[:n],
        # A spectrum of the whole edit, which does not describe some of its directions.
        input_spectrum=None,
    )


def _overlaps(work: Work) -> dict[str, Any]:
    """Compares write directions with the largest activation directions and with class differences."""
    from transformer_lens.tools.analysis.interchange import mean_difference_basis

    results: list[Overlap] = []
    for index, operator in enumerate(work.operators):
        h, rows = _one_for_each(work, index)
        written = analysis.directions(operator, work.rank(operator))
        centred = (h - h.mean(dim=0)).double()
        if float(centred.norm()) < 1e-5 * float(h.norm()):
            why = "the activations at the last edited token are alike in all prompts"
            work.left_out.append((f"overlaps at {operator.where}", why))
            continue
        _, _, principal = torch.linalg.svd(centred, full_matrices=False)
        others = {"largest directions of the activations": principal[: len(written)]}
        labels = ["kept" if work.right[row] else "wanted" for row in rows]
        if len(set(labels)) == 2:
            others["difference of wanted and kept prompts"] = mean_difference_basis(h, labels).T
        nulls = {"Haar": analysis.haar(h.shape[1]), "covariance-matched": analysis.covariance_matched(h)}
        results += [
            analysis.overlap(
                written,
                other,
                nulls=nulls,
                n_null=work.config.n_null,
                names=(f"{operator.where}, {len(written)} write direction{'s' * (len(written) > 1)}", name),
                seed=work.config.seed,
            )
            for name, other in others.items()
        ]
    return {"overlaps": tuple(results)}


def _one_for_each(work: Work, index: int) -> tuple[Tensor, list[int]]:
    """Returns the base's activation at the last edited token of each prompt, and the index of its prompt."""
    states, rows = [], []
    # Scaled to 0, the edit changes nothing and still says which tokens are its own.
    for number, sites in enumerate(edited_in(work.bridge, work.reft.scaled(0.0), work.batches)):
        edit, h = sites[index]
        row = edit.mask.nonzero()[:, 0].cpu()
        # Rows come in order, so the last token of each is followed by another row's.
        last = torch.cat([row[1:] != row[:-1], torch.ones(1, dtype=torch.bool)])
        states.append(h.float().cpu()[last])
        rows += (row[last] + number * work.config.batch_size).tolist()
    return torch.cat(states), rows


def _plane(work: Work) -> dict[str, Any]:
    n = work.config.n_mapped
    groups = {
        name: [p for p, _ in pairs[:n]] for name, pairs in (("wanted", work.wanted), ("kept", work.kept)) if pairs
    }
    found = analysis.project(work.bridge, work.reft, groups, at=work.config.at, seed=work.config.seed)
    return {"projections": tuple(found)}


def _draw_reads(found: Found) -> Section | None:
    if not found.readouts and not found.contexts:
        return None
    drawn: tuple[Picture, ...] = ()
    tables: list[tuple[str, pd.DataFrame]] = []
    if found.readouts:
        drawn = (
            picture(
                "readout",
                plot.readout(found.readouts, identified=found.identified_sites),
                "The tokens whose logits each write direction raises and lowers most, by the direct path. Grey bars stay inside the band that random directions reach.",
                found.readouts,
            ),
        )
        watched = _joined(found, "write", [readout.watched_to_dataframe() for readout in found.readouts])
        tables.append((f"Wanted answers. {TWO_QUESTIONS}", watched))
    if found.contexts:
        contexts = _joined(found, "read", [item.to_dataframe() for item in found.contexts])
        tables.append(("Tokens (in brackets) that move furthest along each direction", contexts))
    return Section(
        READS.heading,
        (
            "A write direction is added to real last residuals and read through the final norm and the unembedding: the "
            "direct path alone. A reading is in standard deviations. Random readings reach the 95th percentile, over random "
            "directions, of the largest reading that each has at the same tokens.",
        ),
        drawn,
        tuple(tables),
    )


def _joined(found: Found, kind: str, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of all directions, with how far each is identified."""
    return table([found.with_identified(pd.concat(frames, ignore_index=True), kind)])


def _draw_overlaps(found: Found) -> Section | None:
    if not found.overlaps:
        return None
    return Section(
        OVERLAPS.heading,
        (
            "Overlap: mean squared cosine of the principal angles. A random subspace (Haar) is the weaker null: activations "
            "are long in few directions, and whatever follows them overlaps. The covariance-matched null follows them too.",
        ),
        (
            picture(
                "overlaps",
                plot.overlap(found.overlaps),
                "Orange lines: the measured overlaps. Bars: where 90% of random subspaces lie, for each of the two nulls.",
                found.overlaps,
            ),
        ),
        (("Each overlap with its nulls", table([item.to_dataframe() for item in found.overlaps])),),
    )


def _draw_plane(found: Found) -> Section | None:
    if not found.projections:
        return None
    return Section(
        PLANE.heading,
        (
            "Each edited token before and after the edit, along the two write directions in which it moves furthest. A large "
            "move is expected in a plane that was chosen so. Control: changes of the same length in random directions.",
        ),
        (
            picture(
                "plane",
                plot.projection(found.projections),
                "Each line leads from a token before the edit (open mark) to the same token after it (filled mark). Crosses: the control.",
                found.projections,
            ),
        ),
        (("Each edited token", table([item.to_dataframe() for item in found.projections])),),
        planes=tuple((item.where, item) for item in found.projections),
    )


def _cost_reads(sizes: Sizes) -> Spent:
    # Logits are linear behind the final norm, so the prompts of a direction are read together.
    readouts = sizes.sites * sizes.config.directions * (sizes.config.n_null + 1)
    # top_contexts goes over the examples twice.
    return Spent(cones=2 * sizes.batches * sizes.span, readouts=readouts, bytes_held=8 * sizes.width**2)


READS = Part(
    name="reads",
    heading="What do its directions read and write?",
    compute=_reads,
    cost=_cost_reads,
    draw=_draw_reads,
    preset="quick",
    needs=("directions",),
)
OVERLAPS = Part(
    name="overlaps",
    heading="Do its directions overlap with those of the activations?",
    compute=_overlaps,
    cost=lambda sizes: Spent(cones=sizes.sites * sizes.batches * sizes.span),
    draw=_draw_overlaps,
    preset="quick",
    needs=("directions",),
)
PLANE = Part(
    name="plane",
    heading="How do edited tokens move in its plane?",
    compute=_plane,
    cost=lambda sizes: Spent(sizes.mapped, cones=4 * sizes.mapped * sizes.span),
    draw=_draw_plane,
)
