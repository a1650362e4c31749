"""The memory that is counted, on work whose memory is known."""

from __future__ import annotations

import torch
from torch import nn

import reftlens as rl
from reftlens.paper.baselines import PeakMemory

MIB = 2**20
WORDS = ("tower", "weaver", "city", "harbour", "market", "mill", "river", "garden")


def mebibytes(n: int) -> torch.Tensor:
    return torch.zeros(n * MIB // 4)


def test_it_is_the_most_alive_at_once() -> None:
    before = mebibytes(8)
    with PeakMemory() as memory:
        kept = mebibytes(2)
        for _ in range(3):
            mebibytes(3)
        before.add_(1.0)
        before.view(2, -1)
        last = kept + 1
        del kept
        mebibytes(1)
    assert memory.peak == 5 * MIB
    assert memory.alive == 2 * MIB == last.numel() * 4


def test_a_step_of_training_takes_gradients_and_two_moments() -> None:
    layer = nn.Linear(512, 512, bias=False)
    optimiser = torch.optim.AdamW(layer.parameters())
    inputs = torch.ones(1, 512)
    with PeakMemory() as memory:
        layer(inputs).sum().backward()
        optimiser.step()
    # And what AdamW puts down in between, two of the same size at most.
    assert 3 * MIB <= memory.peak <= 5 * MIB


def test_a_dissection_of_more_prompts_takes_no_more_memory(gpt2, make_reft) -> None:
    """Base runs are kept up to a limit, and the rest goes through in groups."""
    reft = make_reft(positions="l1")

    def peak(n: int) -> int:
        examples = [(f"The {WORDS[i % 8]} of {WORDS[i // 8 % 8]} {i}", " Ostra") for i in range(n)]
        config = rl.DissectConfig(batch_size=8, parts=("works", "dose"), memory_bytes=2**16, progress=False)
        with PeakMemory() as memory:
            rl.dissect(gpt2, reft, examples, config)
        return memory.peak

    peak(8)  # what is proved of a model is proved once
    assert peak(48) < 1.1 * peak(16)
