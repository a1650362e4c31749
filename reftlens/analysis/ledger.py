"""Which terms make up the change of each token, and how large is the change relative to the activation?

An affine edit delta(h) = A h + c is the sum of three terms: erase, -E^T E h (LoReFT: -R^T R h);
write constant, c (R^T b); and write from input, the rest of A h (R^T W h). An edit that only adds
has no erase term.

The terms lie in one space and can cancel. So the result has their Gram matrix, not shares of the
change. A large change is not evidence of an effect: later layers may not read it.
"""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.tokens import subject_places
from reftlens.data import Prompt, encode, str_tokens
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.results import EditSize, Ledger


@torch.no_grad()
def ledger(bridge: TransformerBridge, reft: Reft, prompt: Prompt, *, subject: str = "") -> Ledger:
    """Computes the terms of the edit at each token of one prompt.

    Args:
        bridge: the base.
        reft: the edit.
        prompt: one text or conversation.
        subject: a part of the text to be starred.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
    """
    batch = encode(bridge, [prompt])
    per_site = edited_activations(bridge, reft, batch)
    n_rows, n_pos = len(per_site), batch.tokens.shape[1]
    gram = torch.full((n_rows, n_pos, 3, 3), torch.nan)
    norm, change = torch.full((2, n_rows, n_pos), torch.nan)
    gap, null_cosine = torch.zeros(2, n_rows)
    for row, (edit, h) in enumerate(per_site):
        terms = _terms(edit, h.double())
        measured = edit.change(h).double()
        where = edit.mask[0].cpu()
        gram[row, where] = (
            einsum(terms, terms, "token one d_model, token other d_model -> token one other").float().cpu()
        )
        norm[row, where], change[row, where] = (t.norm(dim=-1).float().cpu() for t in (h, measured))
        # That the terms sum to the measured change is checked on every token, not assumed.
        # 1e-30: an edit may change nothing.
        gap[row] = float((terms.sum(1) - measured).norm(dim=-1).max() / measured.norm(dim=-1).max().clamp(min=1e-30))
        # The rms cosine of two random vectors in k dimensions is 1 / sqrt(k).
        null_cosine[row] = max(len(edit.intervention.basis()), 1) ** -0.5
    return Ledger(
        gram=gram,
        norm=norm,
        change=change,
        gap=gap,
        null_cosine=null_cosine,
        rows=reft.site_names,
        tokens=str_tokens(bridge, batch.tokens[0]),
        starred=subject_places(bridge, prompt, subject),
    )


def _terms(edit: Edit, h: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens 3 d_model"]:
    """Computes the terms erase, constant and from input, in float64."""
    affine = edit.intervention.affine()
    constant = affine.constant.double().expand_as(h)
    linear = h @ affine.read.double().T @ affine.write.double()
    if affine.diagonal is not None:
        linear = linear + affine.diagonal.double() * h
    erase = torch.zeros_like(h) if affine.erase is None else -(h @ affine.erase.double().T @ affine.erase.double())
    # write and read include the erasure, which is a term of its own here.
    return edit.scale * torch.stack([erase, constant, linear - erase], dim=1)


@torch.no_grad()
def edit_size(bridge: TransformerBridge, reft: Reft, prompt: Prompt, *, subject: str = "") -> EditSize:
    """Computes the relative size of the edit, |delta(h)| / |h|, at each token of one prompt, for affine and other edits.

    Args:
        bridge: the base.
        reft: the edit.
        prompt: one text or conversation.
        subject: a part of the text to be starred in plots.
    """
    batch = encode(bridge, [prompt])
    per_site = edited_activations(bridge, reft, batch)
    relative = torch.zeros(len(per_site), batch.tokens.shape[1])
    edited = torch.zeros(relative.shape, dtype=torch.bool)
    for row, (edit, h) in enumerate(per_site):
        size = edit.change(h).float().norm(dim=-1) / h.float().norm(dim=-1)
        mask = edit.mask[0].cpu()
        relative[row, mask] = size.cpu()
        edited[row] = mask
    return EditSize(
        relative=relative,
        edited=edited,
        rows=reft.site_names,
        tokens=str_tokens(bridge, batch.tokens[0]),
        starred=subject_places(bridge, prompt, subject),
    )
