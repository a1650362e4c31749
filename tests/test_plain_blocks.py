"""Blocks without the points of TransformerLens compute the same, and are used only where nothing looks inside."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, CAUSAL, others_slow
from conftest import PROMPTS, make_bridge, make_edit

import reftlens as rl
from reftlens.bridge import plain, plain_blocks_hold
from reftlens.bridge.proving import difference

COPIED = ("gpt2", "gpt_neox")
"""Their attention works on copies of the weights."""


def results(bridge, side):
    """Logits and gradients of an edit on its cone, and a patching map."""
    batch = rl.encode(bridge, PROMPTS, padding_side=side)
    edit = make_edit(rl.LoReFT).to(bridge.original_model.dtype)
    edits = rl.Reft([(rl.Site("blocks.1.hook_out", "l1"), edit)]).edits(batch)
    logits = rl.run_cone(bridge, rl.hold(bridge, batch, edits), edits, logits_at=batch.last_prompt_mask)
    (gradient,) = torch.autograd.grad(logits.square().sum(), edit.source.weight)
    return logits.detach(), gradient


@pytest.mark.parametrize("architecture", others_slow(CAUSAL))
def test_they_compute_the_same(architecture, monkeypatch) -> None:
    """In float32: no architecture with twins runs in float64."""
    bridge = make_bridge(architecture)
    assert plain_blocks_hold(bridge)
    for side in ("left", "right"):
        ours = results(bridge, side)
        with monkeypatch.context() as patched:
            patched.setattr(plain, "_plain_forward", lambda block: None)
            theirs = results(bridge, side)
        assert difference(ours[0], theirs[0]) <= 1e-5
        assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) <= 1e-5


@pytest.mark.parametrize("architecture", others_slow(ARCHITECTURES))
def test_blocks_on_copies_of_weights_and_no_others_have_no_twin(architecture) -> None:
    bridge = make_bridge(architecture)
    has = [plain._plain_forward(block) is not None for block in bridge.blocks]
    assert has == [architecture not in COPIED] * 3 or architecture not in CAUSAL


def entered(bridge, hook_names=()) -> list[int]:
    """The layers whose attention runs with its points, in a cone of the whole model."""
    batch, seen = rl.encode(bridge, PROMPTS), []
    edits = rl.Reft([(rl.Site("blocks.0.hook_in", "f1"), make_edit(rl.LoReFT))]).edits(batch)
    held = rl.hold(bridge, batch, edits)
    calls = [block.attn.__class__ for block in bridge.blocks]
    before = calls[0].forward

    def forward(self, *args, **kwargs):
        seen.append(next(layer for layer, block in enumerate(bridge.blocks) if block.attn is self))
        return before(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls[0], "forward", forward)
        with bridge.hooks(fwd_hooks=[(name, lambda value, hook: value) for name in hook_names]):
            rl.run_cone(bridge, held, edits)
    return seen


def test_a_block_keeps_its_points_where_a_hook_is_inside() -> None:
    bridge = make_bridge("llama")
    assert entered(bridge) == []
    assert entered(bridge, ["blocks.1.hook_out", "blocks.2.hook_in"]) == [], "the ends of a block are outside"
    assert entered(bridge, ["blocks.1.attn.hook_z", "blocks.2.mlp.hook_in"]) == [1, 2]
    handle = bridge.blocks[0].mlp.original_component.register_forward_hook(lambda *_: None)
    assert entered(bridge) == [0]
    handle.remove()
    assert entered(bridge) == []


def test_a_change_of_weights_reaches_them() -> None:
    bridge = make_bridge("llama")
    before = results(bridge, "right")[0]
    with torch.no_grad():
        bridge.blocks[2].mlp.out.weight.mul_(2)
    assert difference(results(bridge, "right")[0], before) > 1e-2


def test_a_model_that_computes_otherwise_is_refused(monkeypatch) -> None:
    bridge = make_bridge("llama")
    wrong = plain._plain_forward(bridge.blocks[0])
    monkeypatch.setattr(plain, "_plain_forward", lambda block: wrong)
    assert not plain._prove(bridge)
