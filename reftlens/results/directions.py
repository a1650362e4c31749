"""Results on the directions of one edit: its operator, its ledger, and what the directions write and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result, SiteResult


@final
@dataclass(frozen=True, eq=False, repr=False)
class Operator(SiteResult):
    """A trained edit as an operator on the activations that it edits (see `analysis.decompose`)."""

    hook_name: str
    write: Float[Tensor, "direction d_model"]
    """Unit write directions, strongest first; signed so that the mean change along each is not negative."""
    read: Float[Tensor, "direction d_model"]
    """The change along write direction i is read_i . h + constant_i."""
    constant: Float[Tensor, " direction"]
    spectrum: Float[Tensor, " direction"]
    """Root-mean-square change along each write direction, in the units of the activation."""
    constant_share: Float[Tensor, " direction"]
    """Fraction of spectrum^2 due to the mean change: 1 for a change that does not depend on the input."""
    rms_norm: float
    """Root-mean-square norm of the activations themselves, the scale to compare `spectrum` with."""
    n_tokens: int
    """Number of edited tokens used for the moments."""
    pattern: Float[Tensor, "direction d_model"]
    """Unit patterns of the activations that each reading responds to, S read_i (Haufe et al. 2014).
    Unlike `read`, they have no component along directions in which the data never vary. Zero for a
    change that does not read anything.
    """
    input_spectrum: Float[Tensor, " input_direction"] | None = None
    """Spectrum of the change minus its mean, the input-dependent part; None in files of an earlier version."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    @property
    def effective_rank(self) -> float:
        """Participation ratio of the spectrum's energy, (sum s^2)^2 / sum s^4: 1 if one direction carries all of it.

        It describes the whole change. A large constant hides how many directions depend on the
        input: see `input_rank`.
        """
        return _participation(self.spectrum.double() ** 2)

    @property
    def input_rank(self) -> float:
        """Participation ratio of the change minus its mean: 0 for a change that does not depend on the input."""
        if self.input_spectrum is not None:
            return _participation(self.input_spectrum.double() ** 2)
        # Not saved by an earlier version: cov = diag(s^2) - m m^T, m_i = s_i sqrt(share_i).
        mean = self.spectrum.double() * self.constant_share.double().sqrt()
        covariance = torch.diag(self.spectrum.double() ** 2) - torch.outer(mean, mean)
        return _participation(torch.linalg.eigvalsh(covariance).clamp(min=0))

    def rank_for(self, share: float = 0.99) -> int:
        """Returns the number of strongest write directions that together carry this share of the energy.

        Raises:
            ValueError: If the share is outside (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        energy = self.spectrum.double() ** 2
        # Float32 rounding must not add a direction.
        reached = energy.cumsum(dim=0) / energy.sum() >= share - 1e-6
        return int(reached.int().argmax()) + 1

    def headline(self) -> str:
        return (
            f"{self.where}: effective rank {self.effective_rank:.2f} of {len(self.spectrum)}, of its input-dependent part "
            f"{self.input_rank:.2f}, rms change "
            f"{float(self.spectrum.square().sum().sqrt()):.3g} of |h| = {self.rms_norm:.3g}, {self.n_tokens} tokens"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per write direction: rms change, fraction of the energy, constant share."""
        energy = self.spectrum**2
        return pd.DataFrame(
            {
                "site": self.where,
                "direction": range(len(self.spectrum)),
                "rms_change": self.spectrum.tolist(),
                "energy": (energy / energy.sum()).tolist(),
                "constant_share": self.constant_share.tolist(),
            }
        )


def _participation(energy: Float[Tensor, " direction"]) -> float:
    return float(energy.sum() ** 2 / (energy**2).sum()) if bool(energy.any()) else 0.0


@final
@dataclass(frozen=True, repr=False)
class DirectionReadout(SiteResult):
    """Tokens that one write direction promotes and suppresses through its direct path to the logits."""

    hook_name: str
    direction: int
    promoted: tuple[tuple[str, float], ...]
    """Tokens whose logits rise most, with the mean change of the logit, largest first."""
    suppressed: tuple[tuple[str, float], ...]
    """Tokens whose logits fall most, most negative first."""
    null_low: float
    """Lower end of the band. A set has one random direction for each examined direction. In 95% of
    sets, no token of any direction leaves its band on either side.
    """
    null_high: float
    """Upper end of the band. Below it, a promoted token is expected by chance among all examined tokens and directions."""
    n_null: int
    """Number of sets of random directions."""
    watched: tuple[tuple[str, float, float], ...] = ()
    """Tokens chosen beforehand: change of the logit, and p, the fraction of random directions that
    change it as much. p tests one token, and the band covers all tokens, so a small p inside the
    band is not a contradiction.
    """
    p_all: tuple[float, ...] = ()
    """p of each of `watched`, corrected for all chosen tokens in all examined directions."""
    n_tokens: int = 0
    """Tokens looked at in each direction; 0 in results saved by earlier versions, as in the two below."""
    n_directions: int = 0
    """Directions looked at together, of all sites."""
    n_watched: int = 0
    """Different tokens named beforehand."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    def headline(self) -> str:
        def few(moved: tuple[tuple[str, float], ...]) -> str:
            return ", ".join(f"{token!r} {change:+.2f}" for token, change in moved[:3]) or "nothing"

        return (
            f"{self.where}, direction {self.direction}: {few(self.promoted)}; {few(self.suppressed)}; band of all "
            f"{self.n_tokens} tokens x {self.n_directions} directions {self.null_low:.2f} to {self.null_high:.2f}"
        )

    def watched_to_dataframe(self) -> pd.DataFrame:
        """Returns one row per token named beforehand, with p for it by itself and among all that were named."""
        looks = f"p of {self.n_watched * self.n_directions} looks"
        # Results of earlier versions have no corrected p.
        corrected = self.p_all or (float("nan"),) * len(self.watched)
        lines = [(self.where, self.direction, *line, p) for line, p in zip(self.watched, corrected, strict=True)]
        return pd.DataFrame(lines, columns=["site", "direction", "token", "logit_change", "p", looks])

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per extreme token: token, change of its logit, whether it is beyond the null."""
        where = (self.where, self.direction)
        lines = [(*where, token, change, change > self.null_high) for token, change in self.promoted]
        lines += [(*where, token, change, change < self.null_low) for token, change in self.suppressed]
        return pd.DataFrame(lines, columns=["site", "direction", "token", "logit_change", "beyond_null"])


TERMS = ("erase", "write constant", "write from input")
"""The three terms that sum to the change: -E^T E h, c, and the rest of A h."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ledger(Result):
    """The three terms of an edit at each token of one text. They can cancel, so they are not shares of the change."""

    gram: Float[Tensor, "rows pos term term"]
    """Inner products of the terms, in the order of `TERMS`; NaN at tokens that the site does not edit."""
    norm: Float[Tensor, "rows pos"]
    """Norm of the activation before the edit; NaN where nothing is edited."""
    change: Float[Tensor, "rows pos"]
    """Norm of the change in the run."""
    gap: Float[Tensor, " rows"]
    """Largest |sum of terms - change| / |change|, which is rounding error."""
    null_cosine: Float[Tensor, " rows"]
    """Root-mean-square cosine of random directions in the space that the site writes to, 1 /
    sqrt(its dimension). The terms share that space, so a cosine of this size is expected by chance.
    """
    rows: tuple[str, ...]
    tokens: tuple[str, ...]
    starred: tuple[bool, ...]
    """Whether a position belongs to the subject."""

    @property
    def length(self) -> Float[Tensor, "rows pos term"]:
        """Of each term."""
        # Rounding may leave the square of a short length below 0.
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
        """Returns one row per edited token of each site: lengths, cosines, and the cosine that chance gives."""
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


@final
@dataclass(frozen=True, eq=False, repr=False)
class Projection(SiteResult):
    """The edited tokens of one site along the edit's two strongest write directions."""

    hook_name: str
    before: Float[Tensor, "token 2"]
    """Coordinates of h, in the units of the activation."""
    after: Float[Tensor, "token 2"]
    """Coordinates of h + delta."""
    control: Float[Tensor, "token 2"]
    """Coordinates of h plus a change of the same norm in a random direction, the movement expected by chance."""
    groups: tuple[str, ...]
    """Group of each token's prompt."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""
    prompts: tuple[tuple[str, ...], ...] = ()
    """Tokens of each token's prompt up to itself; empty in results of earlier versions."""

    def headline(self) -> str:
        moved, turned = ((end - self.before).square().sum(1).mean().sqrt() for end in (self.after, self.control))
        return (
            f"{self.where}, {len(self.groups)} tokens of {len(set(self.groups))} groups; rms move {float(moved):.3g} "
            f"along its two directions (random directions {float(turned):.3g})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per token."""
        ends = {"before": self.before, "after": self.after, "control": self.control}
        names = [f"{name} {direction}" for name in ends for direction in (0, 1)]
        table = pd.DataFrame(torch.cat(list(ends.values()), dim=1).tolist(), columns=names)
        table.insert(0, "group", list(self.groups))
        return table


@final
@dataclass(frozen=True, repr=False)
class Context(Result):
    """One token in its text, with the reading of a direction there."""

    tokens: tuple[str, ...]
    position: int
    """Of the token that is read."""
    z: float
    """Reading in standard deviations from its mean over all edited tokens."""

    def marked(self, *, before: int = 12, after: int = 4) -> str:
        """The token in double brackets, with some of its neighbours."""
        start = max(0, self.position - before)
        left, right = (
            "".join(self.tokens[start : self.position]),
            "".join(self.tokens[self.position + 1 : self.position + 1 + after]),
        )
        return f"{left}[[{self.tokens[self.position]}]]{right}"

    def headline(self) -> str:
        return f"{self.marked()!r}, z = {self.z:.2f}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return pd.DataFrame([{"context": self.marked(), "position": self.position, "z": self.z}])


@final
@dataclass(frozen=True, repr=False)
class ReadContexts(SiteResult):
    """The tokens of a dataset at which an edit moves furthest along one write direction."""

    hook_name: str
    direction: int
    contexts: tuple[Context, ...]
    """Contexts, largest reading first. A constant direction does not read anything and has none."""
    null_high: float
    """95th percentile, over random linear readings of the same activations, of their largest z."""
    n_tokens: int
    n_null: int
    """Random readings drawn."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    def headline(self) -> str:
        largest = f"{max(context.z for context in self.contexts):.2f}" if self.contexts else "none"
        return (
            f"{self.where}, direction {self.direction}: {len(self.contexts)} of {self.n_tokens} tokens, largest z "
            f"{largest} (random readings {self.null_high:.2f})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per context."""
        lines = [
            (self.where, self.direction, context.marked(), context.z, self.null_high, context.z > self.null_high)
            for context in self.contexts
        ]
        columns = ["site", "direction", "context", "z", "random readings reach", "beyond_null"]
        return pd.DataFrame(lines, columns=columns)
