"""What the change of each token is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result

TERMS = ("erase", "write constant", "write from input")
"""-E^T E h, c, and the rest of A h: three terms that sum to the change."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ledger(Result):
    """The three terms of an edit at each token of one text. They can cancel, so none of them is a share of the change."""

    gram: Float[Tensor, "rows pos term term"]
    """Inner products of the terms, in the order of `TERMS`; NaN at tokens that the site does not edit."""
    norm: Float[Tensor, "rows pos"]
    """Length of the activation before the edit; NaN where nothing is edited."""
    change: Float[Tensor, "rows pos"]
    """Length of the change as the run made it."""
    gap: Float[Tensor, " rows"]
    """Largest |sum of terms - change| / |change|: rounding, and nothing else."""
    null_cosine: Float[Tensor, " rows"]
    """Root-mean-square cosine of random directions in the space that the site writes to, 1 / sqrt(its dimension): terms
    share that space, so a cosine of this size is what chance gives."""
    rows: tuple[str, ...]
    tokens: tuple[str, ...]
    starred: tuple[bool, ...]
    """Whether a position belongs to the subject."""

    @property
    def length(self) -> Float[Tensor, "rows pos term"]:
        """Of each term."""
        return self.gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()

    @property
    def cosine(self) -> Float[Tensor, "rows pos term term"]:
        """Between terms; NaN where one of them is zero."""
        length = self.length
        return self.gram / (length[..., :, None] * length[..., None, :])

    def headline(self) -> str:
        edited = int((~torch.isnan(self.norm)).sum())
        return (
            f"{', '.join(TERMS)} of {edited} edited tokens at {len(self.rows)} sites; gap {float(self.gap.max()):.1g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each edited token of each site: lengths, cosines, and the cosine that chance gives."""
        edited = ~torch.isnan(self.norm)
        length, cosine = self.length, self.cosine
        lines = [
            {
                "site": self.rows[r],
                "position": p,
                "token": self.tokens[p],
                "subject": self.starred[p],
                **{term: float(length[r, p, t]) for t, term in enumerate(TERMS)},
                "change": float(self.change[r, p]),
                "activation": float(self.norm[r, p]),
                "cos(erase, constant)": float(cosine[r, p, 0, 1]),
                "cos(erase, from input)": float(cosine[r, p, 0, 2]),
                "cos(constant, from input)": float(cosine[r, p, 1, 2]),
                "random cosine": float(self.null_cosine[r]),
            }
            for r, p in edited.nonzero().tolist()
        ]
        return pd.DataFrame(lines)
