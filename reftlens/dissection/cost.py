"""Estimates the cost of a dissection: counts the runs of its parts by kind, and times one run of each kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import hooked, side_for_ends, unembedded_alone
from reftlens.cone.answers import Answers
from reftlens.cone.hold import boundary_of, hold_from, run_cone
from reftlens.cone.shared import shared
from reftlens.cone.variants import side_by_side, variants_at_once
from reftlens.data import Batch, encode, first_tokens
from reftlens.dissection.config import DissectConfig
from reftlens.dissection.parts import chosen
from reftlens.dissection.parts.part import Sizes, Spent
from reftlens.edit.reft import Reft

_AT_ONCE = 8
"""Variants that are timed side by side, at most."""
_QUICK = 0.2
"""Seconds below which a run is timed twice, because the first one of its kind takes longer."""
_ALGEBRA = 256
"""Width of the eigendecomposition that is timed; the time grows with its cube."""


@final
@dataclass(frozen=True)
class Cost:
    """An estimate of time and memory."""

    passes: float
    """Passes of one batch of whole prompts, including those of retraining."""
    cones: float
    """Runs of light cones for one batch, forward and backward."""
    readout_vectors: int
    """Number of residuals read through the unembedding."""
    seconds: float
    """Time on this machine, from one timed run of each kind."""
    bytes_held: int
    """Peak memory of tensors besides the model and one batch: covariances, and gradients that find the read space."""
    parts: tuple[tuple[str, float], ...] = ()
    """Seconds of each part, in order."""

    def __str__(self) -> str:
        return (
            f"about {self.passes:,.0f} forward passes of one batch, {self.cones:,.0f} light cones and {self.readout_vectors:,} readouts: "
            f"{self.seconds:,.0f} s on this machine, {self.bytes_held / 2**20:,.1f} MiB held"
        )


def spent(
    bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], config: DissectConfig = DissectConfig()
) -> dict[str, Spent]:
    """Counts the runs of each part of a dissection, from one pass of the first batch.

    Args:
        bridge: the base.
        reft: the edit.
        examples: as for `dissect`.
        config: as for `dissect`.

    Raises:
        ValueError: If there is no such preset or part.
    """
    batch = _first_batch(bridge, examples, config)
    said = Answers(bridge, batch, reft.edits(batch)).logprobs().argmax(-1)
    return _spent(_sizes(bridge, reft, examples, config, batch, said), config)


def _spent(sizes: Sizes, config: DissectConfig) -> dict[str, Spent]:
    # Before its parts, a dissection runs the base once, and reads its answers.
    start = Spent(sizes.batches, variants=sizes.batches)
    return {"": start, **{part.name: part.cost(sizes) for part in chosen(config.parts)}}


@torch.no_grad()
def estimate_cost(
    bridge: TransformerBridge, reft: Reft, examples: Sequence[tuple[str, str]], config: DissectConfig = DissectConfig()
) -> Cost:
    """Estimates the cost of `dissect` with these arguments. Times a few runs of the first batch.

    Args:
        bridge: the base.
        reft: the edit.
        examples: as for `dissect`.
        config: as for `dissect`.

    Raises:
        ValueError: If there is no such preset or part.
    """
    chosen(config.parts)
    batch = _first_batch(bridge, examples, config)
    # Base runs are shared here as they are in a dissection.
    with shared(bridge, memory_bytes=config.memory_bytes):
        said = Answers(bridge, batch, reft.edits(batch)).logprobs().argmax(-1)
        sizes = _sizes(bridge, reft, examples, config, batch, said)
        times = _Times(bridge, reft, batch, sizes.width)
    counted = _spent(sizes, config)
    # Runs are counted in whole batches, and the first one may be smaller.
    scale = config.batch_size / len(batch)
    total = sum(counted.values(), Spent())
    return Cost(
        passes=total.passes,
        cones=total.cones + total.variants + total.swaps + total.gradients,
        readout_vectors=total.readouts,
        seconds=times.of(total, scale),
        bytes_held=total.bytes_held,
        parts=tuple((name, times.of(part, scale)) for name, part in counted.items() if name),
    )


def _first_batch(bridge: TransformerBridge, examples: Sequence[tuple[str, str]], config: DissectConfig) -> Batch:
    prompts = [prompt for prompt, _ in examples[: config.batch_size]]
    return encode(bridge, prompts, padding_side=side_for_ends(bridge))


def _sizes(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[tuple[str, str]],
    config: DissectConfig,
    batch: Batch,
    said: Tensor,
) -> Sizes:
    edits = reft.edits(batch)
    layers = bridge.cfg.n_layers
    behind = [layers - boundary_of(bridge, [site.hook_name]) for site in reft.sites]
    changed = torch.stack([edit.mask for edit in edits]).any(0)
    first = changed.int().argmax(1)[changed.any(1)].float()
    wanted = first_tokens(bridge, *zip(*examples[: config.batch_size], strict=True)).to(said.device)
    return Sizes(
        config=config,
        examples=min(len(examples), config.max_examples),
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
        wanted=float((said != wanted).float().mean()),
        span=(max(behind) - min(behind)) / max(behind),
    )


@final
class _Times:
    """Seconds of one run of each kind, for the batch that is given."""

    def __init__(self, bridge: TransformerBridge, reft: Reft, batch: Batch, width: int) -> None:
        nowhere = torch.zeros_like(batch.prompt_mask)

        def whole() -> None:
            # No logits: a pass counts without them (`Spent.passes`), and readouts by themselves.
            with unembedded_alone(bridge, nowhere):
                bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)

        runs = Answers(bridge, batch, reft.edits(batch))
        n = min(_AT_ONCE, variants_at_once(bridge, runs.held))
        self.passes = _seconds(whole)
        self.cones = _seconds(lambda: Answers(bridge, batch, reft.edits(batch)).logits(reft.edits(batch)))
        self.variants = _seconds(lambda: list(runs.many([reft.edits(batch) for _ in range(n)]))) / n
        self.swaps, self.gradients = _swaps(bridge, batch, [site.hook_name for site in reft.sites])
        read = torch.zeros(1, 64, bridge.cfg.d_model, device=batch.tokens.device, dtype=bridge.original_model.dtype)
        self.readouts = _seconds(lambda: bridge.unembed(read)) / read.shape[1]
        some = min(width, _ALGEBRA)
        matrix: Float[Tensor, "n n"] = torch.randn(some, some, dtype=torch.float64)
        self.algebra = _seconds(lambda: torch.linalg.eigh(matrix + matrix.T)) * (width / some) ** 3

    def of(self, spent: Spent, scale: float) -> float:
        """Adds up the seconds of runs. `scale` is the size of a whole batch, in the batches that were timed."""
        kinds = ("passes", "cones", "variants", "swaps", "gradients")
        runs = sum(getattr(spent, kind) * getattr(self, kind) for kind in kinds)
        return float(scale * runs + spent.readouts * self.readouts + spent.algebra * self.algebra)


def _swaps(bridge: TransformerBridge, batch: Batch, hook_names: Sequence[str]) -> tuple[float, float]:
    """Times runs of the last tokens from the first of these points on, side by side, forward and backward."""
    last = batch.last_prompt_mask
    held = hold_from(bridge, batch, hook_names, last)
    n = min(_AT_ONCE, variants_at_once(bridge, held))
    wide, found = side_by_side(held, n), dict[str, Tensor]()

    def begin(activation: Tensor, hook: Any) -> Tensor:
        # The graph begins at the first of them; it holds the later ones.
        return activation if "point" in found else found.setdefault("point", activation.detach().requires_grad_())

    def run() -> None:
        found.clear()
        with torch.enable_grad(), hooked(bridge, [(name, begin) for name in hook_names]):
            found["logits"] = run_cone(bridge, wide, [], logits_at=last.repeat(n, 1))

    def back() -> None:
        logits = found["logits"]
        torch.autograd.grad(logits, found["point"], torch.ones_like(logits), retain_graph=True)

    return _seconds(run) / n, _seconds(back) / n


def _seconds(run: Callable[[], object]) -> float:
    """Returns the time of a run; of a quick one, the shorter of two."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
        if taken[0] > _QUICK:
            break
    return min(taken)
