"""`patch` at each of its points and on masked language models, against whole runs with one hook written by hand."""

from __future__ import annotations

import pytest
import torch
from architectures import N_LAYERS, make_hf
from conftest import make_bridge, make_tokenizer

import reftlens as rl

CLEAN, CORRUPTED = "The tower stands in the city of", "The weaver stands in the city of"
ANSWER = [" Ostra"]


def by_hand(bridge, clean, corrupted, point, layer, pos, head=None):
    """Logits of a whole run on the corrupted prompt with one activation of the clean one."""
    _, cache = bridge.run_with_cache(clean.tokens)
    _, own = bridge.run_with_cache(corrupted.tokens)
    block = f"blocks.{layer}"
    names = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "resid_post": "hook_resid_post"}
    name = f"{block}.{names.get(point, 'hook_attn_out')}"
    source = cache[name]
    if point == "resid_mid":
        # Both readers of resid_mid = resid_pre + attn_out see what attention adds.
        source = cache[f"{block}.hook_resid_pre"] + cache[name] - own[f"{block}.hook_resid_pre"]

    def write(activation, hook):
        written = activation.clone()
        at = (slice(None), slice(None) if pos is None else pos, *(() if head is None else (head,)))
        written[at] = source[at]
        return written

    with torch.no_grad():
        return bridge.run_with_hooks(corrupted.tokens, fwd_hooks=[(name, write)])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("point", ["resid_mid", "resid_post", "q", "k", "v"])
@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_every_cell_equals_a_whole_run_with_one_hook(architecture, point) -> None:
    bridge = make_bridge(architecture)
    clean, corrupted = rl.encode(bridge, [CLEAN]), rl.encode(bridge, [CORRUPTED])
    metric = rl.analysis.probability_of(bridge, [CLEAN], ANSWER)
    found = rl.analysis.patch(bridge, clean, corrupted, metric, point=point, progress=False).values[0]
    for layer in range(N_LAYERS):
        for pos in range(clean.tokens.shape[1]):
            logits = by_hand(bridge, clean, corrupted, point, layer, pos)
            expected = metric(logits[:, -1], torch.tensor([0]))
            torch.testing.assert_close(found[layer, pos], expected[0], rtol=1e-4, atol=1e-9)
    assert float((found - found[0, 0]).abs().max()) > 0, "a patch without effect equals anything"


@pytest.mark.parametrize("point", ["q", "k"])
def test_heads_are_those_of_the_point(point) -> None:
    bridge = make_bridge("llama")
    clean, corrupted = rl.encode(bridge, [CLEAN]), rl.encode(bridge, [CORRUPTED])
    metric = rl.analysis.probability_of(bridge, [CLEAN], ANSWER)
    found = rl.analysis.patch(bridge, clean, corrupted, metric, point=point, over="heads", progress=False).values[0]
    assert found.shape == (N_LAYERS, {"q": 4, "k": 2}[point]), "keys have fewer heads than queries"
    for layer, head in ((0, 1), (2, 0)):
        logits = by_hand(bridge, clean, corrupted, point, layer, None, head)
        torch.testing.assert_close(
            found[layer, head], metric(logits[:, -1], torch.tensor([0]))[0], rtol=1e-4, atol=1e-9
        )


def masked_bridge(architecture):
    tokenizer = make_tokenizer(size=319)
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    return rl.load_bridge(hf_model=make_hf(architecture), tokenizer=tokenizer)


@pytest.mark.parametrize("architecture", ["bert", pytest.param("roberta", marks=pytest.mark.slow)])
def test_a_masked_model_is_read_at_its_mask_token(architecture) -> None:
    bridge = masked_bridge(architecture)
    clean, corrupted = (
        rl.encode(bridge, [f"The {who} in the city of[MASK] stands by the river"]) for who in ("tower", "weaver")
    )
    metric = rl.analysis.probability_of(bridge, clean.texts, ANSWER)
    found = rl.analysis.patch(bridge, clean, corrupted, metric, progress=False).values[0]
    (column,) = (clean.tokens[0] == bridge.tokenizer.mask_token_id).nonzero()[0].tolist()
    assert 0 < column < clean.tokens.shape[1] - 1
    _, cache = bridge.run_with_cache(clean.tokens)
    for layer in range(N_LAYERS):
        for pos in range(clean.tokens.shape[1]):
            name = f"blocks.{layer}.hook_resid_pre"

            def write(resid, hook, pos=pos, name=name):
                return torch.cat([resid[:, :pos], cache[name][:, pos : pos + 1], resid[:, pos + 1 :]], dim=1)

            with torch.no_grad():
                logits = bridge.run_with_hooks(corrupted.tokens, fwd_hooks=[(name, write)])[:, column]
            torch.testing.assert_close(found[layer, pos], metric(logits, torch.tensor([0]))[0], rtol=1e-4, atol=1e-9)
    later = found[:, column + 1 :]
    assert float((later - later[0, 0]).abs().max()) > 0, "a bidirectional model reads tokens behind the mask"


def test_a_masked_model_without_one_mask_token_is_refused() -> None:
    bridge = masked_bridge("bert")
    for text, times in (("The tower", 0), ("[MASK] or[MASK]", 2)):
        batch = rl.encode(bridge, [text])
        with pytest.raises(
            ValueError,
            match=rf"must contain the mask token \('\[MASK\]'\) exactly once.*row 0 contains it {times} times",
        ):
            rl.analysis.patch(bridge, batch, batch, rl.analysis.probability_of(bridge, [text], ANSWER))
