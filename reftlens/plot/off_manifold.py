"""Plot of edited against unedited activations: the cumulative share of tokens by percentile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, VERMILLION, house_style, listed, sheet
from reftlens.plot.labels import short_name
from reftlens.results import OffManifold


def off_manifold(results: Sequence[OffManifold] | OffManifold) -> Figure:
    """Draws cumulative shares, one panel per site. Unedited activations should follow the diagonal.

    Args:
        results: from `analysis.off_manifold`.

    Raises:
        ValueError: If there are no results.
    """
    results = listed(results, OffManifold)
    if not results:
        raise ValueError("off_manifold needs at least one result, got none")
    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    width = max(6.5, 3.0 * columns)
    subtitle = "Mahalanobis distance, as a percentile among natural activations; below the diagonal: further out"
    with house_style():
        figure = sheet(width, 2.7 * lines + 0.3, title="Edited activations among natural ones", subtitle=subtitle)
        grid = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
        for axes, result in zip(grid, results, strict=False):
            _panel(axes, result)
        for axes in grid[len(results) :]:
            axes.remove()
        for axes in grid[: len(results) : columns]:
            axes.set_ylabel("share of tokens")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, result: OffManifold) -> None:
    axes.plot([0, 100], [0, 1], color=GREY, linewidth=0.8, linestyle=":", label="uniform")
    drawn = (
        (result.natural, "before the edit", GREY, "-"),
        (result.edited, "edited", VERMILLION, "-"),
        (result.control, "edited in random directions", BLUE, "--"),
    )
    for values, name, colour, style in drawn:
        # From (0, 0) to (100, 1), so that every curve spans the panel.
        ordered = torch.cat([torch.zeros(1), values.sort().values, torch.tensor([100.0])])
        share = torch.cat([torch.arange(len(values) + 1) / len(values), torch.ones(1)])
        axes.step(ordered, share, where="post", color=colour, linestyle=style, label=name)
    axes.set_xlabel("percentile")
    ratio = float(result.norm_ratio.median())
    axes.set_title(f"{short_name(result.where)}\nmedian |h + Δ| / |h| = {ratio:.2f}", loc="left", color=INK)
