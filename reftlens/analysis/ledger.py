"""How large is the edit at each token? |delta(h)| / |h|, at the activations that the edit really meets."""

from __future__ import annotations

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.activations import edited_activations
from reftlens.analysis.tokens import subject_places
from reftlens.data import encode, str_tokens
from reftlens.reft import Reft
from reftlens.results import EditSize


@torch.no_grad()
def edit_size(bridge: TransformerBridge, reft: Reft, prompt: str, *, subject: str = "") -> EditSize:
    """The relative size of the edit at each token of one prompt.

    Args:
        bridge: the base.
        reft: the edit.
        prompt: one text.
        subject: a part of the text to be starred in plots.
    """
    batch = encode(bridge, [prompt])
    per_site = edited_activations(bridge, reft, batch)
    relative = torch.zeros(len(per_site), batch.tokens.shape[1])
    edited = torch.zeros(relative.shape, dtype=torch.bool)
    for row, (edit, h) in enumerate(per_site):
        size = edit.intervention.delta(h).float().norm(dim=-1) / h.float().norm(dim=-1)
        mask = edit.mask[0].cpu()
        relative[row, mask] = size.cpu()
        edited[row] = mask
    return EditSize(
        relative=relative,
        edited=edited,
        rows=tuple(edit.hook_name for edit, _ in per_site),
        tokens=str_tokens(bridge, batch.tokens[0]),
        starred=subject_places(bridge, prompt, subject),
    )
