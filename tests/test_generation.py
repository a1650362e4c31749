"""Decoding: every setting against a loop written by hand, or Hugging Face's own on a model that needs no edit."""

from __future__ import annotations

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS
from transformers import GenerationConfig

import reftlens as rl
from reftlens.data import batches_by_length, token_counts

STEPS = 6
BEAMS = rl.Decoding(max_new_tokens=STEPS, num_beams=3)


@torch.no_grad()
def logprobs(bridge, reft, rows, n_prompt) -> torch.Tensor:
    """Of the next token of each row, on the whole text again, prompt tokens edited and the rest not."""
    tokens = torch.tensor(rows)
    mask = torch.arange(tokens.shape[1])[None].expand(len(rows), -1) < n_prompt
    hooks = [] if reft is None else reft.fwd_hooks(mask)
    return bridge.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1].log_softmax(-1)


def beams_by_hand(bridge, reft, prompt) -> str:
    """The likeliest text of `STEPS` tokens that three beams find; a text that ended would need more rules."""
    start = rl.encode(bridge, [prompt]).tokens[0].tolist()
    beams = [(0.0, start)]
    for _ in range(STEPS):
        scores = logprobs(bridge, reft, [row for _, row in beams], len(start))
        longer = [
            (total + float(score), [*row, token])
            for (total, row), line in zip(beams, scores, strict=True)
            for token, score in enumerate(line)
        ]
        longer.sort(key=lambda beam: -beam[0])
        assert all(row[-1] != bridge.tokenizer.eos_token_id for _, row in longer[:6])
        beams = longer[:3]
    return bridge.tokenizer.decode(beams[0][1][len(start) :], skip_special_tokens=True)


def test_beams_under_an_edit_are_those_found_by_hand(bridge, make_reft) -> None:
    reft = make_reft(("blocks.0.hook_resid_post", "blocks.2.hook_resid_post"))
    edited = rl.generate(bridge, reft, PROMPTS, decoding=BEAMS)
    assert edited == [beams_by_hand(bridge, reft, prompt) for prompt in PROMPTS]
    assert edited != rl.generate(bridge, None, PROMPTS, decoding=BEAMS), "an edit without effect shows nothing"
    assert edited != rl.generate(bridge, reft, PROMPTS, max_new_tokens=STEPS), "beams without effect show nothing"
    without_cache = rl.generate(bridge, reft, PROMPTS, decoding=BEAMS, use_cache=False)
    assert without_cache == edited


def beams_of_hugging_face(bridge, reft) -> tuple[list[str], int]:
    """What a model with the edit in its weights says, and how many of its texts end by themselves."""
    model = make_hf("gpt2")
    model.load_state_dict(rl.merge(bridge, reft), strict=False)
    said, ended = [], 0
    for prompt in PROMPTS:
        tokens = rl.encode(bridge, [prompt]).tokens
        out = model.generate(tokens, max_new_tokens=12, num_beams=4, early_stopping=True, do_sample=False)
        ended += int(out[0, -1]) == bridge.tokenizer.eos_token_id
        said.append(bridge.tokenizer.decode(out[0, tokens.shape[1] :], skip_special_tokens=True))
    return said, ended


def test_beams_are_hugging_faces_own_where_the_edit_is_in_the_weights(gpt2) -> None:
    """Ended texts among them, whose rules the search by hand does not have."""
    noise = torch.randn(32, generator=torch.Generator().manual_seed(3))
    decoding = rl.Decoding(max_new_tokens=12, num_beams=4)
    # First weights differ between releases: the push towards the end is halved in until some texts end and some do not.
    none_end, all_end = -16.0, 48.0
    for _ in range(24):
        strength = (none_end + all_end) / 2
        edit = rl.SteeringVector.of(noise + strength * gpt2.W_U[:, gpt2.tokenizer.eos_token_id].detach())
        reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.All() | rl.Generated()), edit)])
        theirs, ended = beams_of_hugging_face(gpt2, reft)
        if 0 < ended < len(PROMPTS):
            break
        none_end, all_end = (none_end, strength) if ended else (strength, all_end)
    assert 0 < ended < len(PROMPTS)
    assert theirs == rl.generate(gpt2, reft, PROMPTS, decoding=decoding)
    assert theirs != rl.generate(gpt2, None, PROMPTS, decoding=decoding)


@torch.no_grad()
def greedy_by_hand(bridge, reft, prompt, *, penalty=1.0, ngram=0) -> list[int]:
    """Tokens: logits of those seen divided by the penalty where positive, else multiplied; no n-gram twice."""
    row = rl.encode(bridge, [prompt]).tokens[0].tolist()
    n_prompt = len(row)
    while len(row) < n_prompt + 12 and row[-1] != bridge.tokenizer.eos_token_id:
        mask = torch.arange(len(row))[None] < n_prompt
        logits = bridge.run_with_hooks(torch.tensor([row]), fwd_hooks=reft.fwd_hooks(mask))[0, -1]
        scores = logits.clone()
        for token in set(row):
            scores[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        for place in range(len(row) - ngram + 1 if ngram else 0):
            if row[place : place + ngram - 1] == row[len(row) - ngram + 1 :]:
                scores[row[place + ngram - 1]] = -torch.inf
        row.append(int(scores.argmax()))
    return row[n_prompt:]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("penalty", "ngram"), [(1.0, 0), (1.5, 0), (1.0, 2), (1.3, 3)])
def test_penalties_are_the_rules_written_out(gpt2, make_reft, penalty, ngram) -> None:
    reft = make_reft()
    decoding = rl.Decoding(max_new_tokens=12, repetition_penalty=penalty, no_repeat_ngram_size=ngram or None)
    wanted = [greedy_by_hand(gpt2, reft, prompt, penalty=penalty, ngram=ngram) for prompt in PROMPTS[1:]]
    # One by one: padding would be among the tokens seen, and `test_edit.py` compares batches.
    for prompt, tokens in zip(PROMPTS[1:], wanted, strict=True):
        text = gpt2.tokenizer.decode(tokens, skip_special_tokens=True)
        assert rl.generate(gpt2, reft, [prompt], decoding=decoding) == [text]
    if (penalty, ngram) != (1.0, 0):
        assert wanted != [greedy_by_hand(gpt2, reft, prompt) for prompt in PROMPTS[1:]], (
            "a rule without effect shows nothing"
        )


def test_padding_counts_for_no_penalty(gpt2, make_reft) -> None:
    decoding = rl.Decoding(max_new_tokens=12, repetition_penalty=1.5, no_repeat_ngram_size=2)
    together = rl.generate(gpt2, make_reft(), PROMPTS, decoding=decoding)
    assert together == [rl.generate(gpt2, make_reft(), [prompt], decoding=decoding)[0] for prompt in PROMPTS]


def test_drawn_tokens_are_those_of_the_seed_and_the_callers_state_is_kept(gpt2) -> None:
    def drawn(**settings) -> list[str]:
        return rl.generate(gpt2, None, PROMPTS, decoding=rl.Decoding(max_new_tokens=8, temperature=1.0, **settings))

    state = torch.random.get_rng_state()
    assert drawn() == drawn() != drawn(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    greedy = rl.generate(gpt2, None, PROMPTS, max_new_tokens=8)
    assert drawn(top_k=1) == greedy == drawn(top_p=1e-6)
    assert drawn() != greedy


def test_drawn_tokens_follow_the_models_distribution(gpt2) -> None:
    """Of 1,500 draws, no token's part is further from its probability than five standard errors; top_k is not 50."""
    n = 1500
    decoding = rl.Decoding(max_new_tokens=1, temperature=2.0)
    texts = rl.generate(gpt2, None, PROMPTS[:1] * n, decoding=decoding, batch_size=n)
    tokens = rl.encode(gpt2, PROMPTS[:1]).tokens
    wanted = (gpt2(tokens)[0, -1] / 2.0).softmax(-1)
    for token, probability in enumerate(wanted.tolist()):
        text = gpt2.tokenizer.decode([token], skip_special_tokens=True)
        if token > 1 and text.isascii():
            there = texts.count(text) / n
            assert abs(there - probability) < 5 * (probability * (1 - probability) / n) ** 0.5 + 1 / n
    assert len(set(texts)) > 60


def test_the_models_own_config_is_not_used_and_comes_back(gpt2) -> None:
    model = gpt2.original_model
    wanted = rl.generate(gpt2, None, PROMPTS, max_new_tokens=12)
    own = GenerationConfig(
        repetition_penalty=1.8, do_sample=True, temperature=0.7, no_repeat_ngram_size=2, min_length=5
    )
    model.generation_config = own
    assert rl.generate(gpt2, None, PROMPTS, max_new_tokens=12) == wanted
    assert model.generation_config is own
    tokens = rl.encode(gpt2, PROMPTS[:1]).tokens
    with torch.random.fork_rng():
        out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, pad_token_id=1)
    assert gpt2.tokenizer.decode(out[0, tokens.shape[1] :]) != wanted[0], "the config has no effect: nothing is shown"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_eos_ends_a_text(gpt2, num_beams) -> None:
    """Generated tokens are pushed to predict EOS: the first one, which the prompt predicts, stays alone."""
    push = rl.SteeringVector(32)
    with torch.no_grad():
        push.vector.copy_(1e4 * gpt2.W_U[:, gpt2.tokenizer.eos_token_id])
    reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.Generated()), push)])
    decoding = rl.Decoding(max_new_tokens=8, num_beams=num_beams)
    first = rl.generate(gpt2, None, PROMPTS, max_new_tokens=1)
    assert all(first)
    assert rl.generate(gpt2, reft, PROMPTS, decoding=decoding) == first


@pytest.mark.sampled(2)
@pytest.mark.parametrize("decoding", [rl.Decoding(max_new_tokens=5), BEAMS])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_batches_by_length_give_the_texts_of_one_by_one(gpt2, make_reft, decoding, batch_size) -> None:
    prompts = [*PROMPTS, "x", PROMPTS[1], "The tower", "The weaver who lives there by the river speaks Tharic and"]
    reft = make_reft(positions="f2+l2")
    together = rl.generate(gpt2, reft, prompts, decoding=decoding, batch_size=batch_size)
    assert together == [rl.generate(gpt2, reft, [prompt], decoding=decoding)[0] for prompt in prompts]
    assert together[1] == together[4]
    assert len(set(together)) > 3


def test_batches_are_every_row_once_and_the_longest_first() -> None:
    counts = [3, 9, 1, 9, 4]
    batches = batches_by_length(counts, 2)
    assert batches == [[1, 3], [4, 0], [2]]


def test_counts_are_those_of_encode(bridge) -> None:
    for prepend_bos in (True, False, None):
        batch = rl.encode(bridge, PROMPTS, prepend_bos=prepend_bos)
        counts = token_counts(bridge, PROMPTS, prepend_bos=prepend_bos)
        assert counts == batch.attention_mask.sum(dim=1).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"top_k": 0, "temperature": 1.0}, "top_k must be at least 1"),
        ({"no_repeat_ngram_size": 0}, "no_repeat_ngram_size must be at least 1"),
        ({"top_p": 0.5}, "pass a temperature as well"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
    ],
)
def test_settings_without_sense_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.Decoding(**settings)


def test_a_prompt_that_cannot_be_continued_is_named(gpt2) -> None:
    with pytest.raises(
        ValueError, match=r"prompt 2 has \d+ tokens, which with 55 new tokens exceeds the context of 64"
    ):
        rl.generate(gpt2, None, ["x", "The", *PROMPTS[2:]], max_new_tokens=55)
    with pytest.raises(ValueError, match="not both"):
        rl.generate(gpt2, None, PROMPTS, max_new_tokens=5, decoding=BEAMS)
    with pytest.raises(TypeError, match=r"single string: write"):
        rl.generate(gpt2, None, "The tower")


def test_progress_counts_prompts(gpt2, capsys) -> None:
    rl.generate(gpt2, None, PROMPTS, max_new_tokens=2, batch_size=2, progress=True)
    assert "3 of 3" in capsys.readouterr().err
    rl.generate(gpt2, None, PROMPTS, max_new_tokens=2, batch_size=2)
    assert not capsys.readouterr().err
