"""A write to the residual between attention and MLP reaches both of its readers: against hand-changed Hugging Face models."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_bridge

import reftlens as rl
from reftlens.bridge import canonical_hook

SEQUENTIAL = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2"]
SITE = "blocks.1.hook_resid_mid"


def rewritten(block, edit):
    """A block's forward pass written out by hand, with the edit between attention and MLP."""

    def gpt2(hidden, _cache, attention_mask, *args, **kwargs):
        mid = edit(hidden + block.attn(block.ln_1(hidden), attention_mask=attention_mask)[0])
        return mid + block.mlp(block.ln_2(mid))

    def pre_norm(hidden, *args, **kwargs):
        mid = edit(hidden + block.self_attn(block.input_layernorm(hidden), **kwargs)[0])
        return mid + block.mlp(block.post_attention_layernorm(mid))

    def both_norms(hidden, *args, **kwargs):
        mid = edit(hidden + block.post_attention_layernorm(block.self_attn(block.input_layernorm(hidden), **kwargs)[0]))
        return mid + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid)))

    def post_norm(hidden, *args, **kwargs):
        mid = edit(hidden + block.post_attention_layernorm(block.self_attn(hidden, **kwargs)[0]))
        return mid + block.post_feedforward_layernorm(block.mlp(mid))

    if hasattr(block, "ln_1"):
        return gpt2
    if not hasattr(block, "input_layernorm"):
        return post_norm
    return both_norms if hasattr(block, "pre_feedforward_layernorm") else pre_norm


def by_hand(architecture, reft, batch):
    """Logits of the Hugging Face model with one block rewritten."""
    hf = make_hf(architecture)
    (site, intervention), *_ = reft
    mask = site.positions.mask(batch.prompt_mask)[..., None]
    block = (hf.transformer.h if architecture == "gpt2" else hf.model.layers)[1]
    block.forward = rewritten(block, lambda resid: torch.where(mask, intervention(resid), resid))
    return hf(batch.tokens, attention_mask=batch.attention_mask, use_cache=False).logits


def relative(ours, theirs) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.parametrize("architecture", SEQUENTIAL)
def test_logits_and_gradients_equal_a_rewritten_block(architecture, make_reft) -> None:
    bridge, reft = make_bridge(architecture), make_reft((SITE,))
    batch = rl.encode(bridge, PROMPTS)
    real = batch.prompt_mask
    with reft.hooks(bridge, batch.prompt_mask):
        ours, cache = bridge.run_with_cache(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    theirs = by_hand(architecture, reft, batch)
    (_, intervention), *_ = reft
    plain = bridge.run_with_hooks(
        batch.tokens,
        attention_mask=batch.attention_mask,
        use_cache=False,
        fwd_hooks=[("blocks.1.hook_resid_mid", lambda resid, hook: intervention(resid))],
    )
    assert relative(plain[real], theirs[real]) > 1e-2, "a write to the MLP branch alone is another edit"
    assert relative(ours[real], theirs[real]) < 1e-5
    for mine, reference in zip(
        torch.autograd.grad(ours[real].square().sum(), list(reft.parameters())),
        torch.autograd.grad(theirs[real].square().sum(), list(reft.parameters())),
        strict=True,
    ):
        assert relative(mine, reference) < 1e-5
    listed = bridge.run_with_hooks(
        batch.tokens,
        attention_mask=batch.attention_mask,
        use_cache=False,
        fwd_hooks=reft.fwd_hooks(batch.prompt_mask),
    )
    assert torch.equal(listed, ours)
    torch.testing.assert_close(
        cache["blocks.1.hook_resid_post"], cache["blocks.1.hook_resid_mid"] + cache["blocks.1.hook_mlp_out"]
    )


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("gpt_neox", "side by side"), ("phi", "side by side"), ("bert", "ln1.hook_out"), ("roberta", "ln1.hook_out")],
)
def test_blocks_without_such_a_residual_are_refused(architecture, message) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_hook(make_bridge(architecture), SITE)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_gradient_checkpointing_runs_a_block_again_and_changes_nothing(architecture, make_reft, reentrant) -> None:
    bridge, reft = make_bridge(architecture), make_reft((SITE, "blocks.1.hook_attn_out", "blocks.1.hook_resid_pre"))
    batch = rl.encode(bridge, PROMPTS)
    runs = 0

    def count(_resid, hook):
        nonlocal runs
        runs += 1

    def gradients():
        reft.zero_grad()
        embeds = bridge.original_model.get_input_embeddings().weight
        embeds.requires_grad_(reentrant)  # reentrant checkpoints want an input that requires grad
        with reft.hooks(bridge, batch.prompt_mask), bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_q", count)]):
            bridge(batch.tokens, use_cache=False).square().mean().backward()
        return [parameter.grad.clone() for parameter in reft.parameters()]

    plain = gradients()
    assert runs == 1
    bridge.original_model.activation_checkpointing_enable({"use_reentrant": reentrant})
    bridge.original_model.train()
    for module in bridge.original_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again = gradients()
    assert runs == 3, "a checkpointed block runs once more in the backward pass"
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@contextmanager
def interrupted(bridge):
    """An exception between the two halves of the edit."""

    def stop(_activation, hook):
        raise KeyError("inside")

    with bridge.hooks(fwd_hooks=[("blocks.1.attn.hook_q", stop)]):
        yield


def test_an_exception_inside_the_block_leaves_nothing_behind(gpt2, make_reft) -> None:
    reft, batch = make_reft((SITE,)), rl.encode(gpt2, PROMPTS)
    with reft.hooks(gpt2, batch.prompt_mask):
        before = gpt2(batch.tokens)
        with pytest.raises(KeyError), interrupted(gpt2):
            gpt2(batch.tokens)
        assert torch.equal(gpt2(batch.tokens), before)


def test_several_edits_around_it_act_in_the_order_of_the_model(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS)
    torch.manual_seed(0)
    names = (SITE, "blocks.1.hook_attn_out", "blocks.1.hook_resid_pre", SITE)
    edits = [rl.DiReFT(32, 2) for _ in names]
    reft = rl.Reft([(rl.Site(name, rl.All()), edit) for name, edit in zip(names, edits, strict=True)])
    _, base = gpt2.run_with_cache(batch.tokens)
    with reft.hooks(gpt2, batch.prompt_mask):
        _, cache = gpt2.run_with_cache(batch.tokens)
    real = batch.prompt_mask
    resid_pre = edits[2](base["blocks.1.hook_resid_pre"])
    torch.testing.assert_close(cache["blocks.1.hook_resid_pre"][real], resid_pre[real])
    plain = rl.Reft([(rl.Site(names[2], rl.All()), edits[2])])
    with plain.hooks(gpt2, batch.prompt_mask):
        _, after_pre = gpt2.run_with_cache(batch.tokens)
    mid = resid_pre + edits[1](after_pre["blocks.1.hook_attn_out"])
    torch.testing.assert_close(cache[SITE][real], edits[3](edits[0](mid))[real])


def test_hooks_that_change_the_sum_behind_the_edit_are_an_error(gpt2, make_reft) -> None:
    reft, other, batch = make_reft((SITE,)), make_reft((SITE,), seed=2), rl.encode(gpt2, PROMPTS)
    shift = [("blocks.1.hook_attn_out", lambda resid, hook: resid + 1.0)]
    with pytest.raises(rl.EditError, match="after the edit"), reft.hooks(gpt2, batch.prompt_mask):
        gpt2.run_with_hooks(batch.tokens, fwd_hooks=shift)
    with pytest.raises(rl.EditError), reft.hooks(gpt2, batch.prompt_mask), other.hooks(gpt2, batch.prompt_mask):
        gpt2(batch.tokens)
    twice = rl.Reft([*reft, *reft])
    with pytest.raises(rl.EditError, match="twice"), twice.hooks(gpt2, batch.prompt_mask):
        gpt2(batch.tokens)
    listed = [*reft.fwd_hooks(batch.prompt_mask), ("blocks.1.hook_resid_pre", shift[0][1])]
    with pytest.raises(rl.EditError, match="after the edit"):
        gpt2.run_with_hooks(batch.tokens, fwd_hooks=listed)


def test_hooks_on_resid_pre_may_come_before_or_behind_the_context(bridge, make_reft) -> None:
    reft, batch = make_reft((SITE,)), rl.encode(bridge, PROMPTS)
    shift = [("blocks.1.hook_resid_pre", lambda resid, hook: resid + 1.0)]
    with bridge.hooks(fwd_hooks=shift), reft.hooks(bridge, batch.prompt_mask):
        before = bridge(batch.tokens)
    with reft.hooks(bridge, batch.prompt_mask):
        assert torch.equal(bridge.run_with_hooks(batch.tokens, fwd_hooks=shift), before)


def test_a_dose_and_decoding_work_there_too(gpt2, make_reft) -> None:
    reft, batch = make_reft((SITE,)), rl.encode(gpt2, PROMPTS)
    (edit,) = reft.edits(batch.prompt_mask)
    _, base = gpt2.run_with_cache(batch.tokens)
    with rl.attach(gpt2, [replace(edit, scale=-2.0)]):
        _, cache = gpt2.run_with_cache(batch.tokens)
    h = base[SITE][edit.mask]
    torch.testing.assert_close(cache[SITE][edit.mask], h - 2.0 * edit.intervention.delta(h))
    assert torch.equal(cache[SITE][~edit.mask], base[SITE][~edit.mask])
    options = {"max_new_tokens": 6}
    assert rl.generate(gpt2, reft, PROMPTS, **options) == rl.generate(gpt2, reft, PROMPTS, use_cache=False, **options)
