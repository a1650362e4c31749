"""Each model proves its cone: what keys and values cannot hold is run again, and the log names the difference."""

from __future__ import annotations

import pytest
import torch
from architectures import FURTHER
from conftest import COMPLETIONS, PROMPTS, make_bridge

import reftlens as rl
from reftlens.cone.proof import parts_of
from reftlens.cone.recording import record

EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))


def edit(bridge, positions="l1"):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=[0], positions=positions, intervention=rl.LoReFT, rank=2)


def whole_loss(bridge, reft):
    """The mean over completion tokens, from one whole run of each example, without padding."""
    total, count = torch.zeros(()), 0
    for prompt, completion in EXAMPLES:
        batch = rl.encode(bridge, [prompt], [completion])
        with reft.hooks(bridge, batch):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        labels = batch.labels[0, 1:]
        total = total + torch.nn.functional.cross_entropy(logits[0, :-1], labels, reduction="sum", ignore_index=-100)
        count += int((labels != -100).sum())
    return total / count


@pytest.mark.sampled(2)
@pytest.mark.parametrize("architecture", FURTHER)
def test_training_starts_and_ends_at_the_loss_of_whole_runs(architecture) -> None:
    bridge = make_bridge(architecture)
    reft = edit(bridge)
    first = float(whole_loss(bridge, reft).detach())
    config = rl.TrainConfig(epochs=2, batch_size=3, lr=1e-2, schedule="constant", progress=False)
    log = rl.train(bridge, reft, EXAMPLES, config)
    assert abs(log.loss[0] - first) < 1e-5 * first
    again = rl.train(bridge, reft, EXAMPLES, rl.TrainConfig(epochs=1, batch_size=3, lr=1e-9, progress=False))
    with torch.no_grad():
        last = float(whole_loss(bridge, reft))
    assert abs(again.loss[0] - last) < 1e-5 * first


def recurrent(bridge) -> None:
    """Makes a block of a causal transformer add the mean of all tokens so far, as a recurrent state would."""
    block = bridge.blocks[1].original_component
    forward = block.forward

    def running(hidden_states, *args, **kwargs):
        steps = torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        output = forward(hidden_states, *args, **kwargs)
        state = hidden_states.cumsum(1) / steps
        return (output[0] + state, *output[1:]) if isinstance(output, tuple) else output + state

    block.forward = running


def test_a_model_that_disagrees_is_run_whole_and_the_log_names_the_difference_once(caplog) -> None:
    ordinary, bridge = make_bridge("gpt2"), make_bridge("gpt2")
    assert parts_of(ordinary, rl.encode(ordinary, PROMPTS)).columns
    recurrent(bridge)
    batch = rl.encode(bridge, PROMPTS, COMPLETIONS)
    reft = edit(bridge)
    for _ in range(3):
        held = rl.hold(bridge, batch, reft.edits(batch))
    assert held.start == 0
    assert caplog.text.count("cached keys and values cannot replace the tokens before a cone (logits move by") == 1
    cone = rl.run_cone(bridge, held, reft.edits(batch))
    with reft.hooks(bridge, batch):
        whole = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    real = batch.attention_mask.bool()
    torch.testing.assert_close(cone[real], whole[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mamba2", "deepseek_v3"])
def test_a_patched_cell_is_that_of_a_whole_run(architecture) -> None:
    bridge = make_bridge(architecture)
    clean, corrupted = (rl.encode(bridge, [f"The {who} stands in the city of"]) for who in ("tower", "weaver"))
    metric = rl.analysis.probability_of(bridge, clean.texts, [" Ostra"])
    found = rl.analysis.patch(bridge, clean, corrupted, metric, progress=False).values[0]
    source = record(bridge, clean).resid
    for layer in range(3):
        for pos in range(clean.tokens.shape[1]):

            def write(resid, hook, layer=layer, pos=pos):
                return torch.cat([resid[:, :pos], source[layer][:, pos : pos + 1], resid[:, pos + 1 :]], dim=1)

            with torch.no_grad():
                logits = bridge.run_with_hooks(
                    corrupted.tokens, fwd_hooks=[(f"blocks.{layer}.hook_in", write)], use_cache=False
                )
            expected = metric(logits[:, -1], torch.tensor([0]))[0]
            torch.testing.assert_close(found[layer, pos], expected, rtol=1e-4, atol=1e-9)


def test_a_token_without_an_embedding_is_named() -> None:
    bridge = make_bridge("gpt2")
    wanting = 320 - len(bridge.tokenizer)
    bridge.tokenizer.add_tokens([f"<new{number}>" for number in range(wanting + 1)])
    message = rf"beyond the model's 320 embeddings: 320 \('<new{wanting}>'\)\. Call hf_model\.resize_token"
    with pytest.raises(ValueError, match=message):
        rl.encode(bridge, [f"The <new{wanting}> tower"])
