"""Which activations carry the difference between two prompts? Activation patching over layers x positions or heads.

A pair is a clean prompt and a corrupted one of the same length. Denoising patches one activation of
the clean run into the corrupted run and measures what is restored (is it sufficient?). Noising
patches one activation of the corrupted run into the clean run and measures what breaks (is it
necessary?). The two differ if components can substitute for one another (Heimersheim & Nanda 2024,
arXiv:2404.15255).

A map is not evidence that nothing else carries the difference. A metric that only compares the two
answers changes whenever either answer is suppressed. The control patches the same cells from an
unrelated source.

    metric = logit_difference_of(bridge, clean, answers, foils)
    result = patch(bridge, encode(bridge, clean), encode(bridge, corrupted), metric, point="resid_pre")

Every cell equals a whole run with that patch; `sweep` says why it is fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.grid import Cell, grid
from reftlens.analysis.engine.saved import Saved
from reftlens.analysis.engine.sweep import sweep
from reftlens.analysis.metrics import Metric, require_pairs_of
from reftlens.bridge import fingerprint
from reftlens.cone.recording import Recording, record
from reftlens.data import IGNORE, Batch, Given, as_batch, str_tokens
from reftlens.results import PatchMap


def patch(
    bridge: TransformerBridge,
    clean: Given,
    corrupted: Given,
    metric: Metric,
    *,
    point: str = "resid_pre",
    over: str = "positions",
    direction: str = "denoise",
    window: int = 1,
    unrelated: Given | None = None,
    memory_bytes: int = 1 << 30,
    save_to: Path | str | None = None,
    progress: bool = True,
) -> PatchMap:
    """Computes the metric under a patch of every cell, for every pair.

    Args:
        bridge: the model. A masked language model is read at each prompt's mask token.
        clean: texts, conversations or one batch, without completions. Pairs may have different
            lengths. Columns are those of the batch: `encode(..., padding_side="left")` aligns the
            ends of prompts, and "right" their beginnings.
        corrupted: prompts with the same length as `clean`, row by row.
        metric: of the logits after each prompt, or at its mask token.
        point: the patched activation: "resid_pre", "resid_mid" or "resid_post", the residual stream
            before, inside or after a block; "attn_out" or "mlp_out", the output of its attention or
            MLP; "q", "k" or "v", its heads' queries, keys or values; "z", the heads' outputs before
            they are mixed.
        over: what a cell is, in each layer: "positions", "heads" (each at all positions) or "heads
            and positions".
        direction: "denoise" patches clean activations into the corrupted run, "noise" the reverse.
        window: number of neighbouring layers patched together, centred on the cell's layer.
        unrelated: a third source for the control, with the same length, row by row.
        memory_bytes: approximate limit for the activations of one run. The recorded runs of all
            pairs need further memory, so sweep thousands of pairs in groups.
        save_to: a file that stores finished cells. An interrupted sweep resumes from it. The
            control's file has the same name with `.control` appended. The files are not deleted
            afterwards.
        progress: show a progress bar.

    Raises:
        ValueError: If the batches do not match, have completions, or a point has no heads.
    """
    if direction not in ("denoise", "noise"):
        raise ValueError(f"direction must be 'denoise' or 'noise', got {direction!r}")
    clean, corrupted = as_batch(bridge, clean, name="clean"), as_batch(bridge, corrupted, name="corrupted")
    unrelated = None if unrelated is None else as_batch(bridge, unrelated, name="unrelated")
    require_pairs(clean, corrupted=corrupted, unrelated=unrelated)
    of = grid(bridge, point, over, n_pos=clean.tokens.shape[1], window=window)
    into, out_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    base = record(bridge, into, of.names, masked=True)
    # A source is never run again, so its residual streams, keys and values are dropped.
    sources = [
        replace(record(bridge, batch, of.names, masked=True), resid=(), past=())
        for batch in (out_of, unrelated)
        if batch is not None
    ]
    maps = []
    for number, source in enumerate(sources):
        saved = None
        if save_to is not None:
            made_for = _digest(bridge, base, source, of.cells, metric)
            # The two sweeps have different sources, and a file is of one sweep.
            saved = Saved(Path(f"{save_to}.control" if number else save_to), made_for=made_for)
        bar = ("patching", "control")[number] if progress else ""
        values = sweep(bridge, base, source, of.cells, metric, memory_bytes=memory_bytes, saved=saved, progress=bar)
        maps.append(rearrange(values, "pair (row column) -> pair row column", row=len(of.rows)))
    prompts = token_labels(bridge, out_of)
    heads = tuple(str(head) for head in range(maps[0].shape[-1]))
    return PatchMap(
        values=maps[0],
        control=maps[1] if unrelated is not None else None,
        base=metric_of(metric, base),
        source=metric_of(metric, sources[0]),
        rows=of.rows,
        columns=heads if over == "heads" else prompts[0],
        axes=of.axes,
        control_name="" if unrelated is None else "the same activations of an unrelated source",
        direction=direction,
        prompts=prompts,
    )


def metric_of(metric: Metric, run: Recording) -> Float[Tensor, " pair"]:
    """Computes the metric of a recorded run, on the CPU."""
    require_pairs_of(metric, len(run.batch))
    return metric(run.logits, torch.arange(len(run.batch), device=run.logits.device)).float().cpu()


def token_labels(bridge: TransformerBridge, batch: Batch) -> tuple[tuple[str, ...], ...]:
    """Returns the tokens of each prompt, and the index in brackets where it is padded."""
    return tuple(
        tuple(
            text if real else f"({place})"
            for place, (text, real) in enumerate(zip(str_tokens(bridge, tokens), there, strict=True))
        )
        for tokens, there in zip(batch.tokens, batch.prompt_mask.tolist(), strict=True)
    )


def require_pairs(clean: Batch, **others: Batch | None) -> None:
    """Raises if batches cannot be patched into one another. The message uses the given names.

    Raises:
        ValueError: If their prompts differ in length row by row, or have completions.
    """
    for name, batch in (("clean", clean), *others.items()):
        if batch is not None and not torch.equal(batch.prompt_mask, clean.prompt_mask):
            lengths = [b.prompt_mask.sum(1).tolist() for b in (clean, batch)]
            raise ValueError(
                "the prompts of a pair must have the same length in tokens and the same padding; clean has "
                f"{lengths[0]} tokens and {name} has {lengths[1]}"
            )
        if batch is not None and bool((batch.labels != IGNORE).any()):
            raise ValueError(f"patching reads the logits after each prompt: encode {name} without completions")


def _digest(
    bridge: TransformerBridge, base: Recording, source: Recording, cells: Sequence[Cell], metric: Metric
) -> str:
    """Computes the checksum of everything the values depend on. A metric is identified by its values on the two runs."""
    digest = hashlib.sha256(fingerprint(bridge).encode())
    for tensor in (base.batch.tokens, source.batch.tokens, metric_of(metric, base), metric_of(metric, source)):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(repr(list(cells)).encode())
    return digest.hexdigest()
