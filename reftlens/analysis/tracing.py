"""Where does the base model hold a fact? Causal tracing with symmetric token replacement.

A corrupted prompt asks the same of another subject. One state of the clean run (`hook_resid_pre` of one layer at one
position) is put into the corrupted run; restored = (p_patched - p_corrupted) / (p_clean - p_corrupted), with p the
probability of the clean answer. Replacing tokens keeps the model on inputs it knows, where noise does not (Meng et
al. 2022, arXiv:2202.05262; Zhang & Nanda 2024, arXiv:2309.16042).

The control patches the same cells from an unrelated third subject, which knows nothing of the clean answer. (With a
logit difference it would not be near zero: it takes the corrupted answer away, half of the difference.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.tokens import (
    answer_probability,
    first_tokens,
    require_aligned,
    subject_places,
)
from reftlens.data import Batch, encode, str_tokens
from reftlens.results import TokenMap


@torch.no_grad()
def trace(
    bridge: TransformerBridge,
    clean: Sequence[str],
    corrupted: Sequence[str],
    *,
    answers: Sequence[str],
    subjects: Sequence[str],
    unrelated: Sequence[str] | None = None,
    progress: bool = True,
) -> TokenMap:
    """The restored part of the answer's probability for each layer and position.

    Args:
        bridge: the model.
        clean: prompts about one subject each; all prompts have one length in tokens.
        corrupted: the same prompts about another subject.
        answers: of the clean prompts, with their leading space.
        subjects: the clean subjects, starred in plots.
        unrelated: the same prompts about a third subject, for the control; no control without them.
        progress: show a progress bar.

    Raises:
        ValueError: if prompts differ in length, or clean and corrupted runs do not differ in their answers.
    """
    clean_batch, corrupted_batch = encode(bridge, clean), encode(bridge, corrupted)
    sources = [clean_batch] + ([encode(bridge, unrelated)] if unrelated is not None else [])
    for batch in (*sources, corrupted_batch):
        require_aligned(batch)
        if batch.tokens.shape != clean_batch.tokens.shape:
            raise ValueError(
                f"clean, corrupted and unrelated prompts must have one shape in tokens, got {list(clean_batch.tokens.shape)} "
                f"and {list(batch.tokens.shape)}"
            )
    target = first_tokens(bridge, answers)
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    low = answer_probability(bridge(corrupted_batch.tokens, use_cache=False), corrupted_batch, target).mean()
    maps = []
    for source in sources:
        logits, cache = bridge.run_with_cache(source.tokens, names_filter=names, use_cache=False)
        if source is clean_batch:
            high = answer_probability(logits, source, target).mean()
            if float((high - low).abs()) < 1e-6:
                raise ValueError(
                    "clean and corrupted prompts give the clean answers alike: there is nothing to restore"
                )
        patched = _sweep(bridge, corrupted_batch, names, cache, target, progress)
        maps.append((patched - low.cpu()) / (high - low).cpu())
    return TokenMap(
        values=maps[0],
        control=maps[1] if unrelated is not None else None,
        rows=tuple(names),
        tokens=str_tokens(bridge, clean_batch.tokens[0]),
        starred=subject_places(bridge, clean[0], subjects[0]),
        quantity="restored part of the clean answer's probability",
        control_name="the same states from an unrelated subject" if unrelated is not None else "",
        n_prompts=len(clean),
    )


def _sweep(
    bridge: TransformerBridge,
    corrupted: Batch,
    names: Sequence[str],
    cache: Any,
    target: Tensor,
    progress: bool,
) -> Float[Tensor, "layer pos"]:
    """Mean probability of the clean answer in the corrupted run with one state replaced, for every layer and position."""
    n_pos = corrupted.tokens.shape[1]
    out = torch.zeros(len(names), n_pos)
    cells = [(layer, pos) for layer in range(len(names)) for pos in range(n_pos)]
    for layer, pos in tqdm(cells, desc="causal tracing", unit="cell", disable=not progress):
        hook = (names[layer], _patch(cache[names[layer]], pos))
        logits = bridge.run_with_hooks(corrupted.tokens, fwd_hooks=[hook], use_cache=False)
        out[layer, pos] = answer_probability(logits, corrupted, target).mean()
    return out


def _patch(source: Float[Tensor, "batch pos d_model"], pos: int) -> Callable[..., Tensor]:
    def hook_fn(resid: Tensor, hook: Any) -> Tensor:
        column = torch.zeros(resid.shape[1], dtype=torch.bool, device=resid.device)
        column[pos] = True
        return torch.where(column[None, :, None], source, resid)

    return hook_fn
