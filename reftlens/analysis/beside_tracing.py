"""Does an edit train best where tracing locates the fact? Compares two maps of the same cells.

rho = Spearman's rank correlation over cells between the gain (`reft_map`: score under the edit
trained in the cell - score of the base) and the restored part (`patch`, `trace_noise`: (patched -
corrupted) / (clean - corrupted)).

This is a comparison, not a test that either map can pass. Where patching finds a fact and where the
model is best edited are different things. Over many facts, tracing hardly predicts at which layer
an edit works (Hase et al. 2023, arXiv:2301.04213), and edits at random locations can be as good as
at the traced ones (Wang & Veitch 2025, arXiv:2502.11447). A high rho does not show that the fact
"is" there: an edit can also write an answer where nothing was stored. The edits trained on shuffled
answers measure this, and their rank correlation with tracing is reported too. A low rho does not
show that tracing is wrong. Cells where both maps must be zero (such as tokens before the subject)
raise rho without being evidence.

Neighbouring cells of a map are similar, so cells are not independent draws. Intervals that assume
independence exclude zero for many unrelated maps. p compares rho with its values under cyclic
shifts of one map: p = fraction of all rows x columns shifts, including the unshifted one, with a
rho at least as high. A shift keeps each map's smoothness and breaks only their alignment. A map
with a trend from the first layer to the last differs from its shifts: two unrelated maps of this
kind have p < .05 in 8 to 10% of draws (random walks; `reftlens benchmark`). With few cells p cannot
be small: it is at least 1 / (rows x columns).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange, reduce, repeat

from reftlens.analysis.engine.ranks import Values, shifts, spearman
from reftlens.data import Batch
from reftlens.positions import Positions
from reftlens.results import BesideTracing, PatchMap, ReftMap


def at_rules(result: PatchMap, batch: Batch, positions: Mapping[str, Positions]) -> PatchMap:
    """Reduces a map over positions to one token per prompt and rule, so that prompts of different lengths align.

    Args:
        result: over layers and positions.
        batch: the prompts whose columns these are.
        positions: name -> rule that picks one token of each prompt.

    Raises:
        ValueError: If the map is over heads or of other prompts, or a rule does not select exactly
            one token.
    """
    if result.axes[-1] != "pos" or result.values.shape[::2] != batch.tokens.shape:
        raise ValueError(
            f"the map must be over the positions of this batch, [batch, pos] = {list(batch.tokens.shape)}; got axes "
            f"{result.axes} with [batch, columns] = {list(result.values.shape[::2])}"
        )
    columns = []
    for name, rule in positions.items():
        mask = rule.mask(batch.prompts).cpu()
        for row in (mask.sum(1) != 1).nonzero().flatten().tolist():
            raise ValueError(
                f"{name!r} must select one token in each prompt, but selects {int(mask[row].sum())} in row {row}"
            )
        columns.append(mask.int().argmax(1))
    place = repeat(torch.stack(columns), "column pair -> pair row column", row=result.values.shape[1])
    return replace(
        result,
        values=result.values.gather(2, place),
        control=None if result.control is None else result.control.gather(2, place),
        columns=tuple(positions),
        prompts=(),  # The columns are rules now, and no longer the tokens of these prompts.
    )


def beside_tracing(reft: ReftMap, tracing: PatchMap, *, n_resamples: int = 1000, seed: int = 0) -> BesideTracing:
    """Compares a map of trained edits with a tracing map.

    Args:
        reft: from `rl.reft_map`.
        tracing: of the same points and rules, from `at_rules`. Rows that `reft` does not have are
            ignored.
        n_resamples: resamples of each bootstrap.
        seed: seed of the resamples.

    Raises:
        ValueError: If the maps do not have the same cells, or have fewer than three.
    """
    missing = [row for row in reft.rows if row not in tracing.rows]
    if missing or tracing.columns != reft.columns:
        raise ValueError(
            f"the tracing map must have the cells of the trained edits. Missing rows: {', '.join(missing) or 'none'}. "
            f"Columns: wanted {reft.columns}, got {tracing.columns}. Make the columns with `at_rules`"
        )
    kept = [tracing.rows.index(row) for row in reft.rows]
    control = None if tracing.control is None else tracing.control[:, kept]
    tracing = replace(tracing, values=tracing.values[:, kept], control=control, rows=reft.rows)
    if reft.gain().numel() < 3:
        raise ValueError(f"a rank correlation needs at least three cells, got {reft.gain().numel()}")
    gain = rearrange(reft.held_out - reft.base, "row column prompt -> (row column) prompt").double().numpy()
    change = tracing.values - rearrange(tracing.base, "pair -> pair 1 1")
    moved = rearrange(change, "pair row column -> (row column) pair").double().numpy()
    gap = (tracing.source - tracing.base).double().numpy()
    # A ratio of sums, because pairs with a small gap would dominate a mean of ratios.
    gains, restored = gain.mean(1), moved.sum(1) / gap.sum()
    draw = np.random.default_rng(seed)
    cells = draw.integers(len(gains), size=(n_resamples, len(gains)))
    # A resample is a weighting of the items, so all of them together are one matrix product.
    prompts, pairs = _weights(draw, n_resamples, gain.shape[1]), _weights(draw, n_resamples, len(gap))
    shape = reft.gain().shape
    shifted = shifts(restored.reshape(shape))
    rho = spearman(np.broadcast_to(gains, shifted.shape), shifted)
    shuffled = reduce(reft.control - reft.base, "row column prompt -> (row column)", "mean").double().numpy()
    best = int(restored.argmax())
    others = np.delete(gains, best)
    return BesideTracing(
        reft=reft,
        tracing=tracing,
        correlation=float(rho[0]),
        # 1e-9: equal maps may differ by rounding. The unshifted map counts too, so p is above 0.
        p=float((rho >= rho[0] - 1e-9).mean()) if np.isfinite(rho[0]) else float("nan"),
        shuffled_correlation=float(spearman(shuffled[None], restored[None])[0]),
        over_cells=_interval(spearman(gains[cells], restored[cells])),
        over_prompts=_interval(spearman(prompts @ gain.T, (pairs @ moved.T) / (pairs @ gap)[:, None])),
        at_traced=float(gains[best]),
        at_random=float(gains.mean()),
        as_good=float((others >= gains[best]).mean()),
    )


def _weights(draw: np.random.Generator, n_resamples: int, n: int) -> Values:
    """Returns the fraction of each resample's draws that each of n items makes up."""
    return draw.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n


def _interval(draws: Values) -> tuple[float, float]:
    """Computes the 95% interval over the resamples that have a correlation."""
    found = draws[np.isfinite(draws)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
