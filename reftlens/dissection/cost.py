"""What a dissection will cost: passes and light cones counted from its budgets, and one of each timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.dose import ALPHAS
from reftlens.analysis.engine.pathways import PROBES
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.data import encode
from reftlens.dissection.result import DissectConfig
from reftlens.edit.reft import Reft

BACKWARD = 2.0
"""A backward pass, in forward passes."""
N_CONTROL = 2
"""Turns of the edit that the dose curve is compared with."""
PATHWAYS = 4
"""Runs with gradients in one interchange."""
READ_OUT = 8
"""Prompts whose last residuals the write directions are added to."""


@final
@dataclass(frozen=True)
class Cost:
    """An estimate, in forward passes of one batch."""

    passes: float
    """Over whole batches; retraining included."""
    cones: float
    """Runs of the edit's light cone for one batch; backward ones count twice."""
    readout_vectors: int
    """Residuals read through the unembedding."""
    seconds: float
    """On this machine, from one timed batch of each: right within a factor of two or so."""
    bytes_held: int
    """Largest set of tensors held at once, beside the model and one batch: covariances, and gradients to find what is read."""

    def __str__(self) -> str:
        return (
            f"about {self.passes:,.0f} forward passes of one batch, {self.cones:,.0f} light cones and {self.readout_vectors:,} readouts: "
            f"{self.seconds:,.0f} s on this machine, {self.bytes_held / 2**20:,.1f} MiB held"
        )


@torch.no_grad()
def estimate_cost(
    bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], config: DissectConfig = DissectConfig()
) -> Cost:
    """What `dissect` with these arguments will take; runs three forward passes.

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
    # Base, outcomes, two decompositions, contexts twice, one vector for each prompt, the dose's base; then naturalness.
    passes = float(batches * (1 + 2 + 2 + 2 + 1 + 1)) + 5 / 3 * batches
    cones = float(batches * (2 * 3 + (1 + N_CONTROL) * (len(ALPHAS) + 1 + BACKWARD)))
    # Of each interchange, the runs of base and sources, and what the cones of swaps, pathways and gradients start from.
    passes += sites * (pair_batches * (3 + PATHWAYS) + 1)
    pathways = PATHWAYS * (1 + BACKWARD * (1 + PROBES))
    cones += sites * (pair_batches * (5 + 2 * config.n_random + pathways) + 1 + gradients * BACKWARD)
    if config.retrain is not None:
        steps = -(-len(examples) // config.retrain.batch_size) * config.retrain.epochs
        # Twice a pass of the example batch for the backward part, and the comparison of every pair.
        share = config.retrain.batch_size / config.batch_size
        passes += (len(config.seeds) + config.n_null_edits) * (steps * share * (1 + BACKWARD) + 6 * batches)
    prompts = [prompt for prompt, _ in examples[: config.batch_size]]
    batch = encode(bridge, prompts, padding_side=side_for_ends(bridge))
    edits = reft.edits(batch)
    runs = Answers(bridge, batch, edits)
    logits = runs.logits(edits)
    one_pass = _seconds(lambda: bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False))
    one_cone = _seconds(lambda: runs.logits(edits))
    vectors = sites * config.directions * READ_OUT * (config.n_null + 1)
    # The unembedding alone: its share of a pass's multiplications, for this many vectors.
    unembed = logits.shape[-1] * bridge.cfg.d_model
    whole = sum(p.numel() for p in bridge.original_model.parameters())
    readout = vectors / batch.tokens.numel() * unembed / max(whole, unembed)
    held = 8 * width**2 * (2 * sites + 1) + 8 * 2 * width**2
    return Cost(passes + readout, cones, vectors, (passes + readout) * one_pass + cones * one_cone, held)


def _seconds(run: Callable[[], object]) -> float:
    """The shorter of two."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
