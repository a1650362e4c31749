"""LoFiT: heads by the length of their factors, then a push on those alone."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS

import reftlens as rl
from reftlens.lofit import push_heads, scale_heads, strongest_heads

EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))


def logits(bridge, reft):
    batch = rl.encode(bridge, PROMPTS)
    with reft.hooks(bridge, batch):
        return bridge(batch.tokens).detach()


def test_scales_start_as_the_identity_and_cover_every_head(bridge) -> None:
    scales = scale_heads(bridge, positions=rl.All())
    assert len(scales) == 3 * 4
    assert scales.n_parameters() == 3 * 4 * 8
    assert torch.equal(logits(bridge, scales), bridge(rl.encode(bridge, PROMPTS).tokens))


def test_the_heads_with_the_longest_factors_are_chosen(bridge) -> None:
    scales = scale_heads(bridge, positions="l1")
    planted = {(1, 2): 0.9, (0, 3): -0.7, (2, 0): 0.2}
    for site, intervention in scales:
        key = (int(site.hook_name.split(".")[1]), site.head)
        with torch.no_grad():
            intervention.excess.fill_(planted.get(key, 0.01))
    assert strongest_heads(scales, 3) == [(1, 2), (0, 3), (2, 0)]


def test_the_whole_recipe_lowers_the_loss_through_the_chosen_heads_alone(gpt2) -> None:
    config = rl.TrainConfig(epochs=40, lr=2e-2, progress=False)
    scales = scale_heads(gpt2, positions=rl.All())
    log = rl.train(gpt2, scales, EXAMPLES, config)
    assert log.loss[-1] < log.loss[0]
    heads = strongest_heads(scales, 4)
    assert len(set(heads)) == 4
    pushes = push_heads(gpt2, heads, positions=rl.All())
    log = rl.train(gpt2, pushes, EXAMPLES, config)
    assert log.loss[-1] < log.loss[0] - 0.1, "the first loss is the base's: a push starts at zero"
    batch = rl.encode(gpt2, PROMPTS)
    first = min(layer for layer, _ in heads)
    with pushes.hooks(gpt2, batch):
        _, edited = gpt2.run_with_cache(batch.tokens)
    _, base = gpt2.run_with_cache(batch.tokens)
    moved = (edited[f"blocks.{first}.attn.hook_z"] - base[f"blocks.{first}.attn.hook_z"]).abs().amax((0, 1, 3)) > 0
    assert moved.nonzero().flatten().tolist() == sorted(head for layer, head in heads if layer == first)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda b: strongest_heads(scale_heads(b, positions="l1"), 0), r"\[1, 12\]"),
        (lambda b: strongest_heads(scale_heads(b, positions="l1"), 13), r"\[1, 12\]"),
        (lambda b: strongest_heads(push_heads(b, [(0, 1)], positions="l1"), 1), "as scale_heads makes them"),
        (lambda b: push_heads(b, [(0, 4)], positions="l1"), "head"),
        (lambda b: push_heads(b, [(9, 0)], positions="l1"), "has no hook"),
        (lambda b: push_heads(b, [], positions="l1"), "at least one"),
    ],
)
def test_heads_that_are_not_there_are_refused(gpt2, do, message) -> None:
    with pytest.raises(ValueError, match=message):
        do(gpt2)
