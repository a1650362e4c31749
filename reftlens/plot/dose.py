"""Plot of the effect of scaling an edit: the answer's log-probability and the KL on other prompts, against the dose."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reftlens.plot.canvas import BLUE, GREY, INK, VERMILLION, house_style, or_several, panel_title, sheet
from reftlens.results import Dose


@or_several(Dose)
def dose(result: Dose) -> Figure:
    """Draws the target, and the off-target KL if there is one, each with its control.

    Args:
        result: from `analysis.dose`.
    """
    has_kl = not bool(torch.isnan(result.kl).all())
    width = 6.5
    subtitle = (
        f"dose 1: the trained edit; {result.n_target} prompts with a new answer"
        + (f", {result.n_kept} to stay" if has_kl else "")
        + f"; random directions: mean of {result.n_control}"
    )
    with house_style():
        figure = sheet(width, 2.9, title="The edit, scaled up and down", subtitle=subtitle)
        panels = figure.subplots(1, 2 if has_kl else 1, squeeze=False).ravel().tolist()
        _panel(panels[0], result, result.target, result.control_target)
        panels[0].set_ylabel("log-probability, in nats")
        panel_title(panels[0], "the wanted answer", width=width / 2 - 0.6)
        zero = float(result.target[int(result.alpha.abs().argmin())])
        reach = result.alpha.abs().max()
        # The straight line may leave the panel; it must not stretch the curve's scale.
        low, high = panels[0].get_ylim()
        line = torch.stack([-reach, reach])
        panels[0].plot(line, zero + result.slope * line, color=INK, linewidth=1, linestyle=":", label="slope at 0")
        panels[0].set_ylim(low, high)
        if has_kl:
            _panel(panels[1], result, result.kl, result.control_kl)
            panels[1].set_ylabel("KL from the base, in nats")
            panel_title(panels[1], "prompts that should stay", width=width / 2 - 0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _panel(axes: Axes, result: Dose, values: torch.Tensor, control: torch.Tensor) -> None:
    axes.axvline(1, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.plot(result.alpha, values, color=VERMILLION, marker="o", markersize=4, label="the edit")
    axes.plot(result.alpha, control, color=BLUE, marker="s", markersize=3.5, linestyle="--", label="random directions")
    axes.set_xlim(float(result.alpha.min()) - 0.05, float(result.alpha.max()) + 0.05)
    axes.set_xlabel("dose")
