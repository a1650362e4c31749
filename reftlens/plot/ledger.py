"""Plot of the terms of each token's change: their norms, and the cosines between them.

Norms alone would be misleading, because terms can add up or cancel. So the norm of their sum is
drawn too, with their cosines below.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reftlens.plot.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    VERMILLION,
    house_style,
    label_tokens,
    or_several,
    panel_title,
    sheet,
    token_room,
)
from reftlens.plot.labels import short_name, star
from reftlens.results import TERMS, Ledger

_MOST_SITES, _MOST_TOKENS = 6, 24
"""More would not be read on one page; the subtitle says how many there are."""
_BARS = ((VERMILLION, ""), (ORANGE, "...."), (BLUE, "////"))
"""Colour and hatch of each term."""
_PAIRS = ((0, 1, "o", ORANGE), (0, 2, "s", BLUE), (1, 2, "^", INK))
"""Terms whose cosine is drawn, with marker and colour."""


@or_several(Ledger)
def ledger(result: Ledger) -> Figure:
    """Draws, for each site and edited token, the norms of the terms and of the change, and the cosines between terms.

    Args:
        result: from `analysis.ledger`.

    Raises:
        ValueError: If no token is edited.
    """
    places = (~result.norm.isnan()).any(0).nonzero()[:, 0].tolist()
    if not places:
        raise ValueError("ledger needs at least one edited token, got none")
    shown, sites = places[:_MOST_TOKENS], range(min(len(result.rows), _MOST_SITES))
    tokens = [star(result.tokens, result.starred)[place] for place in shown]
    width = max(6.5, 0.36 * len(shown) + 1.2)
    room = (width - 1.2) / max(len(shown), 4)
    notes = ["terms can cancel, so none is a share of the change", f"{len(sites)} of {len(result.rows)} sites"]
    notes += [f"{len(shown)} of {len(places)} edited tokens"] * (len(shown) < len(places))
    notes += ["* subject"] * any(result.starred[place] for place in shown)
    with house_style():
        height = (2.6 + token_room(tokens, room=room)) * len(sites) + 0.55
        figure = sheet(width, height, title="What each change is made of", subtitle="; ".join(notes))
        grid = figure.subplots(2 * len(sites), 1, squeeze=False, height_ratios=[1.5, 1] * len(sites)).ravel().tolist()
        for site, lengths, cosines in zip(sites, grid[::2], grid[1::2], strict=True):
            _lengths(lengths, result, site, shown)
            _cosines(cosines, result, site, shown)
            panel_title(lengths, short_name(result.rows[site]), width=width - 1)
            lengths.set_xticks([])
            label_tokens(cosines, tokens, room=room)
            for axes in (lengths, cosines):
                # Below four tokens the axis keeps its length, or bars would become slabs.
                axes.set_xlim(-0.6, max(len(shown), 4) - 0.4)
        figure.legend(handles=_key(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _lengths(axes: Axes, result: Ledger, site: int, shown: list[int]) -> None:
    places = np.arange(len(shown))
    for term, (colour, hatch) in enumerate(_BARS):
        bars = np.nan_to_num(result.length[site, shown, term].double().numpy())
        axes.bar(places + 0.25 * (term - 1), bars, width=0.22, linewidth=0.8, **_style(colour, hatch))
    axes.hlines(
        result.change[site, shown].double().numpy(), places - 0.4, places + 0.4, color=INK, linewidth=1.6, zorder=3
    )
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="y", nbins=4)
    axes.set_ylabel("length")


def _cosines(axes: Axes, result: Ledger, site: int, shown: list[int]) -> None:
    chance = float(result.null_cosine[site])
    axes.axhspan(-chance, chance, color=PALE, zorder=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    for place, (i, j, marker, colour) in enumerate(_PAIRS):
        values = result.cosine[site, shown, i, j].double().numpy()
        axes.plot(np.arange(len(shown)) + 0.2 * (place - 1), values, marker, color=colour, markersize=4.5)
    axes.set_ylim(-1.1, 1.1)
    axes.set_yticks([-1, 0, 1])
    axes.set_ylabel("cosine")


def _style(colour: str, hatch: str) -> dict[str, Any]:
    """A bar that differs from the others in grey as well: hatched ones are open."""
    return {"facecolor": "white" if hatch else colour, "edgecolor": colour, "hatch": hatch}


def _key() -> list[Patch | Line2D]:
    key: list[Patch | Line2D] = []
    for name, (colour, hatch) in zip(TERMS, _BARS, strict=True):
        key.append(Patch(label=name, **_style(colour, hatch)))
    for i, j, marker, colour in _PAIRS:
        names = f"cosine of {TERMS[i]} and {TERMS[j].removeprefix('write ')}"
        key.append(Line2D([], [], linestyle="", marker=marker, color=colour, markersize=4.5, label=names))
    key.append(Line2D([], [], color=INK, linewidth=1.6, label="length of the change"))
    key.append(Patch(color=PALE, label="rms cosine of random directions"))
    return key
