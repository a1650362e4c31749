"""Prompts may be given in any form, and give the same result in each."""

from __future__ import annotations

import pytest
import torch

import reftlens as rl
from reftlens import analysis
from reftlens.data import as_batches

TEXTS = ["The old tower stands", "The weaver speaks of the", "A city"]
PAIRS = [(text, " river") for text in TEXTS]
POST = "blocks.1.hook_resid_post"


def of(bridge):
    return analysis.probability_of(bridge, TEXTS, [" river"] * 3)


ONE_BATCH = {
    "ablate": lambda b, reft, given: analysis.ablate(b, reft, given, of(b), n_control=1, progress=False).alone,
    "mediate": lambda b, reft, given: analysis.mediate(b, reft, given, of(b), progress=False).values,
    "channels": lambda b, reft, given: analysis.channels(b, reft, given, of(b), progress=False).edit.closed,
    "direct_effect": lambda b, reft, given: analysis.direct_effect(b, reft, given, of(b)),
    "paths": lambda b, reft, given: analysis.paths(b, reft, given, of(b), progress=False).values,
    "patch": lambda b, reft, given: analysis.patch(b, given, TEXTS, of(b), progress=False).values,
    "attribute": lambda b, reft, given: analysis.attribute(b, given, TEXTS, of(b), n_checked=1, progress=False).values,
    "read_space": lambda b, reft, given: analysis.read_space(b, POST, given).sensitivity,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("question", ONE_BATCH)
def test_texts_are_the_batch_they_make(gpt2, make_reft, question) -> None:
    ask, reft = ONE_BATCH[question], make_reft()
    expected = ask(gpt2, reft, rl.encode(gpt2, TEXTS))
    for given in (TEXTS, tuple(TEXTS), iter(TEXTS), [rl.encode(gpt2, TEXTS)]):
        torch.testing.assert_close(ask(gpt2, reft, given), expected, rtol=0, atol=0, equal_nan=True)
    two = [rl.encode(gpt2, TEXTS[:1]), rl.encode(gpt2, TEXTS[1:])]
    with pytest.raises(ValueError, match="must be a single batch, got 2: pass the texts"):
        ask(gpt2, reft, two)


def test_texts_are_cut_into_batches_in_their_order(gpt2, make_reft) -> None:
    texts = [f"{text} {word}" for text in TEXTS for word in ("old", "of", "the", "city")]
    sizes = [len(batch) for batch in as_batches(gpt2, texts, batch_size=5)]
    assert sizes == [5, 5, 2]
    assert [text for batch in as_batches(gpt2, texts, batch_size=5) for text in batch.texts] == texts
    assert len(as_batches(gpt2, texts, at_least=3)) >= 3
    whole = analysis.decompose(gpt2, make_reft(), texts)[0]
    cut = analysis.decompose(gpt2, make_reft(), as_batches(gpt2, texts, batch_size=5))[0]
    torch.testing.assert_close(whole.spectrum, cut.spectrum, rtol=1e-5, atol=1e-6)
    assert [r.site for r in analysis.off_manifold(gpt2, make_reft(), texts)] == ["L1 resid_post @ f2 + l2"]


def test_pairs_are_encoded_as_such(gpt2, make_reft) -> None:
    (batch,) = as_batches(gpt2, PAIRS)
    assert torch.equal(batch.labels, rl.encode(gpt2, TEXTS, [" river"] * 3).labels)
    with pytest.raises(ValueError, match="got both in one list"):
        as_batches(gpt2, [*PAIRS, "The tower"])
    with pytest.raises(ValueError, match="all texts or all batches, got both"):
        as_batches(gpt2, [batch, "The tower"])
    with pytest.raises(TypeError, match="single string"):
        analysis.decompose(gpt2, make_reft(), "The tower")
    with pytest.raises(ValueError, match="encode clean without completions"):
        analysis.patch(gpt2, PAIRS, PAIRS, of(gpt2), progress=False)
