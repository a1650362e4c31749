"""Plot of codebook accuracy against size, with one panel per form of keys and one line per rank."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREEN, GREY, ORANGE, VERMILLION, house_style, or_several, panel_title, sheet
from reftlens.results import Codebook

_STYLES = ((VERMILLION, "o", "-"), (BLUE, "s", "--"), (ORANGE, "^", "-."), (GREEN, "D", ":"))


@or_several(Codebook)
def codebook(result: Codebook) -> Figure:
    """Draws the accuracy of every codebook, and the control: the same answers scored against the next key's word.

    Args:
        result: the accuracies of each codebook.

    Raises:
        ValueError: If there are more ranks than can be distinguished.
    """
    forms = list(dict.fromkeys(row.keys for row in result.rows))
    ranks = sorted({row.rank for row in result.rows})
    if len(ranks) > len(_STYLES):
        raise ValueError(f"codebook draws at most {len(_STYLES)} ranks, got {', '.join(map(str, ranks))}")
    sizes = sorted({row.pairs for row in result.rows})
    width = 3.4 * len(forms) + 0.4
    subtitle = (
        f"{result.claim.model}: one LoReFT at one layer and the last token; grey: scored against the next key's word"
    )
    with house_style():
        figure = sheet(max(width, 5.0), 2.9, title="Keys answered by their own word", subtitle=subtitle)
        panels = figure.subplots(1, len(forms), squeeze=False, sharey=True).ravel().tolist()
        for axes, form in zip(panels, forms, strict=True):
            for rank, (colour, marker, line) in zip(ranks, _STYLES, strict=False):
                rows = sorted(
                    (row for row in result.rows if (row.keys, row.rank) == (form, rank)), key=lambda row: row.pairs
                )
                pairs = [row.pairs for row in rows]
                axes.plot(pairs, [row.shuffled for row in rows], color=GREY, linewidth=1)
                accuracy = [row.accuracy for row in rows]
                axes.plot(pairs, accuracy, color=colour, marker=marker, linestyle=line, label=f"rank {rank}")
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_ylim(-0.04, 1.04)
            axes.set_xlabel("pairs")
            panel_title(axes, form, width=width / len(forms) - 0.6)
        panels[0].set_ylabel("part of the keys")
        panels[0].plot([], [], color=GREY, linewidth=1, label="control")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
