"""The memory that is counted, on work whose memory is known."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import nn

import reftlens as rl
from reftlens.cone.shared import shared
from reftlens.paper.baselines import PeakMemory

MIB = 2**20
PROMPTS = ["The " + " ".join(words) for words in permutations(("tower", "weaver", "city", "mill", "river"))]
"""All of one length."""


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


@pytest.mark.parametrize("question", ["dose", pytest.param("agreement", marks=pytest.mark.slow)])
def test_more_prompts_take_no_more_memory(gpt2, make_reft, question) -> None:
    """Base runs are kept up to a limit, and the prompts go through in groups."""
    reft, other = make_reft(positions="l1"), make_reft(positions="l1")

    def ask(n: int) -> None:
        if question == "dose":
            examples = [(prompt, " Ostra") for prompt in PROMPTS[:n]]
            rl.analysis.dose(gpt2, reft, examples, kept=PROMPTS[-n:], alphas=(1.0,), n_control=1, batch_size=4)
        else:
            batches = [rl.encode(gpt2, PROMPTS[start : start + 4]) for start in range(0, n, 4)]
            rl.analysis.agreement(gpt2, {"a": reft, "b": other}, batches, n_null=1, n_probes=0)

    def peak(n: int) -> int:
        with PeakMemory() as memory, shared(gpt2, memory_bytes=2**12):
            ask(n)
        return memory.peak

    ask(4)  # what is proved of a model is proved once
    assert peak(12) < 1.1 * peak(4)
