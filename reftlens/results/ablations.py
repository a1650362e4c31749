"""What each site of an edit contributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """The effect of an edit divided up among its sites. Effects are means over examples, edited minus base."""

    whole: float
    """The effect of the whole edit, in the metric's unit."""
    sites: tuple[str, ...]
    alone: Float[Tensor, " site"]
    """The effect of this site alone."""
    left_out: Float[Tensor, " site"]
    """What is lost when this site is left out: the whole effect minus that of all other sites."""
    shapley: Float[Tensor, " site"]
    """Shapley values: what a site adds, mean over all orders in which sites can be added. They sum to the whole."""
    low: Float[Tensor, " site"]
    """Lower end of the Shapley values' 95% interval over sampled orders; the value itself where all orders are counted."""
    high: Float[Tensor, " site"]
    """The upper end."""
    interaction: Float[Tensor, "site site"]
    """whole - (without i) - (without j) + (without both): below zero, one site stands in for the other; above, each
    needs the other. NaN on the diagonal."""
    control: Float[Tensor, " site"]
    """The effect of this site alone, its changes turned to random directions; mean over draws."""
    exact: bool
    """Whether Shapley values count every order, or sampled ones."""
    n_examples: int

    def headline(self) -> str:
        parts = ", ".join(f"{value:.3g}" for value in self.shapley.tolist()[:6]) + ", ..." * (len(self.sites) > 6)
        kind = "exact" if self.exact else "sampled"
        return (
            f"effect {self.whole:.3g} of {len(self.sites)} sites, {self.n_examples} examples; Shapley ({kind}) {parts}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site."""
        columns = {
            "alone": self.alone,
            "left out": self.left_out,
            "shapley": self.shapley,
            "low": self.low,
            "high": self.high,
            "control alone": self.control,
        }
        table = pd.DataFrame(torch.stack(list(columns.values()), dim=1).tolist(), columns=list(columns))
        table.insert(0, "site", list(self.sites))
        return table
