"""Edits of one head, of all heads together and of MLP neurons, against plain hooks on Hugging Face's own linear layers."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from architectures import D_HEAD, D_MLP, N_HEADS, N_KV_HEADS, make_hf
from conftest import PROMPTS, make_bridge

import reftlens as rl
from reftlens.bridge import activation_shape, width_of


def relative(ours, theirs) -> float:
    return float((ours - theirs).detach().norm() / theirs.detach().norm())


def by_hand(reft, batch, *, linear: str, before: bool):
    """Llama's logits with one linear layer's input or output edited, one head of it if the site says so."""
    hf = make_hf("llama")
    (site, intervention), *_ = reft
    mask = site.positions.mask(batch.prompt_mask)[..., None]

    def edit(flat):
        if site.head is None:
            return torch.where(mask, intervention(flat), flat)
        heads = list(flat.split(D_HEAD, dim=-1))
        heads[site.head] = torch.where(mask, intervention(heads[site.head]), heads[site.head])
        return torch.cat(heads, dim=-1)

    module = hf.get_submodule(f"model.layers.1.{linear}")
    if before:
        module.register_forward_pre_hook(lambda _module, args: (edit(args[0]),))
    else:
        module.register_forward_hook(lambda _module, _args, output: edit(output))
    return hf(batch.tokens, attention_mask=batch.attention_mask, use_cache=False).logits


@pytest.mark.parametrize(
    ("hook", "heads", "linear", "before"),
    [
        ("attn.hook_z", N_HEADS, "self_attn.o_proj", True),
        ("attn.hook_q", N_HEADS, "self_attn.q_proj", False),
        ("attn.hook_k", N_KV_HEADS, "self_attn.k_proj", False),
        ("attn.hook_v", N_KV_HEADS, "self_attn.v_proj", False),
        ("mlp.hook_post", None, "mlp.down_proj", True),
        ("hook_attn_out", None, "self_attn.o_proj", False),
    ],
)
def test_logits_and_gradients_equal_a_hook_on_the_linear_layer(hook, heads, linear, before) -> None:
    bridge = make_bridge("llama")
    batch = rl.encode(bridge, PROMPTS)
    real = batch.prompt_mask
    for head in [None] if heads is None else [None, 0, heads - 1]:
        torch.manual_seed(0)
        reft = rl.Reft.at_layers(bridge, layers=[1], positions="f3+l3", rank=3, hook=hook, head=head)
        with reft.hooks(bridge, batch.prompt_mask):
            ours = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)[real]
        theirs = by_hand(reft, batch, linear=linear, before=before)[real]
        assert relative(bridge(batch.tokens)[real], theirs) > 1e-3
        assert relative(ours, theirs) < 1e-5
        for mine, reference in zip(
            torch.autograd.grad(ours.square().sum(), list(reft.parameters())),
            torch.autograd.grad(theirs.square().sum(), list(reft.parameters())),
            strict=True,
        ):
            assert relative(mine, reference) < 1e-5


def test_widths_and_shapes_are_those_of_the_model() -> None:
    bridge = make_bridge("llama")
    assert activation_shape(bridge, "blocks.0.attn.hook_k") == (N_KV_HEADS, D_HEAD)
    assert width_of(bridge, "blocks.0.attn.hook_k") == N_KV_HEADS * D_HEAD
    assert width_of(bridge, "blocks.0.attn.hook_z", head=3) == D_HEAD
    assert width_of(bridge, "blocks.0.mlp.hook_post") == D_MLP
    assert width_of(bridge, "blocks.0.hook_resid_mid") == 32
    with pytest.raises(ValueError, match=r"head 2 does not exist: blocks\.0\.attn\.hook_k has heads 0 to 1"):
        width_of(bridge, "blocks.0.attn.hook_k", head=2)
    with pytest.raises(ValueError, match=r"hook_resid_post has no heads.*leave out head=0"):
        rl.Reft.at_layers(bridge, layers=[0], positions="l1", rank=2, head=0)


@pytest.mark.parametrize("head", [-1, 1.0, True, "0"])
def test_a_head_is_an_index(head) -> None:
    make = inspect.unwrap(rl.Site.__init__)
    with pytest.raises(ValueError, match="index of a head"):
        make(object.__new__(rl.Site), "blocks.0.attn.hook_z", "l1", head)


@pytest.mark.parametrize(
    ("hook", "head", "width", "message"),
    [
        (
            "attn.hook_z",
            None,
            8,
            r"width 8 and needs activations \[batch, pos, 8\], got \[3, \d+, 4, 8\]. Without a head",
        ),
        ("attn.hook_z", 4, 8, r"\[batch, pos, head, 8\] with head 4, got \[3, \d+, 4, 8\]"),
        ("attn.hook_z", 0, 32, r"\[batch, pos, head, 32\] with head 0"),
        ("hook_resid_post", 0, 32, r"\[batch, pos, head, 32\] with head 0, got \[3, \d+, 32\]"),
    ],
)
def test_a_width_that_does_not_fit_is_refused(gpt2, hook, head, width, message) -> None:
    reft = rl.Reft([(rl.Site(f"blocks.1.{hook}", "l1", head), rl.LoReFT(width, 2))])
    batch = rl.encode(gpt2, PROMPTS)
    with pytest.raises(ValueError, match=message), reft.hooks(gpt2, batch.prompt_mask):
        gpt2(batch.tokens)


def test_heads_are_saved_and_loaded(gpt2, tmp_path) -> None:
    reft = rl.Reft.at_layers(gpt2, layers=[0, 2], positions="f1+l1", rank=2, hook="attn.hook_z", head=3)
    assert "head 3" in repr(reft)
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert again.sites == reft.sites
    assert [site.head for site in again.sites] == [3, 3]
    batch = rl.encode(gpt2, PROMPTS)
    logits = [gpt2.run_with_hooks(batch.tokens, fwd_hooks=r.fwd_hooks(batch.prompt_mask)) for r in (reft, again)]
    assert torch.equal(*logits)
    config = json.loads((tmp_path / "edit" / "reft_config.json").read_text())
    config["sites"][0]["head"] = -1
    (tmp_path / "edit" / "reft_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="damaged"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


def test_one_intervention_may_edit_two_heads_but_not_one_twice(gpt2) -> None:
    edit, batch = rl.LoReFT(8, 2), rl.encode(gpt2, PROMPTS)

    def logits(*heads):
        reft = rl.Reft([(rl.Site("blocks.1.attn.hook_z", "l1", head), edit) for head in heads])
        with reft.hooks(gpt2, batch.prompt_mask):
            return gpt2(batch.tokens)

    assert not torch.equal(logits(0, 1), logits(0))
    with pytest.raises(rl.EditError, match="twice"):
        logits(0, 0)


def test_checks_tell_what_does_not_hold(gpt2) -> None:
    frozen = rl.LoReFT(32, 2).requires_grad_(False)
    reft = rl.Reft(
        [
            (rl.Site("blocks.1.hook_resid_post", "l1"), rl.LoReFT(32, 2)),
            (rl.Site("blocks.1.attn.hook_pattern", "l1"), rl.LoReFT(32, 2)),
            (rl.Site("blocks.1.attn.hook_z", "l1", 1), rl.LoReFT(9, 2)),
            (rl.Site("blocks.0.hook_resid_post", "l1"), frozen),
        ]
    )
    checks = rl.check_sites(gpt2, reft)
    assert [check.holds for check in checks.sites] == [True, False, False, False]
    assert not checks.holds
    frame = checks.to_dataframe()
    assert list(frame["fired"]) == [1, 0, 0, 1]
    assert "position, not a direction" in frame["refused"][1]
    assert "width 9" in frame["refused"][2]
    assert frame["gradient"][3] == 0
    assert not gpt2.original_model._forward_pre_hooks


def test_measuring_a_point_leaves_other_hooks_alone(gpt2) -> None:
    seen = []
    with gpt2.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda resid, hook: seen.append(tuple(resid.shape)))]):
        assert width_of(gpt2, "blocks.1.hook_resid_post") == 32
        assert seen == []
        gpt2(rl.encode(gpt2, ["The tower"], prepend_bos=False).tokens)
    assert len(seen) == 1


def test_a_point_that_is_switched_on_later_is_editable_then(gpt2) -> None:
    with pytest.raises(ValueError, match="set_use_attn_result"):
        width_of(gpt2, "blocks.1.attn.hook_result")
    gpt2.set_use_attn_result(True)
    reft = rl.Reft.at_layers(gpt2, layers=[1], positions="l1", rank=2, hook="attn.hook_result", head=2)
    assert rl.check_sites(gpt2, reft).holds


def test_directions_of_a_head_are_not_read_through_the_unembedding(gpt2) -> None:
    reft = rl.Reft.at_layers(gpt2, layers=[1], positions=rl.All(), rank=2, hook="attn.hook_z", head=1)
    batch = rl.encode(gpt2, PROMPTS)
    (operator,) = rl.analysis.decompose(gpt2, reft, [batch])
    assert operator.write.shape[1] == D_HEAD
    with pytest.raises(ValueError, match=r"of width 32; those of .* have width 8"):
        rl.analysis.read_directions(gpt2, operator, batch)
