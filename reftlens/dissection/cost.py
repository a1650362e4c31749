"""Estimates the cost of a dissection: adds up what its parts cost in passes and light cones, and times one of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.cone.hold import boundary_of
from reftlens.data import encode
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.parts import chosen
from reftlens.dissection.parts.part import Sizes, Spent
from reftlens.edit.reft import Reft


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
    """Time on this machine, from one timed batch of each kind."""
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

    Raises:
        ValueError: If there is no such preset or part.
    """
    parts = chosen(config.parts)
    prompts = [prompt for prompt, _ in examples[: config.batch_size]]
    batch = encode(bridge, prompts, padding_side=side_for_ends(bridge))
    edits = reft.edits(batch)
    runs = Answers(bridge, batch, edits)
    d_vocab = runs.logits(edits).shape[-1]
    # The example batch may be smaller than a batch of the run; the times are scaled below.
    one_pass = _seconds(lambda: bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False))
    one_cone = _seconds(lambda: runs.logits(edits))
    n = min(len(examples), config.max_examples)
    layers = bridge.cfg.n_layers
    behind = [layers - boundary_of(bridge, [site.hook_name]) for site in reft.sites]
    changed = torch.stack([edit.mask for edit in edits]).any(0)
    first = changed.int().argmax(1)[changed.any(1)].float()
    sizes = Sizes(
        config=config,
        examples=n,
        training=len(examples),
        tokens=batch.tokens.shape[1],
        edited=sum(float(edit.mask.sum()) for edit in edits) / (len(edits) * len(batch)),
        cone=batch.tokens.shape[1] - (float(first.mean()) if len(first) else 0.0),
        sites=len(reft),
        depth=sum(behind) / len(behind) / max(1, *behind),
        layers=layers,
        behind=max(behind) - 1,
        heads=bridge.cfg.n_heads,
        width=max(intervention.d_model for _, intervention in reft),
    )
    # The base answers every example once.
    total = sum((part.cost(sizes) for part in parts), Spent(sizes.batches))
    # Only the unembedding: its share of the multiplications of a pass, for this many vectors.
    unembed = d_vocab * bridge.cfg.d_model
    whole = sum(p.numel() for p in bridge.original_model.parameters())
    passes = total.passes + total.readouts / batch.tokens.numel() * unembed / max(whole, unembed)
    seconds = passes * one_pass * config.batch_size / len(batch) + total.cones * one_cone * config.batch_size / len(
        batch
    )
    return Cost(passes, total.cones, total.readouts, seconds, total.bytes_held)


def _seconds(run: Callable[[], object]) -> float:
    """Returns the shorter of two timed runs."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    # The first run also pays for warming up.
    return min(taken)
