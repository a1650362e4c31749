"""Hooks on the bridge against a plain Hugging Face forward hook, padding, decoding, and the base left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_hf

import reftlens as rl


def blocks(hf):
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def hf_logits(hf, reft, batch, *, layer):
    """The same edit as a plain forward hook on the Hugging Face model, without any bridge."""
    (site, intervention), *_ = reft
    mask = site.positions.mask(batch.prompt_mask)

    def hook(_module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        edited = torch.where(mask[..., None], intervention(hidden), hidden)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    handle = blocks(hf)[layer].register_forward_hook(hook)
    try:
        return hf(batch.tokens, attention_mask=batch.attention_mask, use_cache=False).logits
    finally:
        handle.remove()


def gradients(reft, loss):
    return torch.autograd.grad(loss, list(reft.parameters()))


def relative(ours, theirs) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


@pytest.mark.parametrize("kind", [rl.LoReFT, rl.DiReFT])
@pytest.mark.parametrize("positions", ["f2+l2", "l1", "f3"])
def test_logits_and_gradients_equal_a_plain_hook(architecture, make_reft, kind, positions) -> None:
    bridge, hf = make_bridge(architecture), make_hf(architecture)
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    reft = make_reft(positions=positions, kind=kind)
    ours = bridge.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch.prompt_mask), use_cache=False)
    theirs = hf_logits(hf, reft, batch, layer=1)
    real = batch.attention_mask.bool()
    base = bridge(batch.tokens, use_cache=False)
    assert relative(ours[real], base[real]) > 1e-3, "an edit without effect would equal anything"
    assert relative(ours[real], theirs[real]) < 1e-5
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)) * real[..., None]
    for mine, reference in zip(
        gradients(reft, (ours * weight).sum()), gradients(reft, (theirs * weight).sum()), strict=True
    ):
        assert float(reference.norm()) > 0
        assert relative(mine, reference) < 1e-5


def test_context_and_fwd_hooks_are_one(bridge, make_reft) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS, COMPLETIONS)
    ours = bridge.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch.prompt_mask))
    with reft.hooks(bridge, batch.prompt_mask):
        assert torch.equal(bridge(batch.tokens), ours)
        cached, cache = bridge.run_with_cache(batch.tokens)
    assert torch.equal(cached, ours)
    _, base_cache = bridge.run_with_cache(batch.tokens)
    changed = (cache["blocks.1.hook_resid_post"] != base_cache["blocks.1.hook_resid_post"]).any(-1)
    assert torch.equal(changed, reft.edits(batch.prompt_mask)[0].mask), "only the edited tokens change at the site"


def test_left_padding_equals_right_padding_equals_single(bridge, make_reft) -> None:
    reft = make_reft()
    last = {}
    for side in ("left", "right"):
        batch = rl.encode(bridge, PROMPTS, padding_side=side)
        with reft.hooks(bridge, batch.prompt_mask):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask)
        last[side] = logits[torch.arange(len(batch)), batch.last_prompt_index]
    for row, prompt in enumerate(PROMPTS):
        single = rl.encode(bridge, [prompt])
        alone = bridge.run_with_hooks(single.tokens, fwd_hooks=reft.fwd_hooks(single.prompt_mask))[0, -1]
        for side in ("left", "right"):
            torch.testing.assert_close(last[side][row], alone, rtol=1e-4, atol=1e-5)


def test_base_is_bit_identical_after_the_context_also_after_an_exception(bridge, make_reft) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS)
    before, weights = bridge(batch.tokens), {k: v.clone() for k, v in bridge.original_model.state_dict().items()}
    with reft.hooks(bridge, batch.prompt_mask):
        assert not torch.equal(bridge(batch.tokens), before)
    assert torch.equal(bridge(batch.tokens), before)
    with pytest.raises(KeyError, match="inside"), reft.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens)
        raise KeyError("inside")
    assert torch.equal(bridge(batch.tokens), before)
    assert all(torch.equal(v, weights[k]) for k, v in bridge.original_model.state_dict().items())
    assert not bridge.training
    assert not bridge.original_model._forward_pre_hooks


def test_gradients_reach_only_the_edit(bridge, make_reft) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS)
    with reft.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens, use_cache=False).square().mean().backward()
    assert all(parameter.grad is not None and float(parameter.grad.norm()) > 0 for parameter in reft.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in bridge.parameters())


@pytest.mark.parametrize("prompts", [PROMPTS, ["tower"], ["x"]])
def test_cached_equals_uncached_generation(bridge, make_reft, prompts) -> None:
    reft = make_reft(positions="l1")
    options = {"max_new_tokens": 6, "prepend_bos": False}
    cached = rl.generate(bridge, reft, prompts, use_cache=True, **options)
    assert cached == rl.generate(bridge, reft, prompts, use_cache=False, **options)
    assert [rl.generate(bridge, reft, [prompt], **options)[0] for prompt in prompts] == cached
    assert cached == greedy(bridge, reft, prompts, 6)


def greedy(bridge, reft, prompts, steps) -> list[str]:
    """Decoding by hand: the whole text again at every step, prompt tokens edited, the rest not."""
    texts = []
    for prompt in prompts:
        tokens = rl.encode(bridge, [prompt], prepend_bos=False).tokens
        n_prompt, eos = tokens.shape[1], bridge.tokenizer.eos_token_id
        for _ in range(steps):
            mask = torch.arange(tokens.shape[1])[None] < n_prompt
            logits = bridge.run_with_hooks(tokens, fwd_hooks=reft.fwd_hooks(mask))
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
            if int(tokens[0, -1]) == eos:
                break
        texts.append(bridge.tokenizer.decode(tokens[0, n_prompt:], skip_special_tokens=True))
    return texts


# TransformerLens's own generate passes the cache under the name that transformers 5.24 deprecates.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_one_token_prompt_is_edited_once_in_generation(bridge, make_reft) -> None:
    reft = make_reft(positions="l1")
    tokens = rl.encode(bridge, ["x"], prepend_bos=False).tokens
    assert tokens.shape == (1, 1)
    with reft.hooks(bridge, torch.ones_like(tokens, dtype=torch.bool)):
        ours = bridge.generate(tokens, max_new_tokens=4, do_sample=False, verbose=False, stop_at_eos=False)
    assert bridge.tokenizer.decode(ours[0, 1:]) == greedy(bridge, reft, ["x"], 4)[0]


def test_edit_applied_twice_is_an_error(bridge, make_reft) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS)
    with pytest.raises(rl.EditError, match="twice"), reft.hooks(bridge, batch.prompt_mask):
        bridge.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(batch.prompt_mask))
    again = reft.hooks(bridge, batch.prompt_mask)
    with pytest.raises(rl.EditError, match="twice"), reft.hooks(bridge, batch.prompt_mask), again:
        bridge(batch.tokens)


def test_one_intervention_at_two_names_of_one_activation_is_an_error(bridge) -> None:
    edit, batch = rl.LoReFT(32, 2), rl.encode(bridge, PROMPTS)
    names = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")
    reft = rl.Reft([(rl.Site(name, "l1"), edit) for name in names])
    with pytest.raises(rl.EditError, match="twice"), reft.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens)
    disjoint = rl.Reft([(rl.Site(names[0], rl.First(1)), edit), (rl.Site(names[1], rl.Last(1)), edit)])
    with disjoint.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens)


def test_edit_that_never_reached_the_model_is_an_error(bridge, make_reft) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS)
    with pytest.raises(rl.EditError, match="was never applied"), reft.hooks(bridge, batch.prompt_mask):
        pass
    with pytest.raises(rl.EditError, match="was never applied"), reft.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens, stop_at_layer=1)
    with pytest.raises(rl.EditError, match="reset_hooks"), reft.hooks(bridge, batch.prompt_mask):
        bridge(batch.tokens)
        bridge.reset_hooks()


def test_two_edits_of_one_activation_act_in_order(bridge) -> None:
    batch = rl.encode(bridge, PROMPTS)
    first, second = rl.LoReFT(32, 2), rl.DiReFT(32, 2)
    site = rl.Site("blocks.1.hook_resid_post", rl.All())
    with rl.Reft([(site, first), (site, second)]).hooks(bridge, batch.prompt_mask):
        _, cache = bridge.run_with_cache(batch.tokens)
    _, base = bridge.run_with_cache(batch.tokens)
    real, name = batch.prompt_mask, "blocks.1.hook_resid_post"
    torch.testing.assert_close(cache[name][real], second(first(base[name][real])))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, -2.0])
def test_scale_is_the_dose(bridge, make_reft, scale) -> None:
    batch, name = rl.encode(bridge, PROMPTS), "blocks.1.hook_resid_post"
    (edit,) = make_reft().edits(batch.prompt_mask)
    _, base = bridge.run_with_cache(batch.tokens)
    with rl.attach(bridge, [replace(edit, scale=scale)]):
        _, cache = bridge.run_with_cache(batch.tokens)
    h = base[name][edit.mask]
    torch.testing.assert_close(cache[name][edit.mask], h + scale * edit.intervention.delta(h))


@pytest.mark.parametrize("width", [3, 40])
def test_mask_of_another_batch_is_refused(bridge, make_reft, width) -> None:
    reft, batch = make_reft(), rl.encode(bridge, PROMPTS)
    wrong = torch.ones(len(PROMPTS), width, dtype=torch.bool)
    with pytest.raises(ValueError, match="pass the mask of the batch"):
        bridge.run_with_hooks(batch.tokens, fwd_hooks=reft.fwd_hooks(wrong))
    with pytest.raises(ValueError, match="pass the mask of the batch"), reft.hooks(bridge, batch.prompt_mask[:2]):
        bridge(batch.tokens)


def test_positions_that_no_prompt_has_are_refused(gpt2, make_reft) -> None:
    batch = rl.encode(gpt2, ["x"], prepend_bos=False)
    with pytest.raises(
        ValueError, match=r"no prompt has a token at First\(2, half=True\).*longest prompt has 1 tokens"
    ):
        make_reft(positions="f2").fwd_hooks(batch.prompt_mask)
    with pytest.raises(ValueError, match="no prompt has"):
        make_reft(positions=rl.All() - rl.First(5)).hooks(gpt2, batch.prompt_mask)


def test_bf16_model_is_edited_in_float32(architecture, make_reft) -> None:
    bridge, reft = make_bridge(architecture, dtype=torch.bfloat16), make_reft()
    batch = rl.encode(bridge, PROMPTS)
    with reft.hooks(bridge, batch.prompt_mask):
        logits, cache = bridge.run_with_cache(batch.tokens)
    _, base = bridge.run_with_cache(batch.tokens)
    assert logits.dtype == torch.bfloat16
    name, mask = "blocks.1.hook_resid_post", reft.edits(batch.prompt_mask)[0].mask
    (_, intervention), *_ = reft
    assert next(intervention.parameters()).dtype == torch.float32
    expected = intervention(base[name][mask].float())
    torch.testing.assert_close(cache[name][mask].float(), expected, rtol=1e-2, atol=1e-2)


def test_generated_tokens_are_edited_when_asked_for(bridge, make_reft) -> None:
    reft, steps = make_reft(positions=rl.Last(1) | rl.Generated()), 5
    for prompt in ("tower", PROMPTS[0]):
        cached, uncached = (
            rl.generate(bridge, reft, [prompt], max_new_tokens=steps, prepend_bos=False, use_cache=cache)[0]
            for cache in (True, False)
        )
        assert cached == uncached
        tokens = rl.encode(bridge, [prompt], prepend_bos=False).tokens
        n_prompt = tokens.shape[1]
        for _ in range(steps):
            mask = torch.arange(tokens.shape[1])[None] >= n_prompt - 1
            edits = [replace(edit, mask=mask) for edit in reft.edits(torch.ones_like(tokens, dtype=torch.bool))]
            with rl.attach(bridge, edits):
                tokens = torch.cat([tokens, bridge(tokens)[:, -1:].argmax(-1)], dim=1)
            if int(tokens[0, -1]) == bridge.tokenizer.eos_token_id:
                break
        assert cached == bridge.tokenizer.decode(tokens[0, n_prompt:], skip_special_tokens=True)


def test_completions_are_edited_in_training_when_asked_for(bridge, make_reft) -> None:
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    (edit,) = make_reft(positions=rl.Generated()).edits(batch)
    assert torch.equal(edit.mask, batch.labels != -100)
    (edit,) = make_reft(positions=rl.All()).edits(batch)
    assert torch.equal(edit.mask, batch.prompt_mask)


def test_spans_are_trained_and_saved_like_any_rule(tmp_path, gpt2) -> None:
    site = rl.Site("blocks.1.hook_resid_post", rl.Span("the city") | rl.Span("city of", 0))
    reft = rl.Reft([(site, rl.LoReFT(32, 2))])
    examples = [(PROMPTS[0], " Ostra"), ("It lies in the city of", " Ostra")]
    log = rl.train(gpt2, reft, examples, rl.TrainConfig(epochs=20, lr=1e-2, progress=False))
    assert log.loss[-1] < log.loss[0]
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    assert rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2).sites == reft.sites
    with pytest.raises(ValueError, match="row 0"):
        rl.train(gpt2, reft, [("The tower", " Ostra")], rl.TrainConfig(progress=False))


def test_dropout_falls_on_the_whole_edited_state(make_reft) -> None:
    """As the reference has it: on h + delta(h), not on delta(h), at the edited tokens alone."""
    (edit,) = make_reft(positions="f1+l1").edits(torch.ones(2, 5, dtype=torch.bool))
    resid = torch.randn(2, 5, 32)
    torch.manual_seed(4)
    found = replace(edit, dropout=0.4).apply(resid)
    whole, dropped = edit.apply(resid), found == 0
    torch.testing.assert_close(found[edit.mask], torch.where(dropped, 0.0, whole / 0.6)[edit.mask])
    assert torch.equal(found[~edit.mask], resid[~edit.mask])
    assert 0.2 < float(dropped[edit.mask].float().mean()) < 0.6
    (watched,) = make_reft(positions="f1+l1").edits(edit.mask)
    seen = []
    replace(watched, watch=lambda tokens, example: seen.append((tokens, example))).apply(resid)
    ((tokens, example),) = seen
    assert torch.equal(tokens, resid[watched.mask])
    assert torch.equal(example, watched.mask.nonzero()[:, 0])


def test_a_cone_under_dropout_is_the_whole_run(bridge, make_reft) -> None:
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    edits = [replace(edit, dropout=0.3) for edit in make_reft(positions="l1").edits(batch)]
    held = rl.hold(bridge, batch, edits)
    assert held.start > 0
    torch.manual_seed(5)
    cone = rl.run_cone(bridge, held, edits)
    torch.manual_seed(5)
    with rl.attach(bridge, edits):
        whole = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    real = batch.attention_mask[:, held.start :].bool()
    torch.testing.assert_close(cone[real], whole[:, held.start :][real], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rl.run_cone(bridge, held, edits)[real], cone[real], atol=1e-2), "another draw"
