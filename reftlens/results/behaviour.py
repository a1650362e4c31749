"""Results on the behaviour of edited models: outcomes, dose curves, interchange, and unusual activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, final

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result, SiteResult


@final
@dataclass(frozen=True, repr=False)
class Outcome(Result):
    """Accuracy and KL divergence of one group of prompts under an edit."""

    group: str
    """Name of the group of prompts, for display."""
    wanted: str
    """The correct answer in this group: "new answer" or "old answer"."""
    n: int
    """Number of prompts."""
    base: float
    """Fraction of prompts where the base model's most likely next token is the answer's first token."""
    edited: float
    """The same fraction for the edited model."""
    control: float
    """The same fraction under changes of the same norm in random directions."""
    kl: float
    """Mean KL divergence of the next-token distribution, base to edited, in nats."""
    base_whole: float = float("nan")
    """Fraction of prompts where greedy decoding of the base gives the whole answer; NaN if all answers have one token."""
    edited_whole: float = float("nan")
    """The same fraction for the edited model."""
    control_whole: float = float("nan")
    """The same fraction under changes of the same norm in random directions."""
    control_kl: float = float("nan")
    """The KL divergence under these changes; NaN in results of earlier versions."""

    @property
    def longer(self) -> bool:
        """Whether some answer has more than one token."""
        # NaN differs from itself.
        return self.edited_whole == self.edited_whole

    def headline(self) -> str:
        whole = f"; whole answer: base {self.base_whole:.0%}, edited {self.edited_whole:.0%}, random directions {self.control_whole:.0%}"
        return (
            f"{self.group}, {self.n} prompts, first token of the {self.wanted}: base {self.base:.0%}, edited {self.edited:.0%}, "
            f"random directions {self.control:.0%}{whole if self.longer else ''}; KL {self.kl:.2g} nats"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return outcomes_to_dataframe([self])


def outcomes_to_dataframe(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Returns one row per group."""
    frame = pd.DataFrame([asdict(outcome) for outcome in outcomes])
    # The control stands beside its number; the field is last only because files of earlier versions
    # lack it.
    frame.insert(list(frame.columns).index("kl") + 1, "control_kl", frame.pop("control_kl"))
    return frame


@final
@dataclass(frozen=True, repr=False)
class SiteCheck(Result):
    """Check of whether an edit at one site reaches the model (see `check_sites`)."""

    site: str
    """The site as it prints."""
    fired: int
    """Number of times its activation point fires in one forward pass."""
    logit_change: float
    """|logits under a push there - logits| / |logits|."""
    gradient: float
    """Norm of the gradient that reaches the edit's parameters, for a random sum of the logits."""
    refused: str = ""
    """Reason why the model does not support an edit there; empty if it does."""

    @property
    def holds(self) -> bool:
        """Whether it fires once, changes the logits by more than rounding error, and carries gradient."""
        return not self.refused and self.fired == 1 and self.logit_change > 1e-6 and self.gradient > 0

    def headline(self) -> str:
        found = f"refused, {self.refused}" if self.refused else "holds" if self.holds else "does not hold"
        return f"{self.site}: {found}; fired {self.fired}, logits change by {self.logit_change:.2g}, gradient {self.gradient:.2g}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return pd.DataFrame([{**asdict(self), "holds": self.holds}])


@final
@dataclass(frozen=True, repr=False)
class SiteChecks(Result):
    """Checks of every site of an edit on one model."""

    sites: tuple[SiteCheck, ...]

    @property
    def holds(self) -> bool:
        """Whether all sites pass."""
        return all(check.holds for check in self.sites)

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per site."""
        return pd.DataFrame([{**asdict(check), "holds": check.holds} for check in self.sites])

    def headline(self) -> str:
        failing = [check.site for check in self.sites if not check.holds]
        held = f"{len(self.sites) - len(failing)} of {len(self.sites)} sites hold"
        return held + (f"; not {', '.join(failing[:3])}{', ...' * (len(failing) > 3)}" if failing else "")


@final
@dataclass(frozen=True, eq=False, repr=False)
class Dose(Result):
    """The model under h + alpha * delta(h), for a range of alpha."""

    alpha: Float[Tensor, " dose"]
    target: Float[Tensor, " dose"]
    """Mean log-probability of the desired answer's first token, in nats."""
    kl: Float[Tensor, " dose"]
    """Mean KL divergence, base to edited, on prompts whose answers should not change, in nats; NaN if none were given."""
    control_target: Float[Tensor, " dose"]
    """The target under changes of the same norm in random directions, averaged over draws."""
    control_kl: Float[Tensor, " dose"]
    slope: float
    """d target / d alpha at alpha = 0, by differentiation: the linear part of the edit's effect."""
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
        """Returns one row per alpha, with the target and the straight line of the slope."""
        at_zero = int(self.alpha.abs().argmin())
        # The slope was taken at alpha = 0, so the line goes through the target there.
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


@final
@dataclass(frozen=True, repr=False)
class Swap(Result):
    """One kind of interchange, over all pairs."""

    name: str
    flips: float
    """Fraction of pairs whose most likely next token becomes the source's."""
    moved: float
    """Mean change of logit(source's answer) - logit(base's answer), as a fraction of the gap between base and source run."""
    each: tuple[float, ...] = ()
    """The change of each pair, as a fraction of the mean gap, so that their mean is `moved`; empty
    in results of earlier versions.
    """

    def headline(self) -> str:
        return f"{self.name}: flips {self.flips:.0%}, moves {self.moved:.2f} of the way"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns the result as one row."""
        return pd.DataFrame({"name": [self.name], "flips": [self.flips], "moved": [self.moved]})


@final
@dataclass(frozen=True, eq=False, repr=False)
class Interchanged(SiteResult):
    """Effects of patching a source run's coordinates into a base run: inside a subspace, and with its controls."""

    hook_name: str
    rank: int
    n: int
    """Number of pairs whose answers differ. Other pairs are not informative."""
    n_given: int
    whole: Swap
    """The whole activation: the maximum for any subspace at this point."""
    inside: Swap
    complement: Swap
    from_read: Swap
    """Inside, with only the part of the difference between source and base that the two answers depend on, weighted."""
    from_unread: Swap
    """Inside, with only the remaining, causally disconnected part, which the patch turns into a change that is read."""
    random: tuple[Swap, ...]
    """Random subspaces of the same rank."""
    placebo: tuple[Swap, ...]
    """Random subspaces, with a change of the same norm as inside."""
    dormant: float = float("nan")
    """Share of the effect inside that passes through units without effect in the whole interchange.
    NaN if there is no unit after the point, and in results saved by earlier versions.
    """
    power: float = float("nan")
    """The same share for a direction constructed to be illusory at this point. Above 0.5, the test can detect illusions."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""
    pairs: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    """Tokens of the base and of the source prompt of each pair whose answers differ; empty in results of earlier versions."""

    @property
    def p(self) -> float:
        """Fraction of random subspaces with at least as large an effect, (1 + count) / (1 + draws)."""
        return self._p(self.random)

    @property
    def placebo_p(self) -> float:
        """The same for the placebos."""
        return self._p(self.placebo)

    def _p(self, null: tuple[Swap, ...]) -> float:
        # The tested subspace counts as a draw of its own null, which keeps p above 0 and valid.
        return (1 + sum(swap.moved >= self.inside.moved for swap in null)) / (1 + len(null))

    @property
    def verdict(self) -> Literal["illusory", "not illusory", "no power"]:
        """Whether most of the subspace's effect is an illusion, if the test has power (see `analysis.interchange`).

        Illusory: more than half of the effect passes through otherwise dormant units, and more than
        half of it comes from a causally disconnected difference. No power: the test does not detect
        a constructed illusion, or the subspace closes less than a tenth of the gap, so that there
        is no effect to explain.
        """
        # "not >" also refuses NaN.
        if not self.power > 0.5 or not self.inside.moved > 0.1:
            return "no power"
        illusory = self.dormant > 0.5 and self.from_unread.moved > 0.5 * self.inside.moved
        return "illusory" if illusory else "not illusory"

    @property
    def illusory(self) -> bool:
        """Whether the verdict is "illusory". Also False if the test has no power; see `verdict`."""
        return self.verdict == "illusory"

    def headline(self) -> str:
        return (
            f"{self.where}, rank {self.rank}, {self.n} pairs: inside moves {self.inside.moved:.2f} of the way ({self.verdict}"
            f": {self.dormant:.2f} dormant, {self.power:.2f} of a made illusion); "
            f"p = {self.p:.2g} among {len(self.random)} random subspaces, complement {self.complement.moved:.2f}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per kind of interchange; for random ones, their mean and maximum."""
        lines = [
            (swap.name, swap.flips, swap.moved, swap.moved, float("nan"))
            for swap in (self.whole, self.inside, self.complement, self.from_read, self.from_unread)
        ]
        for name, swaps, p in (
            ("random subspaces", self.random, self.p),
            ("norm-matched placebos", self.placebo, self.placebo_p),
        ):
            moved = torch.tensor([swap.moved for swap in swaps])
            flips = sum(swap.flips for swap in swaps) / len(swaps)
            lines.append((name, flips, float(moved.mean()), float(moved.max()), p))
        frame = pd.DataFrame(lines, columns=["interchange", "flips", "moved", "most moved", "p of inside"])
        frame.insert(0, "site", self.where)
        return frame


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReadSpace(SiteResult):
    """The subspace that later layers read at one point, from gradients of the next-token logits."""

    hook_name: str
    basis: Float[Tensor, "read d_model"]
    """Orthonormal rows, most sensitive first. Their orthogonal complement is dormant."""
    sensitivity: Float[Tensor, " direction"]
    """Singular values of the gradients, of all directions."""
    tolerance: float
    """Fraction of the largest sensitivity from which a direction counts as read."""
    n_gradients: int
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    def headline(self) -> str:
        read, width = self.basis.shape
        return f"{self.where}: {read} of {width} directions are read, from {self.n_gradients} gradients"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per direction, most sensitive first."""
        read = [direction < len(self.basis) for direction in range(len(self.sensitivity))]
        return pd.DataFrame({"site": self.where, "sensitivity": self.sensitivity.tolist(), "read": read})

    def split(self, rows: Float[Tensor, "k d_model"]) -> Float[Tensor, " k"]:
        """Returns the read fraction of each row's squared norm. For a random direction it is len(basis) / d_model."""
        unit = torch.nn.functional.normalize(rows.double(), dim=-1)
        return (unit @ self.basis.double().T).square().sum(dim=-1).float()


@final
@dataclass(frozen=True, eq=False, repr=False)
class OffManifold(SiteResult):
    """Edited activations of one site compared with unedited activations of held-out prompts."""

    hook_name: str
    norm_ratio: Float[Tensor, " token"]
    """|h + delta| / |h| of each edited token."""
    natural: Float[Tensor, " token"]
    """Percentile of each token's unedited activation, by Mahalanobis distance among unedited
    activations of other prompts. This is the null: it is uniform if the estimate is unbiased.
    """
    edited: Float[Tensor, " token"]
    """The same for h + delta."""
    control: Float[Tensor, " token"]
    """The same for h plus a change of the same norm in a random direction."""
    shrinkage: float
    """Shrinkage of the covariance: 0 for the sample covariance, 1 for a multiple of the identity."""
    n_fit: int
    """Number of unedited activations used for mean and covariance."""
    n_reference: int
    """Number of unedited activations, of other prompts, used as the reference for percentiles."""
    site: str = ""
    """The site's short name; empty where it was asked about by its hook."""

    def beyond(self, percentile: float = 95.0) -> tuple[float, float, float]:
        """Returns the fraction of tokens beyond a percentile: unedited, edited, control."""
        parts = [float((values > percentile).float().mean()) for values in (self.natural, self.edited, self.control)]
        return parts[0], parts[1], parts[2]

    def headline(self) -> str:
        natural, edited, control = self.beyond()
        return (
            f"{self.where}, {len(self.edited)} tokens: beyond the 95th percentile {edited:.0%} edited, {natural:.0%} "
            f"before, {control:.0%} in random directions"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row each for unedited, edited and control: median percentile, and fraction beyond the 95th."""
        named = {"natural (held out)": self.natural, "edited": self.edited, "edit turned at random": self.control}
        lines = [
            {
                "site": self.where,
                "activations": name,
                "median percentile": float(values.median()),
                "beyond the 95th": share,
                "median |h + delta| / |h|": float(self.norm_ratio.median()) if name == "edited" else float("nan"),
                "tokens": len(values),
            }
            for (name, values), share in zip(named.items(), self.beyond(), strict=True)
        ]
        return pd.DataFrame(lines)

    def __post_init__(self) -> None:
        for values in (self.natural, self.edited, self.control):
            if bool(torch.isnan(values).any()):
                raise ValueError(f"percentiles at {self.where} hold NaN, because an activation is not finite")
