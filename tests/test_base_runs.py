"""Held base runs: joined batches against whole runs, and training on cones against training on everything."""

from __future__ import annotations

import pytest
import torch
from architectures import CAUSAL, others_slow
from conftest import COMPLETIONS, PROMPTS, make_bridge

import reftlens as rl
from reftlens.cone.hold import hold, run_cone
from reftlens.cone.store import InMemory
from reftlens.training.base_runs import BaseRuns, join
from reftlens.training.objectives import Completion, completion_loss

EXAMPLES = [
    *zip(PROMPTS, COMPLETIONS, strict=True),
    ("tower of the city , old", " river"),
    ("In the old tower", " Ostra , and"),
]


def base_runs(bridge, reft, max_bytes=2**20):
    return BaseRuns(bridge, reft, Completion(), EXAMPLES, store=InMemory(max_bytes))


def make(bridge, positions, layers=(1,), seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sites = [rl.Site(f"blocks.{layer}.hook_resid_post", positions) for layer in layers]
        return rl.Reft([(site, rl.LoReFT(32, 2)) for site in sites])


@pytest.mark.sampled(10)
@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize(
    "positions", ["l1", rl.First(1), rl.Span("e", 0), rl.Generated(), rl.Last(2) | rl.Generated()], ids=repr
)
def test_joined_cones_equal_whole_runs(architecture, positions, layer) -> None:
    bridge = make_bridge(architecture)
    bridge.cfg.default_prepend_bos = False
    reft = make(bridge, positions, (layer,))
    held, _ = base_runs(bridge, reft).batch(range(len(EXAMPLES)))
    logits = run_cone(bridge, held, reft.edits(held.batch))
    ours = completion_loss(logits, held.batch.labels[:, held.start :])
    whole = rl.encode(bridge, *map(list, zip(*EXAMPLES, strict=True)))
    with reft.hooks(bridge, whole):
        theirs = completion_loss(bridge(whole.tokens, attention_mask=whole.attention_mask), whole.labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, reference in zip(
        *(torch.autograd.grad(loss, list(reft.parameters())) for loss in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-5)


def test_spans_begin_at_different_columns() -> None:
    """What the test above stands on: one cone begins at its first column, others later."""
    bridge = make_bridge("gpt2")
    bridge.cfg.default_prepend_bos = False
    reft = make(bridge, rl.Span("e", 0))
    runs = base_runs(bridge, reft)
    starts = {runs.batch([row])[0].start for row in range(len(EXAMPLES))}
    assert starts == {0, 2}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("architecture", others_slow(CAUSAL))
@pytest.mark.parametrize(("positions", "layers"), [("l1", (1,)), pytest.param("f1+l1", (0, 2), marks=pytest.mark.slow)])
def test_training_on_cones_ends_where_training_on_everything_does(architecture, positions, layers) -> None:
    bridge = make_bridge(architecture)
    reft, twin = make(bridge, positions, layers), make(bridge, positions, layers)
    steps, lr = 50, 2e-3
    config = rl.TrainConfig(epochs=steps, batch_size=len(EXAMPLES), lr=lr, schedule="constant", progress=False)
    rl.train(bridge, reft, EXAMPLES, config)
    batch = rl.encode(bridge, *map(list, zip(*EXAMPLES, strict=True)))
    optimiser = torch.optim.AdamW(twin.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        with twin.hooks(bridge, batch):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        completion_loss(logits, batch.labels).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimiser.step()
    start = make(bridge, positions, layers)
    for ours, theirs, before in zip(reft.parameters(), twin.parameters(), start.parameters(), strict=True):
        moved = float((theirs - before).detach().norm())
        assert moved > 0.01, "training that moves nothing would end anywhere"
        assert float((ours - theirs).detach().abs().max()) < 1e-5


def test_a_budget_changes_memory_and_nothing_else(gpt2) -> None:
    runs = base_runs(gpt2, make(gpt2, "l1"), 6000)
    for _ in range(2):
        runs.batch(range(len(EXAMPLES)))
    assert 0 < runs.store.n_bytes <= 6000
    whole = base_runs(gpt2, make(gpt2, "l1"))
    whole.batch(range(len(EXAMPLES)))
    assert whole.store.n_bytes > 6000, "the budget above is too large to prove anything"
    results = []
    for hold_bytes in (0, 6000, 2**30):
        reft = make(gpt2, "l1")
        log = rl.train(
            gpt2, reft, EXAMPLES, rl.TrainConfig(epochs=3, batch_size=2, hold_bytes=hold_bytes, progress=False)
        )
        results.append((log.loss, [p.detach().clone() for p in reft.parameters()]))
    for loss, parameters in results[1:]:
        assert loss == results[0][0]
        assert all(torch.equal(a, b) for a, b in zip(parameters, results[0][1], strict=True))


def test_only_one_layout_can_be_joined(gpt2) -> None:
    batch = rl.encode(gpt2, PROMPTS[:1], COMPLETIONS[:1])
    helds = [hold(gpt2, batch, make(gpt2, "l1", (layer,)).edits(batch)) for layer in (0, 2)]
    with pytest.raises(ValueError, match=r"begin after the same block, got blocks \[0, 2\]"):
        join(helds)
