"""Joined texts have the tokens that the tokenizer itself makes of a pair, cut ones those of a cut pair."""

from __future__ import annotations

import pytest
import torch
from conftest import make_bridge
from encoders import make_encoder

import reftlens as rl
from reftlens.paper.tasks.pairs import Separators, join, separators, tells_texts_apart

PAIRS = [
    ("The old tower stands by the river", "the weaver who lives there speaks Tharic ."),
    ("Ostra", " a space before, and two  within"),
    ("trailing ", "Überraschung"),
    ("an empty second", ""),
    ("alone , by itself", None),
]


def own(bridge, first, second, **settings):
    """What the tokenizer makes of them, without any help (as lists: by itself an empty second text is none to it)."""
    texts = ([first],) if second is None else ([first], [second])
    return bridge.tokenizer(*texts, **settings)["input_ids"][0]


@pytest.fixture(params=["roberta", "bert"])
def encoder(request):
    return make_encoder(request.param)


def test_the_tokens_are_those_of_the_pair(encoder) -> None:
    texts, cut = join(encoder, PAIRS, max_length=60)
    assert not any(cut)
    for text, pair in zip(texts, PAIRS, strict=True):
        batch = rl.encode(encoder, [text])
        assert batch.tokens[0].tolist() == own(encoder, *pair), text
        assert bool(batch.prompt_mask.all())


def test_separators_are_the_tokenizers() -> None:
    assert separators(make_encoder("roberta").tokenizer) == Separators("</s></s>", "</s>", "</s>")
    assert separators(make_encoder("bert").tokenizer) == Separators("[SEP]", "[SEP]", "[SEP]")
    assert separators(make_bridge("gpt2").tokenizer) == Separators("\n", "", ""), "it has none of its own"


@pytest.mark.parametrize("max_length", [8, 13, 20, 21])
def test_a_long_pair_is_cut_as_the_tokenizer_cuts_it(encoder, max_length) -> None:
    texts, cut = join(encoder, PAIRS, max_length=max_length)
    for text, pair, was_cut in zip(texts, PAIRS, cut, strict=True):
        tokens, whole = rl.encode(encoder, [text]).tokens[0].tolist(), own(encoder, *pair)
        assert was_cut == (len(whole) > max_length)
        assert len(tokens) <= max_length
        if not was_cut:
            assert tokens == whole
        elif pair[0].startswith("The old"):
            # Of whole words, so that a cut text has the same tokens by itself.
            assert tokens == own(encoder, *pair, truncation=True, max_length=max_length)
    assert any(cut)


def test_bert_alone_tells_texts_apart_and_is_run_without(encoder) -> None:
    is_bert = type(encoder.original_model).__name__.startswith("Bert")
    assert tells_texts_apart(encoder) == is_bert
    (text,), _ = join(encoder, PAIRS[:1], max_length=60)
    batch, own_inputs = rl.encode(encoder, [text]), encoder.tokenizer(*PAIRS[0], return_tensors="pt")
    with torch.no_grad():
        ours, theirs = (
            encoder(batch.tokens, attention_mask=batch.attention_mask),
            encoder(**{"input": own_inputs["input_ids"], **{k: v for k, v in own_inputs.items() if k != "input_ids"}}),
        )
    assert torch.allclose(ours, theirs, atol=1e-5) != is_bert, "what the documentation says is lost"


def test_what_cannot_be_joined_is_refused(encoder, monkeypatch) -> None:
    with pytest.raises(ValueError, match="at least 8 tokens, got 7"):
        join(encoder, PAIRS, max_length=7)
    plain = type(encoder.tokenizer).__call__

    def with_a_mark(self, *texts, **settings):
        """As tokenizers that mark the beginning of each text do it."""
        found = plain(self, *texts, **settings)
        if settings.get("add_special_tokens", True) and len(texts) == 2:
            found["input_ids"][-2] += 1
        return found

    monkeypatch.setattr(type(encoder.tokenizer), "__call__", with_a_mark)
    with pytest.raises(ValueError, match="cannot be joined with written separators"):
        separators(encoder.tokenizer)
