"""Which activations carry what makes two prompts differ? Activation patching, over layers x positions or heads.

A pair is a clean prompt and a corrupted one of the same length. Denoising puts one activation of the clean run into
the corrupted one and asks what is restored (is it enough?); noising puts one of the corrupted run into the clean one
and asks what breaks (is it needed?). The two answers differ wherever parts stand in for one another (Heimersheim &
Nanda 2024, arXiv:2404.15255).

A map is not evidence that nothing else carries the difference, and a metric that only compares the two answers
is moved by whatever takes one of them away; the control patches the same cells from an unrelated source.

    metric = logit_difference_of(bridge, answers, foils)
    result = patch(bridge, encode(bridge, clean), encode(bridge, corrupted), metric, point="resid_pre")

Every cell equals a whole run with that patch; `sweep` says why it is fast.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.metrics import Metric
from reftlens.analysis.saved import Saved
from reftlens.analysis.sweep import Cell, sweep
from reftlens.bridge import fingerprint
from reftlens.data import IGNORE, Batch, str_tokens
from reftlens.recording import Recording, record
from reftlens.results import PatchMap

_NAMES = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
}
_AXES = {
    "positions": ("layer", "pos"),
    "heads": ("layer", "head"),
    "heads and positions": ("layer", "head", "pos"),
}


def patch(
    bridge: TransformerBridge,
    clean: Batch,
    corrupted: Batch,
    metric: Metric,
    *,
    point: str = "resid_pre",
    over: str = "positions",
    direction: str = "denoise",
    window: int = 1,
    unrelated: Batch | None = None,
    memory_bytes: int = 1 << 30,
    save_to: Path | str | None = None,
    progress: bool = True,
) -> PatchMap:
    """The metric under a patch of every cell, for every pair.

    Args:
        bridge: the model; causal.
        clean: prompts without completions. Pairs may differ in length from one another: columns are those of the batch,
            so `encode(..., padding_side="left")` lines up the ends of prompts and "right" their beginnings.
        corrupted: row for row of the same length as `clean`.
        metric: of the logits after each prompt.
        point: what is patched: "resid_pre", the residual stream before a block; "attn_out" or "mlp_out", what its attention or
            MLP adds; "z", what its heads put out before they are mixed.
        over: what a cell is, in each layer: "positions", "heads" (each at all positions) or "heads and positions".
        direction: "denoise" puts clean activations into the corrupted run, "noise" the reverse.
        window: neighbouring layers that are patched together, the cell's own in the middle.
        unrelated: a third source for the control, row for row of the same length.
        memory_bytes: about what the activations of one run may take.
        save_to: a file that keeps finished cells, from which an interrupted sweep goes on (the control's beside it, with
            `.control` behind its name). Deleting it is up to you.
        progress: show a progress bar.

    Raises:
        ValueError: if batches do not match, hold completions, or a point has no heads.
    """
    _check(clean, corrupted, unrelated, point, over, direction, window)
    names = [f"blocks.{layer}.{_NAMES[point]}" for layer in range(bridge.cfg.n_layers)]
    rows, cells = _cells(names, over, window, n_pos=clean.tokens.shape[1], n_heads=bridge.cfg.n_heads)
    into, out_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    base = record(bridge, into, names)
    sources = [record(bridge, batch, names) for batch in (out_of, unrelated) if batch is not None]
    maps = []
    for number, source in enumerate(sources):
        saved = None
        if save_to is not None:
            made_for = _digest(bridge, base, source, cells, metric)
            saved = Saved(Path(f"{save_to}.control" if number else save_to), made_for=made_for)
        bar = ("patching", "control")[number] if progress else ""
        values = sweep(bridge, base, source, cells, metric, memory_bytes=memory_bytes, saved=saved, progress=bar)
        maps.append(values.view(len(clean), len(rows), -1))
    labels = tuple(str(head) for head in range(maps[0].shape[-1]))
    return PatchMap(
        values=maps[0],
        control=maps[1] if unrelated is not None else None,
        base=_of_run(metric, base),
        source=_of_run(metric, sources[0]),
        rows=rows,
        columns=labels if over == "heads" else str_tokens(bridge, out_of.tokens[0]),
        axes=_AXES[over],
        direction=direction,
    )


def _of_run(metric: Metric, run: Recording) -> Float[Tensor, " pair"]:
    return metric(run.logits, torch.arange(len(run.batch), device=run.logits.device)).float().cpu()


def _cells(
    names: Sequence[str], over: str, window: int, *, n_pos: int, n_heads: int
) -> tuple[tuple[str, ...], list[Cell]]:
    """Names of rows, and cells row by row."""
    windows = [tuple(names[max(0, i - window // 2) : i - window // 2 + window]) for i in range(len(names))]
    if over == "positions":
        return tuple(names), [Cell(group, pos=pos) for group in windows for pos in range(n_pos)]
    if over == "heads":
        return tuple(names), [Cell(group, head=head) for group in windows for head in range(n_heads)]
    rows = tuple(f"{name}[{head}]" for name in names for head in range(n_heads))
    cells = [Cell(group, pos, head) for group in windows for head in range(n_heads) for pos in range(n_pos)]
    return rows, cells


def _check(
    clean: Batch,
    corrupted: Batch,
    unrelated: Batch | None,
    point: str,
    over: str,
    direction: str,
    window: int,
) -> None:
    for name, value, known in (
        ("point", point, tuple(_NAMES)),
        ("over", over, tuple(_AXES)),
        ("direction", direction, ("denoise", "noise")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if over != "positions" and point != "z":
        raise ValueError(f"{point} has no heads to patch over: use point='z', or over='positions'")
    if window < 1:
        raise ValueError(f"window must be at least 1 layer, got {window}")
    for name, batch in (("corrupted", corrupted), ("unrelated", unrelated)):
        if batch is not None and not torch.equal(batch.prompt_mask, clean.prompt_mask):
            lengths = [b.prompt_mask.sum(1).tolist() for b in (clean, batch)]
            raise ValueError(
                "prompts of a pair must have one length in tokens and the same padding; clean has "
                f"{lengths[0]} tokens and {name} {lengths[1]}"
            )
    if bool((clean.labels != IGNORE).any()) or bool((corrupted.labels != IGNORE).any()):
        raise ValueError("patching reads the logits after each prompt: encode the prompts without completions")


def _digest(
    bridge: TransformerBridge, base: Recording, source: Recording, cells: Sequence[Cell], metric: Metric
) -> str:
    """Of all that values depend on; a metric is known by what it says of the two runs."""
    digest = hashlib.sha256(fingerprint(bridge).encode())
    for tensor in (base.batch.tokens, source.batch.tokens, _of_run(metric, base), _of_run(metric, source)):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    digest.update(repr(list(cells)).encode())
    return digest.hexdigest()
