"""Ablation of an edit's sites against whole runs, the definition of Shapley values, and planted sites."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from itertools import combinations, permutations

import pytest
import torch
from conftest import PROMPTS, make_bridge, make_edit

import reftlens as rl
from reftlens.analysis.controls.turned import turned_draws
from reftlens.analysis.engine.coalitions import Coalitions, site_columns, whole_sites
from reftlens.dissection.parts import PARTS, where
from reftlens.dissection.parts.part import Sizes

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.attn.hook_z", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"]


def four_sites(positions=("f2", "l2", "f1+l1", "l1")):
    edits = [make_edit(rl.LoReFT, 8 if name.endswith("z") else 32, 2, seed=k) for k, name in enumerate(HOOKS)]
    heads = [1 if name.endswith("z") else None for name in HOOKS]
    return rl.Reft(
        [
            (rl.Site(name, p, head), edit)
            for name, p, head, edit in zip(HOOKS, map(rl.parse, positions), heads, edits, strict=True)
        ]
    )


def metric_on(bridge):
    return rl.analysis.logit_difference_of(
        bridge, PROMPTS, [" Ostra", " Tharic", " river"], [" weaver", " city", " tower"]
    )


def whole_runs(bridge, reft, batch, metric, parts, sets):
    """v(S) by a whole run under hooks for each set."""
    from dataclasses import replace

    from reftlens.edit.hooks import attach

    def run(members):
        edits = []
        for site, edit in enumerate(reft.edits(batch)):
            masks = [part.mask for k, part in enumerate(parts) if part.site == site and members[k]]
            if masks and bool(torch.stack(masks).any()):
                edits.append(replace(edit, mask=torch.stack(masks).any(0)))
        with attach(bridge, edits):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return metric(batch.at_last_prompt_token(logits), torch.arange(len(batch))).detach()

    base = run([False] * len(parts))
    return torch.stack([run(members) - base for members in sets.tolist()]).double()


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("split", "side"), [(whole_sites, "right"), (site_columns, "left")])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_every_set_equals_a_whole_run(architecture, split, side, monkeypatch) -> None:
    bridge = make_bridge(architecture)
    batch, metric, reft = rl.encode(bridge, PROMPTS, padding_side=side), metric_on(bridge), four_sites()
    monkeypatch.setattr("reftlens.analysis.engine.coalitions.TOKENS", 50)
    parts = split(reft.edits(batch))
    sets = torch.rand(12, len(parts), generator=torch.Generator().manual_seed(0)) < 0.5
    sets[0] = False
    effects = Coalitions(bridge, batch, metric).effects(reft.edits(batch), parts, sets)
    expected = whole_runs(bridge, reft, batch, metric, parts, sets)
    torch.testing.assert_close(effects, expected, rtol=0, atol=2e-5)
    assert float(expected.abs().max()) > 0.05


def test_values_are_their_definitions_and_sum_to_the_whole(gpt2) -> None:
    batch, metric, reft = rl.encode(gpt2, PROMPTS), metric_on(gpt2), four_sites()
    result = rl.analysis.ablate(gpt2, reft, batch, metric, progress=False)
    sets = [frozenset(s) for size in range(5) for s in combinations(range(4), size)]
    chosen = torch.tensor([[site in members for site in range(4)] for members in sets])
    runs = whole_runs(gpt2, reft, batch, metric, whole_sites(reft.edits(batch)), chosen).mean(1)
    value = dict(zip(sets, runs.tolist(), strict=True))
    everything = frozenset(range(4))
    shapley = torch.zeros(4)
    for order in permutations(range(4)):
        for place, site in enumerate(order):
            before = frozenset(order[:place])
            shapley[site] += (value[before | {site}] - value[before]) / 24
    assert result.exact
    torch.testing.assert_close(result.shapley, shapley, rtol=0, atol=1e-5)
    assert float(result.shapley.double().sum()) == pytest.approx(result.whole, abs=1e-6)
    assert result.whole == pytest.approx(value[everything], abs=1e-5)
    for i in range(4):
        assert float(result.alone[i]) == pytest.approx(value[frozenset([i])], abs=1e-5)
        assert float(result.left_out[i]) == pytest.approx(value[everything] - value[everything - {i}], abs=1e-5)
    expected = value[everything] - value[everything - {0}] - value[everything - {2}] + value[everything - {0, 2}]
    assert float(result.interaction[0, 2]) == pytest.approx(expected, abs=2e-5)
    assert len(result.to_dataframe()) == 4
    assert result.control_shapley is None, "with four sites it needs runs that the control does not make"


def test_the_control_of_two_sites_is_that_of_turned_edits(gpt2) -> None:
    batch, metric = rl.encode(gpt2, PROMPTS), metric_on(gpt2)
    reft = rl.Reft(list(four_sites())[:2])
    result = rl.analysis.ablate(gpt2, reft, batch, metric, n_control=1, seed=3, progress=False)
    (placebo,) = turned_draws(reft, 1, seed=3)
    turned = rl.analysis.ablate(gpt2, placebo, batch, metric, n_control=1, progress=False)
    assert abs(turned.whole) > 1e-3
    assert result.control_whole == pytest.approx(turned.whole, abs=1e-5)
    torch.testing.assert_close(result.control, turned.alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.control_shapley, turned.shapley, rtol=0, atol=1e-5)


def test_draws_of_neighbouring_seeds_have_nothing_in_common() -> None:
    reft = rl.Reft(list(four_sites())[:1])
    draws = [placebo for seed in (0, 1) for placebo in turned_draws(reft, 3, seed=seed)]
    frames = torch.stack([intervention.frame.flatten() for (_, intervention) in (next(iter(one)) for one in draws)])
    assert float(torch.pdist(frames).min()) > 0.1
    assert len(turned_draws(reft, 2, seed=2**63 - 1)) == 2, "torch takes every seed of a draw"


def test_the_cost_of_a_dissection_counts_the_runs_of_ablate() -> None:
    """All 2^n subsets up to the number of sites at which `ablate` begins to sample, then n for each of its orders."""
    numbers = {field.name: 1 for field in fields(Sizes) if field.name != "config"}
    one = Sizes(config=rl.DissectConfig(batch_size=1), **numbers)
    most = sys.modules["reftlens.analysis.ablate"].MOST_EXACT
    for n, sets in ((1, 2), (most, 2**most), (most + 1, where._N_ORDERS * (most + 1))):
        assert PARTS["sites"].cost(replace(one, sites=n)).variants == sets + 4 * (n + 1), (
            "4 controls of each site and of all"
        )


def test_sampled_orders_agree_with_all_orders_and_still_sum_to_the_whole(gpt2, monkeypatch) -> None:
    batch, metric, reft = rl.encode(gpt2, PROMPTS), metric_on(gpt2), four_sites()
    exact = rl.analysis.ablate(gpt2, reft, batch, metric, progress=False)
    monkeypatch.setattr(sys.modules["reftlens.analysis.ablate"], "MOST_EXACT", 3)
    sampled = rl.analysis.ablate(gpt2, reft, batch, metric, n_orders=60, progress=False)
    assert not sampled.exact
    assert float(sampled.shapley.double().sum()) == pytest.approx(sampled.whole, abs=1e-6)
    width = sampled.high - sampled.low
    assert bool((width >= 0).all())
    assert float(width.max()) > 0
    assert bool(((exact.shapley - sampled.shapley).abs() <= width + 1e-6).all())
    for name in ("alone", "left_out", "interaction"):
        torch.testing.assert_close(getattr(sampled, name), getattr(exact, name), rtol=0, atol=1e-5, equal_nan=True)


def test_a_site_that_stands_in_for_another_shows_in_their_interaction(gpt2) -> None:
    """Two sites replace the last state by the same one: either does all of it, neither is needed."""
    edit, other = (make_edit(rl.LoReFT, 32, 32) for _ in range(2))
    for one in (edit, other):
        with torch.no_grad():
            one.source.weight.zero_()
            one.source.bias.copy_(torch.linspace(-2, 2, 32))
    last = "blocks.2.hook_resid_post"
    reft = rl.Reft([(rl.Site(last, rl.Last(1)), edit), (rl.Site(last, rl.Last(1)), other)])
    result = rl.analysis.ablate(gpt2, reft, rl.encode(gpt2, PROMPTS), metric_on(gpt2), progress=False)
    assert abs(result.whole) > 0.05
    torch.testing.assert_close(result.left_out, torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.alone, torch.full((2,), result.whole), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.shapley, torch.full((2,), result.whole / 2), rtol=0, atol=1e-5)
    assert float(result.interaction[0, 1]) == pytest.approx(-result.whole, abs=1e-5)


def test_ablation_refuses_nothing_to_draw(gpt2) -> None:
    with pytest.raises(ValueError, match="n_orders must be at least 2"):
        rl.analysis.ablate(gpt2, four_sites(), rl.encode(gpt2, PROMPTS), metric_on(gpt2), n_orders=1)
