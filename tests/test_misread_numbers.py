"""Numbers that are easily taken for something else: each against its definition, computed here."""

from __future__ import annotations

import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_edit, make_tokenizer

import reftlens as rl
from reftlens.analysis import decompose, effect_map, off_manifold, permuted_labels, read_directions, top_contexts
from reftlens.results import Operator

ALIGNED = ["The old tower stands", "The old weaver speaks"]
ANSWERS = {"new": [" Ostra", " Tharic"], "old": [" weaver", " city"]}


def metric(bridge):
    return rl.analysis.logit_difference_of(bridge, ALIGNED, ANSWERS["new"], ANSWERS["old"])


def logit_differences(bridge, reft):
    """Of each prompt, edited minus base, by two whole runs."""
    batch = rl.encode(bridge, ALIGNED)
    ids = torch.tensor([[bridge.tokenizer(a)["input_ids"][0] for a in ANSWERS[kind]] for kind in ("new", "old")])
    found = []
    for edits in ([], reft.fwd_hooks(batch)):
        logits = bridge.run_with_hooks(batch.tokens, attention_mask=batch.attention_mask, fwd_hooks=edits)
        last = logits.detach()[:, -1]
        found.append(last.gather(1, ids[:1].T)[:, 0] - last.gather(1, ids[1:].T)[:, 0])
    return found[1] - found[0]


def pushes(*vectors, positions="l1"):
    at = rl.Site("blocks.1.hook_resid_post", rl.parse(positions))
    return rl.Reft([(at, rl.SteeringVector.of(vector)) for vector in vectors])


# The whole effect is small.


@pytest.mark.parametrize("left", [0.001, 0.0])
def test_cells_of_cancelling_edits_are_in_nats(gpt2, left) -> None:
    push = 2 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    cancelling, one = pushes(push, (left - 1) * push), pushes(push)
    result = effect_map(gpt2, cancelling, ALIGNED, metric(gpt2), n_control=1, progress=False)
    alone = logit_differences(gpt2, one)
    assert float(result.values[0, -1]) == pytest.approx(float(alone.mean()), abs=1e-5)
    assert "in nats" in result.quantity
    assert "small beside that of single cells" in result.quantity
    # The control has the same unit: it would be thousands of a whole that is nothing.
    assert float(result.control.nan_to_num().abs().max()) < 10 * float(alone.abs().max()) + 5
    # An edit with an effect to divide by is divided by it.
    whole = effect_map(gpt2, one, ALIGNED, metric(gpt2), n_control=1, progress=False)
    assert "/ effect of the whole edit" in whole.quantity or "spread" in whole.quantity


def test_cells_are_in_nats_where_prompts_disagree(gpt2) -> None:
    """One push that favours the new answer of one prompt as much as the old one of the other."""
    W = gpt2.W_U.T
    ids = {a: gpt2.tokenizer(a)["input_ids"][0] for kind in ("new", "old") for a in ANSWERS[kind]}
    both = W[ids[" Ostra"]] - W[ids[" weaver"]] - 0.9 * (W[ids[" Tharic"]] - W[ids[" city"]])
    reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", "l1"), rl.SteeringVector.of(3 * both / both.norm()))])
    effects = logit_differences(gpt2, reft)
    assert float(effects.std()) > float(effects.mean().abs()) > 1e-4, "prompts disagree"
    result = effect_map(gpt2, reft, ALIGNED, metric(gpt2), n_control=1, progress=False)
    assert float(result.values[0, -1]) == pytest.approx(float(effects.mean()), abs=1e-5)
    assert "small beside its spread over prompts" in result.headline()


# Effective rank.


def participation(changes):
    energy = np.linalg.svd(changes, compute_uv=False) ** 2
    return float(energy.sum() ** 2 / (energy**2).sum())


def test_the_input_dependent_part_has_an_effective_rank_of_its_own(gpt2) -> None:
    edit, batch = make_edit(rl.LoReFT, rank=4), rl.encode(gpt2, PROMPTS)
    with torch.no_grad():
        edit.source.bias.mul_(0).add_(50.0)
    reft = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.All()), edit)])
    (operator,) = decompose(gpt2, reft, [batch])
    h = gpt2.run_with_cache(batch.tokens, attention_mask=batch.attention_mask)[1]["blocks.1.hook_resid_post"]
    changes = edit.delta(h[batch.prompt_mask]).detach().double().numpy()
    assert operator.effective_rank == pytest.approx(participation(changes), rel=1e-4)
    assert operator.input_rank == pytest.approx(participation(changes - changes.mean(0)), rel=1e-3)
    assert operator.input_rank > operator.effective_rank + 0.5, "a constant push hid it"
    assert f"input-dependent part {operator.input_rank:.2f}" in operator.headline()
    # A file of before has no spectrum of that part: it follows from what it has.
    old = Operator(
        **{
            name: getattr(operator, name)
            for name in Operator.__dataclass_fields__
            if name not in ("input_spectrum", "site")
        }
    )
    assert old.input_rank == pytest.approx(operator.input_rank, rel=0.05)
    (push,) = decompose(gpt2, pushes(torch.ones(32)), [batch])
    assert push.effective_rank == pytest.approx(1.0)
    assert push.input_rank == 0.0


# Off-manifold, with massive tokens among the edited ones.


def sentences(bridge, n):
    words = [" tower", " river", " city", " weaver", " old", " Ostra", " speaks", " the", " of", " stands"]
    picks = torch.randint(len(words), (n, 8), generator=torch.Generator().manual_seed(0)).tolist()
    texts = ["<|endoftext|>The" + "".join(words[i] for i in row) for row in picks]
    return [rl.encode(bridge, texts[i : i + 8], prepend_bos=False) for i in range(0, n, 8)]


def with_massive(token: str, size: float):
    model = make_hf("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[make_tokenizer()(token)["input_ids"][0], 7] += size
    return rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())


@pytest.mark.parametrize("token", ["<|endoftext|>", " of"])
def test_a_massive_token_does_not_hide_a_push(token) -> None:
    bridge = with_massive(token, 3000.0)
    batches, name = sentences(bridge, 60), "blocks.0.hook_resid_pre"
    h = torch.cat(
        [
            bridge.run_with_cache(b.tokens, attention_mask=b.attention_mask, names_filter=[name])[1][name][
                b.prompt_mask
            ]
            for b in batches
        ]
    )
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    direction[7] = 0
    direction /= direction.norm()
    ordinary = h[h.norm(dim=-1) < 100]
    assert len(ordinary) < len(h)
    push = 6 * float((ordinary @ direction).std()) * direction
    reft = rl.Reft([(rl.Site(name, rl.All()), rl.SteeringVector.of(push))])
    (found,) = off_manifold(bridge, reft, batches)
    natural, edited, _ = found.beyond()
    assert edited > 0.97
    assert natural < 0.12, "the null stays"
    assert found.n_fit + found.n_reference + len(found.natural) == len(h)


# Random readings.


def test_one_large_coordinate_does_not_make_all_random_readings_the_same(monkeypatch) -> None:
    model = make_hf("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[:, 7] *= 50
    bridge = rl.load_bridge(hf_model=model, tokenizer=make_tokenizer())
    batches, name = sentences(bridge, 24), "blocks.0.hook_resid_pre"
    reft = rl.Reft([(rl.Site(name, rl.All()), make_edit(rl.DiReFT, rank=1))])
    rows = {}
    module = sys.modules["reftlens.analysis.top_contexts"]
    plain = module.Readings

    def kept(given, *rest):
        rows["random"] = given[1:]
        return plain(given, *rest)

    monkeypatch.setattr(module, "Readings", kept)
    operators = decompose(bridge, reft, batches)
    top_contexts(bridge, reft, operators, batches, directions=1, n_null=100)
    h = torch.cat(
        [
            bridge.run_with_cache(b.tokens, attention_mask=b.attention_mask, names_filter=[name])[1][name][
                b.prompt_mask
            ]
            for b in batches
        ]
    ).double()

    def alike(random):
        correlation = np.corrcoef((h @ random.T).T.numpy())
        return float(np.abs(correlation[np.triu_indices(len(random), 1)]).mean())

    unscaled = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)).double()
    assert alike(unscaled) > 0.8
    assert alike(rows["random"]) < 0.3
    assert float((h @ rows["random"].T).mean(1).std()) > 0


# Shuffled answers.


@pytest.mark.parametrize(
    "counts",
    [(5, 5), (1, 1), (4, 3, 1), (2, 1, 1), (6, 2, 2, 2), (1,) * 9],
    ids=lambda counts: "-".join(map(str, counts)),
)
def test_shuffled_answers_are_all_wrong(counts) -> None:
    examples = [
        (f"prompt {kind} {number}", f" answer {kind}") for kind, count in enumerate(counts) for number in range(count)
    ]
    dealt = [permuted_labels(examples, seed=seed) for seed in range(20)]
    for shuffled in dealt:
        assert [prompt for prompt, _ in shuffled] == [prompt for prompt, _ in examples]
        assert Counter(answer for _, answer in shuffled) == Counter(answer for _, answer in examples)
        assert not any(new == own for (_, new), (_, own) in zip(shuffled, examples, strict=True))
    assert dealt[0] == permuted_labels(examples, seed=0)
    if len(counts) > 2 and max(counts) < len(examples) / 2:
        assert len({tuple(shuffled) for shuffled in dealt}) > 5, "other seeds deal otherwise"


def test_answers_that_cannot_all_be_wrong_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 5 examples have the answer ' a'"):
        permuted_labels([("p", " a"), ("q", " a"), ("r", " a"), ("s", " b"), ("t", " c")], seed=0)
    assert permuted_labels([], seed=0) == []


# Watched answers.


def test_answers_that_begin_alike_are_watched_once(gpt2, make_reft) -> None:
    batch = rl.encode(gpt2, PROMPTS)
    watch = [" tower", " tower by the river", " Ostra", " Ostra ,", " tower"]
    first = [gpt2.tokenizer(answer)["input_ids"][0] for answer in watch]
    assert len(set(first)) == 2
    (operator,) = decompose(gpt2, make_reft(), [batch])
    readouts = read_directions(gpt2, operator, batch, watch=watch, n_null=19)
    for readout in readouts:
        assert [answer for answer, *_ in readout.watched] == [" tower", " Ostra"]
        assert all(math.isfinite(change) for _, change, *_ in readout.watched)


# Right answers.


def test_right_answers_are_first_tokens_and_whole_answers_stand_beside_them(gpt2) -> None:
    """An edit that says " Ostra" at every step, generated ones too."""
    token = gpt2.tokenizer(" Ostra")["input_ids"][0]
    push = 50 * torch.nn.functional.normalize(gpt2.W_U[:, token], dim=0)
    reft = rl.Reft([(rl.Site("blocks.2.hook_resid_post", rl.All() | rl.Generated()), rl.SteeringVector.of(push))])
    answers = [" Ostra Ostra", " Ostra city", " Ostra"]
    decoded = rl.generate(gpt2, reft, PROMPTS, max_new_tokens=4)
    assert all(text == " Ostra" * 4 for text in decoded)
    expected = [text.startswith(answer) for text, answer in zip(decoded, answers, strict=True)]
    found = rl.analysis.outcome(gpt2, reft, PROMPTS, answers, group="all", wanted="new answer", batch_size=2)
    assert found.edited == 1.0
    assert found.edited_whole == pytest.approx(sum(expected) / 3)
    assert found.base_whole <= found.base < 1
    assert "first token of the new answer" in found.headline()
    assert "whole answer: base" in found.headline()
    (short,) = [rl.analysis.outcome(gpt2, reft, PROMPTS, [" Ostra"] * 3, group="all", wanted="new answer")]
    assert math.isnan(short.edited_whole)
    assert "whole answer" not in short.headline()
