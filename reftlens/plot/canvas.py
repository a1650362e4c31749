"""The blank figure that every plot starts from: a white page with a heading, fonts, colours, and PNG output.

A figure's look does not depend on the user's matplotlib settings, and drawing it does not change
them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, TypeVar, final

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from reftlens.plot.labels import FONT, drawn, short_name, short_rows, shortened, wrap

SMALL, LABEL, TITLE = 8.0, 9.0, 11.0
"""Font sizes in points; nothing is smaller than SMALL."""

# Okabe and Ito's colours, which stay apart for colour-blind readers.
VERMILLION, BLUE, ORANGE, GREEN = "#D55E00", "#0072B2", "#E69F00", "#009E73"
GREY, PALE, INK = "#8C8C8C", "#EDEDED", "#222222"

MINUS = "\N{MINUS SIGN}"

_DPI = 150
_LINE = 1.3 / 72
"""Inches a line takes for each point of font size."""


@contextmanager
def house_style() -> Iterator[None]:
    """Applies matplotlib's defaults with our fonts, and restores the user's settings on exit.

    `text.parse_math` is off because "$" is a token like any other.
    """
    ours = {
        "font.family": FONT,
        "font.size": SMALL,
        "axes.titlesize": LABEL,
        "axes.labelsize": LABEL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
        "text.usetex": False,
    }
    with matplotlib.style.context(["default", ours]):
        yield


class Sheet(Figure):
    """A figure that a notebook displays even if pyplot was never imported."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        image = png(self)
        # Shown at its size in inches, of 96 dots on a page: the others keep letters sharp. PNG says
        # its size at byte 16.
        width, height = (int.from_bytes(image[at : at + 4], "big") * 96 // _DPI for at in (16, 20))
        return image, {"width": width, "height": height}


@final
class Stack(Sheet):
    """Several drawings, one below the other: what a plot draws on it goes to the place of its own."""

    def __init__(self, sizes: Sequence[tuple[float, float]]) -> None:
        """Args: sizes: width and height of each drawing, in inches."""
        width, height = max(wide for wide, _ in sizes), sum(high for _, high in sizes)
        super().__init__(figsize=(width, height), facecolor="white")
        self.set_layout_engine(ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.05, hspace=0.03))
        places = super().subfigures(len(sizes), 1, squeeze=False, height_ratios=[high for _, high in sizes])
        self._left = list(places.ravel())

    def begin(self, head: float, height: float) -> None:
        """Goes on to the next drawing, with `head` inches for its heading."""
        self.head, self.body = self._left.pop(0).subfigures(2, 1, height_ratios=[head, height])

    # Plots call these on what `sheet` gave them, which may be one place of a stack.
    def subplots(self, *args: Any, **kwargs: Any) -> Any:
        return self.body.subplots(*args, **kwargs)

    def legend(self, *args: Any, **kwargs: Any) -> Any:
        return self.body.legend(*args, **kwargs)

    def colorbar(self, *args: Any, **kwargs: Any) -> Any:
        return self.body.colorbar(*args, **kwargs)


_STACK: ContextVar[Stack | None] = ContextVar("stack", default=None)
"""Where `sheet` finds its place, while several results are drawn in one figure."""

R = TypeVar("R")
P = ParamSpec("P")


def or_several(
    kind: type[R],
) -> Callable[[Callable[Concatenate[R, P], Figure]], Callable[Concatenate[Sequence[R] | R, P], Figure]]:
    """Makes a plot of one result draw several as well, one below the other.

    Args:
        kind: the class of result that it draws.
    """

    def decorate(draw: Callable[Concatenate[R, P], Figure]) -> Callable[Concatenate[Sequence[R] | R, P], Figure]:
        name = next(iter(signature(draw).parameters))

        @wraps(draw)
        def drawn(*given: Any, **kwargs: Any) -> Figure:
            if not given and name not in kwargs:
                raise TypeError(f"plot.{draw.__name__} needs {name}: one {kind.__name__}, or a list of them")
            # By keyword under the name that its signature shows.
            results, *args = given or (kwargs.pop(name),)
            found = listed(results, kind)
            # Each is drawn by itself first, because only then is its size known.
            alone = [draw(result, *args, **kwargs) for result in found]
            if len(found) == 1:
                return alone[0]
            sizes = [figure.get_size_inches() for figure in alone]
            stack = Stack([(float(width), float(height)) for width, height in sizes])
            token = _STACK.set(stack)
            try:
                for result in found:
                    draw(result, *args, **kwargs)
            finally:
                _STACK.reset(token)
            return stack

        return drawn

    return decorate


def sheet(width: float, height: float, *, title: str, subtitle: str = "") -> Figure:
    """Makes an empty white figure with a heading at its top left.

    Args:
        width: in inches.
        height: of the area below the heading, in inches.
        title: title of the figure.
        subtitle: explanation that a reader needs.
    """
    # Bold letters are a little wider than those that `wrap` counts with.
    title = wrap(title, width=width - 0.3, size=TITLE * 1.08)
    # Measured, because the room that `wrap` allows a character would break many lines that fit.
    fits = text_width(drawn(subtitle)) <= width - 0.2
    subtitle = drawn(subtitle) if fits else wrap(subtitle, width=width - 0.3, size=SMALL)
    title_height = (title.count("\n") + 1) * TITLE * _LINE
    subtitle_height = (subtitle.count("\n") + 1) * SMALL * _LINE if subtitle else 0.0
    head = 0.08 + title_height + subtitle_height + 0.08
    stack = _STACK.get()
    if stack is None:
        figure = above = Sheet(figsize=(width, height + head), facecolor="white")
        whole = height + head
        # hspace keeps the title of one panel off the axis label of the panel above.
        rect = (0.0, 0.0, 1.0, height / whole)
        figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, h_pad=0.05, w_pad=0.05, hspace=0.03))
    else:
        stack.begin(head, height)
        figure, above, whole = stack, stack.head, head
        # Drawings in a stack are all as wide as the widest.
        width = float(stack.get_size_inches()[0])
    down = 0.08
    for text, size, weight, below in ((title, TITLE, "bold", title_height), (subtitle, SMALL, "normal", 0.0)):
        y = 1 - down / whole
        above.text(0.1 / width, y, text, size=size, weight=weight, color=INK, va="top", ha="left", linespacing=1.25)
        down += below + 0.02
    return figure


KEY = 0.5
"""Inches that a key of two lines takes on top of a figure."""


def key_on_top(figure: Figure, handles: Sequence[Patch], *, below: float) -> None:
    """Puts a key in two columns between the heading of a figure and its panels.

    Args:
        figure: from `sheet`.
        handles: what the key shows.
        below: the height that `sheet` was asked for, of which the key takes `KEY`.
    """
    height, engine = float(figure.get_figheight()), figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    # The layout does not know of a key that is placed by hand, so panels must end below it.
    engine.set(rect=(0.0, 0.0, 1.0, (below - KEY) / height))
    figure.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.0, below / height),
        ncols=2,
        frameon=False,
        borderpad=0.2,
    )


@cache
def text_width(text: str, *, size: float = SMALL) -> float:
    """Of one line of drawn text, in inches."""
    face = get_font(findfont(FontProperties(family=FONT)))
    face.set_size(size, 72)
    # Hinting would round the widths to whole pixels of this small size.
    face.set_text(text, 0.0, flags=LoadFlags.NO_HINTING)
    # FreeType counts 64ths of a pixel, and the size was set at 72 pixels per inch.
    return float(face.get_width_height()[0]) / 64 / 72


def ink_on(colour: tuple[float, float, float, float]) -> str:
    """Black or white, whichever has the higher contrast with a background (WCAG 2 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast (L + .05) / .05 with black equals 1.05 / (L + .05) with white at L = .179.
    return "black" if luminance > 0.179 else "white"


def label_tokens(axes: Axes, tokens: list[str], *, room: float) -> None:
    """Labels the columns of a map with tokens. Tokens that do not fit into `room` inches are rotated, and long ones shortened.

    If many do not fit, all are rotated, because a mixture is hard to read.
    """
    upright = _upright(tokens, room)
    axes.set_xticks(range(len(tokens)), _labels(tokens, upright))
    axes.tick_params(length=2, pad=2)
    for label, turned in zip(axes.get_xticklabels(), upright, strict=True):
        label.set_rotation(90 if turned else 0)


def token_room(tokens: list[str], *, room: float) -> float:
    """Inches below a map that `label_tokens` needs."""
    upright = _upright(tokens, room)
    drawn_labels = zip(_labels(tokens, upright), upright, strict=True)
    return max([0.25, *(text_width(token) + 0.15 for token, turned in drawn_labels if turned)])


def label_rows(axes: Axes, rows: Sequence[str], *, height: float) -> None:
    """Names the rows of a map that is `height` inches high, and what they have in common if there is room for it."""
    ticks, axis = short_rows(rows)
    if text_width(axis, size=LABEL) > height:
        axis = axis.replace(" ", "\n", 1)
    if max(text_width(part, size=LABEL) for part in axis.split("\n")) > height:
        ticks, axis = [short_name(row) for row in rows], ""
    axes.set_yticks(range(len(rows)), ticks)
    axes.set_ylabel(axis)


def _labels(tokens: list[str], turned: list[bool]) -> list[str]:
    return [shortened(token) if rotated else token for token, rotated in zip(tokens, turned, strict=True)]


def _upright(tokens: list[str], room: float) -> list[bool]:
    long = [text_width(token) + 0.08 > room for token in tokens]
    return [True] * len(long) if sum(long) > len(long) / 4 else long


def colour_at(cmap: Colormap, part: float) -> tuple[float, float, float, float]:
    """The colour at a part in [0, 1] of a colour map."""
    red, green, blue, alpha = cmap(float(part))
    return float(red), float(green), float(blue), float(alpha)


def number(value: float, decimals: int) -> str:
    """Fixed decimals, a true minus sign, and no negative zero.

    >>> number(-0.001, 2), number(-0.5, 1)
    ('0.00', '−0.5')
    """
    text = f"{value:.{decimals}f}"
    return f"{0:.{decimals}f}" if float(text) == 0 else text.replace("-", MINUS)


def png(figure: Figure) -> bytes:
    """Returns the figure as PNG: 150 dots per inch, cropped to its contents, on white.

    Args:
        figure: from a function of this package, or any other.
    """
    stream = io.BytesIO()
    with house_style():
        # A figure of the user's pyplot may draw to a window.
        if not isinstance(figure.canvas, FigureCanvasAgg):
            FigureCanvasAgg(figure)
        figure.savefig(stream, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.1, facecolor="white")
    return stream.getvalue()


def panel_title(axes: Axes, text: str, *, width: float) -> None:
    """A left-aligned title above one panel, broken to its width in inches."""
    axes.set_title(wrap(text, width=width, size=LABEL), loc="left", size=LABEL, color=INK)


def listed(results: Sequence[R] | R, kind: type[R]) -> list[R]:
    """Returns one or several results as a list.

    Args:
        results: the argument of a plot.
        kind: the class of result that the plot draws.

    Raises:
        TypeError: If the argument is something else.
        ValueError: If the list is empty.
    """
    found = [results] if isinstance(results, kind) else list(results) if isinstance(results, Iterable) else [results]
    for result in found:
        if not isinstance(result, kind):
            raise TypeError(f"this plot draws one {kind.__name__} or a list of them, got {type(result).__name__}")
    if not found:
        raise ValueError(f"there is nothing to draw: wanted at least one {kind.__name__}")
    return found
