"""ReFT-r1: its push example by example, its penalty, and what does not apply to it."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_edit
from test_orthonormal import fit

import reftlens as rl
from reftlens.analysis.controls.turned import Turned
from reftlens.analysis.engine.activations import edited_activations

D, NAME = 16, "blocks.1.hook_resid_post"


def one_site(edit, positions=None) -> rl.Reft:
    return rl.Reft([(rl.Site(NAME, positions or rl.All()), edit)])


def by_hand(edit, examples):
    """One example after another, in plain Python: push and penalty of each."""
    v = edit.v.detach()
    assert float(v.norm()) == pytest.approx(1.0, abs=1e-12)
    pushes, penalties = [], []
    for h in examples:
        scores = sorted((max(float(token.double() @ v), 0.0) for token in h), reverse=True)
        top = scores[: edit.k]
        pushes.append(sum(top) / len(top) * v)
        penalties.append(sum(scores[edit.k :]) / len(scores))
    return pushes, penalties


@pytest.mark.parametrize("k", [1, 2, 3, 50])
def test_each_example_has_its_own_push_and_penalty(k) -> None:
    edit = make_edit(rl.ReFTr1, D).double()
    edit.k = k
    generator = torch.Generator().manual_seed(3)
    examples = [torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (1, 5, 2, 7)]
    # Rows 1 and 3 of the batch hold no edited token, so they have no example.
    example = torch.cat([torch.full((len(h),), row) for h, row in zip(examples, (0, 2, 4, 5), strict=True)])
    pushes, penalties = by_hand(edit, examples)
    change = edit.delta_of(torch.cat(examples), example)
    expected = torch.cat([push.expand_as(h) for push, h in zip(pushes, examples, strict=True)])
    torch.testing.assert_close(change, expected)
    found = edit.l1(torch.cat(examples), example, 7).tolist()
    zero, one, two, three = penalties
    assert found == pytest.approx([zero, 0, one, 0, two, three, 0], abs=1e-12)
    assert any(penalties) == (k < 7)
    shuffled = torch.randperm(len(example), generator=generator)
    torch.testing.assert_close(edit.delta_of(torch.cat(examples)[shuffled], example[shuffled]), expected[shuffled])


def test_delta_takes_the_second_last_axis_for_the_tokens_of_an_example() -> None:
    edit, resid = rl.ReFTr1(D, 2), torch.randn(3, 6, D)
    one_by_one = torch.stack([edit.delta(h) for h in resid])
    torch.testing.assert_close(edit.delta(resid), one_by_one)
    assert float((one_by_one[0] - one_by_one[1]).detach().norm()) > 1e-3
    torch.testing.assert_close(edit.delta(resid[0, 0]), edit.delta(resid[0, :1])[0])
    assert edit.delta(resid[:, :0]).shape == (3, 0, D)


def test_on_a_model_examples_do_not_mix(bridge) -> None:
    """A batch gives what each prompt gives by itself; the same tokens as one example would not."""
    edit = make_edit(rl.ReFTr1)
    batch = rl.encode(bridge, PROMPTS)
    ((found, h),) = edited_activations(bridge, one_site(edit), batch)
    together = found.intervention.delta_of(h, found.mask.nonzero()[:, 0]).detach()
    alone = []
    for prompt in PROMPTS:
        ((single, h_single),) = edited_activations(bridge, one_site(edit), rl.encode(bridge, [prompt]))
        alone.append(single.intervention.delta(h_single).detach())
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(edit.delta(h), together, rtol=1e-2), "mixing the examples would have shown"


def test_what_an_edit_before_it_wrote_is_seen_by_the_analyses(gpt2) -> None:
    """The recorder passes the examples on: the second site meets what it meets in a plain run."""
    edits = [make_edit(rl.ReFTr1), make_edit(rl.LoReFT)]
    names = ("blocks.0.hook_resid_post", "blocks.2.hook_resid_post")
    reft = rl.Reft([(rl.Site(name, rl.All()), edit) for name, edit in zip(names, edits, strict=True)])
    batch = rl.encode(gpt2, PROMPTS)
    _, (_, seen) = edited_activations(gpt2, reft, batch)
    with rl.Reft([next(iter(reft))]).hooks(gpt2, batch.prompt_mask):
        _, cache = gpt2.run_with_cache(batch.tokens, attention_mask=batch.attention_mask)
    torch.testing.assert_close(seen, cache[names[1]][batch.prompt_mask])
    _, base = gpt2.run_with_cache(batch.tokens, attention_mask=batch.attention_mask)
    assert not torch.allclose(seen, base[names[1]][batch.prompt_mask], atol=1e-2)


def test_its_placebo_pushes_each_example_as_far() -> None:
    edit, resid = make_edit(rl.ReFTr1, D), torch.randn(3, 6, D, generator=torch.Generator().manual_seed(0))
    placebo = Turned(edit, torch.Generator().manual_seed(0))
    mask = torch.ones(3, 6, dtype=torch.bool)
    ours, theirs = ((rl.Edit("hook", e, mask).apply(resid) - resid).detach().norm(dim=-1) for e in (edit, placebo))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert float(ours[:, 0].std()) > 0.05, "examples alike could not be told apart"


def test_detection_is_the_score_of_each_token_and_a_planted_direction_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    concept = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    edit = rl.ReFTr1(D, 1)
    with torch.no_grad():
        edit.direction.weight.copy_(concept[None])
    h = 0.1 * torch.randn(8, D, generator=generator)
    h[5] += 4 * concept
    h[2] -= 4 * concept
    scores = edit.detect(h).detach()
    assert int(scores.argmax()) == 5
    assert float(scores[2]) == 0.0
    torch.testing.assert_close(scores, (h @ concept).relu())
    assert float(edit.delta(h).detach().norm(dim=-1).max()) == pytest.approx(float(scores[5]), rel=1e-5)


def test_v_keeps_length_one_in_training_also_with_weight_decay() -> None:
    edit = rl.ReFTr1(D, 2)
    before = edit.v.detach().clone()
    fit(edit, steps=200, lr=1e-2, weight_decay=0.1)
    assert float(edit.v.detach().double().norm()) == pytest.approx(1.0, abs=1e-6)
    assert float((edit.v.detach() - before).norm()) > 0.1, "v did not move"


def test_it_trains_on_a_model_and_the_base_is_left(gpt2) -> None:
    reft = one_site(make_edit(rl.ReFTr1))
    log = rl.train(
        gpt2, reft, list(zip(PROMPTS, COMPLETIONS, strict=True)), rl.TrainConfig(epochs=15, lr=2e-2, progress=False)
    )
    assert log.loss[-1] < log.loss[0]


def test_the_penalty_pulls_the_other_tokens_down() -> None:
    torch.manual_seed(0)
    edit, h, example = rl.ReFTr1(D, 1), torch.randn(12, D), torch.arange(12) // 6
    optimiser = torch.optim.Adam(edit.parameters(), lr=1e-2)
    before = float(edit.l1(h, example, 2).mean().detach())
    for _ in range(100):
        optimiser.zero_grad()
        edit.l1(h, example, 2).mean().backward()
        optimiser.step()
    assert float(edit.l1(h, example, 2).mean().detach()) < 0.5 * before


@pytest.mark.slow
def test_with_l1_training_leaves_fewer_tokens_above_zero(gpt2) -> None:
    """The loss alone does not care about tokens outside the k largest; with the term their scores go down."""
    examples = list(zip(PROMPTS, COMPLETIONS, strict=True))
    above = {}
    for l1 in (0.0, 1.0):
        edit = make_edit(rl.ReFTr1)
        config = rl.TrainConfig(epochs=25, lr=2e-2, l1=l1, progress=False)
        rl.train(gpt2, one_site(edit), examples, config)
        ((_, h),) = edited_activations(gpt2, one_site(edit), rl.encode(gpt2, PROMPTS))
        above[l1] = float((edit.detect(h) > 0.05).float().mean())
    assert above[1.0] < 0.6 * above[0.0], above


def test_what_needs_an_affine_form_says_so(gpt2) -> None:
    edit, batch = make_edit(rl.ReFTr1), rl.encode(gpt2, PROMPTS)
    with pytest.raises(rl.NotAffineError, match="strongest tokens of its example"):
        edit.affine()
    with pytest.raises(rl.NotAffineError, match="strongest tokens of its example"):
        rl.analysis.decompose(gpt2, one_site(edit), [batch])


def test_what_reads_changes_alone_works(gpt2) -> None:
    reft = one_site(make_edit(rl.ReFTr1))
    size = rl.analysis.edit_size(gpt2, reft, PROMPTS[0])
    assert float(size.relative[size.edited].min()) > 0
    result = rl.analysis.outcome(gpt2, reft, PROMPTS, COMPLETIONS, group="all", wanted="new answer")
    assert result.kl > 1e-6


def test_impossible_k_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rl.ReFTr1(D, 0)
