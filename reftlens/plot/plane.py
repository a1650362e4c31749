"""Edited tokens of one site along two write directions, as a drawing of a page: each says where it was and where it went."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from markupsafe import Markup

from reftlens.plot.canvas import number
from reftlens.plot.cells import text_of
from reftlens.plot.labels import drawn, short_name
from reftlens.results import Projection

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 300, 48, 12, 24, 34
"""The drawing, with room for the numbers at its edges."""
_KINDS = 4
"""Colours for groups, as in the figure; further groups take the last one."""

_MOVE = Markup(
    '<g class="move g{group}"><title>{said}</title><line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
    '<circle class="before" cx="{x1}" cy="{y1}" r="4"/><circle cx="{x2}" cy="{y2}" r="4"/></g>'
)
_TURNED = Markup('<path class="turned" d="M{0},{1}l5,5m0,-5l-5,5"/>')


def plane(result: Projection) -> Markup:
    """A drawing with a line for each token, from its place before the edit to that after it; crosses are the control.

    Args:
        result: from `analysis.project`.
    """
    everything = torch.cat([result.before, result.after, result.control]).double()
    everything = everything[everything.isfinite().all(dim=1)]
    if not len(everything):
        return Markup("<p>No token has a place in this plane.</p>")
    low, high = everything.amin(0), everything.amax(0)
    groups = list(dict.fromkeys(result.groups))
    moves = [_move(result, place, groups, low, high) for place in range(len(result.groups))]
    turned = [_TURNED.format(round(x - 2.5, 1), round(y - 2.5, 1)) for x, y in _on_page(result.control, low, high)]
    key = [
        Markup('<span class="group g{}">{}</span>').format(min(place, _KINDS - 1), drawn(group) or "''")
        for place, group in enumerate(groups)
    ]
    return _WHOLE.format(
        wide=_WIDE,
        high=_HIGH,
        said=f"{short_name(result.where)}: {result.headline()}",
        edge=Markup('<path class="edge" d="M{},{}V{}H{}"/>').format(_LEFT, _TOP, _HIGH - _BOTTOM, _WIDE - _RIGHT),
        numbers=Markup("").join(
            Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*one) for one in _ends(low, high)
        ),
        turned=Markup("").join(turned),
        # With one column, the arrow keys of the page's script go from token to token.
        count=1,
        moves=Markup("").join(moves),
        key=Markup(" ").join(key),
    )


_WHOLE = Markup("""<figure class="plane">
<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="group" aria-label="{said}">{edge}{numbers}{turned}
<g class="cells" data-columns="{count}">{moves}</g></svg>
<p class="key">{key} open mark: before the edit; filled mark: after it; cross: the control, in random directions</p>
</figure>""")


def _move(result: Projection, place: int, groups: Sequence[str], low: torch.Tensor, high: torch.Tensor) -> Markup:
    before, after, control = (part[place] for part in (result.before, result.after, result.control))
    if not bool(torch.cat([before, after]).isfinite().all()):
        return Markup("")
    (x1, y1), (x2, y2) = _on_page(torch.stack([before, after]), low, high)
    # Without the script, a title of the drawing says the same.
    name = text_of(result.prompts[place]) if result.prompts else "a token"
    said = f"{name} ({drawn(result.groups[place])}): from {_pair(before)} to {_pair(after)}; in a random direction to {_pair(control)}"
    group = min(groups.index(result.groups[place]), _KINDS - 1)
    return _MOVE.format(group=group, said=said, x1=x1, y1=y1, x2=x2, y2=y2)


def _on_page(points: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> list[tuple[float, float]]:
    """Where finite points are drawn."""
    finite = points.double()[points.isfinite().all(dim=1)]
    x, y = ((finite - low) / (high - low).clamp(min=1e-12)).T
    across, up = _LEFT + x * (_WIDE - _LEFT - _RIGHT), _HIGH - _BOTTOM - y * (_HIGH - _BOTTOM - _TOP)
    return [(round(a, 1), round(b, 1)) for a, b in zip(across.tolist(), up.tolist(), strict=True)]


def _ends(low: torch.Tensor, high: torch.Tensor) -> list[tuple[int, int, str, str]]:
    """The numbers at the ends of both axes, and their names."""
    bottom = _HIGH - _BOTTOM + 14
    return [
        (_LEFT, bottom, "start", number(float(low[0]), 1)),
        (_WIDE - _RIGHT, bottom, "end", number(float(high[0]), 1)),
        ((_LEFT + _WIDE - _RIGHT) // 2, bottom + 12, "middle", "along direction 0"),
        (_LEFT - 5, _HIGH - _BOTTOM, "end", number(float(low[1]), 1)),
        (_LEFT - 5, _TOP + 8, "end", number(float(high[1]), 1)),
        (_LEFT, _TOP - 8, "start", "along direction 1"),
    ]


def _pair(point: torch.Tensor) -> str:
    return f"({number(float(point[0]), 2)}, {number(float(point[1]), 2)})"
