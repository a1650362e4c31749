"""Results as HTML that stands by itself, and the numbers with which the page's script lets a reader explore them.

Shades are classes, not `style` attributes, which the page's policy forbids. Names and tokens are
escaped like all text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.colors import to_hex

from reftlens.plot.canvas import colour_at, ink_on, number
from reftlens.plot.cells import Cells, Mapped, View, cells_of
from reftlens.plot.edit_size import COLOURS, largest
from reftlens.plot.labels import short_name, visible
from reftlens.results import Dose, EditSize, TokenMap
from reftlens.text import harmless

STEPS = 20
"""Shades from zero to the largest value; the script has the same number."""
_NO_VALUE = "\N{EN DASH}"
_SHOWN = ("measured", "control", "difference")


@final
@dataclass(frozen=True)
class Interactive:
    """One element of a page: what is read without the script, and the numbers that the script needs."""

    html: Markup
    numbers: Any


def shades() -> str:
    """Style rules of all shades: `v0` to `v40` around zero, `w0` to `w20` from zero."""
    signed, sizes = colormaps["RdBu_r"], COLOURS
    rules = [(f"v{n}", colour_at(signed, n / (2 * STEPS))) for n in range(2 * STEPS + 1)]
    rules += [(f"w{n}", colour_at(sizes, n / STEPS)) for n in range(STEPS + 1)]
    return "\n".join(f".{name} {{ background: {to_hex(colour)}; color: {ink_on(colour)}; }}" for name, colour in rules)


def as_json(numbers: Sequence[Any]) -> Markup:
    r"""JSON that can stand in a page: no character ends its element, and no string holds a command to a terminal.

    >>> print(as_json(["</script>&\u202e"]))
    ["\u003c/script\u003e\u0026\\u202e"]
    """
    text = json.dumps(_harmless(list(numbers)), allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def token_map(result: Mapped | Cells, place: int) -> Interactive:
    """A map as a table, the first row at the bottom, with the columns of each prompt where they are known.

    Args:
        result: the map, perhaps with its control and each prompt.
        place: of its numbers among those of the page.
    """
    cells = cells_of(result)
    views = [_view(view) for view in cells.views]
    limit = cells.limit
    decimals = 2 if 0.1 <= limit < 100 else max(0, 1 - math.floor(math.log10(limit)))
    numbers = {
        "rows": list(reversed(cells.rows)),
        "column": cells.column,
        "limit": limit,
        "decimals": decimals,
        "more": decimals + 1,
        "views": views,
    }
    html = _MAP.format(
        place=place,
        controls=Markup("").join([*_switch(cells, place), *_picker(cells)]),
        quantity=cells.quantity,
        columns=len(cells.views[0].columns),
        heads=Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in views[0]["tokens"]),
        lines=Markup("\n").join(_line(numbers, views[0], row) for row in range(len(cells.rows))),
        key=_key(cells, limit, decimals),
    )
    return Interactive(html, numbers)


def strip(result: EditSize | TokenMap) -> Interactive:
    """The tokens of a text, a line for each row, shaded by the value; pointed at, a token says its numbers."""
    lines = [
        _STRIP.format(row=short_name(row), tokens=Markup("").join(_tokens(result, place)))
        for place, row in enumerate(result.rows)
    ]
    if isinstance(result, EditSize):
        top, what, unshaded = largest(result), "length of the change / length of the activation", "not edited"
        steps = [(f"w{n}", n / STEPS * top) for n in (0, STEPS // 2, STEPS)]
    else:
        top, what, unshaded = cells_of(result).limit, result.quantity, "no value"
        steps = [(f"v{n}", (n - STEPS) / STEPS * top) for n in (0, STEPS, 2 * STEPS)]
    key = Markup(" ").join(Markup('<span class="{}">{}</span>').format(name, number(v, 2)) for name, v in steps)
    end = Markup('<p class="key">{}: {} <span>not shaded: {}</span></p>').format(what, key, unshaded)
    return Interactive(Markup('<div class="strips">{}</div>\n{}').format(Markup("\n").join(lines), end), None)


def dose(result: Dose, place: int) -> Interactive:
    """The dose curve as drawings that a slider reads out.

    Args:
        result: the curve.
        place: of its numbers among those of the page.
    """
    has_kl = not bool(torch.isnan(result.kl).all())
    panels = [_Curve("log-probability of the wanted answer, nats", result.target, result.control_target)]
    panels += [_Curve("KL on prompts that should stay, nats", result.kl, result.control_kl)] * has_kl
    numbers = [
        {"x": round(_across(result, alpha), 2), "text": _dose_text(result, index, has_kl=has_kl)}
        for index, alpha in enumerate(result.alpha.tolist())
    ]
    html = _DOSE.format(
        place=place,
        last=len(numbers) - 1,
        # The slider begins at the trained edit.
        value=int((result.alpha - 1).abs().argmin()),
        panels=Markup("\n").join(_panel(result, panel) for panel in panels),
    )
    return Interactive(html, numbers)


# The switch is hidden until the script starts: without it, it would do nothing.
_MAP = Markup("""<figure class="map" data-number="{place}">
<div class="switch" hidden>{controls}</div>
<div class="scroll" tabindex="0" role="group" aria-label="{quantity}">
<table class="grid"><thead><tr><td></td>{heads}</tr></thead>
<tbody class="cells" data-columns="{columns}">
{lines}
</tbody></table></div>
<p class="key">{key}</p>
</figure>""")
_STRIP = Markup('<p class="strip"><b>{row}</b> <span class="cells" data-columns="1">{tokens}</span></p>')
_DOSE = Markup("""<figure class="dose" data-number="{place}">
<div class="switch" hidden><label>dose <input type="range" min="0" max="{last}" step="1" value="{value}"></label>
<output></output></div>
<div class="panels">{panels}</div>
<p class="key"><span class="line edit">the edit</span> <span class="line control">random directions</span></p>
</figure>""")


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, dict):
        return {name: _harmless(item) for name, item in value.items()}
    return [_harmless(item) for item in value] if isinstance(value, list) else value


def _view(view: View) -> dict[str, Any]:
    """For the script; the last row first, as in the table."""
    finite = torch.zeros(1) if view.control is None else view.control[view.control.isfinite()].abs()
    return {
        "name": view.name,
        "tokens": list(view.columns),
        "value": _grid(view.values),
        "control": None if view.control is None else _grid(view.control),
        "reach": _rounded(float(finite.max())) if len(finite) else 0.0,
    }


def _grid(values: torch.Tensor) -> list[list[float | None]]:
    return [[_rounded(value) if math.isfinite(value) else None for value in row] for row in values.flip(0).tolist()]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _switch(cells: Cells, place: int) -> list[Markup]:
    if cells.views[0].control is None:
        return []
    button = Markup('<label><input type="radio" name="show-{}" value="{}"{}> {}</label> ')
    buttons = [button.format(place, name, Markup(" checked") if name == "measured" else "", name) for name in _SHOWN]
    return [Markup('<span role="group" aria-label="what the cells show">{}</span>').format(Markup("").join(buttons))]


def _picker(cells: Cells) -> list[Markup]:
    if len(cells.views) < 2:
        return []
    options = Markup("").join(Markup("<option>{}</option>").format(view.name) for view in cells.views)
    return [Markup("<label>{} <select>{}</select></label>").format(cells.choice, options)]


def _line(numbers: dict[str, Any], view: dict[str, Any], row: int) -> Markup:
    """A line of the table as the script would write it for the mean, so that nothing moves when it starts."""
    cells = []
    for column, value in enumerate(view["value"][row]):
        control = None if view["control"] is None else view["control"][row][column]
        # As in the figures: grey where some cell of the control is as far from 0.
        covered = control is not None and value is not None and abs(value) <= view["reach"]
        shade = 0 if value is None else round(STEPS * max(-1.0, min(1.0, value / numbers["limit"])))
        name = "none" if value is None else "covered" if covered else f"v{shade + STEPS}"
        beside = f", control {number(control, numbers['more'])}" if control is not None else ""
        said = "no value" if value is None else f"measured {number(value, numbers['more'])}{beside}"
        cells.append(
            Markup('<td class="{}" title="{}">{}</td>').format(
                name,
                f"{numbers['rows'][row]}, {numbers['column']}{view['tokens'][column]}: {said}",
                _NO_VALUE if value is None else number(value, numbers["decimals"]),
            )
        )
    return Markup('<tr><th scope="row">{}</th>{}</tr>').format(numbers["rows"][row], Markup("").join(cells))


def _key(cells: Cells, limit: float, decimals: int) -> Markup:
    steps = [(f"v{round(STEPS + part * STEPS)}", part * limit) for part in (-1.0, -0.5, 0.0, 0.5, 1.0)]
    key = Markup(" ").join(
        Markup('<span class="{}">{}</span>').format(name, number(value, decimals)) for name, value in steps
    )
    mean, notes = cells.views[0], []
    if mean.control is not None:
        notes.append(Markup('<span class="covered">grey</span>: no larger in size than the largest control cell'))
        notes.append(Markup("control: {}").format(cells.control_name))
    notes += [Markup("* subject")] * cells.starred
    notes += [Markup("{} no value").format(_NO_VALUE)] * (not bool(mean.values.isfinite().all()))
    return Markup("; ").join([Markup("{}: {}").format(cells.quantity, key), *notes])


def _tokens(result: EditSize | TokenMap, row: int) -> list[Markup]:
    """Of one line of a strip."""
    spans = []
    limit = largest(result) if isinstance(result, EditSize) else cells_of(result).limit
    for place, token in enumerate(result.tokens):
        name, said = (
            _size(result, row, place, limit) if isinstance(result, EditSize) else _effect(result, row, place, limit)
        )
        text = f"{short_name(result.rows[row])}, token {place} {visible(token)}{', subject' * result.starred[place]}: {said}"
        spans.append(
            Markup('<span class="{}" title="{}">{}</span>').format(
                name + " starred" * result.starred[place], text, visible(token)
            )
        )
    return spans


def _size(result: EditSize, row: int, place: int, limit: float) -> tuple[str, str]:
    if not bool(result.edited[row, place]):
        return "token", "not edited"
    size = float(result.relative[row, place])
    part = size / limit if math.isfinite(size) else 0.0
    return f"token w{round(STEPS * min(1.0, part))}", f"change of {size:.3g} of the activation's length"


def _effect(result: TokenMap, row: int, place: int, limit: float) -> tuple[str, str]:
    value = float(result.values[row, place])
    if not math.isfinite(value):
        return "token", "no value"
    beside = "" if result.control is None else f", control {number(float(result.control[row, place]), 3)}"
    return f"token v{round(STEPS + STEPS * max(-1.0, min(1.0, value / limit)))}", f"measured {number(value, 3)}{beside}"


# The drawing of a dose curve: a box of 320 x 180 with room for the numbers at its edges.
_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 190, 46, 8, 26, 30


@final
@dataclass(frozen=True, eq=False)
class _Curve:
    title: str
    edit: torch.Tensor
    control: torch.Tensor


def _across(result: Dose, alpha: float) -> float:
    low, high = float(result.alpha.min()), float(result.alpha.max())
    part = (alpha - low) / (high - low) if high > low else 0.5
    return _LEFT + part * (_WIDE - _LEFT - _RIGHT)


def _panel(result: Dose, curve: _Curve) -> Markup:
    found = torch.cat([curve.edit, curve.control])
    found = found[found.isfinite()]
    low, high = (float(found.min()), float(found.max())) if len(found) else (0.0, 1.0)
    reach = high - low or 1.0

    def up(value: float) -> float:
        return _HIGH - _BOTTOM - (value - low) / reach * (_HIGH - _TOP - _BOTTOM)

    def line(values: torch.Tensor, name: str) -> Markup:
        points = " ".join(
            f"{_across(result, alpha):.1f},{up(value):.1f}"
            for alpha, value in zip(result.alpha.tolist(), values.tolist(), strict=True)
            if math.isfinite(value)
        )
        return Markup('<polyline class="{}" points="{}"/>').format(name, points)

    marker = _across(result, float(result.alpha[(result.alpha - 1).abs().argmin()]))
    texts: list[tuple[float, float, str, str]]
    texts = [(_LEFT - 4, up(value) + 4, "end", number(value, 1 if reach >= 1 else 2)) for value in (low, high)]
    texts += [
        (_across(result, alpha), _HIGH - _BOTTOM + 14, "middle", f"{alpha:g}".replace("-", "\N{MINUS SIGN}"))
        for alpha in sorted({float(result.alpha.min()), 0.0, 1.0, float(result.alpha.max())})
        if float(result.alpha.min()) <= alpha <= float(result.alpha.max())
    ]
    texts += [
        (_LEFT, 14, "start", curve.title),
        ((_WIDE + _LEFT) / 2, _HIGH - 3, "middle", "dose (1: the trained edit)"),
    ]
    drawn = [Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(*text) for text in texts]
    said = f"{curve.title}: {_reach(curve.edit)} over the doses; with random directions {_reach(curve.control)}"
    head = Markup('<svg viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">')
    edge = Markup('<path class="edge" d="M{},{}V{}H{}"/>').format(_LEFT, _TOP, _HIGH - _BOTTOM, _WIDE - _RIGHT)
    mark = Markup('<line class="marker" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(marker, _TOP, _HIGH - _BOTTOM)
    lines = [line(curve.control, "control"), line(curve.edit, "edit")]
    return Markup("").join(
        [head.format(_WIDE, _HIGH, _WIDE, _HIGH, said), edge, mark, *lines, *drawn, Markup("</svg>")]
    )


def _reach(values: torch.Tensor) -> str:
    found = values[values.isfinite()]
    return f"{number(float(found.min()), 2)} to {number(float(found.max()), 2)}" if len(found) else "no values"


def _dose_text(result: Dose, index: int, *, has_kl: bool) -> str:
    """What the curve says at one dose."""

    def pair(edit: torch.Tensor, control: torch.Tensor) -> str:
        return f"{number(float(edit[index]), 2)} (random directions {number(float(control[index]), 2)})"

    kl = f"; KL on prompts that should stay {pair(result.kl, result.control_kl)}" if has_kl else ""
    alpha = f"{float(result.alpha[index]):g}".replace("-", "\N{MINUS SIGN}")
    return f"{alpha}: log-probability of the wanted answer {pair(result.target, result.control_target)} nats{kl}"
