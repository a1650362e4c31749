"""Results as maps over layers and tokens: an edit's effect, its size, its spread, and patching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import pandas as pd
import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from reftlens.results.base import Result


@final
@dataclass(frozen=True, eq=False, repr=False)
class TokenMap(Result):
    """A quantity for each row (a layer or a site) and each token position."""

    values: Float[Tensor, "rows pos"]
    """Values per row and position; NaN where there is nothing to measure, such as a token that a site does not edit."""
    control: Float[Tensor, "rows pos"] | None
    """The same quantity under a control without the effect; None if the quantity is only a size."""
    rows: tuple[str, ...]
    """Names of layers or sites, first layer first."""
    tokens: tuple[str, ...]
    """Tokens of the (first) prompt."""
    starred: tuple[bool, ...]
    """Whether a position belongs to the subject of the prompt."""
    quantity: str
    """Name of the values, with their unit."""
    control_name: str
    """What the control is; empty without one."""
    n_prompts: int
    """Number of prompts averaged over."""
    each: Float[Tensor, "prompt rows pos"] | None = None
    """The values of each prompt, whose mean is `values`; None if they were not kept."""
    each_control: Float[Tensor, "prompt rows pos"] | None = None
    """The control of each prompt."""
    prompts: tuple[tuple[str, ...], ...] = ()
    """Tokens of each prompt; empty if only those of the first are known."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each position of the mean: the token that all prompts have there, or else its role, in brackets."""
        shared = [len(set(tokens)) == 1 for tokens in zip(*self.prompts, strict=True)] or [True] * len(self.tokens)
        subject = [place for place, starred in enumerate(self.starred) if starred]
        # Later roles replace earlier ones, so the last token of a subject is called that.
        roles = {0: "[first token]", len(self.tokens) - 1: "[last token]"}
        roles |= {place: f"[subject {index}]" for index, place in enumerate(subject, start=1)}
        roles |= dict.fromkeys(subject[-1:], "[last subject]")
        return tuple(
            token if same else roles.get(place, f"[token {place}]")
            for place, (token, same) in enumerate(zip(self.tokens, shared, strict=True))
        )

    def headline(self) -> str:
        control = f"; control: {self.control_name}" if self.control is not None else ""
        return (
            f"{self.quantity}, {len(self.rows)} rows x {len(self.tokens)} tokens, {self.n_prompts} prompts, "
            f"{_reach(self.values)}{control}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: row, position, token, subject, value, control."""
        lines = []
        for r, row in enumerate(self.rows):
            for p, token in enumerate(self.tokens):
                control = float(self.control[r, p]) if self.control is not None else float("nan")
                lines.append((row, p, token, self.starred[p], float(self.values[r, p]), control))
        return pd.DataFrame(lines, columns=["row", "position", "token", "subject", "value", "control"])


@final
@dataclass(frozen=True, eq=False, repr=False)
class EditSize(Result):
    """Size of an edit at each token of one text, relative to the activation."""

    relative: Float[Tensor, "rows pos"]
    """|delta| / |h|; 0 at tokens that the site does not edit."""
    edited: Bool[Tensor, "rows pos"]
    rows: tuple[str, ...]
    tokens: tuple[str, ...]
    starred: tuple[bool, ...]

    def headline(self) -> str:
        edited = self.relative[self.edited]
        return (
            f"{len(edited)} edited tokens at {len(self.rows)} sites, text of {len(self.tokens)} tokens; |delta| / |h| "
            f"{_reach(edited)}"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per site and token."""
        lines = [
            (row, p, token, self.starred[p], bool(self.edited[r, p]), float(self.relative[r, p]))
            for r, row in enumerate(self.rows)
            for p, token in enumerate(self.tokens)
        ]
        return pd.DataFrame(lines, columns=["site", "position", "token", "subject", "edited", "relative_size"])


def _reach(values: Float[Tensor, "..."]) -> str:
    found = values[values.isfinite()]
    return f"{float(found.min()):.3g} to {float(found.max()):.3g}" if len(found) else "no values"


if TYPE_CHECKING:
    from transformer_lens.patching import PatchingResult


def _each(values: Float[Tensor, " pair"]) -> Float[Tensor, "pair 1 1"]:
    """One number for each pair, beside what a map has of it."""
    return rearrange(values, "pair -> pair 1 1")


@final
@dataclass(frozen=True, eq=False, repr=False)
class PatchMap(Result):
    """The metric with one activation of the source run patched into the base run."""

    values: Float[Tensor, "pair rows columns"]
    """NaN where a pair has no such position."""
    control: Float[Tensor, "pair rows columns"] | None
    """The same with patches from the control; None without a control."""
    base: Float[Tensor, " pair"]
    """The metric of the unpatched run."""
    source: Float[Tensor, " pair"]
    """The metric of the run that activations are taken from."""
    rows: tuple[str, ...]
    """What is written in each row: a point, and with heads by position its head in brackets."""
    columns: tuple[str, ...]
    """Tokens of the first pair's source prompt, and places in brackets where it has none; or heads."""
    axes: tuple[str, ...]
    """What a cell is counted by, as TransformerLens names it: layer and pos; layer and head; layer,
    head and pos; of `paths`, sender and receiver, or path and pos.
    """
    control_name: str
    """What the control is; empty without one."""
    direction: str
    """Direction of patching: "denoise" (clean into corrupted), "noise" (corrupted into clean),
    "edited into base" or "base into edited".
    """
    prompts: tuple[tuple[str, ...], ...] = ()
    """Tokens of each pair's source prompt, a place in brackets where it has none; empty in results of earlier versions."""

    def mean(self) -> Float[Tensor, "rows columns"]:
        """Over the pairs that have the position."""
        return self.values.nanmean(0)

    def stderr(self) -> Float[Tensor, "rows columns"]:
        """Standard error of that mean; NaN with fewer than two pairs."""
        n = self.values.isfinite().sum(0)
        squares = (self.values - self.mean()).square().nansum(0)
        return torch.where(n > 1, (squares / (n - 1).clamp(min=1) / n.clamp(min=1)).sqrt(), torch.nan)

    def interval(
        self, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0
    ) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
        """Percentile bootstrap interval of the mean over pairs; NaN with fewer than two."""
        # Lazily: TransformerLens takes seconds to import, and a saved map is shown without it.
        from transformer_lens.utilities.statistics import bootstrap_ci, derive_generator

        flat = rearrange(self.values, "pair row column -> pair (row column)")
        low, high = torch.full((2, flat.shape[1]), torch.nan)
        # Only pairs that have the position are resampled, so cells with the same pairs share their
        # resamples.
        patterns, kind = flat.isfinite().unique(dim=1, return_inverse=True)
        for number, there in enumerate(patterns.T):
            if int(there.sum()) > 1:
                low[kind == number], high[kind == number] = bootstrap_ci(
                    flat[there][:, kind == number],
                    dim=0,
                    confidence=confidence,
                    n_resamples=n_resamples,
                    generator=derive_generator(seed, "patching"),
                )
        low, high = rearrange(torch.stack([low, high]), "end (row column) -> end row column", row=len(self.rows))
        return low, high

    def restored(self, values: Float[Tensor, "pair rows columns"] | None = None) -> Float[Tensor, "rows columns"]:
        """Computes the fraction of the gap that a patch closes: (mean patched - base) / (source - base).

        Means are over the pairs that have the position. 0 is the base run, 1 the source run. The
        divisor is the mean gap: otherwise pairs whose runs hardly differ would dominate.

        Args:
            values: the metric under other patches of the same pairs, such as `control`; the
                measured ones if not given.
        """
        patched = self.values if values is None else values
        there = patched.isfinite()
        gap = reduce(_each(self.source - self.base) * there, "pair row column -> row column", "sum")
        # Sums in place of means: both are over the same pairs, so their number cancels.
        return (patched - _each(self.base)).nansum(0) / torch.where(there.any(0), gap, torch.nan)

    def restored_each(
        self, values: Float[Tensor, "pair rows columns"] | None = None
    ) -> Float[Tensor, "pair rows columns"]:
        """Computes each pair's share of `restored`, by the mean gap, so that their mean over pairs with the position is it.

        Args:
            values: as of `restored`.
        """
        patched = self.values if values is None else values
        there = patched.isfinite()
        gap = reduce(_each(self.source - self.base) * there, "pair row column -> row column", "sum") / there.sum(0)
        return (patched - _each(self.base)) / torch.where(there.any(0), gap, torch.nan)

    def to_token_map(
        self,
        *,
        starred: tuple[bool, ...] = (),
        quantity: str = "restored part",
        prompts: tuple[tuple[str, ...], ...] = (),
    ) -> TokenMap:
        """The restored part, with its control, as plots take it.

        Args:
            starred: for the first columns, whether they belong to the subject; those behind do not.
            quantity: what the restored part is a part of.
            prompts: tokens of each pair's source prompt, with which the map keeps each pair's
                values; if empty, those that this result holds, where its columns are tokens.

        Raises:
            ValueError: If there are more stars than columns.
        """
        prompts = prompts or (self.prompts if self.axes[-1] == "pos" else ())
        behind = len(self.columns) - len(starred)
        if behind < 0:
            raise ValueError(f"wanted at most {len(self.columns)} stars, one for each column, got {len(starred)}")
        return TokenMap(
            values=self.restored(),
            control=None if self.control is None else self.restored(self.control),
            rows=self.rows,
            tokens=self.columns,
            starred=(*starred, *(False,) * behind),
            quantity=quantity,
            control_name=self.control_name,
            n_prompts=len(self.values),
            each=self.restored_each() if prompts else None,
            each_control=self.restored_each(self.control) if prompts and self.control is not None else None,
            prompts=prompts,
        )

    def to_patching_result(self) -> PatchingResult:
        """The same as TransformerLens's result, with its axes; `baseline` is the base run's metric."""
        from transformer_lens.patching import PatchingResult

        cells = rearrange(self.values, "pair row column -> row column pair")
        if len(self.axes) == 3:
            n_layers = len({row.split("[")[0] for row in self.rows})
            cells = rearrange(cells, "(layer head) pos pair -> layer pos head pair", layer=n_layers)
        # TransformerLens's order of axes, with the head last.
        axes = ["layer", "pos", "head"] if len(self.axes) == 3 else list(self.axes)
        index = torch.cartesian_prod(*(torch.arange(n) for n in cells.shape[:-1]))
        return PatchingResult(
            values=cells,
            axis_names=axes,
            index_df=pd.DataFrame(index.tolist(), columns=axes),
            metric_names=["metric"],
            reduced=False,
            baseline=self.base,
        )

    def headline(self) -> str:
        control = f"; control: {self.control_name}" if self.control is not None else ""
        pairs, rows, columns = self.values.shape
        return (
            f"{self.direction}, {rows} x {columns} cells by {', '.join(self.axes)}, {pairs} pairs; metric {self._mean(self.base)} "
            f"in the base run, {self._mean(self.source)} in the source run{control}"
        )

    @staticmethod
    def _mean(metric: Float[Tensor, " pair"]) -> str:
        return f"{float(metric.mean()):.3g}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell: row, column, mean, standard error, restored part, and that of the control."""
        control = torch.full_like(self.mean(), torch.nan) if self.control is None else self.restored(self.control)
        table = torch.stack([self.mean(), self.stderr(), self.restored(), control], dim=-1)
        lines = [
            (row, place, column, *table[r, place].tolist())
            for r, row in enumerate(self.rows)
            for place, column in enumerate(self.columns)
        ]
        names = ["row", "column", "label", "mean", "stderr", "restored", "control restored"]
        return pd.DataFrame(lines, columns=names)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Spread(Result):
    """The edited run compared with the base run, at each layer and position."""

    distance: TokenMap
    """|edited - base| / |base| of the residual stream."""
    mind: TokenMap
    """The fraction of prompts where the logit lens gives another token than in the base run."""

    def headline(self) -> str:
        return f"{self.distance.headline()}; and {self.mind.headline()}"

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per cell, both quantities side by side."""
        return self.distance.to_dataframe().merge(
            self.mind.to_dataframe(),
            on=["row", "position", "token", "subject"],
            suffixes=(" of distance", " of mind"),
        )
