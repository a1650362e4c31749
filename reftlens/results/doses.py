"""What more and less of an edit does."""

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
class Dose(Result):
    """The model under h + alpha * delta(h), for a range of alpha."""

    alpha: Float[Tensor, " dose"]
    target: Float[Tensor, " dose"]
    """Mean log-probability of the wanted answer's first token, in nats."""
    kl: Float[Tensor, " dose"]
    """Mean KL divergence base to edited on prompts that should stay, in nats; NaN where none were given."""
    control_target: Float[Tensor, " dose"]
    """The target under the same edit turned to random directions, mean over draws."""
    control_kl: Float[Tensor, " dose"]
    slope: float
    """d target / d alpha at alpha = 0, by differentiation: what the edit does where the model is still linear in it."""
    control_slope: float
    n_target: int
    n_kept: int
    n_control: int
    """Draws of random directions."""

    def headline(self) -> str:
        reach = f"alpha {float(self.alpha.min()):g} to {float(self.alpha.max()):g}" if len(self.alpha) else "no alpha"
        return (
            f"{reach}; {self.n_target} prompts with a new answer, {self.n_kept} to stay; slope at 0 {self.slope:.3g} nats "
            f"(random directions {self.control_slope:.3g})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each alpha; the slope's straight line beside the target."""
        at_zero = int(self.alpha.abs().argmin())
        line = self.target[at_zero] + self.slope * (self.alpha - self.alpha[at_zero])
        columns = {
            "alpha": self.alpha,
            "target": self.target,
            "straight line": line,
            "control target": self.control_target,
            "off-target KL": self.kl,
            "control KL": self.control_kl,
        }
        return pd.DataFrame(torch.stack(list(columns.values()), dim=1).tolist(), columns=list(columns))
