"""Known answers on the organism: tracing shows its two sites, and ablation finds what was planted there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import reftlens as rl
from organisms.accuracy import pad
from organisms.tracing import POSITIONS, tracing_map, tracing_pairs
from reftlens.cone.recording import record
from reftlens.organisms import ORGANISMS


@pytest.fixture(scope="module")
def organism():
    return rl.load_bridge("facts-small")


@pytest.fixture(scope="module")
def pairs(organism):
    return tracing_pairs(organism.tokenizer, count=48, seed=1)


def batch_of(bridge, prompts):
    tokens = pad(prompts, bridge.tokenizer.pad_token_id)
    there = tokens != bridge.tokenizer.pad_token_id
    return rl.Batch(tokens, there.long(), there, torch.full_like(tokens, -100))


def answers_of(pairs):
    right, wrong = torch.tensor([pair.answers for pair in pairs]).T
    rows = torch.arange

    def metric(logits, pair):
        line = rows(len(logits))
        return logits[line, right[pair]] - logits[line, wrong[pair]]

    return metric


def traced(bridge, pairs, **options):
    clean, corrupted = (batch_of(bridge, [getattr(p, kind) for p in pairs]) for kind in ("clean", "corrupted"))
    return rl.analysis.patch(bridge, clean, corrupted, answers_of(pairs), progress=False, **options)


PLACES = {
    "BOS": lambda pair: 0,
    "first subject": lambda pair: pair.subject[0],
    "last subject": lambda pair: pair.subject[1] - 1,
    "last": lambda pair: len(pair.clean) - 1,
}


def restored_at(result, pairs, place):
    """`[layer]`: the slope of moved on gap at one place of each prompt, as the organism's own map takes it."""
    columns = torch.tensor([PLACES[place](pair) for pair in pairs])
    moved = result.values[torch.arange(len(pairs)), :, columns] - result.base[:, None]
    gap = (result.source - result.base)[:, None]
    return (moved * gap).sum(0) / gap.square().sum()


def test_tracing_shows_the_early_and_the_late_site_as_the_organisms_own_map_does(organism, pairs) -> None:
    result = traced(organism, pairs)
    model = AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"]).eval()
    own = tracing_map(model, organism.tokenizer, pairs).restored
    maps = {place: restored_at(result, pairs, place) for place in PLACES}
    for place, found in maps.items():
        torch.testing.assert_close(found, own[:, POSITIONS.index(place)], rtol=0, atol=1e-4)
    half = slice(1, organism.cfg.n_layers // 2 + 1)
    assert float(maps["last subject"][half].max()) > 0.5
    assert float((maps["last subject"] - maps["last"])[half].max()) > 0.2
    assert float(maps["last"][-1]) > max(0.5, float(maps["last subject"][-1]))
    assert float(maps["BOS"].abs().max()) < 1e-4


@pytest.mark.slow
def test_an_untrained_organism_shows_no_early_site(pairs) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"]).config, attn_implementation="eager"
        )
    bridge = rl.load_bridge(hf_model=model.eval(), tokenizer=rl.load_bridge("facts-small").tokenizer)
    early = restored_at(traced(bridge, pairs), pairs, "last subject")[1 : bridge.cfg.n_layers // 2 + 1]
    assert float(early.max()) < 0.5


@pytest.mark.slow
def test_noise_tracing_restores_at_the_subject_and_its_control_does_not(organism, pairs) -> None:
    from reftlens.organisms.world import FACTS, held_out, prompt

    facts = [fact for fact in FACTS if prompt(fact, held_out(fact)[0]).find(fact.subject) >= 0][:12]
    prompts = [prompt(fact, held_out(fact)[0]) for fact in facts]
    result = rl.analysis.trace_noise(
        organism,
        prompts,
        rl.analysis.probability_of(organism, prompts, [" " + fact.answer for fact in facts]),
        subjects=[fact.subject for fact in facts],
        n_draws=3,
        progress=False,
    )
    assert float((result.source - result.base).mean()) > 0.3, "noise takes the answer away"
    subject = [rl.analysis.subject_places(organism, prompt(fact, held_out(fact)[0]), fact.subject) for fact in facts]
    last = torch.tensor([max(i for i, star in enumerate(places) if star) for places in subject])
    rows, gap = torch.arange(len(facts)), (result.source - result.base).mean()

    def restored(values):
        return ((values[rows, :, last] - result.base[:, None]).mean(0) / gap)[1 : organism.cfg.n_layers // 2 + 1]

    assert float(restored(result.values).max()) > 0.4
    assert float(restored(result.control).abs().max()) < 0.2


class Push(rl.Intervention):
    """Push: h + c."""

    kind = "push"

    def __init__(self, constant: torch.Tensor) -> None:
        super().__init__(len(constant), 1)
        self.constant = torch.nn.Parameter(constant)

    def delta(self, resid):
        return self.constant.expand_as(resid)

    def basis(self):
        return (self.constant / self.constant.norm())[None].detach()

    def affine(self):
        from reftlens.interventions import Affine

        zero = torch.zeros(1, len(self.constant))
        return Affine(zero, zero, self.constant)


def test_ablation_finds_both_planted_sites_and_no_decoy(organism, pairs) -> None:
    """On three pairs: the clean prompt is pushed towards the other answer at the two sites, and at random elsewhere."""
    early, late = 0, organism.cfg.n_layers - 1
    points = [f"blocks.{layer}.hook_resid_post" for layer in (early, late)]
    generator = torch.Generator().manual_seed(0)
    for pair in pairs[:3]:
        clean, corrupted = (batch_of(organism, [prompt]) for prompt in (pair.clean, pair.corrupted))
        states = [record(organism, batch, points).activations for batch in (clean, corrupted)]
        subject, last = pair.subject[1] - 1, len(pair.clean) - 1
        difference = [states[1][name][0] - states[0][name][0] for name in points]
        pushes = [difference[0][subject], 0.5 * difference[1][last]]
        decoys = [torch.randn(len(push), generator=generator) for push in pushes]
        decoys = [push.norm() * decoy / decoy.norm() for push, decoy in zip(pushes, decoys, strict=True)]
        sites = [
            (rl.Site(points[0], rl.At(subject)), Push(pushes[0])),
            (rl.Site(points[1], rl.At(last)), Push(pushes[1])),
            (rl.Site(points[0], rl.At(0)), Push(decoys[0])),
            (rl.Site(points[1], rl.At(last - 1)), Push(decoys[1])),
        ]
        metric = answers_of([replace(pair, answers=pair.answers[::-1])])
        result = rl.analysis.ablate(organism, rl.Reft(sites), clean, metric, progress=False)
        share = result.shapley / result.whole
        assert float(share[:2].min()) > 0.15
        assert float(share[2:].abs().max()) < 0.1
        assert float(share.sum()) == pytest.approx(1.0, abs=1e-5)
        assert float((result.control / result.whole)[:2].abs().max()) < float(share[:2].max())
