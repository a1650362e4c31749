"""At which layers and positions does a trained edit do its work? The edit cut down to one cell at a time.

Effect = mean over prompts of (logit of the new answer - logit of the old one), edited minus base. A cell's value is its
effect alone as a part of the whole effect; the control is the same cell with its change turned to random
directions of the same length. Cells need not sum to one: edits interact, and later ones can stand in for
earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.placebo import Turned
from reftlens.analysis.tokens import (
    first_tokens,
    logit_difference,
    require_aligned,
    subject_places,
)
from reftlens.data import encode, str_tokens
from reftlens.edit import Edit, attach
from reftlens.reft import Reft
from reftlens.results import TokenMap


@torch.no_grad()
def effect_map(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Sequence[str],
    *,
    new: Sequence[str],
    old: Sequence[str],
    subjects: Sequence[str],
    n_control: int = 4,
    seed: int = 0,
    progress: bool = True,
) -> TokenMap:
    """The effect of each (site, position) of a trained edit by itself.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: of one length in tokens, so that positions can be compared.
        new: what the edited model should answer, one for each prompt, with its leading space.
        old: what the base answers.
        subjects: a part of each prompt, starred in plots.
        n_control: random turns that the control is averaged over.
        seed: draws them.
        progress: show a progress bar.

    Returns:
        The map; NaN where a site edits nothing.

    Raises:
        ValueError: if prompts differ in length, answers begin with the same token, or the edit has no effect that
            could be divided up.
    """
    batch = encode(bridge, prompts)
    require_aligned(batch)
    target, foil = first_tokens(bridge, new), first_tokens(bridge, old)
    for row in (target == foil).nonzero().flatten().tolist():
        raise ValueError(
            f"new and old answer of prompt {row} begin with the same token, so their logits cannot differ: "
            f"{new[row]!r} and {old[row]!r}"
        )

    def effect(edits: Sequence[Edit]) -> float:
        with attach(bridge, edits):
            logits = bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return float((logit_difference(logits, batch, target, foil) - base).mean())

    base: Tensor = logit_difference(bridge(batch.tokens, use_cache=False), batch, target, foil)
    edits = reft.edits(batch)
    whole = effect(edits)
    if abs(whole) < 1e-6:
        raise ValueError("the edit does not move these answers at all: there is no effect to locate")
    generator = torch.Generator().manual_seed(seed)
    turned = [[Turned(edit.intervention, generator) for edit in edits] for _ in range(n_control)]
    n_pos = batch.tokens.shape[1]
    values, control = torch.full((2, len(edits), n_pos), torch.nan)
    cells = [(row, pos) for row, edit in enumerate(edits) for pos in range(n_pos) if bool(edit.mask[:, pos].any())]
    for row, pos in tqdm(cells, desc="locating the effect", unit="cell", disable=not progress):
        column = torch.zeros_like(batch.prompt_mask)
        column[:, pos] = True
        cell = replace(edits[row], mask=edits[row].mask & column)
        values[row, pos] = effect([cell]) / whole
        draws = [effect([replace(cell, intervention=draw[row])]) / whole for draw in turned]
        control[row, pos] = sum(draws) / max(len(draws), 1)
    return TokenMap(
        values=values,
        control=control,
        rows=tuple(edit.hook_name for edit in edits),
        tokens=str_tokens(bridge, batch.tokens[0]),
        starred=subject_places(bridge, prompts[0], subjects[0]),
        quantity=f"effect of this cell alone / effect of the whole edit ({whole:+.2f} nats)",
        control_name=f"the same change turned to random directions, mean of {n_control}",
        n_prompts=len(prompts),
    )
