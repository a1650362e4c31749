"""Figures of made-up results, judged as a reader would: what is written, whether it can be read, what colours say."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

import matplotlib
import numpy as np
import pytest
import torch
from made import (
    NASTY,
    OUTCOMES,
    TOKENS,
    made_dose,
    made_interchange,
    made_manifold,
    made_map,
    made_operator,
    made_profile,
    made_readout,
    made_size,
)
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from reftlens import plot
from reftlens.plot.canvas import BLUE, GREY, MINUS, VERMILLION, ink_on, number, text_width
from reftlens.plot.labels import drawn_token, short_rows, visible
from reftlens.plot.training_curve import running_median
from reftlens.results import DirectionReadout, EditProfile, TokenMap

DRAWINGS: dict[str, Callable[[], Figure]] = {
    "map": lambda: plot.token_map(made_map()),
    "map beside": lambda: plot.token_map(made_map(3, TOKENS[:5]), title="A title"),
    "map large": lambda: plot.token_map(made_map(12, (TOKENS * 3)[:30])),
    "map nasty": lambda: plot.token_map(made_map(2, NASTY), title="$ <b> 上"),
    "size": lambda: plot.edit_size(made_size()),
    "size long": lambda: plot.edit_size(made_size(TOKENS * 4, sites=1)),
    "size nasty": lambda: plot.edit_size(made_size(NASTY)),
    "spectrum": lambda: plot.spectrum([made_operator(1), made_operator(3), made_operator(5), made_operator(7, 1)]),
    "readout": lambda: plot.readout([made_readout(direction=0), made_readout(direction=1)]),
    "readout nasty": lambda: plot.readout([made_readout(NASTY[:7]), made_readout(NASTY[7:14])]),
    "outcomes": lambda: plot.outcomes(OUTCOMES),
    "profile": lambda: plot.edit_profile(made_profile()),
    "profile of one": lambda: plot.edit_profile(made_profile(("blocks.3.attn.hook_z head 2",))),
    "profile long": lambda: plot.edit_profile(made_profile(tuple(f"blocks.{n}.hook_mlp_out" for n in range(60)))),
    "profile nasty": lambda: plot.edit_profile(made_profile(tuple(token or "x" for token in NASTY))),
    "dose": lambda: plot.dose(made_dose()),
    "dose alone": lambda: plot.dose(made_dose(kept=False)),
    "interchange": lambda: plot.interchange([made_interchange(1), made_interchange(3, moved=-0.1)]),
    "interchange many": lambda: plot.interchange([made_interchange(layer) for layer in range(4)]),
    "off-manifold": lambda: plot.off_manifold([made_manifold(1), made_manifold(4)]),
    "curve": lambda: plot.training_curve([5.0 * 0.97**step for step in range(200)]),
}


def rendered(figure: Figure) -> FigureCanvasAgg:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


def texts(figure: Figure) -> list[Text]:
    """All texts that are drawn: ticks beyond the ends of an axis exist, but are not."""
    beyond = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text() and text not in beyond]


def written(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in texts(figure))


def images(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.images]


def overlapping(boxes: list[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs of boxes (x0, y0, x1, y1) that share some area."""
    return [
        (i, j)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]


@cache
def drawing(name: str) -> tuple[Figure, list[tuple[str, np.ndarray]]]:
    """A figure and the boxes (x0, y0, x1, y1) of its texts, drawn once for the tests that only look."""
    figure = DRAWINGS[name]()
    renderer = rendered(figure).get_renderer()
    return figure, [(text.get_text(), text.get_window_extent(renderer).extents) for text in texts(figure)]


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_leaves_matplotlib_as_it_was(name: str) -> None:
    from matplotlib import pyplot

    numbers = pyplot.get_fignums()
    # Settings of a user's own: with matplotlib's, a reset to its defaults would not be seen.
    with matplotlib.rc_context({"hatch.linewidth": 3.0, "figure.dpi": 77.0}):
        before = dict(matplotlib.rcParams)
        assert isinstance(DRAWINGS[name](), Figure)
        assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == numbers


def test_a_png_is_white_and_has_150_dots_per_inch() -> None:
    figure = plot.training_curve([3.0, 2.0, 1.5])
    before = dict(matplotlib.rcParams)
    pixels = image.imread(io.BytesIO(plot.png(figure)))
    assert dict(matplotlib.rcParams) == before
    width, height = figure.get_size_inches() * 150
    assert pixels.shape[0] == pytest.approx(height, rel=0.1)
    assert pixels.shape[1] == pytest.approx(width, rel=0.1)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1.0).all()


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_is_large_enough_and_inside_the_figure(name: str) -> None:
    figure, boxes = drawing(name)
    assert len(boxes) > 5
    assert min(text.get_fontsize() for text in texts(figure)) >= 8
    room = np.add(figure.bbox.extents, [-1, -1, 1, 1])
    for text, box in boxes:
        assert (box[:2] >= room[:2]).all(), text
        assert (box[2:] <= room[2:]).all(), text


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_do_not_overlap(name: str) -> None:
    _, boxes = drawing(name)
    assert [(boxes[i][0], boxes[j][0]) for i, j in overlapping([box for _, box in boxes])] == []


def test_the_check_for_overlaps_finds_one() -> None:
    assert overlapping([np.array([0, 0, 2, 2]), np.array([1, 1, 3, 3]), np.array([2, 0, 3, 1])]) == [(1, 0)]


def test_figures_look_the_same_whatever_the_users_settings() -> None:
    plain = plot.png(plot.outcomes(OUTCOMES))
    with matplotlib.rc_context({"font.size": 4, "axes.facecolor": "black", "savefig.facecolor": "red"}):
        assert plot.png(plot.outcomes(OUTCOMES)) == plain


@pytest.mark.parametrize("control_factor", [0.1, 5.0])
def test_value_and_control_share_colours_that_are_symmetrical_around_zero(control_factor: float) -> None:
    result = made_map(4)
    assert result.control is not None
    result.control.mul_(control_factor)
    largest = max(float(result.values.abs().max()), float(result.control.abs().max()))
    limits = [axes.images[0].get_clim() for axes in images(plot.token_map(result))]
    assert limits == [pytest.approx((-largest, largest))] * 2


def test_the_map_shows_its_values_first_row_at_the_bottom() -> None:
    result = made_map(5)
    first, second = images(plot.token_map(result))
    assert result.control is not None
    np.testing.assert_allclose(first.images[0].get_array(), result.values, rtol=1e-6)
    np.testing.assert_allclose(second.images[0].get_array(), result.control, rtol=1e-6)
    assert first.get_ylim()[0] < first.get_ylim()[1]
    assert first.images[0].origin == "lower"
    assert [label.get_text() for label in first.get_yticklabels()] == list("01234")
    assert first.get_ylabel() == "layer (resid_pre)"


def test_numbers_stand_in_their_cells_if_they_fit() -> None:
    result = made_map(3, TOKENS[:6], control=False)
    [axes] = images(plot.token_map(result))
    for text in axes.texts:
        pos, row = text.get_position()
        assert text.get_text() == number(float(result.values[int(row), int(pos)]), 2)
    assert len(axes.texts) == result.values.numel()
    [crowded] = images(plot.token_map(made_map(3, TOKENS * 3, control=False)))
    assert {text.get_text() for text in crowded.texts} <= {MINUS}


def test_negative_cells_without_numbers_carry_a_sign_that_survives_in_grey() -> None:
    result = made_map(2, TOKENS * 3, control=False)
    result.values.fill_(0.5)
    result.values[1, 7] = -0.5
    [axes] = images(plot.token_map(result))
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [(MINUS, (7, 1))]


def test_subject_tokens_are_starred_and_spaces_visible() -> None:
    figure = plot.token_map(made_map())
    for axes in images(figure):
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[:7] == ["<|endoftext|>", "·The", "·Upper*", "·Sarn*", "·Clock*", "·Tower*", "·stands"]
    assert "* subject" in written(figure)


def test_the_map_names_quantity_control_and_number_of_prompts() -> None:
    text = written(plot.token_map(made_map(), title="A title"))
    for part in (
        "A title",
        "restored part of the clean answer's probability",
        "mean of 40 prompts",
        "unrelated subject",
    ):
        assert part in text
    assert "control" not in written(plot.token_map(made_map(control=False)))


def test_cells_without_a_value_are_neither_coloured_nor_numbered() -> None:
    result = made_map(3, TOKENS[:6], control=False)
    result.values[1, 2] = float("nan")
    figure = plot.token_map(result)
    [axes] = images(figure)
    assert np.ma.getmaskarray(axes.images[0].get_array()).tolist() == result.values.isnan().tolist()
    assert (2, 1) not in [text.get_position() for text in axes.texts]
    assert "grey: no value" in written(figure)


def test_a_map_of_zeros_and_an_empty_map() -> None:
    result = made_map(2, TOKENS[:3])
    result.values.zero_()
    assert result.control is not None
    result.control.zero_()
    assert images(plot.token_map(result))[0].images[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match="at least one row"):
        plot.token_map(TokenMap(torch.zeros(0, 0), None, (), (), (), "quantity", "", 1))


def test_tokens_that_a_site_does_not_edit_are_hatched_and_not_zero() -> None:
    result = made_size()
    figure = plot.edit_size(result)
    [axes] = images(figure)
    shown = axes.images[0].get_array()
    assert np.ma.getmaskarray(shown).tolist() == (~result.edited).tolist()
    assert shown[0, 0] == 0.0
    [background] = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert background.get_hatch()
    zero = axes.images[0].cmap(0.0)
    assert np.abs(np.array(zero[:3]) - background.get_facecolor()[:3]).max() > 0.1
    assert "not edited" in written(figure)


def test_sizes_stand_in_their_cells_and_what_is_no_number_is_white() -> None:
    result = made_size()
    result.relative[1, 0] = float("inf")
    [axes] = images(plot.edit_size(result))
    expected = {(p, r): number(float(result.relative[r, p]), 2) for r, p in result.edited.nonzero().tolist()}
    assert {text.get_position(): text.get_text() for text in axes.texts} == expected | {(0, 1): "?"}
    shown = axes.images[0]
    assert shown.get_clim()[1] == pytest.approx(float(result.relative[result.relative.isfinite()].max()))
    assert shown.to_rgba(shown.get_array())[1, 0].tolist() == [1, 1, 1, 1]


def test_long_texts_run_over_lines_and_keep_every_token() -> None:
    result = made_size(TOKENS * 4)
    lines = images(plot.edit_size(result))
    labels = [label.get_text().removesuffix("*") for axes in lines for label in axes.get_xticklabels()]
    assert len(lines) == 2
    assert labels == [drawn_token(token) for token in result.tokens]
    assert len({axes.get_xlim() for axes in lines}) == 1
    assert len({axes.images[0].get_clim() for axes in lines}) == 1


def test_bars_of_the_spectrum_are_split_by_share_of_energy() -> None:
    operator = made_operator()
    figure = plot.spectrum([operator])
    bars = [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches]
    size, share = operator.spectrum.numpy(), operator.constant_share.numpy()
    np.testing.assert_allclose(bars[:4], np.stack([0 * size, size * share], axis=1), rtol=1e-5)
    np.testing.assert_allclose(bars[4:], np.stack([size * share, size * (1 - share)], axis=1), rtol=1e-5)
    text = written(figure)
    # Energies 64, 16, 4, 1: 85^2 / (64^2 + 16^2 + 4^2 + 1) = 1.65.
    for part in ("effective rank 1.7 of 4", "|h| = 40", "20%", "share of the energy", "3 resid_post"):
        assert part in text


def test_bars_inside_the_null_band_are_grey() -> None:
    item = made_readout()
    figure = plot.readout([item])
    bars = [bar for bar in figure.axes[0].patches if round(bar.get_height(), 2) == 0.75]
    moved = [*item.promoted, *item.suppressed]
    assert [bar.get_width() for bar in bars] == pytest.approx([change for _, change in moved])
    # Promoted 4, 3, 2, 1 against 2.5; suppressed -3, -2, -1 against -1.5.
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [VERMILLION] * 2 + [GREY] * 2 + [BLUE] * 2 + [GREY]
    band = next(patch for patch in figure.axes[0].patches if patch not in bars)
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((-1.5, 2.5))
    assert "what random directions of this length give (5-95%)" in written(figure)
    # Read from above, the most promoted token comes first.
    assert figure.axes[0].get_ylim()[0] > figure.axes[0].get_ylim()[1]


def test_a_wide_null_band_is_seen_whole() -> None:
    item = DirectionReadout("blocks.3.hook_resid_post", 0, ((" a", 0.2),), ((" b", -0.2),), -5.0, 6.0, 50)
    low, high = plot.readout([item]).axes[0].get_xlim()
    assert low <= -5.0
    assert high >= 6.0


def test_outcomes_print_their_values_and_say_what_counts() -> None:
    figure = plot.outcomes(OUTCOMES)
    text = written(figure)
    for part in ("right: new answer; n = 24", "right: old answer; n = 200", "KL 5.1", "KL 0.012"):
        assert part in text
    values = [label.get_text() for label in figure.axes[0].texts]
    assert values == ["0.00", "0.97", "0.96", "0.88", "0.02", "no value"]
    legend = [label.get_text() for label in figure.legends[0].get_texts()]
    assert [label.split()[0].strip(":") for label in legend] == ["base", "edited", "control"]
    open_bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Patch) and patch.get_hatch()]
    assert len(open_bars) == len(OUTCOMES)


def test_the_loss_axis_is_logarithmic_only_over_more_than_a_decade() -> None:
    assert plot.training_curve([5.0, 1.0, 0.4]).axes[0].get_yscale() == "log"
    assert plot.training_curve([5.0, 1.0, 0.6]).axes[0].get_yscale() == "linear"
    assert plot.training_curve([5.0, 0.0]).axes[0].get_yscale() == "linear"
    assert plot.training_curve([5.0]).axes[0].get_lines()[0].get_ydata().tolist() == [5.0]


def test_the_running_median_ignores_a_spike() -> None:
    values = np.ones(21)
    values[10] = 100.0
    assert running_median(values, 5).tolist() == [1.0] * 21
    bold = max(plot.training_curve(values.tolist()).axes[0].get_lines(), key=lambda line: line.get_linewidth())
    assert max(bold.get_ydata()) == 1.0


@pytest.mark.parametrize("draw", [plot.spectrum, plot.readout, plot.outcomes, plot.training_curve])
def test_nothing_to_draw_is_an_error(draw: Callable[[list[float]], Figure]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw([])


def test_tokens_are_told_apart() -> None:
    shown = [drawn_token(token) for token in NASTY]
    assert len(set(shown)) == len(NASTY)
    assert shown[:4] == ["$", "$x_{1$", "\\$a$", "<b>"]
    assert shown[7:9] == ["\\u4e0a\\u6d77", "\\U0001f642"]
    assert visible("\u202e") == "\\u202e"
    # A letter keeps its accent; an accent alone gets something to sit on.
    assert [visible(token) for token in ("e\u0301", "\u0301", " \u0301")] == ["e\u0301", "◌\u0301", "·◌\u0301"]


def test_widths_of_texts_are_those_that_matplotlib_draws() -> None:
    figure = plot.token_map(made_map(2, NASTY))
    renderer = rendered(figure).get_renderer()
    for label in images(figure)[0].get_xticklabels():
        drawn = label.get_window_extent(renderer)
        longer = max(drawn.width, drawn.height) if len(label.get_text()) > 2 else None
        if longer is not None:
            assert longer / figure.dpi == pytest.approx(text_width(label.get_text()), abs=0.04)


def test_a_dollar_is_drawn_as_a_dollar() -> None:
    figure = plot.token_map(made_map(2, ("$a$", "b"), control=False))
    label = images(figure)[0].get_xticklabels()[0]
    assert label.get_text() == "$a$"
    assert not label.get_parse_math()


def test_rows_of_several_kinds_keep_their_names() -> None:
    rows = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z", "hook_embed"]
    assert short_rows(rows) == (["0 resid_pre", "0 attn.z", "hook_embed"], "site")


def test_ink_has_enough_contrast_on_every_colour_of_the_map() -> None:
    cmap = matplotlib.colormaps["RdBu_r"]
    assert {ink_on(cmap(part)) for part in (0.0, 1.0)} == {"white"}
    assert ink_on(cmap(0.5)) == "black"


def test_the_profile_shows_every_gain_and_says_where_there_is_none() -> None:
    figure = plot.edit_profile(made_profile())
    left, right = figure.axes
    drawn = [line.get_xdata() for line in left.lines if line.get_marker() == "o"]
    assert [len(values) for values in drawn] == [3, 16]
    np.testing.assert_allclose(drawn[0], [1.2, 1.0, 0.4], rtol=1e-6)
    assert [patch.get_width() for patch in right.patches] == [1.5, 1.5, 0.0, 1.5]
    assert "none: a constant push" in written(figure)
    assert "not of this form" in written(figure)
    assert "the first 48 of 60 sites" in written(DRAWINGS["profile long"]())
    with pytest.raises(ValueError, match="at least one site"):
        plot.edit_profile(EditProfile((), (), torch.zeros(0)))
