"""Plot of recalled tokens against the length of the string."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, house_style, or_several, sheet
from reftlens.plot.labels import drawn
from reftlens.results import Memorised

_STYLES = (
    (VERMILLION, "o", "-"),
    (BLUE, "s", "--"),
    (ORANGE, "^", "-."),
    (GREY, "x", ":"),
    (GREEN, "D", "-"),
)


@or_several(Memorised)
def memorised(result: Memorised) -> Figure:
    """Draws each series. On the diagonal, the whole string was recalled.

    Args:
        result: recalled tokens, by length.

    Raises:
        ValueError: If there are more series than can be distinguished.
    """
    if len(result.series) > len(_STYLES):
        raise ValueError(f"memorised draws at most {len(_STYLES)} series, got {', '.join(result.series)}")
    subtitle = (
        f"{result.claim.model}: one ConsReFT of rank 1 a string, greedy decoding; on the line, all of it came back"
    )
    lengths = sorted({row.length for row in result.rows})
    with house_style():
        figure = sheet(6.5, 3.2, title="Tokens that one vector gives back", subtitle=subtitle)
        axes = figure.subplots()
        axes.plot(lengths, lengths, color=INK, linewidth=0.8, label="all of it")
        for name, (colour, marker, line) in zip(result.series, _STYLES, strict=False):
            rows = result.of(name)
            axes.plot(
                [row.length for row in rows],
                [row.returned for row in rows],
                color=colour,
                marker=marker,
                linestyle=line,
                markersize=5,
                markerfacecolor="none",
                label=drawn(name),
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.minorticks_off()
        # Not "log", which has no place for 0 tokens.
        axes.set_yscale("symlog", base=2, linthresh=1)
        axes.set_yticks([0, *lengths], [str(length) for length in (0, *lengths)])
        axes.set_ylim(-0.25, max(lengths) * 1.3)
        axes.set_xlabel("tokens of the string")
        axes.set_ylabel("tokens before the first wrong one")
        figure.legend(loc="outside right center", frameon=False)
    return figure
