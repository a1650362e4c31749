"""Plot of each edit's weights: the gains of its linear part, and the norm of its constant."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reftlens.plot.canvas import BLUE, GREY, INK, ORANGE, house_style, or_several, sheet
from reftlens.plot.labels import short_name
from reftlens.results import EditProfile

_MOST_ROWS = 48
"""More rows than this would not be read on one page; the subtitle says how many there are."""


@or_several(EditProfile)
def edit_profile(profile: EditProfile) -> Figure:
    """Draws the singular values of A and the norm of c, one row per site.

    Args:
        profile: of an edit's weights.

    Raises:
        ValueError: If there are no sites.
    """
    if not profile.rows:
        raise ValueError("edit_profile needs at least one site, got none")
    shown = min(len(profile.rows), _MOST_ROWS)
    subtitle = "by the weights alone, for h + A h + c" + (
        f"; the first {shown} of {len(profile.rows)} sites" * (shown < len(profile.rows))
    )
    with house_style():
        figure = sheet(7.0, 0.95 + 0.24 * shown, title="What the edit does to an activation", subtitle=subtitle)
        left, right = figure.subplots(1, 2, sharey=True)
        _gains(left, profile, shown)
        # An edit that is not affine has no bar; the left panel says so.
        right.barh(range(shown), np.nan_to_num(profile.push[:shown].double().numpy()), height=0.55, color=ORANGE)
        right.set_xlabel("length of c, in the\nunits of the activation")
        right.tick_params(axis="y", length=0)
        left.set_yticks(range(shown), [_label(row) for row in profile.rows[:shown]])
        left.set_ylim(shown - 0.4, -0.6)
        for axes in (left, right):
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure


def _gains(axes: Axes, profile: EditProfile, shown: int) -> None:
    # The identity would add nothing: 1 means a change as long as what is read.
    axes.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
    for row, gains in enumerate(profile.gains[:shown]):
        if gains is None or not len(gains):
            text = "not of this form" if gains is None else "none: a constant push"
            behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(0.02, row, text, transform=axes.get_yaxis_transform(), va="center", color=INK, bbox=behind)
            continue
        values = gains.double().numpy()
        axes.plot(
            values,
            np.full(len(values), row),
            "o",
            color=BLUE,
            markersize=4.5,
            alpha=0.6,
            markeredgewidth=0,
            clip_on=False,
        )
    axes.set_xlabel("singular values of A\n(dotted, 1: as long as what is read)")


def _label(row: str) -> str:
    hook_name, _, head = row.partition(" ")
    # The card of an earlier version names hooks.
    return short_name(row) if " @ " in row else f"{short_name(hook_name)} {head}".strip()
