"""Causal tracing with noise, against plain hooks that draw the same noise."""

from __future__ import annotations

import pytest
import torch
from conftest import make_bridge

import reftlens as rl

PROMPTS = ["The tower stands in the city of", "The weaver speaks"]
ANSWERS = [" Ostra", " Tharic"]
OPTIONS = {"subjects": ["tower", "weaver"], "progress": False}


def of(bridge, n=2):
    return rl.analysis.probability_of(bridge, PROMPTS[:n], ANSWERS[:n])


FORMS = ("gpt2", "llama", "gpt_neox", "gemma2")
QUICK = [(form, "resid_pre", 1) for form in FORMS]
QUICK += [("gpt2", "mlp_out", 2), ("gemma2", "mlp_out", 2), ("llama", "attn_out", 3), ("gpt_neox", "attn_out", 3)]
SLOW = [(form, point, window) for form in FORMS for point, window in (("mlp_out", 2), ("attn_out", 3))]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("architecture", "point", "window"),
    [*QUICK, *(pytest.param(*run, marks=pytest.mark.slow) for run in SLOW if run not in QUICK)],
)
def test_equals_plain_hooks_on_the_same_noise(architecture, point, window) -> None:
    bridge = make_bridge(architecture)
    result = rl.analysis.trace_noise(
        bridge, PROMPTS, of(bridge), point=point, window=window, n_draws=2, seed=3, **OPTIONS
    )
    batch = rl.encode(bridge, PROMPTS)
    where = torch.zeros_like(batch.prompt_mask)
    for row, subject in enumerate(OPTIONS["subjects"]):
        places = rl.analysis.subject_places(bridge, PROMPTS[row], subject)
        where[row, : len(places)] = torch.tensor(places)
    names = [f"blocks.{layer}.hook_{point}" for layer in range(3)]
    mask = {"attention_mask": batch.attention_mask}
    logits, cache = bridge.run_with_cache(batch.tokens, **mask)
    target = torch.tensor([bridge.tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in ANSWERS])

    def probability(logits):
        return batch.at_last_prompt_token(logits).softmax(-1)[torch.arange(2), target].detach()

    torch.testing.assert_close(result.source, probability(logits), rtol=0, atol=1e-6)
    sigma = 3 * cache["hook_embed"][where].std()
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(*where.shape, 32, generator=generator) * sigma * where[..., None] for _ in range(2)]
    base, cells = [], []
    for drawn in draws:
        noise = ("hook_embed", lambda embed, hook, drawn=drawn: embed + drawn)
        base.append(probability(bridge.run_with_hooks(batch.tokens, fwd_hooks=[noise], **mask)))
        for layer in range(3):
            for pos in range(where.shape[1]):
                group = names[max(0, layer - window // 2) : layer - window // 2 + window]

                def restore(activation, hook, pos=pos):
                    new = activation.clone()
                    new[:, pos] = cache[hook.name][:, pos]
                    return new

                hooks = [noise, *((name, restore) for name in group)]
                cells.append(probability(bridge.run_with_hooks(batch.tokens, fwd_hooks=hooks, **mask)))
    torch.testing.assert_close(result.base, torch.stack(base).mean(0), rtol=0, atol=1e-6)
    values = torch.stack(cells).view(2, 3, where.shape[1], 2).mean(0).permute(2, 0, 1)
    there = batch.prompt_mask[:, None].expand_as(values)
    assert bool(result.values[~there].isnan().all())
    torch.testing.assert_close(result.values[there], values[there], rtol=0, atol=1e-6)
    moved = (values - torch.stack(base).mean(0)[:, None, None])[there]
    assert float(moved.abs().max()) > 1e-4, "a restoration without effect proves nothing"


def test_a_one_token_subject_is_restored_at_its_embedding_and_by_the_control_it_is_not(gpt2) -> None:
    result = rl.analysis.trace_noise(gpt2, PROMPTS[:1], of(gpt2, 1), n_draws=3, subjects=["tower"], progress=False)
    place = rl.analysis.subject_places(gpt2, PROMPTS[0], "tower").index(True)
    assert sum(rl.analysis.subject_places(gpt2, PROMPTS[0], "tower")) == 1
    assert float(result.restored()[0, place]) == pytest.approx(1.0, abs=1e-3)
    assert float(result.restored()[:, :place].abs().max()) < 1e-3
    assert abs(float(result.restored(result.control)[0, place]) - 1) > 0.1
    again = rl.analysis.trace_noise(gpt2, PROMPTS[:1], of(gpt2, 1), n_draws=3, subjects=["tower"], progress=False)
    assert torch.equal(again.values, result.values)


def test_it_refuses_what_it_cannot_noise(gpt2) -> None:
    given = {"subjects": ["castle"], "progress": False}
    with pytest.raises(ValueError, match="not in the prompt"):
        rl.analysis.trace_noise(gpt2, PROMPTS[:1], of(gpt2, 1), **given)
    with pytest.raises(ValueError, match="subjects must have one item for each prompt, got 2 prompts and 1 subjects"):
        rl.analysis.trace_noise(gpt2, PROMPTS, of(gpt2), **given)
    with pytest.raises(ValueError, match="noise must be above 0"):
        rl.analysis.trace_noise(gpt2, PROMPTS[:1], of(gpt2, 1), **given | {"subjects": ["tower"]}, noise=0.0)
