"""LoFiT: heads by the length of their factors, then a push on those alone."""

from __future__ import annotations

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, TEXT

import reftlens as rl
from reftlens.training.lofit import push_heads, scale_heads, strongest_heads

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


@pytest.mark.slow
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


@pytest.mark.slow
def test_with_l1_the_planted_heads_stand_out_more(gpt2) -> None:
    """A teacher scales two heads; students of its distributions, with and without the term, on the same examples."""
    planted, words = {(0, 3), (2, 0)}, TEXT.split()
    examples = [(" ".join(words[start : start + 6]), f" {words[start - 5]} {words[-start]}") for start in range(1, 13)]
    teacher = scale_heads(gpt2, positions=rl.All())

    def of(reft):
        return {(int(site.hook_name.split(".")[1]), site.head): edit.excess for site, edit in reft}

    with torch.no_grad():
        for head in planted:
            of(teacher)[head].fill_(1.5)
    elsewhere = {}
    for l1 in (0.0, 1e-3):
        scales = scale_heads(gpt2, positions=rl.All())
        config = rl.TrainConfig(epochs=25, batch_size=6, lr=3e-2, l1=l1, progress=False)
        rl.train(gpt2, scales, examples, config, objective=rl.objectives.Distillation(teacher))
        assert set(strongest_heads(scales, 2)) == planted
        size = {head: float(excess.detach().abs().sum()) for head, excess in of(scales).items()}
        elsewhere[l1] = sum(size[head] for head in size if head not in planted) / sum(size.values())
    assert elsewhere[1e-3] < 0.7 * elsewhere[0.0], elsewhere


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda b: strongest_heads(scale_heads(b, positions="l1"), 0), r"\[1, 12\]"),
        (lambda b: strongest_heads(scale_heads(b, positions="l1"), 13), r"\[1, 12\]"),
        (lambda b: strongest_heads(push_heads(b, [(0, 1)], positions="l1"), 1), "as from scale_heads"),
        (lambda b: push_heads(b, [(0, 4)], positions="l1"), "head"),
        (lambda b: push_heads(b, [(9, 0)], positions="l1"), "has no hook"),
        (lambda b: push_heads(b, [], positions="l1"), "at least one"),
    ],
)
def test_heads_that_are_not_there_are_refused(gpt2, do, message) -> None:
    with pytest.raises(ValueError, match=message):
        do(gpt2)
