"""Runs several variants of one cone side by side, as rows of one batch: few rows use a processor badly.

wide = side_by_side(held, 3) # rows of the first variant, then those of the second, ... logits =
run_cone(bridge, wide, together([edits, others, ()]), logits_at=at.repeat(3, 1))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.light_cone import Held
from reftlens.cone.recording import repeated
from reftlens.edit.hooks import Edit

MEMORY_BYTES = 2**30
_ROWS = 256
"""Rows from which on more of them do not make a run faster."""


def variants_at_once(bridge: TransformerBridge, held: Held, *, memory_bytes: int = MEMORY_BYTES) -> int:
    """Estimates how many variants of a cone to run at a time, at least one: what fits in memory, and what is worth it.

    Args:
        bridge: the model.
        held: the cone of one variant.
        memory_bytes: approximate limit for the activations of one run.
    """
    cfg, rows, n_pos = bridge.cfg, len(held.batch), held.batch.tokens.shape[1]
    # A block's activations, the logits three times, and what is held twice: as it is, and as its
    # cache is extended.
    row = (n_pos - held.start) * (8 * cfg.d_model + 3 * (cfg.d_mlp or 4 * cfg.d_model) + 3 * cfg.n_heads * n_pos)
    one = rows * 4 * (row + 3 * cfg.d_vocab) + 2 * held.n_bytes()
    return max(1, min(memory_bytes // one, -(-_ROWS // rows)))


def side_by_side(held: Held, n: int) -> Held:
    """Returns a cone with the rows of a held one n times.

    Args:
        held: the cone of one variant.
        n: number of variants.
    """
    if n == 1:
        return held
    rows = torch.arange(len(held.batch)).repeat(n)
    resid = None if held.resid is None else held.resid.repeat(n, 1, 1)
    past = tuple((keys.repeat(n, 1, 1, 1), values.repeat(n, 1, 1, 1)) for keys, values in held.past)
    return replace(held, batch=repeated(held.batch, rows), resid=resid, past=past)


def together(variants: Sequence[Sequence[Edit]]) -> list[Edit]:
    """Returns the edits of a batch in which each of these sets acts on its own rows.

    Args:
        variants: sets of edits of one batch.
    """
    n = len(variants)

    def placed(mask: Bool[Tensor, "batch pos"], place: int) -> Bool[Tensor, "rows pos"]:
        # An edit selects nothing in the rows of the other variants.
        nothing = torch.zeros_like(mask)
        return torch.cat([mask if other == place else nothing for other in range(n)])

    return [
        replace(
            edit,
            mask=placed(edit.mask, place),
            lands=None if edit.lands is None else placed(edit.lands, place),
        )
        for place, edits in enumerate(variants)
        for edit in edits
    ]
