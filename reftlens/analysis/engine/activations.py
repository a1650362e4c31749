"""The activations that an edit really meets: those at its hook, at its positions, after the edits before it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import unembedded_alone
from reftlens.data import Batch
from reftlens.edit.hooks import Edit, Watch, attach
from reftlens.edit.reft import Reft
from reftlens.interventions import require_agreement


@torch.no_grad()
def edited_activations(
    bridge: TransformerBridge, reft: Reft, batch: Batch
) -> list[tuple[Edit, Float[Tensor, "tokens d_model"]]]:
    """Runs a batch under an edit and returns each site's input.

    Returns:
        For each site, in order: its edit on this batch (whose mask says which tokens, row by row) and the
        activations before it, one line for each edited token.

    Raises:
        ValueError: if an intervention's `affine` or `basis` is not that of the change it makes.
    """
    edits = reft.edits(batch)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> Watch:
        return lambda tokens, example: seen.update({place: (tokens.detach(), example)})

    watched = [replace(edit, watch=keep(place)) for place, edit in enumerate(edits)]
    # Nobody asks for logits here, unless an edit acts at the unembedding.
    no_logits = (
        None if any(edit.hook_name.startswith("unembed") for edit in edits) else torch.zeros_like(batch.prompt_mask)
    )
    with attach(bridge, watched), unembedded_alone(bridge, no_logits):
        bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    # Analyses go on with affine() and basis(); an outside class may have them wrong.
    for place, edit in enumerate(edits):
        require_agreement(edit.intervention, *seen[place])
    return [(edit, seen[place][0]) for place, edit in enumerate(edits)]
