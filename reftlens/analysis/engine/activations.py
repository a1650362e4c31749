"""Computes the activations that an edit receives, at its hook and positions, after earlier edits; and the last residuals.

`edited_in` goes through batches, and shares them among processes where there are several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import each, hooked
from reftlens.cone.hold import hold_for_one_run
from reftlens.cone.light_cone import last_block_of, run_blocks, run_cone
from reftlens.data import Batch
from reftlens.edit.hooks import Edit, Watch
from reftlens.edit.reft import Reft
from reftlens.interventions import require_agreement


@torch.no_grad()
def edited_activations(
    bridge: TransformerBridge, reft: Reft, batch: Batch
) -> list[tuple[Edit, Float[Tensor, "tokens d_model"]]]:
    """Runs a batch under an edit and returns each site's input.

    Args:
        bridge: the base.
        reft: the edit. Later sites see the changes of earlier ones; `reft.scaled(0.0)` gives the
            base's activations.
        batch: from `rl.encode`.

    Returns:
        For each site, in order: its edit on this batch (whose mask selects the tokens, row by row)
        and the activations before it, one row per edited token.

    Raises:
        ValueError: If an intervention's `affine` or `basis` does not match the change it makes.
    """
    edits = reft.edits(batch)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(place: int) -> Watch:
        return lambda tokens, example: seen.update({place: (tokens.detach(), example)})

    watched = [replace(edit, watch=keep(place)) for place, edit in enumerate(edits)]
    names = [edit.hook_name for edit in edits]
    reads = torch.stack([torch.zeros_like(batch.prompt_mask), *(edit.read for edit in edits)]).any(dim=0)
    held = hold_for_one_run(bridge, batch, names, reads)
    # Nothing after the last site is needed.
    until = last_block_of(names)
    if until is None:
        # A site after the last block: every block runs, and no token is unembedded.
        run_cone(bridge, held, watched, logits_at=torch.zeros_like(batch.prompt_mask))
    else:
        run_blocks(bridge, held, watched, until=until)
    # Analyses use affine() and basis(), which a custom class may define wrongly.
    for place, edit in enumerate(edits):
        require_agreement(edit.intervention, *seen[place])
    return [(edit, seen[place][0]) for place, edit in enumerate(edits)]


def edited_in(
    bridge: TransformerBridge, reft: Reft, batches: Sequence[Batch]
) -> Iterator[list[tuple[Edit, Float[Tensor, "tokens d_model"]]]]:
    """Runs batches under an edit, one after another.

    Args:
        bridge: the base.
        reft: the edit.
        batches: from `rl.encode`.

    Yields:
        For each batch what `edited_activations` returns.

    Raises:
        ValueError: As `edited_activations`.
    """

    def activations(batch: Batch) -> list[Float[Tensor, "_tokens d_model"]]:
        return [h.cpu() for _, h in edited_activations(bridge, reft, batch)]

    for batch, found in zip(batches, each(bridge, activations, batches), strict=True):
        edits = reft.edits(batch)
        # `each` gives results on the CPU, and an edit changes them where its parameters are.
        homes = [next(edit.intervention.parameters(), h).device for edit, h in zip(edits, found, strict=True)]
        yield [(edit, h.to(home)) for edit, h, home in zip(edits, found, homes, strict=True)]


@torch.no_grad()
def final_residuals(bridge: TransformerBridge, batch: Batch) -> Float[Tensor, "batch d_model"]:
    """Returns the residual after the last block at the last token of each prompt.

    Args:
        bridge: the base.
        batch: from `rl.encode`.
    """
    name = f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post"
    seen: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        seen.append(resid[last[:, held.start :]])

    last = batch.last_prompt_mask
    held = hold_for_one_run(bridge, batch, [name], last)
    with hooked(bridge, [(name, keep)]):
        run_cone(bridge, held, [], logits_at=torch.zeros_like(last))
    return seen[0]
