"""Figures of made-up results, judged as a reader would: what is written, whether it can be read, what colours say."""

from __future__ import annotations

import dataclasses
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
    every_result,
    made_ablation,
    made_agreements,
    made_alignment_map,
    made_attribution,
    made_beside,
    made_carried,
    made_channels,
    made_dose,
    made_finetune,
    made_graph,
    made_heads,
    made_identification,
    made_interchange,
    made_ledger,
    made_log,
    made_manifold,
    made_map,
    made_meaning,
    made_mlps,
    made_operator,
    made_overlap,
    made_patch,
    made_paths,
    made_predicted,
    made_profile,
    made_projection,
    made_readout,
    made_search,
    made_size,
    made_steering,
)
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text

from reftlens import plot
from reftlens.plot.canvas import BLUE, GREY, INK, MINUS, ORANGE, PALE, VERMILLION, ink_on, number, text_width
from reftlens.plot.labels import drawn_token, short_rows, shortened, visible
from reftlens.plot.training_curve import running_median
from reftlens.results import Ablation, DirectionReadout, EditProfile, Spread, TokenMap
from reftlens.results.claims import Claim, Codebook, Coded, Memorised, Recall

LONG = (TOKENS * 3)[:30]
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "map": lambda: plot.effect_map(made_map()),
    "map beside": lambda: plot.effect_map(made_map(3, TOKENS[:5]), title="A title"),
    "map large": lambda: plot.effect_map(made_map(12, (TOKENS * 3)[:30])),
    "map nasty": lambda: plot.effect_map(made_map(2, NASTY), title="$ <b> 上"),
    "size": lambda: plot.edit_size(made_size()),
    "size long": lambda: plot.edit_size(made_size(TOKENS * 4, sites=1)),
    "size nasty": lambda: plot.edit_size(made_size(NASTY)),
    "spectrum": lambda: plot.spectrum([made_operator(1), made_operator(3), made_operator(5), made_operator(7, 1)]),
    "readout": lambda: plot.readout([made_readout(direction=0), made_readout(direction=1)]),
    "readout nasty": lambda: plot.readout([made_readout(NASTY[:7]), made_readout(NASTY[7:14])]),
    "meanings": lambda: plot.meanings([made_meaning(method=name) for name in ("direct", "jacobian", "patchscope")]),
    "meanings nasty": lambda: plot.meanings([made_meaning(NASTY[:6]), made_meaning(NASTY[6:12], p=0.2)]),
    "outcomes": lambda: plot.outcomes(OUTCOMES),
    "profile": lambda: plot.edit_profile(made_profile()),
    "profile of one": lambda: plot.edit_profile(made_profile(("blocks.3.attn.hook_z head 2",))),
    "profile long": lambda: plot.edit_profile(made_profile(tuple(f"blocks.{n}.hook_mlp_out" for n in range(60)))),
    "profile nasty": lambda: plot.edit_profile(made_profile(tuple(token or "x" for token in NASTY))),
    "dose": lambda: plot.dose(made_dose()),
    "dose alone": lambda: plot.dose(made_dose(kept=False)),
    "interchange": lambda: plot.interchange([made_interchange(1), made_interchange(3, moved=-0.1)]),
    "interchange many": lambda: plot.interchange(
        [made_interchange(layer, power=0.3 * layer) for layer in range(10, 14)]
    ),
    "off-manifold": lambda: plot.off_manifold([made_manifold(1), made_manifold(4)]),
    "curve": lambda: plot.training_curve(made_log([5.0 * 0.97**step for step in range(200)])),
    "curve with validation": lambda: plot.training_curve(made_log([3.0, 2.0, 1.0], ((1, 2.5), (3, 1.5)), 3)),
    "spread": lambda: plot.spread(Spread(made_map(3), made_map(3))),
    "search": lambda: plot.search(made_search()),
    "steering": lambda: plot.steering(made_steering()),
    "patch": lambda: plot.patch_map(made_patch()),
    "patch large": lambda: plot.patch_map(made_patch(12, LONG), starred=(False, True)),
    "patch of heads": lambda: plot.patch_map(made_heads()),
    "ledger": lambda: plot.ledger(made_ledger()),
    "ledger large": lambda: plot.ledger(made_ledger(LONG, sites=8)),
    "ledger nasty": lambda: plot.ledger(made_ledger(NASTY, sites=1)),
    "overlap": lambda: plot.overlap([made_overlap(), made_overlap(score=0.02)]),
    "overlap nasty": lambda: plot.overlap([made_overlap(", ".join(NASTY[:8]))]),
    "agreement": lambda: plot.agreement(made_agreements()),
    "agreement of two": lambda: plot.agreement(made_agreements(("a", "b"))),
    "agreement nasty": lambda: plot.agreement(made_agreements(("$x$ 上", "a long name of an edit \n", "\x1b"))),
    "ablation": lambda: plot.ablation(made_ablation()),
    "ablation of one": lambda: plot.ablation(made_ablation(1, exact=True)),
    "ablation long": lambda: plot.ablation(made_ablation(60)),
    "ablation nasty": lambda: plot.ablation(made_ablation(3, name="$ <b> 上 {}")),
    "explained finetune": lambda: plot.explain_finetune(made_finetune()),
    "explained finetune of many layers": lambda: plot.explain_finetune(made_finetune("L3 $ <b> 上 @ all", layers=30)),
    "alignment map": lambda: plot.alignment_map(made_alignment_map()),
    "attribution": lambda: plot.attribution(made_attribution()),
    "beside tracing": lambda: plot.beside_tracing(made_beside()),
    "beside tracing wide": lambda: plot.beside_tracing(made_beside(12, ("first", "a named position", *"abcdef"))),
    "beside tracing nasty": lambda: plot.beside_tracing(made_beside(3, NASTY[:6], "$ <b> 上")),
    "channels": lambda: plot.channels(made_channels()),
    "channels of one head": lambda: plot.channels(made_channels(2, 1)),
    "graph": lambda: plot.graph(made_graph()),
    "graph nasty": lambda: plot.graph(made_graph(NASTY)),
    "mediation": lambda: plot.mediation([made_heads(), made_mlps()], direct=torch.linspace(1, 2, 8)),
    "mediation of one": lambda: plot.mediation([made_heads()], most=1),
    "mediation nasty": lambda: plot.mediation([made_mlps(tokens=NASTY)]),
    "mediation of paths": lambda: plot.mediation([made_paths()]),
    "projection": lambda: plot.projection([made_projection(1), made_projection(4)]),
    "projection nasty": lambda: plot.projection([made_projection(1, ("$ <b>", "上", "\n", "%"))]),
    "doses": lambda: plot.dose([made_dose(), made_dose(kept=False)]),
    "maps": lambda: plot.effect_map([made_map(), made_map(3, TOKENS[:5])], title="A title"),
    "sizes": lambda: plot.edit_size([made_size(), made_size(TOKENS * 2, sites=1)]),
    "ledgers": lambda: plot.ledger([made_ledger(), made_ledger(TOKENS[:4], sites=1)]),
    "profiles": lambda: plot.edit_profile([made_profile(), made_profile(), made_profile()]),
    "patches": lambda: plot.patch_map([made_patch(), made_heads()]),
    "carried": lambda: plot.carried(made_carried()),
    "carried nasty": lambda: plot.carried(made_carried("$ <b> 上")),
    "predicted map": lambda: plot.predicted_map(made_predicted().predicted),
    "beside training": lambda: plot.beside_training(made_predicted()),
    "beside training nasty": lambda: plot.beside_training(made_predicted(3, NASTY[:6], "$ <b> 上")),
    "reft map": lambda: plot.reft_map(made_beside().reft),
    "reft map nasty": lambda: plot.reft_map(made_beside(3, NASTY[:6], "$ <b> 上").reft),
    "table": lambda: plot.table(made_interchange().whole),
    "table of many": lambda: plot.table([made_readout(NASTY[:7]), *OUTCOMES * 12]),
    "spectrum with what is known": lambda: plot.spectrum(
        [made_operator(3, 2), made_operator(1), made_operator(5, 2)],
        identified=[*made_identification().sites, *made_identification("blocks.1.hook_resid_post").sites],
    ),
    "readout with what is known": lambda: plot.readout(
        [made_readout(direction=n) for n in range(3)], identified=made_identification().sites
    ),
    "spectrum with control": lambda: plot.spectrum([made_operator(1)], null=[made_operator(1), made_operator(1, 3)]),
} | {f"plot() of {type(result).__name__}": result.plot for result in every_result("a word")}
"""Each class of results as it draws itself, and drawings with options or with contents that are hard to draw."""


some = pytest.mark.sampled(20)
"""The same drawings in each test that looks at all of them, so that each is drawn once."""


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
def drawing(name: str) -> tuple[Figure, list[tuple[str, np.ndarray]], list[str]]:
    """A figure, the boxes (x0, y0, x1, y1) of its texts, and the settings it left changed, for the tests that look."""
    # Settings of a user's own: with matplotlib's, a reset to its defaults would not be seen.
    with matplotlib.rc_context({"hatch.linewidth": 3.0, "figure.dpi": 77.0}):
        before = dict(matplotlib.rcParams)
        figure = DRAWINGS[name]()
        changed = [setting for setting, value in before.items() if matplotlib.rcParams[setting] != value]
    renderer = rendered(figure).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer).extents) for text in texts(figure)]
    return figure, boxes, changed


@some
@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_leaves_matplotlib_as_it_was(name: str) -> None:
    from matplotlib import pyplot

    numbers = pyplot.get_fignums()
    figure, _, changed = drawing(name)
    assert isinstance(figure, Figure)
    assert changed == []
    assert pyplot.get_fignums() == numbers


def test_a_png_is_white_and_has_150_dots_per_inch() -> None:
    figure = plot.training_curve(made_log([3.0, 2.0, 1.5]))
    before = dict(matplotlib.rcParams)
    pixels = image.imread(io.BytesIO(plot.png(figure)))
    assert dict(matplotlib.rcParams) == before
    width, height = figure.get_size_inches() * 150
    assert pixels.shape[0] == pytest.approx(height, rel=0.1)
    assert pixels.shape[1] == pytest.approx(width, rel=0.1)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1.0).all()


@some
@pytest.mark.parametrize("name", DRAWINGS)
def test_every_text_is_large_enough_and_inside_the_figure(name: str) -> None:
    figure, boxes, _ = drawing(name)
    assert len(boxes) > 5
    assert min(text.get_fontsize() for text in texts(figure)) >= 8
    room = np.add(figure.bbox.extents, [-1, -1, 1, 1])
    for text, box in boxes:
        assert (box[:2] >= room[:2]).all(), text
        assert (box[2:] <= room[2:]).all(), text


@some
@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_do_not_overlap(name: str) -> None:
    _, boxes, _ = drawing(name)
    assert [(boxes[i][0], boxes[j][0]) for i, j in overlapping([box for _, box in boxes])] == []


# `every_result` holds tiny results, whose figures are narrower than any subtitle.
ONE_LINE = [name for name in DRAWINGS if not name.startswith(("beside tracing", "plot() of"))]


@some
@pytest.mark.parametrize("name", ONE_LINE)
def test_a_subtitle_is_one_line(name: str) -> None:
    figure, _, _ = drawing(name)
    assert [text.get_text() for text in figure.texts[1:2] if "\n" in text.get_text()] == []


def test_several_results_are_drawn_below_each_other_as_each_is_alone() -> None:
    one, other = made_dose(), made_dose(kept=False)
    both = plot.dose([one, other])
    alone = [plot.dose(one), plot.dose(other)]
    assert [len(axes.lines) for axes in both.axes] == [len(axes.lines) for figure in alone for axes in figure.axes]
    assert both.get_figheight() == pytest.approx(sum(figure.get_figheight() for figure in alone))
    assert len(texts(both)) == sum(len(texts(figure)) for figure in alone)
    assert written(plot.dose([one])) == written(alone[0]) == written(plot.dose(one))
    with pytest.raises(TypeError, match="draws one Dose or a list of them, got TokenMap"):
        plot.dose([one, made_map()])
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.dose([])


def test_every_searched_range_is_drawn_by_value_and_a_choice_side_by_side() -> None:
    found = made_search(6)
    trials = [
        dataclasses.replace(t, settings={**t.settings, "weight_decay": t.settings["lr"] / 10}) for t in found.trials
    ]
    figure = plot.search(
        dataclasses.replace(found, space={**found.space, "weight_decay": "1e-05..0.01"}, trials=tuple(trials))
    )
    columns = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    assert {name: axes.get_xscale() for name, axes in columns.items()} == {
        "trial": "linear", "lr": "log", "rank": "linear", "positions": "linear", "weight_decay": "log"
    }  # fmt: skip
    drawn = {float(line.get_xdata()[0]) for line in columns["weight_decay"].lines}
    assert sorted(drawn) == pytest.approx([t.settings["weight_decay"] for t in trials], rel=1e-2)


def test_lines_that_cannot_be_told_apart_are_refused_not_left_out() -> None:
    claim = Claim("it works", "someone", (("rank", "1", "2"),), "model")
    for n in (4, 5):
        result = Codebook(claim, tuple(Coded("names", 8, rank + 1, 0.5, 0.0, 0.0) for rank in range(n)))
        if n == 4:
            drawn = {line.get_label() for line in plot.codebook(result).axes[0].get_lines()}
            assert {f"rank {rank + 1}" for rank in range(n)} <= drawn
        else:
            with pytest.raises(ValueError, match="draws at most 4 ranks, got 1, 2, 3, 4, 5"):
                plot.codebook(result)
    several = Memorised(claim, tuple(Recall(f"series {number}", 1, 8, 3, 0) for number in range(6)))
    with pytest.raises(ValueError, match="draws at most 5 series, got series 0, series 1"):
        plot.memorised(several)


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
    limits = [axes.images[0].get_clim() for axes in images(plot.effect_map(result))]
    assert limits == [pytest.approx((-largest, largest))] * 2


def test_the_map_shows_its_values_first_row_at_the_bottom() -> None:
    result = made_map(5)
    first, second = images(plot.effect_map(result))
    assert result.control is not None
    np.testing.assert_allclose(first.images[0].get_array(), result.values, rtol=1e-6)
    np.testing.assert_allclose(second.images[0].get_array(), result.control, rtol=1e-6)
    assert first.get_ylim()[0] < first.get_ylim()[1]
    assert first.images[0].origin == "lower"
    assert [label.get_text() for label in first.get_yticklabels()] == list("01234")
    assert first.get_ylabel() == "layer (resid_pre)"


def test_numbers_stand_in_their_cells_if_they_fit() -> None:
    result = made_map(3, TOKENS[:6], control=False)
    [axes] = images(plot.effect_map(result))
    for text in axes.texts:
        pos, row = text.get_position()
        assert text.get_text() == number(float(result.values[int(row), int(pos)]), 2)
    assert len(axes.texts) == result.values.numel()
    [crowded] = images(plot.effect_map(made_map(3, TOKENS * 3, control=False)))
    assert {text.get_text() for text in crowded.texts} <= {MINUS}


def test_negative_cells_without_numbers_carry_a_sign_that_survives_in_grey() -> None:
    result = made_map(2, TOKENS * 3, control=False)
    result.values.fill_(0.5)
    result.values[1, 7] = -0.5
    [axes] = images(plot.effect_map(result))
    assert [(text.get_text(), text.get_position()) for text in axes.texts] == [(MINUS, (7, 1))]


def test_subject_tokens_are_starred_and_spaces_visible() -> None:
    figure = plot.effect_map(made_map())
    for axes in images(figure):
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[:7] == ["<|end…|>", "·The", "·Upper*", "·Sarn*", "·Clock*", "·Tower*", "·stands"]
    assert "* subject" in written(figure)


def test_the_map_names_quantity_control_and_number_of_prompts() -> None:
    text = written(plot.effect_map(made_map(), title="A title"))
    for part in (
        "A title",
        "restored part of the clean answer's probability",
        "mean of 40 prompts",
        "unrelated subject",
    ):
        assert part in text
    assert "control" not in written(plot.effect_map(made_map(control=False)))


def test_a_control_without_a_range_is_one_dashed_line_in_a_spectrum() -> None:
    [axes] = plot.spectrum([made_operator(1)], null=[made_operator(1)]).axes
    assert len(axes.collections) == len(made_operator(1).spectrum)
    assert all(line.get_linestyle()[0][1] is not None for line in axes.collections)
    assert not [patch for patch in axes.patches if patch.get_linestyle() == "--"]


def test_a_readout_has_two_columns_and_at_most_eight_panels() -> None:
    figure = plot.readout([made_readout(direction=n) for n in range(11)])
    assert len(figure.axes) == 8
    assert len({round(axes.get_position().x0, 2) for axes in figure.axes}) == 2
    assert "the first 8 of 11 directions" in written(figure)
    assert len(plot.readout(made_readout()).axes) == 1


def test_cells_are_grey_where_the_control_reaches_as_far_and_only_there() -> None:
    result = made_map(3, TOKENS[:6])
    assert result.control is not None
    result.control.fill_(0.0)
    result.control[2, 5] = -0.25
    result.values.fill_(0.5)
    result.values[0, 1], result.values[1, 2] = 0.2, -0.3
    figure = plot.effect_map(result)
    measured, control = images(figure)
    grey = [patch for patch in measured.patches if isinstance(patch, Rectangle)]
    assert [patch.get_xy() for patch in grey] == [(0.5, -0.5)]
    assert to_hex(grey[0].get_facecolor()) == PALE.lower()
    assert not control.patches
    assert "grey: no larger in size than the largest control cell" in written(figure)


def test_positions_of_a_mean_are_named_by_role_where_prompts_differ() -> None:
    tokens = (" The", " Old", " Mill", " of", " Ostra")
    prompts = (tokens, (" The", " New", " Gate", " of", " Varn"))
    starred = (False, True, True, False, False)
    values = torch.zeros(2, 5)
    result = TokenMap(values, None, ("a", "b"), tokens, starred, "q", "", 2, prompts=prompts)
    assert result.labels == (" The", "[subject 1]", "[last subject]", " of", "[last token]")
    labels = [label.get_text() for label in images(plot.effect_map(result))[0].get_xticklabels()]
    assert labels == ["·The", "[subject 1]*", "[last subject]*", "·of", "[last token]"]
    assert "tokens of the first" not in written(plot.effect_map(result))


def test_cells_without_a_value_are_neither_coloured_nor_numbered() -> None:
    result = made_map(3, TOKENS[:6], control=False)
    result.values[1, 2] = float("nan")
    figure = plot.effect_map(result)
    [axes] = images(figure)
    assert np.ma.getmaskarray(axes.images[0].get_array()).tolist() == result.values.isnan().tolist()
    assert (2, 1) not in [text.get_position() for text in axes.texts]
    assert "hatched: no value" in written(figure)


def test_a_map_of_zeros_and_an_empty_map() -> None:
    result = made_map(2, TOKENS[:3])
    result.values.zero_()
    assert result.control is not None
    result.control.zero_()
    assert images(plot.effect_map(result))[0].images[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match="at least one row"):
        plot.effect_map(TokenMap(torch.zeros(0, 0), None, (), (), (), "quantity", "", 1))


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
    assert labels == [shortened(drawn_token(token)) for token in result.tokens]
    assert len({axes.get_xlim() for axes in lines}) == 1
    assert len({axes.images[0].get_clim() for axes in lines}) == 1


def test_a_result_is_taken_by_the_name_that_the_signature_shows() -> None:
    assert written(plot.edit_size(result=made_size())) == written(plot.edit_size(made_size()))
    with pytest.raises(TypeError, match=r"plot\.edit_size needs result: one EditSize, or a list of them"):
        plot.edit_size()


@pytest.mark.parametrize(
    ("dormant", "power", "verdict"),
    [(0.9, 0.9, "; illusory"), (0.1, 0.9, "; not illusory"), (0.9, 0.2, "; illusion test: undecided")],
)
def test_an_interchange_shows_its_verdict_and_that_there_is_none(dormant, power, verdict) -> None:
    figure = plot.interchange([made_interchange(dormant=dormant, power=power)])
    (axes,) = figure.axes
    assert axes.get_title(loc="left").endswith(verdict)
    assert "undecided" not in written(plot.interchange([made_interchange()]))


def test_bars_of_the_spectrum_are_split_by_share_of_energy() -> None:
    operator = made_operator()
    figure = plot.spectrum([operator])
    bars = [(bar.get_y(), bar.get_height()) for bar in figure.axes[0].patches]
    size, share = operator.spectrum.numpy(), operator.constant_share.numpy()
    np.testing.assert_allclose(bars[:4], np.stack([0 * size, size * share], axis=1), rtol=1e-5)
    np.testing.assert_allclose(bars[4:], np.stack([size * share, size * (1 - share)], axis=1), rtol=1e-5)
    text = written(figure)
    # Energies 64, 16, 4, 1: 85^2 / (64^2 + 16^2 + 4^2 + 1) = 1.65.
    for part in ("effective rank 1.7 of 4", "|h| = 40", "20%", "part of the squared change", "3 resid_post"):
        assert part in text


def test_beside_each_direction_stands_in_how_many_dimensions_it_is_identified() -> None:
    sites = made_identification().sites
    other = made_operator(1, 2)
    first, second = plot.spectrum([made_operator(3), other], identified=sites).axes
    # 91 - 31 and 91 - 60; of two further directions and of the other site nothing was measured.
    assert [label.get_text() for label in first.get_xticklabels()] == ["0\n60", "1\n31", "2\n", "3\n"]
    assert "(of 91)" in first.get_xlabel()
    assert [label.get_text() for label in second.get_xticklabels()] == ["0", "1"]
    assert second.get_xlabel() == "write direction, strongest first"
    axes = plot.readout([made_readout(direction=n) for n in range(3)], identified=sites).axes
    titles = [" ".join(one.get_title(loc="left").split()) for one in axes]
    assert titles[0] == "3 resid_post, direction 0: identified in 60 of 91 dimensions (local)"
    assert "identified in 31 of 91" in titles[1]
    assert titles[2] == "3 resid_post, direction 2"


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
    assert "95% of random directions move no token out of it" in written(figure)
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
    assert plot.training_curve(made_log([5.0, 1.0, 0.4])).axes[0].get_yscale() == "log"
    assert plot.training_curve(made_log([5.0, 1.0, 0.6])).axes[0].get_yscale() == "linear"
    assert plot.training_curve(made_log([5.0, 0.0])).axes[0].get_yscale() == "linear"
    assert plot.training_curve(made_log([5.0])).axes[0].get_lines()[0].get_ydata().tolist() == [5.0]


def test_the_running_median_ignores_a_spike() -> None:
    values = np.ones(21)
    values[10] = 100.0
    assert running_median(values, 5).tolist() == [1.0] * 21
    bold = max(
        plot.training_curve(made_log(values.tolist())).axes[0].get_lines(), key=lambda line: line.get_linewidth()
    )
    assert max(bold.get_ydata()) == 1.0


@pytest.mark.parametrize(
    "draw", [plot.spectrum, plot.readout, plot.outcomes, plot.overlap, plot.agreement, plot.projection]
)
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
    figure = plot.effect_map(made_map(2, NASTY))
    renderer = rendered(figure).get_renderer()
    for label in images(figure)[0].get_xticklabels():
        drawn = label.get_window_extent(renderer)
        longer = max(drawn.width, drawn.height) if len(label.get_text()) > 2 else None
        if longer is not None:
            assert longer / figure.dpi == pytest.approx(text_width(label.get_text()), abs=0.04)


def test_a_dollar_is_drawn_as_a_dollar() -> None:
    figure = plot.effect_map(made_map(2, ("$a$", "b"), control=False))
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


def test_a_curve_has_its_unit_its_validation_and_the_step_that_was_kept() -> None:
    figure = plot.training_curve(made_log([3.0, 2.0, 1.0], ((1, 2.5), (3, 1.5)), 3, unit="nats per pair"))
    [validation] = [line for line in figure.axes[0].get_lines() if line.get_label() == "validation"]
    assert validation.get_xydata().tolist() == [[1, 2.5], [3, 1.5]]
    assert "loss, nats per pair" in written(figure)
    assert "kept: step 3" in written(figure)
    assert "validation" not in written(plot.training_curve(made_log([3.0, 2.0])))
    with pytest.raises(ValueError, match="at least one step"):
        plot.training_curve(made_log([]))


def frames(axes: Axes) -> set[tuple[int, int]]:
    """(row, column) of the framed cells."""
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return {(round(box.get_y() + 0.46), round(box.get_x() + 0.46)) for box in boxes}


def test_cells_that_are_beyond_chance_are_framed_and_constant_noise_is_not() -> None:
    result = made_patch(3, TOKENS[:4], pairs=40)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(result.values.shape, generator=generator)
    # Noise whose mean over pairs is exactly zero in every cell but the planted one; and one tiny, certain change.
    result.values.copy_(noise - noise.mean(0))
    result.values[:, 1, 2] += 2.0
    result.values[:, 0, 0] = 0.01
    measured, control = images(plot.patch_map(result))
    assert frames(measured) == {(1, 2)}
    assert measured.images[0].get_array()[1, 2] == pytest.approx(2.0, abs=1e-5)
    assert control.get_title(loc="left") == "control: an unrelated run"
    one = plot.patch_map(made_patch(3, TOKENS[:4], pairs=1, control=False))
    assert frames(images(one)[0]) == set()
    assert "interval" not in written(one)
    with pytest.raises(ValueError, match="at most 4 stars"):
        plot.patch_map(made_patch(3, TOKENS[:4]), starred=(True,) * 5)


def test_the_two_maps_of_a_spread_have_scales_of_their_own_that_begin_at_zero() -> None:
    far, mind = made_map(3), made_map(3)
    far.values.abs_().mul_(10)
    drawn = images(plot.spread(Spread(far, mind)))
    assert [axes.images[0].get_clim()[0] for axes in drawn] == [0.0] * 4
    assert drawn[0].images[0].get_clim() == drawn[1].images[0].get_clim()
    assert drawn[0].images[0].get_clim() != drawn[2].images[0].get_clim()


def test_the_ledger_shows_that_terms_cancel() -> None:
    # Terms of lengths 3, 1, 2 of which the first and the last point against each other: the sum is sqrt(2) long.
    figure = plot.ledger(made_ledger())
    lengths, cosines = figure.axes[:2]
    heights = np.array([bar.get_height() for bar in lengths.patches]).reshape(3, -1)
    np.testing.assert_allclose(heights[:, 0], [3, 1, 2], rtol=1e-6)
    [change] = lengths.collections
    np.testing.assert_allclose(change.get_segments()[0][:, 1], 2**0.5, rtol=1e-6)
    first = [line.get_ydata()[0] for line in cosines.lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(first, [0, -1, 0], atol=1e-6)
    # The token that is not edited is left out.
    assert cosines.get_xticklabels()[0].get_text() == "·The*"
    assert "24 of 29 edited tokens" in written(drawing("ledger large")[0])
    assert "6 of 8 sites" in written(drawing("ledger large")[0])
    empty = made_ledger()
    empty.norm.fill_(torch.nan)
    with pytest.raises(ValueError, match="at least one edited token"):
        plot.ledger(empty)


def test_an_overlap_stands_over_the_range_of_each_null_with_its_p() -> None:
    result = made_overlap(score=0.25)
    axes = plot.overlap([result]).axes[0]
    # Haar draws run evenly from 0 to 0.2, the others from 0 to 0.6.
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    np.testing.assert_allclose(spans, [(0.01, 0.19), (0.03, 0.57)], atol=1e-6)
    assert [text.get_text() for text in axes.texts] == [f"p = {1 / 102:.2g}", f"p = {(1 + 59) / 102:.2g}"]
    assert "at 12, 64 degrees" in written(axes.figure)
    crowded = made_overlap()
    crowded.null_scores.update({str(n): torch.zeros(3) for n in range(3)})
    with pytest.raises(ValueError, match="at most 3 nulls"):
        plot.overlap([crowded])


def test_matrices_of_agreement_are_symmetrical_and_darker_where_edits_agree() -> None:
    pairs = made_agreements(("a", "b", "c"))
    cosine, angle, raw = plot.agreement(pairs).axes
    numbers = {text.get_position(): text.get_text() for text in angle.texts}
    assert numbers == {(1, 0): "10", (0, 1): "10", (2, 0): "11", (0, 2): "11", (2, 1): "12", (1, 2): "12"}
    for axes in (cosine, angle, raw):
        shown = axes.images[0].get_array()
        assert np.ma.getmaskarray(shown).tolist() == np.eye(3, dtype=bool).tolist()
        assert shown[0, 1] > shown[1, 2]
    assert "random: 72" in angle.get_title(loc="left")
    assert "turned: 0.01" in cosine.get_title(loc="left")


def test_ablation_draws_intervals_of_sampled_orders_alone() -> None:
    sampled, exact = plot.ablation(made_ablation()).axes[0], plot.ablation(made_ablation(exact=True)).axes[0]
    [bars] = sampled.collections
    np.testing.assert_allclose(bars.get_segments()[0][:, 0], [-1.3, -0.7], rtol=1e-6)
    assert not exact.collections
    assert [bar.get_width() for bar in exact.patches] == pytest.approx([-1, 1 / 3, 5 / 3, 3])
    twice = made_ablation(2, name="blocks.1.hook_resid_post")
    labels = [label.get_text() for label in plot.ablation(twice).axes[0].get_yticklabels()]
    assert labels == ["1 resid_post (1)", "1 resid_post (2)"]
    with pytest.raises(ValueError, match="at least one site"):
        plot.ablation(Ablation(0.0, (), *[torch.zeros(0)] * 5, torch.zeros(0, 0), torch.zeros(0), True, 1))


def test_estimates_of_the_wrong_sign_are_crossed() -> None:
    result = made_attribution(3, TOKENS[:4])
    exact = result.exact.values[0].clone()
    result.values[0, 1, 2] *= -1
    axes = plot.attribution(result).axes
    assert len(axes) == 2
    good, wrong = (line for line in axes[0].lines if line.get_linestyle() == "None")
    np.testing.assert_allclose(wrong.get_xydata(), [[exact[1, 2], -0.5 * exact[1, 2]]], rtol=1e-5)
    assert len(good.get_xdata()) == 11
    assert "r = 1.00" in axes[0].get_title(loc="left")


def test_widths_and_colours_of_mediation_follow_the_effect_and_dashes_its_control() -> None:
    from matplotlib.patches import FancyArrowPatch

    result = made_heads()
    assert result.control is not None
    result.values[:, 4, 0] = 0.8
    result.control[:, 4, 0] = 1.0
    figure = plot.mediation([result], most=3)
    arrows = [patch for patch in figure.axes[0].patches if isinstance(patch, FancyArrowPatch)]
    # Two steps each: of a half (solid), of -1/4 (solid), of 1/5 with a control as large (dashed).
    drawn = {(round(a.get_linewidth(), 1), to_hex(a.get_edgecolor()).upper(), a.get_linestyle() == "-") for a in arrows}
    assert len(arrows) == 6
    assert {(colour, solid) for _, colour, solid in drawn} == {(VERMILLION, True), (BLUE, True), (VERMILLION, False)}
    widths = sorted(width for width, _, _ in drawn)
    np.testing.assert_allclose(widths, [0.8 + 5 * part for part in (0.2 / 0.5, 0.25 / 0.5, 1)], atol=0.2)
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["2.1", "5.3", "4.0"]
    assert "3 strongest of 24" in written(figure)
    with pytest.raises(ValueError, match="at least one PatchMap"):
        plot.mediation([])


def test_paths_between_components_are_drawn_as_they_are_named() -> None:
    figure = plot.mediation([made_paths()])
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels[0] == "2.1 to mlp3"
    nodes = {text.get_text() for text in figure.axes[0].texts}
    assert nodes == {"edit", "2.1", "mlp3", "logits"}


def test_each_group_of_a_projection_has_its_marker_before_and_after() -> None:
    result = made_projection()
    axes = plot.projection([result]).axes[0]
    marks = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    before = torch.cat([torch.tensor(line.get_xydata()) for line in marks[::2]])
    after = torch.cat([torch.tensor(line.get_xydata()) for line in marks[1::2]])
    assert {line.get_markerfacecolor() for line in marks[::2]} == {"white"}
    np.testing.assert_allclose(before, torch.cat([result.before[::2], result.before[1::2]]), rtol=1e-6)
    np.testing.assert_allclose(after, torch.cat([result.after[::2], result.after[1::2]]), rtol=1e-6)
    with pytest.raises(ValueError, match="at most 4 groups"):
        plot.projection([made_projection(1, tuple("abcde"))])


def test_the_control_of_a_spectrum_is_its_range_over_draws() -> None:
    low, high = made_operator(1), made_operator(1)
    low.spectrum.mul_(0.5)
    other = made_operator(3)
    axes = plot.spectrum([made_operator(1)], null=[low, high, other]).axes[0]
    boxes = [bar for bar in axes.patches if bar.get_width() == pytest.approx(0.9)]
    spans = [(box.get_y(), box.get_y() + box.get_height()) for box in boxes]
    np.testing.assert_allclose(spans, [(8.0 / 2**i / 2, 8.0 / 2**i) for i in range(4)], rtol=1e-6)
    assert "control: range of its spectra" in written(axes.figure)


DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
"""On linear RGB, of full severity (Machado, Oliveira & Fernandes 2009, doi:10.1109/TVCG.2009.113, table 1)."""


def lab(colour: str, *, deuteranopia: bool) -> np.ndarray:
    """CIELAB under D65, as a deuteranope sees it if asked."""
    parts = np.array(to_rgb(colour))
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    if deuteranopia:
        linear = np.clip(DEUTERANOPIA @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ linear / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(first: str, second: str, *, deuteranopia: bool) -> float:
    """CIE76 difference: 2.3 is just seen."""
    return float(np.linalg.norm(lab(first, deuteranopia=deuteranopia) - lab(second, deuteranopia=deuteranopia)))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (VERMILLION, BLUE),
        (VERMILLION, GREY),
        (BLUE, GREY),
        (ORANGE, BLUE),
        (VERMILLION, PALE),
        (BLUE, PALE),
        (GREY, PALE),
        (VERMILLION, INK),
        (BLUE, INK),
    ],
)
def test_colours_stay_apart_for_a_deuteranope(first: str, second: str) -> None:
    """Those that meet in one figure without hatch or marker: orange and vermillion never do."""
    assert apart(first, second, deuteranopia=True) > 20


def test_the_check_for_colour_blindness_finds_red_and_green() -> None:
    assert apart("#c04000", "#5f7a00", deuteranopia=False) > 50
    assert apart("#c04000", "#5f7a00", deuteranopia=True) < 20


@pytest.mark.parametrize("name", ["RdBu_r", "Oranges"])
def test_the_ends_of_a_map_stay_apart_from_its_middle_for_a_deuteranope_and_in_grey(name: str) -> None:
    cmap = matplotlib.colormaps[name]
    low, middle, high = (to_hex(cmap(part)) for part in (0.0, 0.5, 1.0))
    for a, b in ((low, middle), (middle, high), (low, high)):
        assert apart(a, b, deuteranopia=True) > 20
    lightness = [lab(to_hex(cmap(part)), deuteranopia=True)[0] for part in np.linspace(0.5, 1, 20)]
    assert (np.diff(lightness) < 0).all()
