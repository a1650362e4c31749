"""What edits say, on the light cone, is what whole runs say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_bridge, make_edit
from transformer_lens.tools.analysis.logit_lens import logit_readout

import reftlens as rl
from reftlens.analysis.engine.activations import edited_activations
from reftlens.bridge import mean_logit_changes, unembeds_linearly
from reftlens.cone.answers import Answers, next_token_logprobs
from reftlens.cone.shared import shared
from reftlens.edit.hooks import attach

ROOT = Path(rl.__file__).parent
TEXTS = ["The old tower stands", "The weaver speaks of the", "A city"]


def whole(bridge, batch, edits):
    with attach(bridge, edits):
        logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return batch.at_last_prompt_token(logits)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("kind", [rl.LoReFT, rl.ReFTr1])
def test_answers_equal_whole_runs(form, side, kind) -> None:
    bridge = make_bridge(form)
    batch = rl.encode(bridge, TEXTS, padding_side=side)
    places = [("blocks.1.hook_resid_post", "l2"), ("blocks.2.hook_mlp_out", "l1")]
    reft, other = (
        rl.Reft([(rl.Site(name, at), make_edit(kind, seed=seed + n)) for n, (name, at) in enumerate(places)])
        for seed in (1, 11)
    )
    runs = Answers(bridge, batch, reft.edits(batch))
    assert (runs.held.start, runs.held.boundary) != (0, -1), "a cone that leaves nothing out proves nothing"
    for edits in ((), reft.edits(batch), other.edits(batch), reft.edits(batch)[1:]):
        torch.testing.assert_close(runs.logits(edits), whole(bridge, batch, edits), rtol=0, atol=1e-5)
        said = next_token_logprobs(bridge, batch, edits)
        torch.testing.assert_close(said, whole(bridge, batch, edits).detach().log_softmax(-1), rtol=0, atol=1e-5)
    moved = runs.logits(reft.edits(batch)) - runs.logits()
    assert float(moved.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("form", "dtype"), [("gpt2", torch.float64), ("llama", torch.float32), ("gemma2", torch.float32)]
)
def test_variants_side_by_side_equal_whole_runs(form, dtype, side) -> None:
    bridge = make_bridge(form, dtype=dtype)
    batch = rl.encode(bridge, TEXTS, padding_side=side)
    places = [("blocks.1.hook_resid_post", "l2", rl.ReFTr1), ("blocks.2.hook_mlp_out", "l1", rl.LoReFT)]
    reft = rl.Reft([(rl.Site(name, at), make_edit(kind, seed=2)) for name, at, kind in places])
    some = [replace(edit, lands=batch.last_prompt_mask) for edit in reft.edits(batch)]
    variants = [reft.edits(batch), (), reft.scaled(0.5).edits(batch), some, reft.edits(batch)[1:]]
    runs = Answers(bridge, batch, reft.edits(batch))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    expected = [whole(bridge, batch, edits) for edits in variants]
    for memory_bytes in (0, 2**30):  # one by one, and all at once
        found = list(runs.many(variants, memory_bytes=memory_bytes))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("form", "dtype"), [("gpt2", torch.float64), ("llama", torch.float32), ("gemma2", torch.float32)]
)
def test_gradients_of_several_points_are_those_of_one_sum_after_another(form, dtype) -> None:
    bridge = make_bridge(form, dtype=dtype)
    names = ["blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"]
    batch = rl.encode(bridge, TEXTS, padding_side="left")
    spaces = rl.analysis.read_spaces(bridge, names, batch, seed=3)
    # The first and the last of the sums, one row a prompt, on whole runs with a graph of their own.
    rounds = -(-2 * bridge.cfg.d_model // len(batch))
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(len(batch), bridge.cfg.d_vocab, generator=generator) for _ in range(rounds)]
    for name, space in zip(names, spaces, strict=True):
        kept = {}

        def leaf(activation, hook, kept=kept):
            kept["h"] = activation.detach().requires_grad_()
            return kept["h"]

        gradients = []
        with bridge.hooks(fwd_hooks=[(name, leaf)]):
            logits = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask))
        for weight in weights:
            centred = (weight - weight.mean(-1, keepdim=True)).to(logits)
            (gradient,) = torch.autograd.grad(logits, kept["h"], centred, retain_graph=True)
            gradients.append(gradient[batch.last_prompt_mask].double())
        expected = torch.linalg.svdvals(torch.cat(gradients)).float()
        torch.testing.assert_close(space.sensitivity, expected, rtol=1e-5, atol=1e-6 * float(expected[0]))
        assert space.n_gradients == rounds * len(batch)


def test_gradients_equal_those_of_whole_runs(gpt2, make_reft) -> None:
    batch, reft = rl.encode(gpt2, TEXTS), make_reft(positions="l1")
    runs = Answers(gpt2, batch, reft.edits(batch))
    (_, intervention) = next(iter(reft))
    found = []
    for logits in (runs.logits(reft.edits(batch)), whole(gpt2, batch, reft.edits(batch))):
        found.append(torch.autograd.grad(logits.square().sum(), list(intervention.parameters())))
    for cone, plain in zip(*found, strict=True):
        torch.testing.assert_close(cone, plain, rtol=1e-4, atol=1e-5)


def test_wanted_tokens_and_edits_that_act_nowhere(gpt2, make_reft) -> None:
    batch = rl.encode(gpt2, TEXTS, [" of Ostra"] * 3)
    at = batch.labels[:, 1:] != -100
    at = torch.nn.functional.pad(at, (0, 1))
    edits = make_reft(positions="l1").edits(batch)
    with attach(gpt2, edits):
        expected = gpt2(batch.tokens, attention_mask=batch.attention_mask)[at]
    runs = Answers(gpt2, batch, edits, at=at)
    torch.testing.assert_close(runs.logits(edits), expected, rtol=0, atol=1e-5)
    nowhere = [replace(edit, lands=torch.zeros_like(edit.mask)) for edit in edits]
    torch.testing.assert_close(Answers(gpt2, batch, nowhere, at=at).logits(nowhere), runs.logits(), rtol=0, atol=1e-5)
    early = make_reft(hook_names=("blocks.0.hook_resid_post",), positions="f1").edits(batch)
    with pytest.raises(ValueError, match="reaches outside the held cone"):
        runs.logits(early)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("gpt2", torch.float64),
        ("gpt2", torch.float32),
        ("llama", torch.float32),
        ("gpt_neox", torch.float32),
        ("gemma2", torch.float32),
    ],
)
def test_shared_base_runs_give_the_cones_of_runs_of_their_own(form, dtype) -> None:
    bridge = make_bridge(form, dtype=dtype)
    reft = rl.Reft([(rl.Site("blocks.1.hook_resid_post", "l2"), make_edit(rl.ReFTr1, seed=1))])
    early = rl.Reft([(rl.Site("blocks.0.hook_resid_post", "f1"), make_edit(rl.LoReFT, seed=2))])
    fewer = [TEXTS[2], "Another town", TEXTS[0]]
    batches = [
        (rl.encode(bridge, texts, padding_side=side), edit)
        for texts, side, edit in ((TEXTS, "left", reft), (fewer, "right", reft), (TEXTS, "right", early))
    ]

    def found() -> list[torch.Tensor]:
        answers = [Answers(bridge, batch, edit.edits(batch)).logits(edit.edits(batch)) for batch, edit in batches]
        seen = [h for batch, edit in batches for _, h in edited_activations(bridge, edit, batch)]
        return [tensor.detach() for tensor in (*answers, *seen)]

    own = found()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    with shared(bridge) as runs:
        for kept, alone in zip(found(), own, strict=True):
            torch.testing.assert_close(kept, alone, rtol=tolerance, atol=tolerance)
        n_run = runs.n_run
        assert 4 <= n_run <= 3 * 4, (
            "a prompt runs again only where a cone begins earlier: padded on the right, and the early edit"
        )
        found()
        assert runs.n_run == n_run
        assert runs.n_bytes() > 0
    with shared(bridge, memory_bytes=0) as runs:
        for kept, alone in zip(found(), own, strict=True):
            torch.testing.assert_close(kept, alone, rtol=tolerance, atol=tolerance)
        assert runs.n_bytes() == 0


@pytest.mark.parametrize(
    ("form", "dtype", "linear"),
    [("gpt2", torch.float64, True), ("llama", torch.float32, True), ("gemma2", torch.float32, False)],
)
def test_logit_changes_are_those_of_one_residual_after_another(form, dtype, linear) -> None:
    bridge = make_bridge(form, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    final, pushes = (torch.randn(n, 32, generator=generator, dtype=dtype) for n in (3, 70))
    found = mean_logit_changes(bridge, final, pushes)
    changes = [logit_readout(bridge, h + pushes).values - logit_readout(bridge, h[None]).values for h in final]
    torch.testing.assert_close(found, torch.stack(changes).mean(0).float(), rtol=1e-5, atol=1e-5)
    assert unembeds_linearly(bridge) == linear


def test_no_analysis_runs_whole_passes_of_its_own() -> None:
    calls = re.compile(r"(?<![\w.])(?:self\.)?bridge\(")
    callers = {path.name for path in (ROOT / "analysis").rglob("*.py") if calls.search(path.read_text())}
    # `sampled_prompts` lets the base write texts: there is no run yet that a cone could share.
    assert callers == {"certify.py"}
