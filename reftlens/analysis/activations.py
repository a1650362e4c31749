"""The activations that an edit really meets: those at its hook, at its positions, after the edits before it."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.data import Batch
from reftlens.edit import Edit, attach
from reftlens.interventions import Affine, Intervention
from reftlens.reft import Reft


class _Recorder(Intervention):
    """Passes an intervention through and keeps what it was given."""

    kind = "recorder"

    def __init__(self, inner: Intervention) -> None:
        super().__init__(inner.d_model, inner.rank)
        self.inner = inner
        self.seen: list[Tensor] = []

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        self.seen.append(resid.detach())
        return self.inner.delta(resid)

    def delta_of(self, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        self.seen.append(tokens.detach())
        return self.inner.delta_of(tokens, example)

    def affine(self) -> Affine:
        return self.inner.affine()


@torch.no_grad()
def edited_activations(
    bridge: TransformerBridge, reft: Reft, batch: Batch
) -> list[tuple[Edit, Float[Tensor, "tokens d_model"]]]:
    """Runs a batch under an edit and returns each site's input.

    Returns:
        For each site, in order: its edit on this batch (whose mask says which tokens, row by row) and the
        activations before it, one line for each edited token.
    """
    edits = reft.edits(batch)
    recorders = [_Recorder(edit.intervention) for edit in edits]
    recorded = [replace(edit, intervention=recorder) for edit, recorder in zip(edits, recorders, strict=True)]
    with attach(bridge, recorded):
        bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return [(edit, recorder.seen[0]) for edit, recorder in zip(edits, recorders, strict=True)]
