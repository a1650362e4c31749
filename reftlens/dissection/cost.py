"""Estimates the cost of a dissection: counts passes and light cones from its budgets, and times one of each."""

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
"""Cost of a backward pass, in forward passes."""
N_CONTROL = 2
"""Number of random-direction controls of the dose curve."""
PATHWAYS = 4
"""Number of runs with gradients in one interchange."""
READ_OUT = 8
"""Number of prompts whose last residuals the write directions are added to."""


@final
@dataclass(frozen=True)
class Cost:
    """An estimate, in forward passes of one batch."""

    passes: float
    """Passes over whole batches, including retraining."""
    cones: float
    """Runs of the edit's light cone for one batch; backward runs count twice."""
    readout_vectors: int
    """Number of residuals read through the unembedding."""
    seconds: float
    """Time on this machine, from one timed batch of each kind; accurate to about a factor of two."""
    bytes_held: int
    """Peak memory of tensors besides the model and one batch: covariances, and gradients that find the read space."""

    def __str__(self) -> str:
        return (
            f"about {self.passes:,.0f} forward passes of one batch, {self.cones:,.0f} light cones and {self.readout_vectors:,} readouts: "
            f"{self.seconds:,.0f} s on this machine, {self.bytes_held / 2**20:,.1f} MiB held"
        )


@torch.no_grad()
def estimate_cost(
    bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], config: DissectConfig = DissectConfig()
) -> Cost:
    """Estimates the cost of `dissect` with these arguments. Runs three forward passes.

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
    # Base, outcomes, two decompositions, contexts twice, one vector per prompt, the dose's base; then naturalness.
    passes = float(batches * (1 + 2 + 2 + 2 + 1 + 1)) + 5 / 3 * batches
    cones = float(batches * (2 * 3 + (1 + N_CONTROL) * (len(ALPHAS) + 1 + BACKWARD)))
    # For each interchange: the runs of base and sources, and the starting runs of the cones of swaps, pathways, gradients.
    passes += sites * (pair_batches * (3 + 1) + 1)
    pathways = PATHWAYS * (1 + BACKWARD * (1 + PROBES))
    cones += sites * (pair_batches * (5 + 2 * config.n_random + pathways) + 1 + gradients * BACKWARD)
    if config.retrain is not None:
        steps = -(-len(examples) // config.retrain.batch_size) * config.retrain.epochs
        # Two passes of the example batch for the backward part, and the comparison of every pair.
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
    # Only the unembedding: its share of the multiplications of a pass, for this many vectors.
    unembed = logits.shape[-1] * bridge.cfg.d_model
    whole = sum(p.numel() for p in bridge.original_model.parameters())
    readout = vectors / batch.tokens.numel() * unembed / max(whole, unembed)
    held = 8 * width**2 * (2 * sites + 1) + 8 * 2 * width**2
    return Cost(passes + readout, cones, vectors, (passes + readout) * one_pass + cones * one_cone, held)


def _seconds(run: Callable[[], object]) -> float:
    """Returns the shorter of two timed runs."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)
