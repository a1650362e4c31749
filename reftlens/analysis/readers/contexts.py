"""Top contexts: at which tokens of the prompts is a read direction largest? As `top_contexts`, with p.

The score is the reading in standard deviations from its mean over all edited tokens. Only large
positive readings count: there the edit moves furthest along its write direction. The null is the
largest z of random linear readings of the same activations.

Not evidence of a meaning: contexts are the extremes of a reading, not its typical values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.vectors import Case, Kind, Look
from reftlens.analysis.top_contexts import Readings, named_context, seen_by

KINDS: tuple[Kind, ...] = ("read",)


def contexts(case: Case, looks: Sequence[Look]) -> list[Scored]:
    """Finds the tokens with the largest readings.

    Args:
        case: the edit.
        looks: its read directions.
    """
    mine = [look for look in looks if look.kind in KINDS]
    # No null of its own: the random readings are rows of the look, beside the edit's.
    readings = [Readings(look.vectors[:, 0], case.top, 0) for look in mine]
    seen_in = seen_by(case.bridge, case.reft, case.batches, at=case.at)
    for index, (batch, seen) in enumerate(zip(case.batches, seen_in, strict=True)):
        for look, reading in zip(mine, readings, strict=True):
            h, places = seen[look.place]
            # The batch's index goes before (row, position), so that a place can be found again.
            reading.add(h, torch.nn.functional.pad(places, (1, 0), value=index), batch)
    return [_read(case, look, reading) for look, reading in zip(mine, readings, strict=True)]


def _read(case: Case, look: Look, reading: Readings) -> Scored:
    z, places = reading.largest()
    own: Float[Tensor, " top"] = z[0]
    found = [
        named_context(case.bridge, case.batches, place, float(value))
        for place, value in zip(places[0].tolist(), own, strict=True)
    ]
    return Scored(
        "contexts",
        look,
        tuple(context.marked() for context in found),
        tuple(own.tolist()),
        tuple(own.tolist()),
        z[:, 0],
        len(reading.seen),
        "standard deviations",
        two_sided=False,
    )
