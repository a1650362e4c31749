"""Direct readout (logit lens): what would the vector do if nothing but the final norm and the unembedding read it?

A write direction is added to real last residuals, as in `read_directions`. For the change of real
tokens, the score is logits(h + delta) - logits(h) at the edited tokens, with their activations read
as if they were last residuals.

Not evidence of the path: later layers read the vector too. In early layers, activations are not in
the last layer's coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.tokens import likeliest, require_residual, scored_tokens
from reftlens.analysis.readers.vectors import Case, Kind, Look
from reftlens.bridge import mean_logit_changes, mean_logits

KINDS: tuple[Kind, ...] = ("write", "change")


def direct(case: Case, looks: Sequence[Look]) -> list[Scored]:
    """Reads vectors through the unembedding.

    Args:
        case: the edit.
        looks: its write directions and changes.

    Raises:
        ValueError: If a site does not write to the residual stream.
    """
    require_residual(case, "direct")
    return [_read(case, look) for look in looks if look.kind in KINDS]


def _read(case: Case, look: Look) -> Scored:
    def score(vectors: Float[Tensor, "set token d_model"]) -> Float[Tensor, "set d_vocab"]:
        if look.states is None:
            # A direction has no token of its own: real last residuals give the norm its scale.
            return mean_logit_changes(case.bridge, case.final, vectors[:, 0])
        return mean_logit_changes(case.bridge, look.states.to(case.final), vectors)

    found = scored_tokens(case, "direct", look, score)
    if look.states is None:
        return found
    states = {"without the edit": look.states, "with the edit": look.states + look.vectors[0]}
    return replace(
        found, states=tuple((name, likeliest(case, mean_logits(case.bridge, h))) for name, h in states.items())
    )
