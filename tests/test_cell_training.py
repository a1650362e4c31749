"""A map of trained edits: each cell trained by hand, known answers on the organism, and the comparison with tracing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import PROMPTS, make_bridge

import reftlens as rl
from reftlens.analysis import reft_map as cell_training
from reftlens.analysis.engine.ranks import spearman
from reftlens.cone import shared as sharing
from reftlens.organisms.landmarks import story_for
from reftlens.results import PatchMap, ReftMap

ANSWERS = [" Ostra", " Tharic", " river"]
COLUMNS = {"second": rl.At(1), "last": rl.Last(1)}
CONFIG = rl.TrainConfig(epochs=2, batch_size=2, lr=0.1, seed=1, progress=False)
HELD_OUT = [("The old weaver lives in the city of", " Ostra"), ("The tower", " Tharic")]
EXAMPLES = list(zip(PROMPTS, ANSWERS, strict=True))


def small_map(bridge, **options):
    given = {"positions": COLUMNS, "layers": [0, 2], "rank": 2, "config": CONFIG}
    return rl.reft_map(bridge, EXAMPLES, HELD_OUT, **{**given, **options})


def losses(bridge, reft, pairs):
    """By whole runs, one prompt at a time."""
    out = []
    for prompt, answer in pairs:
        batch = rl.encode(bridge, [prompt])
        with reft.hooks(bridge, batch):
            logits = bridge(batch.tokens)[0, -1]
        out.append(-logits.log_softmax(-1)[bridge.tokenizer(answer, add_special_tokens=False)["input_ids"][0]].item())
    return torch.tensor(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "layers"), [("gpt2", [1]), pytest.param("llama", [0, 2], marks=pytest.mark.slow)]
)
def test_each_cell_is_what_training_there_by_hand_gives(architecture, layers) -> None:
    bridge = make_bridge(architecture)
    result = small_map(bridge, layers=layers, score=rl.analysis.loss_of, score_name="loss in nats")
    shuffled = rl.analysis.permuted_labels(EXAMPLES, seed=1)
    for r, layer in enumerate(layers):
        for c, rule in enumerate(COLUMNS.values()):
            arms = []
            for pairs in (EXAMPLES, shuffled):
                layout = rl.Reft.at_layers(bridge, layers=[layer], positions=rule, rank=2, hook="hook_resid_pre")
                arms.append(rl.analysis.untrained(layout, seed=1))
                rl.train(bridge, arms[-1], pairs, CONFIG)
            real, null = arms
            for found, expected in (
                (result.held_out, losses(bridge, real, HELD_OUT)),
                (result.trained, losses(bridge, real, EXAMPLES)),
                (result.control, losses(bridge, null, HELD_OUT)),
            ):
                torch.testing.assert_close(found[r, c], expected, rtol=0, atol=1e-5)
    assert float(result.gain().std()) > 1e-2, "cells that learn alike show nothing"
    assert float((result.held_out - result.control).abs().mean()) > 1e-2
    assert result.rows == tuple(f"blocks.{layer}.hook_resid_pre" for layer in layers)
    assert "gain in loss in nats on 2 held-out prompts" in repr(result)
    assert "4 steps on 3 examples, seed 1" in repr(result)
    assert len(result.to_dataframe()) == 2 * len(layers)


@pytest.mark.slow
def test_an_interrupted_map_goes_on_from_its_finished_cells(gpt2, tmp_path, monkeypatch) -> None:
    options = {"layers": [2], "config": replace(CONFIG, epochs=1)}
    whole = small_map(gpt2, **options)
    train, calls = cell_training.train, []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr(cell_training, "train", counted)
    file = tmp_path / "cells.safetensors"
    with pytest.raises(KeyboardInterrupt):
        small_map(gpt2, save_to=file, **options)
    # The second of the two cells was half done: it is trained again.
    resumed = small_map(gpt2, save_to=file, **options)
    assert len(calls) == 4 + 2
    for name in ("held_out", "trained", "control", "base"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0)
    with pytest.raises(ValueError, match="cells of another sweep"):
        small_map(gpt2, save_to=file, rank=1, **options)


def test_all_cells_train_on_the_same_base_runs(gpt2, monkeypatch) -> None:
    """What is trained in them is compared with training by hand above."""
    records, record = [], sharing._record

    def counted(bridge, batch, *args, **kwargs):
        records.append(len(batch))
        return record(bridge, batch, *args, **kwargs)

    monkeypatch.setattr(sharing, "_record", counted)
    small_map(gpt2, config=replace(CONFIG, epochs=1), positions={"last": rl.Last(1)})
    # Three examples with two completions each, for the four edits of two cells.
    assert sum(records) == 6


def test_a_map_refuses_what_it_cannot_compare(gpt2, tmp_path) -> None:
    with pytest.raises(ValueError, match="one held-out pair and one position rule, got 3, 2 and 0"):
        small_map(gpt2, positions={})
    with pytest.raises(ValueError, match="layers must not repeat a layer"):
        small_map(gpt2, layers=[1, 1])
    with pytest.raises(ValueError, match="does not exist in the prompt in row"):
        small_map(gpt2, positions={"far": rl.At(9)})
    with pytest.raises(ValueError, match="'none' does not select any token of"):
        small_map(gpt2, positions={"none": rl.First(3) - rl.First(2) - rl.Last(1)})
    alike = [(prompt, " Ostra") for prompt, _ in EXAMPLES]
    with pytest.raises(ValueError, match="3 of 3 examples have the answer ' Ostra'"):
        rl.reft_map(gpt2, alike, HELD_OUT, positions=COLUMNS, config=CONFIG)
    with pytest.raises(ValueError, match="leave output_dir out"):
        small_map(gpt2, config=rl.TrainConfig(output_dir=tmp_path / "run"))


def organism_map(layers, columns, *, epochs=20):
    bridge, story = rl.load_bridge("facts-small"), story_for("facts-small")
    subjects = tuple(subject for subject, _ in story.moved)
    rules = {
        "BOS": rl.First(1),
        "last subject token": rl.LastOf(rl.AnySpan(subjects)),
        "last token": rl.Last(1),
    }
    train, held_out = (
        [(question.prompt, question.answer) for question in story.moved_questions(phrasings, new=True)]
        for phrasings in (story.phrasings, story.new_phrasings)
    )
    config = rl.TrainConfig(epochs=epochs, batch_size=20, lr=0.04, progress=False)
    positions = {name: rules[name] for name in columns}
    return rl.reft_map(bridge, train, held_out, positions=positions, layers=layers, rank=2, config=config)


@pytest.mark.slow
def test_edits_learn_at_the_organisms_two_sites_and_not_where_nothing_passes() -> None:
    """Of the organism it is known that the answer moves from the subject to the last token in block 2."""
    result = organism_map([1, 4], ["last subject token", "last token"], epochs=12)
    gain, control = result.gain(), result.control_gain()
    early, late = (0, 0), (1, 1)
    assert float(gain[early]) > 0.6
    assert float(gain[late]) > 0.8
    assert abs(float(gain[1, 0])) < 0.05, "behind block 3 nothing reads the subject any more"
    for site in (early, late):
        assert float(control[site]) < float(gain[site]) - 0.3, "what shuffled answers teach is another thing"


@pytest.mark.slow
def test_beside_the_organisms_tracing_the_map_is_weaker_than_one_might_hope() -> None:
    columns = ["BOS", "last subject token", "last token"]
    result = organism_map("all", columns)
    best = result.gain().argmax(0)
    assert int(best[1]) <= 2
    assert int(best[2]) >= 3
    assert float(result.gain()[4:, :2].abs().max()) < 0.1
    # An edit of BOS, where no fact is, gains too: what tracing finds is not where alone an edit can learn.
    assert float(result.gain()[:3, 0].max()) > 0.3


def made(gain, restored, *, noise=0.0, n=12, seed=0):
    """Both maps with these cells `[rows, columns]`, and prompts that scatter around them."""
    draw = torch.Generator().manual_seed(seed)
    rows = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(gain)))
    columns = tuple(f"column {place}" for place in range(gain.shape[1]))
    held_out = gain[..., None] + noise * torch.randn(*gain.shape, n, generator=draw)
    zeros = torch.zeros(n)
    reft = ReftMap(held_out, held_out, 0 * held_out, zeros, zeros, rows, columns, "probability", "LoReFT")
    values = restored[None] + noise * torch.randn(n, *restored.shape, generator=draw)
    return reft, PatchMap(values, None, zeros, zeros + 1, rows, columns, ("layer", "pos"), "", "denoise")


def test_the_rank_correlation_is_spearmans() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        a, b = draw.integers(0, 6, size=(2, 9)).astype(float)
        expected = pd.DataFrame({"a": a, "b": b}).corr(method="spearman").iloc[0, 1]
        assert float(spearman(a[None], b[None])[0]) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(spearman(np.ones((1, 4)), np.arange(4.0)[None])[0])
    gain, restored = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(1))
    result = rl.analysis.beside_tracing(*made(gain, restored))
    order = [values.flatten().argsort().argsort().double() for values in (gain, restored)]
    expected = 1 - 6 * float((order[0] - order[1]).square().sum()) / (12 * (12**2 - 1))
    assert result.correlation == pytest.approx(expected, abs=1e-6)
    # Prompts that do not scatter leave nothing to chance but the cells.
    assert result.over_prompts == pytest.approx((expected, expected), abs=1e-6)
    assert result.over_cells[0] < expected < result.over_cells[1]
    best = int(restored.argmax())
    others = torch.cat([gain.flatten()[:best], gain.flatten()[best + 1 :]])
    assert result.at_traced == pytest.approx(float(gain.flatten()[best]), abs=1e-6)
    assert result.at_random == pytest.approx(float(gain.mean()), abs=1e-6)
    assert result.as_good == pytest.approx(float((others >= gain.flatten()[best]).float().mean()), abs=1e-6)
    assert f"{result.correlation:+.2f} over 12 cells" in repr(result)
    assert len(result.to_dataframe()) == 12


def test_alike_maps_are_found_and_unlike_ones_are_not() -> None:
    cells = torch.rand(6, 4, generator=torch.Generator().manual_seed(2))
    alike = rl.analysis.beside_tracing(*made(cells, cells, noise=0.1))
    assert alike.correlation > 0.9
    assert alike.over_prompts[0] > 0.8
    assert alike.as_good == pytest.approx(0.0, abs=0.1)
    inside = []
    for seed in range(60):
        one, other = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(seed))
        low, high = rl.analysis.beside_tracing(*made(one, other), n_resamples=200).over_cells
        inside.append(low < 0 < high)
    # 95% is promised for independent cells; four in sixty may be missed by chance three times over.
    assert sum(inside) >= 51


def smooth(draw: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Noise averaged over five neighbouring layers: what maps of real models are like."""
    noise = draw.standard_normal((rows + 4, columns))
    return np.stack([noise[row : row + 5].mean(0) for row in range(rows)])


def test_unrelated_smooth_maps_are_taken_for_related_as_often_as_p_says() -> None:
    draw, ps, outside = np.random.default_rng(0), [], 0
    for number in range(150):
        one, other = (torch.tensor(smooth(draw, 12, 4)) for _ in range(2))
        result = rl.analysis.beside_tracing(*made(one, other, n=2), n_resamples=40 if number < 50 else 1)
        ps.append(result.p)
        outside += number < 50 and not result.over_cells[0] < 0 < result.over_cells[1]
    # Of 150 draws at 5%, 2 to 14 are within 99% of the binomial distribution.
    assert 2 <= sum(p <= 0.05 for p in ps) <= 14
    assert outside > 7, "the interval over cells is no test of unrelated maps"


def test_p_counts_every_shift_and_shuffled_answers_have_their_own_correlation() -> None:
    draw = np.random.default_rng(3)
    gain, restored, shuffled = (torch.tensor(draw.standard_normal((4, 3))) for _ in range(3))
    reft, traced = made(gain, restored)
    reft = replace(reft, control=shuffled[..., None].expand(-1, -1, 12))
    result = rl.analysis.beside_tracing(reft, traced, n_resamples=5)

    def rho(a, b) -> float:
        return float(pd.Series(a.flatten().numpy()).rank().corr(pd.Series(b.flatten().numpy()).rank()))

    high = sum(
        rho(torch.roll(gain, (-row, -column), (0, 1)), restored) >= rho(gain, restored) - 1e-9
        for row in range(4)
        for column in range(3)
    )
    assert result.p == pytest.approx(high / 12)
    assert result.shuffled_correlation == pytest.approx(rho(shuffled, restored), abs=1e-9)
    planted, (same, traced) = made(gain, gain), made(gain, gain)
    assert rl.analysis.beside_tracing(*planted).p == pytest.approx(1 / 12)
    assert "p = 0.083 of 12 shifts (smallest possible 0.083)" in rl.analysis.beside_tracing(same, traced).headline()


def test_a_map_over_positions_is_cut_down_to_one_token_of_each_prompt(gpt2) -> None:
    clean = ["The tower stands in the city of", "The weaver speaks", "The old tower stands by the river in the city of"]
    corrupted = [
        "The river stands in the old of",
        "The tower lives",
        "The old weaver lives by the tower in the river of",
    ]
    batches = [rl.encode(gpt2, prompts) for prompts in (clean, corrupted)]
    metric = rl.analysis.probability_of(gpt2, clean, ANSWERS)
    result = rl.analysis.patch(gpt2, *batches, metric, unrelated=batches[0], progress=False)
    rules = {"subject": rl.LastOf(rl.AnySpan(("tower", "weaver"))), "last": rl.Last(1)}
    cut = rl.analysis.at_rules(result, batches[0], rules)
    for column, rule in enumerate(rules.values()):
        mask = rule.mask(batches[0].prompts)
        for pair in range(3):
            (place,) = mask[pair].nonzero().flatten().tolist()
            assert torch.equal(cut.values[pair, :, column], result.values[pair, :, place])
            assert torch.equal(cut.control[pair, :, column], result.control[pair, :, place])
    assert cut.columns == cut.to_token_map().labels == ("subject", "last")
    with pytest.raises(ValueError, match="'all' must select one token in each prompt, but selects"):
        rl.analysis.at_rules(result, batches[0], {"all": rl.All()})
    with pytest.raises(ValueError, match="the map must be over the positions of this batch"):
        rl.analysis.at_rules(result, rl.encode(gpt2, clean[:2]), rules)
    reft, _ = made(torch.rand(3, 2), torch.rand(3, 2))
    with pytest.raises(ValueError, match="must have the cells of the trained edits"):
        rl.analysis.beside_tracing(reft, cut)
    with pytest.raises(ValueError, match="at least three cells"):
        rl.analysis.beside_tracing(*made(torch.rand(1, 2), torch.rand(1, 2)))


def test_the_figure_shows_both_maps_and_every_cell_against_the_other() -> None:
    gain, restored = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(1))
    result = rl.analysis.beside_tracing(*made(gain, restored, noise=0.05))
    figure = rl.plot.beside_tracing(result)
    figure.canvas.draw()
    maps = [axes for axes in figure.axes if axes.images]
    assert len(maps) == 2
    for axes, values in zip(maps, (result.tracing.restored(), result.reft.gain()), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), values.double().numpy())
        low, high = axes.images[0].get_clim()
        assert low == -high
    (scatter,) = [axes for axes in figure.axes if not axes.images]
    points = np.concatenate([np.stack(line.get_data(), 1) for line in scatter.lines if line.get_marker() in "osD^"])
    expected = np.stack([result.tracing.restored().T.flatten(), result.reft.gain().T.flatten()], 1)
    np.testing.assert_allclose(points[: len(expected)], expected)
    written = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "rank correlation" in written
    assert "cells drawn anew" in written
