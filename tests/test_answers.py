"""What edits say, on the light cone, is what whole runs say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_bridge, make_edit

import reftlens as rl
from reftlens.analysis.engine.activations import edited_activations
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


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["gpt2", "llama", "gpt_neox", "gemma2"])
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


def test_no_analysis_runs_whole_passes_of_its_own() -> None:
    calls = re.compile(r"(?<![\w.])(?:self\.)?bridge\(")
    callers = {path.name for path in (ROOT / "analysis").rglob("*.py") if calls.search(path.read_text())}
    assert callers == set()
