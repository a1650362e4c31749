"""Prediction before training: slopes against finite differences, the fit against a search, and a map of known cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import PROMPTS, make_bridge

import reftlens as rl
from reftlens.analysis.engine.linearised import Slopes, fit, slopes
from reftlens.analysis.engine.ranks import spearman
from reftlens.analysis.predict_map import _bounded, _covariance
from reftlens.data.batches import as_batches
from reftlens.organisms.landmarks import story_for
from reftlens.results import PredictedMap, ReftMap

ANSWERS = [" Ostra", " Tharic .", " river"]
EXAMPLES = list(zip(PROMPTS, ANSWERS, strict=True))
HELD_OUT = [("The old weaver lives in the city of", " Ostra"), ("The tower", " Tharic")]
COLUMNS = {"second": rl.At(1), "last two": rl.Last(2)}


def cells_of(bridge, layers, rules=tuple(COLUMNS.values()), hook="hook_resid_pre"):
    return [
        rl.Reft.at_layers(bridge, layers=[layer], positions=rule, intervention=rl.SteeringVector, hook=hook)
        for layer in layers
        for rule in rules
    ]


def taken(bridge, cells, *, batch_size=8, n_probes=2, seed=0):
    batches = as_batches(bridge, EXAMPLES, batch_size=batch_size)
    return slopes(bridge, cells, batches, n_probes=n_probes, generator=torch.Generator().manual_seed(seed))


def whole_loss(bridge, site, affine, scale):
    """Nats per completion token under scale times an affine edit, by whole runs, one example at a time."""
    edit = rl.DiReFT(len(affine.constant), len(affine.write) + 1).double()
    with torch.no_grad():
        # The constant needs a coordinate of its own, since it need not lie in what the others write.
        edit.write.copy_(torch.cat([affine.write, affine.constant[None]]))
        edit.read.weight.copy_(torch.cat([affine.read, 0 * affine.constant[None]]))
        edit.read.bias.copy_(torch.cat([torch.zeros(len(affine.write)), torch.ones(1)]))
    reft = rl.Reft([(site, edit)]).scaled(scale)
    loss, n = 0.0, 0
    for example in EXAMPLES:
        batch = as_batches(bridge, [example])[0]
        with torch.no_grad(), reft.hooks(bridge, batch):
            logprobs = bridge(batch.tokens)[0].log_softmax(-1)
        places = (batch.labels[0] >= 0).nonzero().flatten()
        loss -= float(sum(logprobs[place - 1, batch.labels[0, place]] for place in places))
        n += len(places)
    return loss / n


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "dtype", "eps", "near"),
    [
        ("gpt2", torch.float64, 1e-4, 1e-5),
        ("gpt_neox", torch.float64, 1e-4, 1e-5),
        # A Llama cannot run in float64: a larger step, with an error of its own, stands out from rounding.
        ("llama", torch.float32, 1e-2, 1e-2),
    ],
)
def test_slopes_are_finite_differences_of_whole_runs(architecture, dtype, eps, near) -> None:
    bridge = make_bridge(architecture, dtype=dtype)
    cells = cells_of(bridge, [0, 2])
    found, loss = taken(bridge, cells)
    for cell, at in zip(cells, found, strict=True):
        best = fit(at, rank=2, damping=0.1, curves=at.probes.flatten(0, 1))
        assert whole_loss(bridge, cell.sites[0], best.affine(), 0.0) == pytest.approx(loss, abs=near / 10)
        ends = [whole_loss(bridge, cell.sites[0], best.affine(), sign * eps) for sign in (1, -1)]
        slope, _ = at.along(best.change(at.h))
        assert slope < -1e-3, "the fit descends, or nothing is compared"
        assert (ends[0] - ends[1]) / (2 * eps) == pytest.approx(slope, rel=near)


@pytest.mark.slow
def test_probes_average_to_the_curvature_of_the_bound(gpt2) -> None:
    (cell,) = cells_of(gpt2, [1], [rl.Last(1)])
    (at,), _ = taken(gpt2, [cell], n_probes=400)
    change = torch.randn(at.h.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, curved = at.along(change)
    expected, n_tokens = 0.0, 0
    for place, example in enumerate(EXAMPLES):
        batch = as_batches(gpt2, [example])[0]
        edits = cell.edits(batch)
        wanted = (batch.labels[0] >= 0).nonzero().flatten() - 1

        def logits(push, batch=batch, edits=edits, wanted=wanted):
            hooks = [(edits[0].hook_name, lambda h, hook: h + edits[0].mask[..., None] * push.to(h))]
            return gpt2.run_with_hooks(batch.tokens, fwd_hooks=hooks)[0, wanted]

        _, moved = torch.autograd.functional.jvp(logits, torch.zeros(32), change[place].float())
        expected += float((moved - moved.mean(-1, keepdim=True)).square().sum() / 2)
        n_tokens += len(wanted)
    # 400 probes of three examples: the standard error is at most sqrt(2 / 400), 7%.
    assert curved == pytest.approx(expected / n_tokens, rel=0.25)


def test_padding_and_batches_change_no_slope(gpt2) -> None:
    cells = cells_of(gpt2, [1])
    (whole, loss), (parts, same) = taken(gpt2, cells), taken(gpt2, cells, batch_size=1)
    assert loss == pytest.approx(same, abs=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one.g, other.g, rtol=0, atol=1e-6)
        torch.testing.assert_close(one.h, other.h, rtol=0, atol=1e-5)
        assert torch.equal(one.example, other.example)


def made_slopes(n=40, width=6):
    draw = torch.Generator().manual_seed(3)
    h, g = (torch.randn(n, width, generator=draw, dtype=torch.float64) for _ in range(2))
    probes = torch.randn(3, n, width, generator=draw, dtype=torch.float64) * torch.arange(1, 7)
    return Slopes(h + 2, torch.arange(n), g + 0.3 * h + 0.5, probes, n)


@pytest.mark.parametrize("rank", [1, 2])
def test_the_fit_is_the_best_edit_of_its_rank(rank) -> None:
    """Of the damped quadratic model, searched from several starts."""
    at, damping = made_slopes(), 0.1
    curves = at.probes.flatten(0, 1)
    best = fit(at, rank=rank, damping=damping, curves=curves)
    x = torch.cat([at.h - at.h.mean(0), torch.ones(at.n, 1)], 1)
    M, S = curves.T @ curves / len(curves), x.T @ x / at.n
    M += damping * M.trace() / 6 * torch.eye(6).double()
    S[:6, :6] += damping * S[:6, :6].trace() / 6 * torch.eye(6).double()
    G = at.g.T @ x / at.n

    def model(W):
        return (G * W).sum() + (W * (M @ W @ S)).sum() / 2

    found = best.write.T @ torch.cat([best.read, best.push[:, None]], 1)
    assert float(model(found)) == pytest.approx(-float(best.values.square().sum()) / 2, rel=1e-9)
    ends = []
    for seed in range(3):
        right = torch.randn(7, rank, generator=torch.Generator().manual_seed(seed)).double()
        for _ in range(300):
            # With one factor fixed, the best other one solves a linear system.
            left = -torch.linalg.solve(M, G @ right) @ torch.linalg.inv(right.T @ S @ right)
            right = -torch.linalg.solve(S, G.T @ left) @ torch.linalg.inv(left.T @ M @ left)
        ends.append(float(model(left @ right.T)))
    assert min(ends) == pytest.approx(float(model(found)), rel=1e-6)
    torch.testing.assert_close(best.affine().delta(at.h), best.change(at.h))


@pytest.mark.parametrize("n_probes", [2, 8])
def test_a_bounded_gain_is_no_more_than_the_bound_allows(n_probes) -> None:
    """With fewer probes than dimensions, an edit can be found along which those that it was fitted to see no curvature."""
    draw = torch.Generator().manual_seed(0)
    n, width = 10, 80
    at, held_out = (
        Slopes(
            torch.randn(n, width, generator=draw, dtype=torch.float64),
            torch.arange(n),
            torch.randn(n, width, generator=draw, dtype=torch.float64) + 1,
            torch.randn(n_probes, n, width, generator=draw, dtype=torch.float64),
            n,
        )
        for _ in range(2)
    )
    gain = _bounded(at, held_out, 2, 0.1)
    # Curvature is 1 along everything, so that no change d of one example gains more than -g . d - d^2 / 2 <= g^2 / 2.
    assert 0 < gain < float(held_out.g.square().sum(1).mean() / 2)


def test_the_covariance_is_that_of_numpy() -> None:
    at = made_slopes()
    g, h = at.g.numpy(), at.h.numpy()
    cross = (g - g.mean(0)).T @ (h - h.mean(0)) / len(g)
    constant = g.mean(0)[:, None] * np.sqrt((h**2).sum(1).mean())
    expected = np.linalg.svd(np.hstack([cross, constant]), compute_uv=False)[:2].sum()
    assert _covariance(at, 2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_where_nothing_reads_nothing_is_predicted(architecture) -> None:
    bridge = make_bridge(architecture)
    last = bridge.cfg.n_layers - 1
    result = rl.analysis.predict_map(
        bridge,
        EXAMPLES,
        HELD_OUT,
        positions={"second": rl.At(1), "last": rl.Last(1)},
        layers=[last],
        hook="hook_resid_post",
        n_probes=2,
        progress=False,
    )
    # The output of the last block is read at its own token alone. HELD_OUT has no prompt of two tokens.
    assert torch.equal(result.values[:, 0, 0], torch.zeros(3))
    assert float(result.values[:, 0, 1].abs().min()) > 1e-3
    assert len(result.to_dataframe()) == 2
    assert "slope" in repr(result)


def test_the_organism_is_predicted_to_learn_at_its_two_sites() -> None:
    """Of the organism it is known that the answer moves from the subject to the last token in block 2."""
    bridge, story = rl.load_bridge("facts-small"), story_for("facts-small")
    train, held_out = (
        [(question.prompt, question.answer) for question in story.moved_questions(phrasings, new=True)]
        for phrasings in (story.phrasings[:3], story.new_phrasings[:1])
    )
    subjects = tuple(subject for subject, _ in story.moved)
    positions = {"last subject token": rl.LastOf(rl.AnySpan(subjects)), "last token": rl.Last(1)}
    result = rl.analysis.predict_map(
        bridge, train, held_out, positions=positions, layers=[1, 4], rank=2, n_probes=4, progress=False
    )
    for values in result.values[[0, 2]]:
        assert float(values[1, 0]) < 0.2 * float(values[0, 0]), "behind block 3 nothing reads the subject any more"
        assert float(values[1, 1]) > float(values[1, 0])
    # Shuffled answers can be written, and not read from the subjects.
    gain, control = result.values[1], result.control[1]
    assert float(control[1, 1]) < 0.5 * float(gain[1, 1])


def maps(gain, values, control=None):
    rows, columns = tuple(f"row {row}" for row in range(len(gain))), ("a", "b", "c")[: gain.shape[1]]
    held_out, zeros = gain[..., None].expand(-1, -1, 4), torch.zeros(4)
    trained = ReftMap(held_out, held_out, held_out, zeros, zeros, rows, columns, "probability", "")
    control = values if control is None else control
    names = tuple(f"predictor {place}" for place in range(len(values)))
    return PredictedMap(values, control, names, rows, columns, 1.0, 4, ""), trained


def test_a_prediction_is_scored_by_ranks_and_by_shifts() -> None:
    draw = torch.Generator().manual_seed(0)
    gain, noise = torch.rand(2, 6, 3, generator=draw)
    # Far smaller numbers with the same ranks: correlations do not depend on the scale.
    result = rl.analysis.beside_training(
        *maps(gain, torch.stack([1e-9 * gain.exp(), noise]), torch.stack([noise, gain]))
    )
    same, other = result.scores
    assert same.correlation == pytest.approx(1)
    assert (same.p, same.p_any) == pytest.approx((1 / 18, 1 / 18))
    assert (same.within_columns, same.within_rows) == pytest.approx((1, 1))
    assert same.at_best == pytest.approx(float(gain.max()))
    expected = float(spearman(noise.numpy().reshape(1, -1).astype(float), gain.numpy().reshape(1, -1).astype(float))[0])
    assert (other.correlation, same.shuffled) == pytest.approx((expected, expected))
    assert other.shuffled == pytest.approx(1)
    assert other.p_any >= other.p > 1 / 18
    assert result.at_random == pytest.approx(float(gain.mean()), abs=1e-6)
    assert len(result.to_dataframe()) == 2


def test_order_of_columns_alone_is_told_from_order_within_them() -> None:
    draw = torch.Generator().manual_seed(1)
    gain = torch.rand(6, 3, generator=draw) + torch.tensor([0.0, 5.0, 10.0])
    columns_alone = torch.rand(6, 3, generator=draw) + torch.tensor([0.0, 5.0, 10.0])
    score = rl.analysis.beside_training(*maps(gain, columns_alone[None])).scores[0]
    assert score.correlation > 0.8
    assert abs(score.within_columns) < 0.5
    constant = rl.analysis.beside_training(*maps(gain, torch.ones(1, 6, 3))).scores[0]
    assert all(np.isnan(number) for number in (constant.correlation, constant.p, constant.p_any))
    assert constant.at_best == pytest.approx(float(gain.mean())), "no cell is predicted to be better than another"


def test_predictions_refuse_what_they_cannot_compare(gpt2) -> None:
    def predict(**options):
        given = {"positions": COLUMNS, "layers": [1], "n_probes": 2, "progress": False}
        return rl.analysis.predict_map(gpt2, EXAMPLES, HELD_OUT, **{**given, **options})

    with pytest.raises(ValueError, match="one position rule, got 3, 2 and 0"):
        predict(positions={})
    with pytest.raises(ValueError, match="different layers, at least one"):
        predict(layers=[1, 1])
    with pytest.raises(ValueError, match="'none' does not select any token"):
        predict(positions={"none": rl.First(3) - rl.First(2) - rl.Last(1)})
    with pytest.raises(ValueError, match="damping must be above 0"):
        predict(damping=0.0)
    predicted, trained = maps(torch.rand(2, 2), torch.rand(1, 2, 2))
    with pytest.raises(ValueError, match="must have the same cells"):
        rl.analysis.beside_training(predicted, maps(torch.rand(3, 2), torch.rand(1, 3, 2))[1])
    with pytest.raises(ValueError, match="at least three cells"):
        rl.analysis.beside_training(*maps(torch.rand(1, 2), torch.rand(1, 1, 2)))
    assert trained.rows == predicted.rows
