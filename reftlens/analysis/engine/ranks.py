"""Rank correlation of two maps of the same cells, and its null: cyclic shifts of one map, which keep each map's smoothness."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

Values = npt.NDArray[np.float64]


def shifts(cells: Values) -> Values:
    """Returns [shift, cell]: all cyclic shifts of the map by rows and columns, the unshifted one first.

    Args:
        cells: [row, column].
    """
    rows, columns = cells.shape
    moves = [(row, column) for row in range(rows) for column in range(columns)]
    return np.stack([np.roll(cells, move, axis=(0, 1)).ravel() for move in moves])


def spearman(a: Values, b: Values) -> Values:
    """Computes rank correlations row by row. Ties, up to float32 precision, get their mean rank. NaN if a side is constant.

    Args:
        a: [draw, cell].
        b: the same cells.
    """
    ranks = [pd.DataFrame(side.round(6)).rank(axis=1).to_numpy() for side in (a, b)]
    centred = [side - side.mean(1, keepdims=True) for side in ranks]
    norms = [np.sqrt((side**2).sum(1)) for side in centred]
    product = norms[0] * norms[1]
    return np.where(product > 0, (centred[0] * centred[1]).sum(1) / np.where(product > 0, product, 1), np.nan)
