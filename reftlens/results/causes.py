"""Results on causes of an effect: ablation, attribution, profiles, and maps of trained edits compared with tracing."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import final

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from reftlens.results.base import Result
from reftlens.results.maps import PatchMap


@final
@dataclass(frozen=True, eq=False, repr=False)
class Ablation(Result):
    """The effect of an edit attributed to its sites. Effects are means over examples, edited minus base."""

    whole: float
    """The effect of the whole edit, in the metric's unit."""
    sites: tuple[str, ...]
    alone: Float[Tensor, " site"]
    """The effect of this site alone."""
    left_out: Float[Tensor, " site"]
    """The effect lost without this site: the whole effect minus that of all other sites."""
    shapley: Float[Tensor, " site"]
    """Shapley values: the contribution of a site, averaged over all orders of adding sites. They sum to the whole effect."""
    low: Float[Tensor, " site"]
    """Lower end of the Shapley values' 95% interval over sampled orders; the value itself if all orders are used."""
    high: Float[Tensor, " site"]
    """The upper end."""
    interaction: Float[Tensor, "site site"]
    """whole - (without i) - (without j) + (without both). Below zero, the sites can substitute for
    each other; above, each needs the other. NaN on the diagonal.
    """
    control: Float[Tensor, " site"]
    """The effect of this site alone with changes of the same norm in random directions, averaged over draws."""
    exact: bool
    """Whether the Shapley values use all orders instead of sampled ones."""
    n_examples: int
    control_whole: float = math.nan
    """The effect of the whole edit with changes of the same norm in random directions; NaN in results of earlier versions."""
    control_shapley: Float[Tensor, " site"] | None = None
    """Shapley values of that control; None for more than two sites, where they need further runs."""

    def headline(self) -> str:
        parts = ", ".join(f"{value:.3g}" for value in self.shapley.tolist()[:6]) + ", ..." * (len(self.sites) > 6)
        kind = "exact" if self.exact else "sampled"
        return (
            f"effect {self.whole:.3g} of {len(self.sites)} sites, {self.n_examples} examples; Shapley ({kind}) {parts}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per site."""
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


@final
@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """Estimated changes of the metric under a patch in each cell, and their agreement with exact ones."""

    values: Float[Tensor, "pair rows columns"]
    """Estimated metric under the patch minus the base run's; NaN where a pair has no such position."""
    exact: PatchMap
    """The exact map of the first pairs."""
    correlation: Float[Tensor, " checked"]
    """Pearson correlation over cells of estimated and exact changes, for each of these pairs; NaN if one is constant."""
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def mean(self) -> Float[Tensor, "rows columns"]:
        """Mean over the pairs that have the position."""
        return self.values.nanmean(0)

    def correlation_interval(
        self, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of the mean correlation over the checked pairs; NaN with fewer than two.

        Pairs with an undefined correlation are ignored. With few pairs the interval is too narrow:
        check more pairs.
        """
        # Lazily: TransformerLens takes seconds to import, and a saved result is shown without it.
        from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

        found = self.correlation[self.correlation.isfinite()]
        if len(found) < 2:
            return math.nan, math.nan
        generator = derive_generator(seed, "attribution")
        low, high = bootstrap_ci(found, confidence=confidence, n_resamples=n_resamples, generator=generator)
        return float(low), float(high)

    def headline(self) -> str:
        return (
            f"{len(self.rows)} x {len(self.columns)} cells, {len(self.values)} pairs; correlation with the exact map "
            f"{self._agreement()}"
        )

    def _agreement(self) -> str:
        n, found = len(self.correlation), self.correlation[self.correlation.isfinite()]
        if not len(found):
            return f"undefined in all {n} checked pairs: an estimated or exact map of each is constant"
        missing = "" if len(found) == n else f", undefined in {n - len(found)} more"
        if len(found) == 1:
            return f"{float(found):.2f} in one pair, which gives no interval{missing}"
        low, high = self.correlation_interval()
        return f"{float(found.mean()):.2f}, 95% interval {low:.2f} to {high:.2f} over {len(found)} pairs{missing}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: the estimate over all pairs, and estimate and exact change over the checked ones."""
        n = len(self.correlation)
        changes = (self.exact.values - rearrange(self.exact.base, "pair -> pair 1 1")).nanmean(0)
        table = torch.stack([self.mean(), self.values[:n].nanmean(0), changes], dim=-1)
        lines = [
            (row, place, column, *table[r, place].tolist())
            for r, row in enumerate(self.rows)
            for place, column in enumerate(self.columns)
        ]
        names = ["row", "column", "label", "estimate", "estimate, checked pairs", "exact, checked pairs"]
        return pd.DataFrame(lines, columns=names)


@final
@dataclass(frozen=True, eq=False, repr=False)
class EditProfile(Result):
    """Singular values of A and norm of c of an edit h + A h + c. They depend on neither data nor parametrisation."""

    rows: tuple[str, ...]
    """Names of the sites, in the order of the edit."""
    gains: tuple[Float[Tensor, " _k"] | None, ...]
    """Singular values of A at each site, largest first; empty for a constant edit, None if the edit is not affine."""
    push: Float[Tensor, " rows"]
    """Norm of c at each site, in the units of the activation; NaN if the edit is not affine."""

    def headline(self) -> str:
        pushes = self.push[self.push.isfinite()]
        longest = f"; longest constant push {float(pushes.max()):.3g}" if len(pushes) else ""
        return f"{len(self.rows)} sites by their weights alone{longest}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per site: the number of gains, the largest gain, and the norm of the constant."""
        counts = [float("nan") if gain is None else len(gain) for gain in self.gains]
        largest = [float("nan") if gain is None or not len(gain) else float(gain[0]) for gain in self.gains]
        return pd.DataFrame({"row": self.rows, "gains": counts, "largest_gain": largest, "push": self.push.numpy()})


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReftMap(Result):
    """Scores of edits of one budget, one trained in each cell."""

    held_out: Float[Tensor, "rows columns prompt"]
    """The score of each held-out prompt under the edit trained in this cell."""
    trained: Float[Tensor, "rows columns example"]
    """The score of each example that it was trained on."""
    control: Float[Tensor, "rows columns prompt"]
    """The score of each held-out prompt under an edit trained in this cell on shuffled answers."""
    base: Float[Tensor, " prompt"]
    """The score of each held-out prompt in the base."""
    base_trained: Float[Tensor, " example"]
    """The score of each training example in the base."""
    rows: tuple[str, ...]
    """The points where the edits act."""
    columns: tuple[str, ...]
    """Names of the position rules."""
    score: str
    """Name of the score, with its unit."""
    budget: str
    """Budget of each edit: class, rank, number of parameters, steps and seed."""

    def gain(self) -> Float[Tensor, "rows columns"]:
        """Score on held-out prompts minus the base's, averaged over prompts."""
        return (self.held_out - self.base).mean(-1)

    def control_gain(self) -> Float[Tensor, "rows columns"]:
        """The same for edits trained on shuffled answers."""
        return (self.control - self.base).mean(-1)

    def trained_gain(self) -> Float[Tensor, "rows columns"]:
        """The same on the examples trained on."""
        return (self.trained - self.base_trained).mean(-1)

    def headline(self) -> str:
        best = divmod(int(self.gain().argmax()), len(self.columns))
        return (
            f"{len(self.rows)} x {len(self.columns)} cells; gain in {self.score} on {len(self.base)} held-out prompts: best "
            f"{float(self.gain()[best]):+.2f} at {self.rows[best[0]]}, {self.columns[best[1]]}, with shuffled answers "
            f"{float(self.control_gain()[best]):+.2f} there; {self.budget}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: gains on held-out prompts, on training examples, and with shuffled answers."""
        table = torch.stack([self.gain(), self.trained_gain(), self.control_gain()], dim=-1)
        lines = [
            (row, column, *table[r, c].tolist())
            for r, row in enumerate(self.rows)
            for c, column in enumerate(self.columns)
        ]
        return pd.DataFrame(lines, columns=["row", "column", "gain", "gain on training", "gain, shuffled answers"])


@final
@dataclass(frozen=True, eq=False, repr=False)
class BesideTracing(Result):
    """A map of trained edits and a tracing map of the same cells."""

    reft: ReftMap
    tracing: PatchMap
    """Rows and columns as in `reft`."""
    correlation: float
    """Spearman's rank correlation over cells of the edits' gain and the restored part; NaN if one map is constant."""
    p: float
    """Fraction of all cyclic shifts of one map by rows and columns with a rank correlation at least
    as high. Only this number tests whether the maps are unrelated. NaN if one map is constant.
    """
    shuffled_correlation: float
    """Rank correlation of tracing with the gain of edits trained on shuffled answers, which do not use any fact."""
    over_cells: tuple[float, float]
    """95% bootstrap interval of rho over resampled cells. Neighbouring cells are similar, so it is too narrow and not a test."""
    over_prompts: tuple[float, float]
    """95% bootstrap interval of rho over resampled prompts, separately for each map. Cells and
    trained edits are fixed, so it excludes the variation between training seeds. It shows how
    precisely the prompts determine rho, not whether unrelated maps would have the same rho.
    Resampling perturbs ranks, so the interval is biased downwards.
    """
    at_traced: float
    """The gain of the edit in the cell with the largest restored part."""
    at_random: float
    """The mean gain over all cells, which is the expected gain of a random cell."""
    as_good: float
    """Fraction of all other cells whose edit gains at least as much as in the traced cell; 0.5 is expected by chance."""

    def headline(self) -> str:
        cells, prompts = (f"{low:+.2f} to {high:+.2f}" for low, high in (self.over_cells, self.over_prompts))
        count = self.tracing.mean().numel()
        return (
            f"rank correlation {self.correlation:+.2f} over {count} cells, p = {self.p:.2g} of {count} shifts (smallest possible "
            f"{1 / count:.2g}); with shuffled answers {self.shuffled_correlation:+.2f}; gain in tracing's best cell "
            f"{self.at_traced:+.2f}, in a random one {self.at_random:+.2f}; {self.as_good:.0%} of the others do as well; 95% "
            f"intervals, neither a test of unrelated maps: {cells} for the choice of cells, {prompts} for that of prompts"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: the edits' gains and the restored part."""
        return self.reft.to_dataframe().assign(restored=self.tracing.restored().flatten().tolist())


@final
@dataclass(frozen=True, eq=False, repr=False)
class PredictedMap(Result):
    """How well edits would do in each cell, predicted from slopes of the base."""

    values: Float[Tensor, "predictor rows columns"]
    control: Float[Tensor, "predictor rows columns"]
    """The same with shuffled answers."""
    predictors: tuple[str, ...]
    """Names of the predictors: slope and bounded gain, in nats per completion token, and covariance."""
    rows: tuple[str, ...]
    """The points where the edits would act."""
    columns: tuple[str, ...]
    """Names of the position rules."""
    loss: float
    """Of the base on the held-out pairs, in nats per completion token."""
    n_held_out: int
    settings: str
    """Rank, number of examples, and what the predictors were computed with."""

    def headline(self) -> str:
        best = []
        for name, values, control in zip(self.predictors, self.values, self.control, strict=True):
            row, column = divmod(int(values.argmax()), len(self.columns))
            there = f"{float(values.max()):.3g} at {self.rows[row]}, {self.columns[column]}"
            best.append(f"{name} {there} (shuffled {float(control[row, column]):.3g})")
        return (
            f"{len(self.rows)} x {len(self.columns)} cells; largest {'; '.join(best)}; loss of the base "
            f"{self.loss:.3g} nats on {self.n_held_out} pairs; {self.settings}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: each predictor, and the same with shuffled answers."""
        lines = [
            (row, column, *self.values[:, r, c].tolist(), *self.control[:, r, c].tolist())
            for r, row in enumerate(self.rows)
            for c, column in enumerate(self.columns)
        ]
        names = [*self.predictors, *(f"{name}, shuffled answers" for name in self.predictors)]
        return pd.DataFrame(lines, columns=["row", "column", *names])


@final
@dataclass(frozen=True)
class Score:
    """How one predictor orders the cells of trained edits."""

    predictor: str
    correlation: float
    """Spearman's, over cells, with the gain of trained edits; NaN if one map is constant."""
    p: float
    """Fraction of all cyclic shifts of the trained map with a rank correlation at least as high."""
    p_any: float
    """Fraction of shifts at which any of the predictors has one at least as high."""
    shuffled: float
    """Correlation of the prediction from shuffled answers with the same gain: what does not depend on what is read."""
    within_columns: float
    """Correlation after the mean rank of each column is subtracted: order among layers alone."""
    within_rows: float
    """The same of each row: order among tokens alone."""
    at_best: float
    """Gain of the trained edit in the cell that is predicted best."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class BesideTraining(Result):
    """A predicted map and a map of trained edits, of the same cells."""

    predicted: PredictedMap
    trained: ReftMap
    scores: tuple[Score, ...]
    """One per predictor."""
    at_random: float
    """Mean gain over all cells."""
    at_most: float
    """Largest gain of a cell."""

    def headline(self) -> str:
        n = self.trained.gain().numel()
        found = "; ".join(
            f"{score.predictor} {score.correlation:+.2f} (p = {score.p:.2g}, shuffled answers {score.shuffled:+.2f}; its best "
            f"cell gains {score.at_best:+.2f})"
            for score in self.scores
        )
        return (
            f"rank correlation with {n} trained cells: {found}; a random cell gains {self.at_random:+.2f}, the best "
            f"{self.at_most:+.2f}; p of all {n} shifts, at least {1 / n:.2g}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per predictor."""
        return pd.DataFrame([asdict(score) for score in self.scores])
