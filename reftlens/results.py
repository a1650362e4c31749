"""What the analyses return: frozen values with their axis labels, the name of the quantity, and its control.

A plot takes one of these and needs nothing else, no model and no edit. Tensors are on the CPU, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class TokenMap:
    """A quantity for each row (a layer or a site) and each token position."""

    values: Float[Tensor, "rows pos"]
    """NaN where there is nothing to measure, such as a token that a site does not edit."""
    control: Float[Tensor, "rows pos"] | None
    """The same quantity under a control that must show nothing; None where the quantity is a plain size."""
    rows: tuple[str, ...]
    """Names of layers or sites, first layer first."""
    tokens: tuple[str, ...]
    """The tokens of one prompt; with several prompts, of the first."""
    starred: tuple[bool, ...]
    """Whether a position belongs to the subject of the prompt."""
    quantity: str
    """What the values are, with their unit."""
    control_name: str
    """What the control is; empty without one."""
    n_prompts: int
    """Prompts averaged over."""

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each cell: row, position, token, subject, value, control."""
        lines = []
        for r, row in enumerate(self.rows):
            for p, token in enumerate(self.tokens):
                control = float(self.control[r, p]) if self.control is not None else float("nan")
                lines.append((row, p, token, self.starred[p], float(self.values[r, p]), control))
        return pd.DataFrame(lines, columns=["row", "position", "token", "subject", "value", "control"])


@final
@dataclass(frozen=True, eq=False)
class EditProfile:
    """An edit h + A h + c by its weights alone, whatever activations it meets; the same for every parametrisation."""

    rows: tuple[str, ...]
    """Names of the sites, in the order of the edit."""
    gains: tuple[Float[Tensor, " _k"] | None, ...]
    """Singular values of A at each site, largest first; none for a constant push, None where the edit is not affine."""
    push: Float[Tensor, " rows"]
    """Length of c at each site, in the units of the activation; NaN where the edit is not affine."""

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site: the number of gains, the largest one, the length of the constant push."""
        counts = [float("nan") if gain is None else len(gain) for gain in self.gains]
        largest = [float("nan") if gain is None or not len(gain) else float(gain[0]) for gain in self.gains]
        return pd.DataFrame({"row": self.rows, "gains": counts, "largest_gain": largest, "push": self.push.numpy()})


@final
@dataclass(frozen=True, eq=False)
class Operator:
    """A trained edit as an operator on the activations that it really edits (see `analysis.operator`)."""

    hook_name: str
    write: Float[Tensor, "direction d_model"]
    """Unit write directions, strongest first; signed so that the mean change along each is not negative."""
    read: Float[Tensor, "direction d_model"]
    """The change along write direction i is read_i . h + constant_i."""
    constant: Float[Tensor, " direction"]
    spectrum: Float[Tensor, " direction"]
    """Root-mean-square change along each write direction, in the units of the activation."""
    constant_share: Float[Tensor, " direction"]
    """Part of spectrum^2 that the mean change makes up: 1 for a push that does not depend on the input."""
    rms_norm: float
    """Root-mean-square norm of the activations themselves, the scale to compare `spectrum` with."""
    n_tokens: int
    """Edited tokens that the moments were taken over."""

    @property
    def effective_rank(self) -> float:
        """Participation ratio of the spectrum's energy, (sum s^2)^2 / sum s^4: 1 if one direction does it all."""
        energy = self.spectrum.double() ** 2
        return float(energy.sum() ** 2 / (energy**2).sum())

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each write direction: rms change, its part of the energy, constant share."""
        energy = self.spectrum**2
        return pd.DataFrame(
            {
                "hook_name": self.hook_name,
                "direction": range(len(self.spectrum)),
                "rms_change": self.spectrum.tolist(),
                "energy": (energy / energy.sum()).tolist(),
                "constant_share": self.constant_share.tolist(),
            }
        )


@final
@dataclass(frozen=True)
class DirectionReadout:
    """What one write direction promotes and suppresses if it went straight to the unembedding."""

    hook_name: str
    direction: int
    promoted: tuple[tuple[str, float], ...]
    """Tokens whose logits rise most, with the mean change of the logit, largest first."""
    suppressed: tuple[tuple[str, float], ...]
    """Tokens whose logits fall most, most negative first."""
    null_low: float
    """5th percentile, over random directions of the same length, of their most negative change of a logit."""
    null_high: float
    """95th percentile of the largest change: below it, a promoted token is what chance gives."""
    n_null: int
    """Random directions drawn."""
    watched: tuple[tuple[str, float, float], ...] = ()
    """Tokens named beforehand: change of the logit, and p, the part of random directions that change it as much."""

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each extreme token: token, change of its logit, whether it is beyond the null."""
        where = (self.hook_name, self.direction)
        lines = [(*where, token, change, change > self.null_high) for token, change in self.promoted]
        lines += [(*where, token, change, change < self.null_low) for token, change in self.suppressed]
        return pd.DataFrame(lines, columns=["hook_name", "direction", "token", "logit_change", "beyond_null"])


@final
@dataclass(frozen=True, eq=False)
class EditSize:
    """How large an edit is at each token of one text, against the activation it changes."""

    relative: Float[Tensor, "rows pos"]
    """|delta| / |h|; 0 at tokens that the site does not edit."""
    edited: Bool[Tensor, "rows pos"]
    rows: tuple[str, ...]
    tokens: tuple[str, ...]
    starred: tuple[bool, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site and token."""
        lines = [
            (row, p, token, self.starred[p], bool(self.edited[r, p]), float(self.relative[r, p]))
            for r, row in enumerate(self.rows)
            for p, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(lines, columns=["site", "position", "token", "subject", "edited", "relative_size"])


@final
@dataclass(frozen=True)
class Outcome:
    """How one group of prompts fares under an edit."""

    group: str
    """What the prompts have in common, as a reader should see it."""
    wanted: str
    """What counts as right in this group: "new answer" or "old answer"."""
    n: int
    """Prompts."""
    base: float
    """Part of the prompts that the base model gets right."""
    edited: float
    """Part that the edited model gets right."""
    control: float
    """Part under the same edit turned to random directions."""
    kl: float
    """Mean KL divergence of the next-token distribution, base to edited, in nats."""


def outcomes_to_dataframe(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One line for each group."""
    return pd.DataFrame([asdict(outcome) for outcome in outcomes])


@final
@dataclass(frozen=True)
class SiteCheck:
    """Whether an edit at one site reaches the model (see `check_sites`)."""

    site: str
    """The site as it prints."""
    fired: int
    """Runs of its activation point in one forward pass."""
    logit_change: float
    """|logits under a push there - logits| / |logits|."""
    gradient: float
    """Norm of the gradient that reaches the edit's parameters, for a random sum of the logits."""
    refused: str = ""
    """Why the model does not take an edit there; empty where it does."""

    @property
    def holds(self) -> bool:
        """Fires once, changes the logits by more than rounding, and carries gradient."""
        return not self.refused and self.fired == 1 and self.logit_change > 1e-6 and self.gradient > 0


@final
@dataclass(frozen=True)
class SiteChecks:
    """Every site of an edit, checked on one model."""

    sites: tuple[SiteCheck, ...]

    @property
    def holds(self) -> bool:
        """Whether all sites hold."""
        return all(check.holds for check in self.sites)

    def to_dataframe(self) -> pd.DataFrame:
        """One line for each site."""
        return pd.DataFrame([{**asdict(check), "holds": check.holds} for check in self.sites])
