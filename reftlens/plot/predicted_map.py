"""Heat maps of how well edits would do in each cell by the slopes of the base, and of the edits that were trained there."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from reftlens.plot.canvas import number, or_several
from reftlens.plot.heat import Group, Panel, heat
from reftlens.plot.labels import drawn_token
from reftlens.results import BesideTraining, PredictedMap

_UNITS = {
    "slope": "fall of the loss, nats, by the slope",
    "bounded gain": "fall of the loss, nats, by the bound",
    "covariance": "covariance, nats",
}


@or_several(PredictedMap)
def predicted_map(result: PredictedMap, *, title: str = "") -> Figure:
    """Draws each predictor beside its control. The earliest layer is at the bottom.

    Args:
        result: from `analysis.predict_map`.
        title: of the figure.
    """
    return heat(
        _groups(result, result.predictors),
        rows=result.rows,
        columns=[drawn_token(name) for name in result.columns],
        title=title or "Where an edit should train well, by slopes of the base",
        subtitle=f"{result.n_held_out} held-out pairs, loss of the base {number(result.loss, 2)} nats; {result.settings}",
    )


@or_several(BesideTraining)
def beside_training(result: BesideTraining, *, title: str = "") -> Figure:
    """Draws the map of trained edits above the predicted maps.

    Args:
        result: from `analysis.beside_training`.
        title: of the figure.
    """
    trained = Group(
        [
            Panel(result.trained.gain().double().numpy(), "trained on the answers"),
            Panel(result.trained.control_gain().double().numpy(), "control: on shuffled answers"),
        ],
        f"gain in {result.trained.score}",
    )
    titles = [f"{score.predictor}: rho {number(score.correlation, 2)}, p {score.p:.2g}" for score in result.scores]
    return heat(
        [trained, *_groups(result.predicted, titles)],
        rows=result.trained.rows,
        columns=[drawn_token(name) for name in result.trained.columns],
        title=title or "What slopes of the base predict, and what trained edits gain",
        subtitle="rho: rank correlation with the trained map; p: all shifts of one map against the other",
    )


def _groups(result: PredictedMap, titles: Sequence[str]) -> list[Group]:
    return [
        Group(
            [
                Panel(values.double().numpy(), title),
                Panel(control.double().numpy(), "control: shuffled answers"),
            ],
            _UNITS.get(name, name),
        )
        for name, title, values, control in zip(result.predictors, titles, result.values, result.control, strict=True)
    ]
