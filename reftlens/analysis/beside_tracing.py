"""Does an edit learn best where tracing finds the fact? Two maps of the same cells, side by side.

rho = Spearman's rank correlation over cells of gain (`reft_map`: score under the edit trained in the cell - the base's)
and restored part (`patch`, `trace_noise`: (patched - corrupted) / (clean - corrupted)).

This is a question, not a test that either map can pass. Where a fact is read off by patching and where the model is best
changed are different things: over many facts, tracing hardly predicts at which layer an edit works (Hase et al. 2023,
arXiv:2301.04213), and edits at random places can be as good as at the traced ones (Wang & Veitch 2025, arXiv:2502.11447).
A high rho does not show that the fact "is" there: an edit can also write an answer where nothing was kept, which the
shuffled answers show: their own rank correlation with tracing is given as well. A low one does not show that tracing is
wrong. Cells where both maps must be zero (tokens before the subject, say) raise rho for nothing.

Neighbouring cells of a map are alike, so cells are not independent draws, and intervals that treat them so exclude zero for
many unrelated maps. p compares rho with its values when one map is shifted, round the edge, by each number of rows and
columns: p = part of all rows x columns shifts, the unshifted one included, with a rho at least as high. A shift keeps each
map's smoothness and breaks only their alignment. A map with a trend from the first layer to the last is not what its shifts
are: two such maps without anything in common have p < .05 in 8 to 10% of draws (random walks; `reftlens benchmark`).
With few cells p cannot be small: 1 / (rows x columns) at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from reftlens.data import Batch
from reftlens.positions import Positions
from reftlens.results import BesideTracing, PatchMap, ReftMap

Values = npt.NDArray[np.float64]


def at_rules(result: PatchMap, batch: Batch, positions: Mapping[str, Positions]) -> PatchMap:
    """A map over positions cut down to one token of each prompt for each rule, so that ragged prompts line up.

    Args:
        result: over layers and positions.
        batch: the prompts whose columns these are.
        positions: name -> rule that picks one token of each prompt.

    Raises:
        ValueError: if the map is over heads or of other prompts, or a rule picks no token or several.
    """
    if result.axes[-1] != "pos" or result.values.shape[::2] != batch.tokens.shape:
        raise ValueError(
            f"wanted a map over positions of these {list(batch.tokens.shape)} tokens, got axes {result.axes} of "
            f"{list(result.values.shape[::2])}"
        )
    columns = []
    for name, rule in positions.items():
        mask = rule.mask(batch.prompts).cpu()
        for row in (mask.sum(1) != 1).nonzero().flatten().tolist():
            raise ValueError(
                f"{name!r} must pick one token of each prompt, and picks {int(mask[row].sum())} in row {row}"
            )
        columns.append(mask.int().argmax(1))
    place = torch.stack(columns, dim=1)[:, None].expand(-1, result.values.shape[1], -1)
    return replace(
        result,
        values=result.values.gather(2, place),
        control=None if result.control is None else result.control.gather(2, place),
        columns=tuple(positions),
    )


def beside_tracing(reft: ReftMap, tracing: PatchMap, *, n_resamples: int = 1000, seed: int = 0) -> BesideTracing:
    """Compares trained edits with a tracing map.

    Args:
        reft: from `rl.reft_map`.
        tracing: of the same points and rules, from `at_rules`; other rows than those of `reft` are left out.
        n_resamples: of each bootstrap.
        seed: draws them.

    Raises:
        ValueError: if there are not the same cells in both, or fewer than three.
    """
    missing = [row for row in reft.rows if row not in tracing.rows]
    if missing or tracing.columns != reft.columns:
        raise ValueError(
            f"wanted tracing of the cells of the trained edits: rows {', '.join(missing) or 'all there'} missing, columns "
            f"{tracing.columns} beside {reft.columns}; `at_rules` makes such columns"
        )
    kept = [tracing.rows.index(row) for row in reft.rows]
    control = None if tracing.control is None else tracing.control[:, kept]
    tracing = replace(tracing, values=tracing.values[:, kept], control=control, rows=reft.rows)
    if reft.gain().numel() < 3:
        raise ValueError(f"a rank correlation wants at least three cells, got {reft.gain().numel()}")
    gain = (reft.held_out - reft.base).flatten(0, 1).double().numpy()  # [cell, prompt]
    moved = (tracing.values - tracing.base[:, None, None]).flatten(1).T.double().numpy()  # [cell, pair]
    gap = (tracing.source - tracing.base).double().numpy()
    gains, restored = gain.mean(1), moved.sum(1) / gap.sum()
    draw = np.random.default_rng(seed)
    cells = draw.integers(len(gains), size=(n_resamples, len(gains)))
    prompts, pairs = _weights(draw, n_resamples, gain.shape[1]), _weights(draw, n_resamples, len(gap))
    shape = reft.gain().shape
    shifted = _shifts(restored.reshape(shape))
    rho = _spearman(np.broadcast_to(gains, shifted.shape), shifted)
    shuffled = (reft.control - reft.base).mean(-1).flatten().double().numpy()
    best = int(restored.argmax())
    others = np.delete(gains, best)
    return BesideTracing(
        reft=reft,
        tracing=tracing,
        correlation=float(rho[0]),
        p=float((rho >= rho[0] - 1e-9).mean()) if np.isfinite(rho[0]) else float("nan"),
        shuffled_correlation=float(_spearman(shuffled[None], restored[None])[0]),
        over_cells=_interval(_spearman(gains[cells], restored[cells])),
        over_prompts=_interval(_spearman(prompts @ gain.T, (pairs @ moved.T) / (pairs @ gap)[:, None])),
        at_traced=float(gains[best]),
        at_random=float(gains.mean()),
        as_good=float((others >= gains[best]).mean()),
    )


def _shifts(cells: Values) -> Values:
    """[shift, cell]: the map moved round by every number of rows and columns, the unmoved one first."""
    rows, columns = cells.shape
    moves = [(row, column) for row in range(rows) for column in range(columns)]
    return np.stack([np.roll(cells, move, axis=(0, 1)).ravel() for move in moves])


def _weights(draw: np.random.Generator, n_resamples: int, n: int) -> Values:
    """How often each of n is drawn in each resample, as a part of all."""
    return draw.multinomial(n, np.full(n, 1 / n), size=n_resamples) / n


def _spearman(a: Values, b: Values) -> Values:
    """Row by row; ties share their mean rank, and what float32 cannot tell apart is one. NaN where one side is constant."""
    ranks = [pd.DataFrame(side.round(6)).rank(axis=1).to_numpy() for side in (a, b)]
    centred = [side - side.mean(1, keepdims=True) for side in ranks]
    norms = [np.sqrt((side**2).sum(1)) for side in centred]
    product = norms[0] * norms[1]
    return np.where(product > 0, (centred[0] * centred[1]).sum(1) / np.where(product > 0, product, 1), np.nan)


def _interval(draws: Values) -> tuple[float, float]:
    """95%, of the resamples that have a correlation."""
    found = draws[np.isfinite(draws)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
