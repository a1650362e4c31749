"""Alignment search against a planted subspace, whole runs and its controls."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import make_edit

import reftlens as rl
from reftlens.analysis.engine.swap_runs import SwapRuns, random_subspaces, whole_activation, widths
from reftlens.benchmark.planted_variable import (
    CONFIG,
    D_MODEL,
    HOOK,
    found_angle,
    planted_variable,
    planted_variable_rows,
)
from reftlens.numbers import wilson
from reftlens.results.alignments import ARBITRARY, BLANK

SHORT = replace(CONFIG, epochs=2)


@pytest.fixture(scope="module")
def planted():
    return planted_variable(n=48, n_held_out=40)


def swap_of(rows) -> rl.Reft:
    return rl.Reft([(rl.Site(HOOK, rl.First(1)), rl.Interchange.along(rows))])


def test_the_true_subspace_scores_everything_and_half_of_it_does_not(planted) -> None:
    found = rl.analysis.alignment(planted.bridge, swap_of(planted.true), planted.pairs.held_out, n_random=3)
    assert found.accuracy() == found.cause() == found.isolate() == float(found.whole.mean()) == 1
    assert found.widths == {"variable": 2}
    assert float(found.nothing.mean()) == pytest.approx(0.5, abs=0.05), "half of the pairs change"
    assert float(found.random.mean()) < 0.7
    assert (found.majority, found.chance) == (0.25, 0.25)
    share = found.shares["value"]
    assert share.inside.moved == pytest.approx(1, abs=1e-3)
    assert share.n == 20
    half = rl.analysis.alignment(planted.bridge, swap_of(planted.true[:1]), planted.pairs.held_out, n_random=1)
    assert half.accuracy() < 0.85
    assert "no control was trained" in half.headline()


def test_what_is_right_is_what_whole_runs_say(gpt2) -> None:
    """Each pair of prompts has every label once, and exactly the one that a whole run prefers is right."""
    reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.Last(1)), make_edit(rl.SplitInterchange, 32, 28))])
    ((site, edit),) = reft
    texts, labels, wanted, pairs = ("The tower stands in the city of", "The weaver speaks"), "abcdefgh", [], []
    ids = [rl.encode(gpt2, [texts[0]], [label]).tokens[0, -1] for label in labels]
    for base, source, variable in ((*texts, "first"), (*texts[::-1], "second"), (*texts, "first+second")):
        seen = {}
        batch = rl.encode(gpt2, [source])
        gpt2.run_with_hooks(batch.tokens, fwd_hooks=[(site.hook_name, lambda h, hook, s=seen: s.update(h=h[0, -1]))])
        R = {"first": edit.R[:14], "second": edit.R[14:], "first+second": edit.R}[variable]

        def write(h, hook, R=R, s=seen["h"]):
            return torch.cat([h[:, :-1], h[:, -1:] + (s - h[:, -1:]) @ R.T @ R], dim=1)

        with torch.no_grad():
            logits = gpt2.run_with_hooks(rl.encode(gpt2, [base]).tokens, fwd_hooks=[(site.hook_name, write)])[0, -1]
        best = int(logits[torch.stack(ids)].argmax())
        wanted += [float(place == best) for place in range(len(labels))]
        pairs += [rl.Counterfactual(base, source, label, variable) for label in labels]
    runs = SwapRuns(gpt2, reft, pairs, among="labels", batch_size=5)
    assert runs.right(reft).tolist() == wanted
    assert runs.right(None).tolist() != wanted, "the swap must matter"
    assert edit.source is None


@pytest.mark.slow
def test_a_short_training_has_its_controls(planted) -> None:
    torch.manual_seed(0)
    reft = rl.Reft([(rl.Site(HOOK, rl.First(1)), rl.Interchange(D_MODEL, 2))])
    found = rl.analysis.align(
        planted.bridge, reft, planted.pairs.train, planted.pairs.held_out, SHORT, among="labels", n_random=2
    )
    assert set(found.controls) == {ARBITRARY, BLANK}
    assert 0 <= found.p <= 1
    assert len(found.to_dataframe()) == 6
    assert found.at_chance(BLANK)


def test_random_subspaces_are_as_wide_as_what_is_swapped() -> None:
    edit = rl.BoundlessInterchange(16, {"left": 4, "right": 4})
    edit.boundary.data[:] = torch.tensor([0.5, 0.0])
    edit.anneal(1.0)
    reft = rl.Reft([(rl.Site(HOOK, rl.First(1)), edit)])
    assert widths(reft) == {"left": 2, "right": 0}
    assert widths(random_subspaces(reft, seed=0)) == {"left": 2, "right": 1}
    assert widths(whole_activation(reft)) == {"variable": 16}
    draws = [random_subspaces(reft, seed=seed)[0][1].subspace("left") for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


def test_an_untrained_mask_keeps_its_features() -> None:
    basis = torch.linalg.qr(torch.randn(8, 8)).Q.T.contiguous()
    edit = rl.MaskedInterchange.over(basis[:3].contiguous())
    edit.mask.data[:] = 1.0
    edit.anneal(1.0)
    ((_, fresh),) = rl.analysis.untrained(rl.Reft([(rl.Site(HOOK, rl.First(1)), edit)]), seed=0)
    assert torch.equal(fresh.write, basis[:3])
    assert float(fresh.temperature) == edit.hottest
    assert torch.equal(fresh.mask, torch.zeros(3))


def test_a_loreft_starts_in_a_given_subspace_and_changes_nothing(planted) -> None:
    edit = rl.LoReFT.along(planted.true)
    h = torch.randn(5, D_MODEL)
    torch.testing.assert_close(edit(h), h)
    torch.testing.assert_close(edit.R, planted.true)
    with pytest.raises(ValueError, match="must be orthonormal"):
        rl.LoReFT.along(torch.ones(2, 4))


def test_overlap_takes_retrained_subspaces_as_a_null() -> None:
    rows = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q.T
    null = [rows[2 * place : 2 * place + 2] for place in range(1, 5)]
    found = rl.analysis.overlap(rows[:2], rows[:2], nulls={"arbitrary labels": null})
    assert found.p("arbitrary labels") == pytest.approx(1 / 5)
    assert float(found.null_scores["arbitrary labels"].max()) < 1e-6


@pytest.mark.slow
def test_an_edit_of_the_variable_is_an_alignment_and_beats_arbitrary_labels(planted) -> None:
    """Two edits of one strength: one writes in span(v, w), the other where no answer reads."""
    free = torch.linalg.svd(planted.true).Vh[2:4]
    nulls = rl.analysis.null_alignments(planted.bridge, swap_of(free), planted.pairs.train, SHORT, n=3)
    null = [edit.subspace() for ((_, edit),) in nulls]
    assert all(float(rl.analysis.overlap(rows, free).score) < 0.9 for rows in null), "they must start elsewhere"
    found = {}
    for name, rows in (("variable", planted.true), ("decoy", free)):
        edit = rl.LoReFT.along(rows)
        with torch.no_grad():
            # The source is a tenth of the reading, plus a constant: both directions of the edit write.
            edit.source.weight.mul_(0.1)
            edit.source.bias.add_(1.0)
        reft = rl.Reft([(rl.Site(HOOK, rl.First(1)), edit)])
        (operator,) = rl.analysis.decompose(planted.bridge, reft, [pair.base for pair in planted.pairs.train])
        written = rl.analysis.directions(operator, 2)
        scored = rl.analysis.alignment(
            planted.bridge, swap_of(written.float()), planted.pairs.held_out, among="labels", n_random=3, shares=False
        )
        compared = rl.analysis.overlap(planted.true, written, nulls={ARBITRARY: null})
        found[name] = scored.accuracy(), float(compared.score), compared.p(ARBITRARY)
    assert found["variable"] == (1.0, pytest.approx(1.0, abs=1e-6), pytest.approx(1 / 4))
    accuracy, score, p = found["decoy"]
    assert accuracy == pytest.approx(0.5, abs=0.05), "swapping what nothing reads leaves the base's answer"
    assert score < 1e-6
    assert p == 1.0


def test_the_interval_of_a_share() -> None:
    """Against the roots of (p - x)^2 = z^2 x (1 - x) / n."""
    for hits, n in ((0, 10), (3, 10), (50, 100)):
        low, high = wilson(hits, n)
        for x in (low, high):
            assert (hits / n - x) ** 2 == pytest.approx(1.96**2 * x * (1 - x) / n, abs=1e-9)
        assert low <= hits / n <= high
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.slow
def test_a_map_finds_the_cell_of_the_variable(planted) -> None:
    columns = {"carrier": rl.First(1), "a filler": rl.At(1)}
    found = rl.analysis.alignment_map(
        planted.bridge, planted.pairs.train, planted.pairs.held_out,
        positions=columns, layers=[0], rank=D_MODEL, config=replace(CONFIG, epochs=1), among="labels",
    )  # fmt: skip
    assert found.accuracy()[0, 0] == found.whole[0, 0].mean() == 1
    assert float(found.accuracy()[0, 1]) < 0.7
    assert float(found.control().max()) < 0.6
    assert len(found.to_dataframe()) == 2


@pytest.mark.slow
def test_an_interrupted_map_resumes_from_its_cells(planted, tmp_path, monkeypatch) -> None:
    trained = []

    def counted(bridge, edit, pairs, *args, **options):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(pairs)
        return rl.train(bridge, edit, pairs, *args, **options)

    def small(**options):
        return rl.analysis.alignment_map(
            planted.bridge, planted.pairs.train[:8], planted.pairs.held_out[:8],
            positions={"carrier": rl.First(1), "a filler": rl.At(1)}, layers=[0], rank=2,
            config=replace(CONFIG, epochs=1, batch_size=8), **options,
        )  # fmt: skip

    file = tmp_path / "cells"
    monkeypatch.setattr(sys.modules["reftlens.analysis.alignment_map"], "train", counted)
    with pytest.raises(KeyboardInterrupt):
        small(save_to=file)
    trained.clear()
    resumed = small(save_to=file)
    assert len(trained) == 2, "the first cell, with both of its arms, was finished"
    monkeypatch.undo()
    whole = small()
    for name in ("right", "arbitrary", "whole"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.right.shape == (1, 2, 8)
    with pytest.raises(ValueError, match="holds the cells of another sweep"):
        small(save_to=file, seed=1)


@pytest.mark.slow
def test_a_planted_variable_is_found_and_its_controls_are_at_chance() -> None:
    rows = list(planted_variable_rows())
    assert [f"{row.planted}: {row.found}" for row in rows if not row.holds] == []
    planted = planted_variable(n=4, n_held_out=4)
    assert found_angle(make_edit(rl.Interchange, D_MODEL, 2), planted.true) > 40
