"""An edit on a plain Hugging Face model equals the same edit in the bridge."""

from __future__ import annotations

import pytest
import torch
from architectures import CAUSAL, make_hf, others_slow
from conftest import PROMPTS, make_edit, make_tokenizer

import reftlens as rl
from reftlens.bridge.hf_points import hf_points

POINTS = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


def edit_at(*points, positions="f2+l2", head=None, width=32, kind=rl.LoReFT) -> rl.Reft:
    pairs = [(rl.Site(f"blocks.1.{p}", positions, head), make_edit(kind, width, seed=s)) for s, p in enumerate(points)]
    return rl.Reft(pairs)


def hf_logits(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch.tokens, attention_mask=batch.attention_mask).logits


@pytest.mark.parametrize("architecture", others_slow(CAUSAL))
def test_logits_equal_those_of_the_bridge(architecture) -> None:
    model, tokenizer = make_hf(architecture), make_tokenizer()
    bridge = rl.load_bridge(hf_model=make_hf(architecture), tokenizer=tokenizer)
    batch = rl.encode(bridge, PROMPTS)
    before = hf_logits(model, batch)
    for points in [(point,) for point in POINTS] + [POINTS]:
        reft = edit_at(*points)
        with torch.no_grad(), reft.hooks(bridge, batch):
            wanted = bridge(batch.tokens, attention_mask=batch.attention_mask)
        with rl.attach_to_hf(model, reft, tokenizer=tokenizer):
            came = hf_logits(model, batch)
        shown = batch.attention_mask.bool()
        torch.testing.assert_close(came[shown], wanted[shown], rtol=0, atol=1e-5)
        assert float((wanted - before)[shown].abs().max()) > 0.05, "an edit without effect shows nothing"
    assert torch.equal(hf_logits(model, batch), before), "the model is what it was"


def test_one_head_equals_that_of_the_bridge(gpt2) -> None:
    reft = edit_at("attn.hook_z", head=2, width=8)
    batch = rl.encode(gpt2, PROMPTS)
    with torch.no_grad(), reft.hooks(gpt2, batch):
        wanted = gpt2(batch.tokens, attention_mask=batch.attention_mask)
    with rl.attach_to_hf(make_hf("gpt2"), reft, tokenizer=gpt2.tokenizer) as model:
        torch.testing.assert_close(hf_logits(model, batch), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [rl.LoReFT, rl.ReFTr1])
@pytest.mark.parametrize("positions", ["f2+l2", rl.Last(1) | rl.Generated()])
def test_text_equals_that_of_generate(gpt2, positions, kind) -> None:
    if kind is rl.ReFTr1 and positions != "f2+l2":
        pytest.skip("its change of a generated token reads the prompt's, which a cache does not hold")
    reft = edit_at("hook_resid_post", positions=positions, kind=kind).scaled(8.0)
    said = rl.generate(gpt2, reft, PROMPTS, max_new_tokens=6)
    batch = rl.encode(gpt2, PROMPTS, padding_side="left")
    with rl.attach_to_hf(make_hf("gpt2"), reft, tokenizer=gpt2.tokenizer) as model:
        mask = batch.attention_mask
        out = model.generate(batch.tokens, attention_mask=mask, max_new_tokens=6, do_sample=False)
    texts = [gpt2.tokenizer.decode(row, skip_special_tokens=True) for row in out[:, batch.tokens.shape[1] :]]
    assert texts == said
    assert said != rl.generate(gpt2, None, PROMPTS, max_new_tokens=6)


def test_a_saved_edit_is_attached_from_its_folder(gpt2, tmp_path) -> None:
    reft, batch = edit_at("hook_resid_post"), rl.encode(gpt2, PROMPTS)
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2, card=False)
    make_hf("gpt2").save_pretrained(tmp_path / "model")
    gpt2.tokenizer.save_pretrained(tmp_path / "model")
    model = type(make_hf("gpt2")).from_pretrained(tmp_path / "model", attn_implementation="eager")
    with torch.no_grad(), reft.hooks(gpt2, batch):
        wanted = gpt2(batch.tokens, attention_mask=batch.attention_mask)
    attached = rl.attach_to_hf(model, tmp_path / "edit")
    torch.testing.assert_close(hf_logits(model, batch), wanted, rtol=0, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters()), "the model's own settings stay"
    attached.remove()
    assert not torch.allclose(hf_logits(model, batch), wanted, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="differs from this model"):
        rl.attach_to_hf(make_hf("gpt2", seed=1), tmp_path / "edit", tokenizer=gpt2.tokenizer)


def test_completions_are_left_alone_where_the_prompt_is_given(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS, [" Ostra"] * len(PROMPTS))
    reft = edit_at("hook_resid_post", positions=rl.Last(1))
    with torch.no_grad(), reft.hooks(gpt2, batch):
        wanted = gpt2(batch.tokens, attention_mask=batch.attention_mask)
    with rl.attach_to_hf(make_hf("gpt2"), reft, tokenizer=gpt2.tokenizer, prompts=batch) as model:
        torch.testing.assert_close(hf_logits(model, batch), wanted, rtol=0, atol=1e-5)
    with rl.attach_to_hf(make_hf("gpt2"), reft, tokenizer=gpt2.tokenizer) as model:
        assert not torch.allclose(hf_logits(model, batch), wanted, rtol=0, atol=1e-3)


def test_what_cannot_be_hooked_is_refused(gpt2) -> None:
    model = make_hf("gpt2")
    with pytest.raises(ValueError, match="not the input or the output of a module"):
        hf_points(model, ["blocks.1.hook_resid_mid.nowhere"])
    with pytest.raises(ValueError, match=r"cannot be hooked without a bridge|otherwise than in a bridge"):
        rl.attach_to_hf(model, edit_at("hook_resid_mid"), tokenizer=gpt2.tokenizer)
    reft = edit_at("hook_resid_post")
    tokens = rl.encode(gpt2, PROMPTS[:1]).tokens
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
        with (
            rl.attach_to_hf(model, reft, tokenizer=gpt2.tokenizer),
            pytest.raises(rl.EditError, match="filled before the edit"),
        ):
            model(tokens[:, :1], past_key_values=cache, use_cache=True)
