"""Plot of an edit's effect, split by whether attention patterns may change, in total and for each head."""

from __future__ import annotations

from matplotlib.figure import Figure

from reftlens.plot.canvas import number, or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.results import Channels
from reftlens.results.routes import Split


@or_several(Channels)
def channels(result: Channels) -> Figure:
    """Draws what each head's pattern adds where all others are frozen, and what is lost where it alone is; and the control.

    Args:
        result: from `analysis.channels`.
    """
    n_layers, n_heads = result.edit.opened.shape[1:]
    groups = [
        Group(
            [_panel(split, part, title) for split, title in ((result.edit, name), (result.control, "control: turned"))],
            quantity,
        )
        for part, name, quantity in (
            ("opened", "its pattern alone may change", "added to the effect"),
            ("closed", "its pattern alone is frozen", "lost from the effect"),
        )
    ]
    whole, frozen, needs = (
        number(float(getattr(result.edit, part).mean()), 2) for part in ("whole", "frozen", "needs")
    )
    return heat(
        groups,
        rows=[f"layer {layer}" for layer in range(n_layers)],
        columns=[str(head) for head in range(n_heads)],
        title="What each head's attention pattern carries",
        subtitle=f"effect {whole}: {frozen} with all patterns frozen, {needs} needs changed ones; mean of {len(result.edit.whole)} prompts",
        xlabel="head",
    )


def _panel(split: Split, part: str, title: str) -> Panel:
    return Panel(getattr(split, part).mean(0).double().numpy(), title)
