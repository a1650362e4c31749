"""Which subspace of an activation do later layers read?

The read space is the row space of the rest of the model. It is estimated from gradients of random sums of the centred
next-token logits with respect to the activation, over many prompts. Singular vectors with more than `tolerance` of the
largest singular value span the read space. The complement is dormant on these inputs: to first order, it does not affect
any answer.

The result holds to first order and for these inputs only. A direction whose effect needs a large step or another prompt
counts as unread.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import hooked, side_for_ends
from reftlens.cone.hold import hold_from, run_cone
from reftlens.data import Given, as_batch
from reftlens.positions import Last, Positions
from reftlens.results import ReadSpace


def read_space(
    bridge: TransformerBridge,
    hook_name: str,
    prompts: Given,
    *,
    at: Positions = Last(1),
    tolerance: float = 1e-3,
    seed: int = 0,
) -> ReadSpace:
    """Estimates the subspace of one activation point that the next-token logits depend on.

    Args:
        bridge: the model.
        hook_name: a point with activations `[batch, pos, width]`.
        prompts: several texts or conversations, or one batch. Enough random sums are taken to give two gradients per
            coordinate.
        at: the tokens whose activations are used.
        tolerance: fraction of the largest sensitivity from which a direction counts as read.
        seed: seed of the random sums.

    Raises:
        ValueError: If the logits do not depend on the activations at these tokens.
    """
    batch = as_batch(bridge, prompts, padding_side=side_for_ends(bridge))
    mask = at.mask(batch.prompts)
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}

    def leaf(activation: Tensor, hook: Any) -> Tensor:
        kept["h"] = activation.detach().requires_grad_()
        return kept["h"]

    held = hold_from(bridge, batch, [hook_name], mask | batch.last_prompt_mask)
    with torch.enable_grad(), hooked(bridge, [(hook_name, leaf)]):
        logits = run_cone(bridge, held, [], logits_at=batch.last_prompt_mask).float()
    mask = mask[:, held.start :]
    width, rows = kept["h"].shape[-1], int(mask.sum())
    rounds = -(-2 * width // max(rows, 1))
    gradients = []
    for index in range(rounds):
        weight = torch.randn(logits.shape, generator=generator).to(logits)
        total = (logits * (weight - weight.mean(dim=-1, keepdim=True))).sum()
        (gradient,) = torch.autograd.grad(total, kept["h"], retain_graph=index < rounds - 1)
        gradients.append(gradient[mask].double().cpu())
    stacked = torch.cat(gradients)
    _, sensitivity, vectors = torch.linalg.svd(stacked, full_matrices=False)
    if not float(sensitivity[0]) > 0:
        raise ValueError(f"the next-token logits do not depend on {hook_name} at {at!r}: choose other tokens")
    read = sensitivity > tolerance * sensitivity[0]
    return ReadSpace(hook_name, vectors[read].float(), sensitivity.float(), tolerance, len(stacked))
