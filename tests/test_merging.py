"""Constant edits in the weights: a plain Hugging Face model with the merged biases against the bridge with hooks."""

from __future__ import annotations

import pytest
import torch
from architectures import make_hf
from conftest import make_bridge, make_edit

import reftlens as rl

EVERYWHERE = rl.All() | rl.Generated()
POST = "blocks.1.hook_resid_post"


def one(kind=rl.LobiReFT, hook: str = POST, rule=EVERYWHERE) -> rl.Reft:
    return rl.Reft([(rl.Site(hook, rule), make_edit(kind))])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("hook", ["hook_resid_post", "hook_mlp_out", "hook_attn_out"])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "phi"])
@torch.no_grad()
def test_a_merged_model_is_the_edited_one(architecture, hook) -> None:
    bridge = make_bridge(architecture)
    before = {name: tensor.clone() for name, tensor in bridge.original_model.state_dict().items()}
    pairs = [
        (rl.Site(f"blocks.1.{hook}", EVERYWHERE), make_edit(rl.LobiReFT)),
        (rl.Site(f"blocks.1.{hook}", EVERYWHERE), make_edit(rl.SteeringVector)),
        (rl.Site("blocks.2.hook_mlp_out", EVERYWHERE), make_edit(rl.LobiReFT, seed=5)),
    ]
    reft = rl.Reft(pairs, names=["a", "b", "c"], scales={"b": -0.5})
    merged = rl.merge(bridge, reft)
    assert len(merged) == 2
    model = make_hf(architecture)
    base_keys = set(model.state_dict())
    assert set(merged) <= base_keys
    assert model.load_state_dict(merged, strict=False).unexpected_keys == []
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    # A prompt of three tokens: the rest counts as generated.
    prompt = torch.arange(9).expand(2, 9) < 3
    with reft.hooks(bridge, prompt[:, :3]):
        edited = bridge(ids)
    torch.testing.assert_close(model(input_ids=ids).logits, edited, rtol=0, atol=2e-5)
    assert float((make_hf(architecture)(input_ids=ids).logits - edited).abs().max()) > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in bridge.original_model.state_dict().items())


def test_bert_has_a_norm_behind_its_mlp() -> None:
    bridge = make_bridge("bert")
    merged = rl.merge(bridge, one(hook="blocks.1.hook_mlp_out"))
    assert list(merged) == ["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(
        ValueError,
        match=r"another operation, such as a norm, lies between blocks\.1\.mlp\.out\.hook_out and that point",
    ):
        rl.merge(bridge, one())


@pytest.mark.parametrize(
    ("architecture", "reft", "message"),
    [
        ("gpt2", lambda: one(rl.LoReFT), "the change of LoReFT depends on the activation, but a bias is constant"),
        ("gpt2", lambda: one(rl.RED), "the change of RED depends on the activation"),
        ("gpt2", lambda: one(rl.ReFTr1), "cannot be merged: ReFT-r1 is not of the form"),
        ("gpt2", lambda: one(rule=rl.All()), "including generated ones, so the positions must be All"),
        ("gpt2", lambda: one(rule=rl.parse("f5+l5")), "a bias is added at every token"),
        ("gpt2", lambda: one(hook="blocks.1.hook_resid_mid"), "blocks.1.hook_resid_mid is not the output of a linear map"),
        ("gpt2", lambda: one(hook="blocks.1.attn.hook_z"), "blocks.1.attn.hook_z is not the output of a linear map"),
        ("llama", lambda: one(), "blocks.1.mlp.out of LlamaForCausalLM has no bias to merge the edit into: keep the edit as a hook"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_says_why(architecture, reft, message) -> None:
    with pytest.raises(ValueError, match=message):
        rl.merge(make_bridge(architecture), reft())


def test_compatibility_mode_is_refused() -> None:
    bridge = make_bridge("gpt2")
    bridge.enable_compatibility_mode()
    with pytest.raises(ValueError, match="compatibility mode has changed the weights"):
        rl.merge(bridge, one())
