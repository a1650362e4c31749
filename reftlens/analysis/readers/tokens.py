"""Methods that give every token of the vocabulary a score: the furthest tokens, and the furthest score of each random set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.looks import Case, Look
from reftlens.data import str_tokens

SETS = 64
"""Sets that are scored at a time: the scores of all tokens for all sets would not fit beside a large vocabulary."""

Score = Callable[[Float[Tensor, "set token d_model"]], Float[Tensor, "set d_vocab"]]


def scored_tokens(case: Case, method: str, look: Look, score: Score) -> Scored:
    """Scores the vectors of a look.

    Args:
        case: gives the tokenizer, and the number of tokens to name.
        method: its name.
        look: the vectors.
        score: gives the change of every token's logit.
    """
    (own,) = score(look.vectors[:1])
    furthest = torch.cat([own.abs().amax()[None], *(score(s).abs().amax(dim=1) for s in look.vectors[1:].split(SETS))])
    chosen = own.abs().topk(min(case.top, len(own))).indices
    names = str_tokens(case.bridge, chosen)
    return Scored(method, look, names, tuple(own[chosen].tolist()), furthest, len(own), "change of the logit")


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
