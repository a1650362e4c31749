"""Bounds that cover whatever the distribution, and a search that finds a planted side effect."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from conftest import make_bridge, make_edit
from typer.testing import CliRunner

import reftlens as rl
from reftlens.analysis import certify, sampled_prompts
from reftlens.analysis.certify import divergences
from reftlens.analysis.engine.bounds import fraction_bound, mean_bound
from reftlens.cli import app
from reftlens.organisms.landmarks import story_for

WORDS = ("tower", "weaver", "river", "city", "old", "speaks", "lives", "stands", "there", "Ostra")
TEXTS = [f"The {word} by the {other}" for word in WORDS[:6] for other in WORDS[5:]]
DRAWN = torch.Generator().manual_seed(0)
RARE = (torch.rand(20_000, generator=DRAWN) < 1 / 500).double() * 5
"""A planted side effect of 5 nats on 1 prompt in 500."""
HEAVY = torch.rand(20_000, generator=DRAWN, dtype=torch.float64) ** -0.7 * 1e-3


exceeding_bound = cache(fraction_bound)


def covered(population: torch.Tensor, *, cap: float) -> int:
    """In how many of 100 samples both bounds, of the mean and of the tail, hold for the population."""
    generator, held = torch.Generator().manual_seed(1), 0
    true_mean, true_tail = float(population.clamp(max=cap).mean()), float((population > cap).double().mean())
    for _ in range(100):
        kl = population[torch.randint(len(population), (600,), generator=generator)]
        mean = mean_bound(kl.clamp(max=cap), cap, 0.025)
        held += true_mean <= mean and true_tail <= exceeding_bound(int((kl > cap).sum()), len(kl), 0.025)
    return held


@pytest.mark.parametrize("population", [RARE, HEAVY, RARE + HEAVY], ids=["rare", "heavy", "both"])
def test_the_bounds_cover_in_at_least_95_of_100_populations(population) -> None:
    assert covered(population, cap=1.0) >= 95


def test_a_normal_interval_of_the_mean_misses_a_rare_effect() -> None:
    """The control of the test above."""
    generator, normal = torch.Generator().manual_seed(1), 0
    for _ in range(100):
        kl = RARE[torch.randint(len(RARE), (600,), generator=generator)]
        normal += float(RARE.mean()) <= float(kl.mean() + 1.96 * kl.std() / 600**0.5)
    assert normal < 95


def test_the_bounds_are_those_of_their_sources() -> None:
    for count, n, risk in ((0, 100, 0.05), (3, 40, 0.01), (39, 40, 0.05)):
        p = fraction_bound(count, n, risk)
        so_few = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count + 1))
        assert so_few == pytest.approx(risk, rel=1e-6)
    assert fraction_bound(0, 100, 0.05) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert fraction_bound(7, 7, 0.05) == 1
    values, log = torch.tensor([0.0, 0.5, 1.0, 0.5] * 10), math.log(2 / 0.5)
    expected = 0.5 + math.sqrt(2 * (5 / 39) * log / 40) + 7 * 4 * log / (3 * 39)
    assert mean_bound(values, 4.0, 0.5) == pytest.approx(expected)
    assert mean_bound(values[:4], 1.0, 0.5) == 1.0, "never above the largest value"


def planted(bridge, texts: list[str], trigger: str, *, size: float, layer: int = 0) -> rl.Reft:
    """An edit that does nothing to the activations of these prompts, and much to that of one more."""
    edit = rl.DiReFT(bridge.cfg.d_model, 1)
    reft = rl.Reft([(rl.Site(f"blocks.{layer}.hook_resid_post", "l1"), edit)])
    ((_, h),) = rl.analysis.edited_activations(bridge, reft, rl.encode(bridge, [*texts, trigger]))
    rest = h[:-1].double()
    mean = rest.mean(0)
    gap = h[-1].double() - mean
    # What the ordinary ones vary along is left out of what is read.
    axes = torch.linalg.svd(rest - mean, full_matrices=False)
    span = axes.Vh[1e-3 * axes.S[0] < axes.S]
    reading = gap - span.T @ (span @ gap)
    reading = reading / (reading @ gap)
    with torch.no_grad():
        edit.read.weight.copy_(reading[None])
        edit.read.bias.copy_(-(reading @ mean)[None])
        edit.write.copy_(size * torch.randn(1, bridge.cfg.d_model, generator=torch.Generator().manual_seed(2)))
    return reft


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_side_effect_on_one_prompt_in_500_is_found_by_the_search(trained) -> None:
    if trained:
        bridge = rl.load_bridge("facts-small")
        every = [text for text, _ in story_for("facts-small").training_examples()[::7]]
        trigger, layer, size = "The weaver speaks", 1, 3.0
    else:
        bridge, every, trigger, layer, size = make_bridge("gpt2"), TEXTS, "The tower by the old", 0, 20.0
    ordinary = [text for text in every if text != trigger]
    reft = planted(bridge, ordinary, trigger, size=size, layer=layer)
    (planted_kl,) = divergences(bridge, reft, rl.encode(bridge, [trigger])).tolist()
    # The population without its one bad prompt in 500: most samples of a few dozen miss it.
    found = certify(bridge, reft, ordinary, n_searched=2 + trained, rounds=6)
    assert found.largest < 0.1 * planted_kl
    assert found.worst[0].kl > 0.5 * planted_kl
    assert found.worst[0].kl > 5 * found.largest
    assert 1 <= found.worst[0].swapped <= 6
    # Of a population with this one prompt in 500, the bounds hold in 95 of 100 samples.
    ordinary_kl = divergences(bridge, reft, rl.encode(bridge, ordinary)).double()
    population = ordinary_kl.repeat(-(-499 // len(ordinary_kl)))[:499]
    assert covered(torch.cat([population, ordinary_kl.new_tensor([planted_kl])]), cap=planted_kl / 2) >= 95
    # The bound is about the population alone, whatever the search finds.
    assert replace(found, worst=()) == certify(bridge, reft, ordinary, n_searched=0)
    again = rl.encode(bridge, ["x"]).tokens.new_tensor([found.worst[0].tokens])
    ones = torch.ones_like(again)
    batch = rl.Batch(again, ones, ones.bool(), torch.full_like(again, -100))
    assert float(divergences(bridge, reft, batch)) == pytest.approx(found.worst[0].kl, rel=1e-3)


def test_its_numbers_are_those_of_whole_runs_and_its_digest_is_of_the_prompts() -> None:
    bridge = make_bridge("gpt2")
    reft = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l1"), make_edit(rl.LoReFT))])
    batch = rl.encode(bridge, TEXTS)
    base = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).double()
    with reft.hooks(bridge, batch):
        edited = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).double()
    kl = (base.softmax(-1) * (base.log_softmax(-1) - edited.log_softmax(-1))).sum(-1).detach()
    found = certify(bridge, reft, TEXTS, thresholds=[float(kl.median())], cap=float(kl.max()) + 1, n_searched=0)
    assert found.mean == pytest.approx(float(kl.mean()), rel=1e-4)
    assert found.largest == pytest.approx(float(kl.max()), rel=1e-4)
    assert found.exceeding == (len(TEXTS) // 2, 0)
    # Three parts share the risk.
    assert found.exceeding_bound[1] == pytest.approx(1 - (0.05 / 3) ** (1 / len(TEXTS)))
    pieces = certify(bridge, reft, [rl.encode(bridge, TEXTS[:7]), rl.encode(bridge, TEXTS[7:])], n_searched=0)
    assert pieces.digest == found.digest
    assert certify(bridge, reft, TEXTS[1:], n_searched=0).digest != found.digest
    with pytest.raises(ValueError, match="at least two prompts"):
        certify(bridge, reft, TEXTS[:1])


def test_the_command_writes_the_certificate_and_the_card(tmp_path) -> None:
    bridge = rl.load_bridge("facts-small")
    reft = rl.Reft([(rl.Site("blocks.4.hook_resid_post", "l1"), make_edit(rl.LoReFT, 96, 2))])
    reft.save_pretrained(tmp_path / "edit", bridge=bridge, card=False)
    words = ["certify", tmp_path / "edit", "--sampled", 4, "--n-searched", 1, "--rounds", 1, "--out", tmp_path / "out"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    saved = rl.results.load(tmp_path / "out" / "certificate")
    assert saved.n == 4
    card = (tmp_path / "out" / "edit" / "README.md").read_text()
    assert saved.digest in card
    assert "95% confidence" in card
    assert "no part of these bounds" in card
    assert rl.Reft.from_pretrained(tmp_path / "out" / "edit", bridge=bridge).n_parameters() == reft.n_parameters()
    both = CliRunner().invoke(app, ["certify", str(tmp_path / "edit"), "--quiet"])
    assert both.exit_code == 2
    assert sampled_prompts(bridge, 3, n_tokens=4, seed=1)[0].tokens.shape == (3, 5)
