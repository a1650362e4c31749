"""What a dissection will cost: forward passes counted from its budgets, and one of them timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.dose import ALPHAS
from reftlens.data import encode
from reftlens.dissection.result import DissectConfig
from reftlens.edit.reft import Reft

BACKWARD = 2.0
"""A backward pass, in forward passes."""
N_CONTROL = 2
"""Turns of the edit that the dose curve is compared with."""
READ_OUT = 8
"""Prompts whose last residuals the write directions are added to."""


@final
@dataclass(frozen=True)
class Cost:
    """An estimate, in forward passes of one batch."""

    passes: float
    """Over whole batches; backward passes count twice, retraining included."""
    readout_vectors: int
    """Residuals read through the unembedding."""
    seconds: float
    """On this machine, from one timed batch: right within a factor of two or so."""
    bytes_held: int
    """Largest set of tensors held at once, beside the model and one batch: covariances, and gradients to find what is read."""

    def __str__(self) -> str:
        return (
            f"about {self.passes:,.0f} forward passes of one batch and {self.readout_vectors:,} readouts: "
            f"{self.seconds:,.0f} s on this machine, {self.bytes_held / 2**20:,.1f} MiB held"
        )


@torch.no_grad()
def estimate_cost(
    bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], config: DissectConfig = DissectConfig()
) -> Cost:
    """What `dissect` with these arguments will take; runs two forward passes.

    Args:
        bridge: the base.
        reft: the edit.
        examples: as for `dissect`.
        config: as for `dissect`.
    """
    n = min(len(examples), config.max_examples)
    batches = -(-n // config.batch_size)
    pair_batches = -(-min(config.n_pairs, n) // config.batch_size)
    width = max(intervention.d_model for _, intervention in reft)
    sites = len(reft)
    gradients = 2 * width / min(config.n_pairs, config.batch_size, n)
    passes = float(batches * (4 + 2 + 1 + 1))  # base and outcomes, decompositions, contexts, one vector for each prompt
    passes += batches * (1 + N_CONTROL) * (len(ALPHAS) + 1 + BACKWARD)
    passes += 5 / 3 * batches
    passes += sites * (pair_batches * (9 + 2 * config.n_random) + gradients * BACKWARD)
    if config.retrain is not None:
        steps = -(-len(examples) // config.retrain.batch_size) * config.retrain.epochs
        # Twice a pass of the example batch for the backward part, and the comparison of every pair.
        share = config.retrain.batch_size / config.batch_size
        passes += (len(config.seeds) + config.n_null_edits) * (steps * share * (1 + BACKWARD) + 6 * batches)
    prompts = [prompt for prompt, _ in examples[: config.batch_size]]
    batch = encode(bridge, prompts)
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        taken.append(time.perf_counter() - start)
    vectors = sites * config.directions * READ_OUT * (config.n_null + 1)
    # The unembedding alone: its share of a pass's multiplications, for this many vectors.
    unembed = logits.shape[-1] * bridge.cfg.d_model
    whole = sum(p.numel() for p in bridge.original_model.parameters())
    readout = vectors / batch.tokens.numel() * unembed / max(whole, unembed)
    held = 8 * width**2 * (2 * sites + 1) + 8 * 2 * width**2
    return Cost(passes + readout, vectors, (passes + readout) * min(taken), held)
