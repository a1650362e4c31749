"""Methods that give every token of the vocabulary a reading: the largest readings, and the furthest score of each random set.

The tokens with the largest readings are named, and the one with the furthest score, in the last
place (of one name, the only place). A token's score is its reading over the root mean square of the
same token over all sets, the edit's own included. Without that, the few tokens that any vector
moves far would hide all others.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.vectors import Case, Look
from reftlens.data import str_tokens

SETS = 64
"""Sets that are read at a time."""

Score = Callable[[Float[Tensor, "set token d_model"]], Float[Tensor, "set d_vocab"]]


def scored_tokens(case: Case, method: str, look: Look, score: Score) -> Scored:
    """Scores the vectors of a look.

    Args:
        case: gives the tokenizer, and the number of tokens to name.
        method: its name.
        look: the vectors.
        score: gives the change of every token's logit, `[set, d_vocab]`.
    """
    readings = torch.cat([score(some) for some in look.vectors.split(SETS)])
    scores = readings / readings.square().mean(dim=0).sqrt().clamp(min=1e-30)
    chosen = readings[0].abs().topk(min(case.top, readings.shape[1])).indices
    furthest = scores[0].abs().argmax()
    if furthest not in chosen:
        chosen[-1] = furthest
    return Scored(
        method,
        look,
        str_tokens(case.bridge, chosen),
        tuple(readings[0, chosen].tolist()),
        tuple(scores[0, chosen].tolist()),
        scores.abs().amax(dim=1),
        readings.shape[1],
        "change of the logit",
    )


def likeliest(case: Case, logits: Float[Tensor, " d_vocab"]) -> tuple[str, ...]:
    """Returns the tokens with the largest logits.

    Args:
        case: gives the tokenizer, and the number of tokens to name.
        logits: of every token.
    """
    return str_tokens(case.bridge, logits.topk(min(case.top, len(logits))).indices)


def require_residual(case: Case, method: str) -> None:
    """Raises ValueError unless every site has the width of the residual stream, and is not a head."""
    width = case.bridge.cfg.d_model
    for site, operator in zip(case.reft.sites, case.operators, strict=True):
        if site.head is not None or operator.write.shape[1] != width:
            raise ValueError(
                f"{method} reads vectors of the residual stream, of width {width}, but those of {operator.where} have width "
                f"{operator.write.shape[1]}: leave out this method, or this site"
            )
