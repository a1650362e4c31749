"""Does a predicted map order the cells as training does? Rank correlations of `predict_map` with `rl.reft_map`.

rho = Spearman's rank correlation over cells between a predictor and the gain of the edits trained
there. p compares it with all cyclic shifts of the trained map by rows and columns, which keep the
smoothness of both maps (see `beside_tracing`, also for how often that p alarms by chance where maps
have trends). Three predictors are three looks: `p_any` corrects for them.

Two controls say how little a high rho may mean. The prediction from shuffled answers is scored as
well: where it does as well, slopes say where an edit can write, and not what it can read. And a map
of two tokens is ordered once their columns are: the correlations within columns and within rows
leave out what whole columns and whole rows have in common.

Not evidence about other tasks or training settings: a prediction of the order is scored on the
cells of one map.
"""

from __future__ import annotations

import numpy as np
from einops import reduce

from reftlens.analysis.engine.ranks import Values, shifts, spearman
from reftlens.results import BesideTraining, PredictedMap, ReftMap
from reftlens.results.causes import Score


def beside_training(predicted: PredictedMap, trained: ReftMap) -> BesideTraining:
    """Scores each predictor of a map against trained edits.

    Args:
        predicted: from `analysis.predict_map`.
        trained: from `rl.reft_map`, with a score of which more is better, of the same rows and
            columns.

    Raises:
        ValueError: If the maps do not have the same cells, or have fewer than three.
    """
    if predicted.rows != trained.rows or predicted.columns != trained.columns:
        raise ValueError(
            "both maps must have the same cells. Predicted: "
            f"{predicted.rows} x {predicted.columns}; trained: {trained.rows} x {trained.columns}"
        )
    gain = trained.gain().double().numpy()
    if gain.size < 3:
        raise ValueError(f"a rank correlation needs at least three cells, got {gain.size}")
    # Ranks are of numbers rounded for ties, so that each map needs a scale of its own.
    maps = [_scaled(values.double().numpy()) for values in predicted.values]
    shuffled = [_scaled(values.double().numpy()) for values in predicted.control]
    moved = shifts(_scaled(gain))
    rhos = np.stack([spearman(np.broadcast_to(values.ravel(), moved.shape), moved) for values in maps])
    # A map without a correlation cannot exceed another's.
    highest = np.where(np.isfinite(rhos), rhos, -1.0).max(0)
    scores = []
    for name, values, control, rho in zip(predicted.predictors, maps, shuffled, rhos, strict=True):
        known = bool(np.isfinite(rho[0]))
        scores.append(
            Score(
                predictor=name,
                correlation=float(rho[0]),
                # 1e-9: equal maps may differ by rounding. The unshifted map counts too, so p is
                # above 0.
                p=float((rho >= rho[0] - 1e-9).mean()) if known else float("nan"),
                p_any=float((highest >= rho[0] - 1e-9).mean()) if known else float("nan"),
                shuffled=float(spearman(control.reshape(1, -1), moved[:1])[0]),
                within_columns=_within(values, moved[0].reshape(gain.shape), "row column -> 1 column"),
                within_rows=_within(values, moved[0].reshape(gain.shape), "row column -> row 1"),
                # Of several that are predicted alike, the mean: which one comes first means
                # nothing.
                at_best=float(gain[values >= values.max()].mean()),
            )
        )
    return BesideTraining(predicted, trained, tuple(scores), at_random=float(gain.mean()), at_most=float(gain.max()))


def _scaled(values: Values) -> Values:
    largest = float(np.abs(values).max(initial=0.0))
    return values / largest if largest > 0 else values


def _within(a: Values, b: Values, groups: str) -> float:
    """Computes the correlation of ranks without the mean rank of each group."""
    ranks = [side.ravel().round(6) for side in (a, b)]
    ranked = [(side[:, None] > side).sum(1) + 0.5 * (side[:, None] == side).sum(1) for side in ranks]
    left = [rank.reshape(a.shape) - reduce(rank.reshape(a.shape), groups, "mean") for rank in ranked]
    size = float(np.linalg.norm(left[0]) * np.linalg.norm(left[1]))
    return float((left[0] * left[1]).sum() / size) if size > 1e-9 else float("nan")
