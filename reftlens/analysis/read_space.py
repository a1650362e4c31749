"""Which subspace of an activation do later layers read?

The read space is the row space of the rest of the model. It is estimated from gradients of random
sums of the centred next-token logits with respect to the activation, over many prompts. Singular
vectors with more than `tolerance` of the largest singular value span the read space. The complement
is dormant on these inputs: to first order, it does not affect any answer.

The result holds to first order and for these inputs only. A direction whose effect needs a large
step or another prompt counts as unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import each, hooked, side_for_ends
from reftlens.cone.hold import hold_from, run_cone
from reftlens.cone.shared import sharing
from reftlens.cone.variants import side_by_side, variants_at_once
from reftlens.data import Batch, Given, as_batch
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
        prompts: several texts or conversations, or one batch. Enough random sums are taken to give
            two gradients per coordinate.
        at: the tokens whose activations are used.
        tolerance: fraction of the largest sensitivity from which a direction counts as read.
        seed: seed of the random sums.

    Raises:
        ValueError: If the logits do not depend on the activations at these tokens.
    """
    return read_spaces(bridge, [hook_name], prompts, at=at, tolerance=tolerance, seed=seed)[0]


@sharing
def read_spaces(
    bridge: TransformerBridge,
    hook_names: Sequence[str],
    prompts: Given,
    *,
    at: Positions = Last(1),
    tolerance: float = 1e-3,
    seed: int = 0,
) -> list[ReadSpace]:
    """Estimates the read spaces of several points, with the same random sums: one gradient gives those of all.

    Args:
        bridge: the model.
        hook_names: points with activations `[batch, pos, width]`.
        prompts: as for `read_space`.
        at: as for `read_space`.
        tolerance: as for `read_space`.
        seed: as for `read_space`.

    Raises:
        ValueError: As `read_space`.
    """
    batch = as_batch(bridge, prompts, padding_side=side_for_ends(bridge))
    mask = at.mask(batch.prompts)
    return [
        _space(name, gradients, f"{name} at {at!r}", tolerance)
        for name, gradients in zip(hook_names, _gradients(bridge, hook_names, batch, mask, seed), strict=True)
    ]


def _space(hook_name: str, gradients: Float[Tensor, "n width"], where: str, tolerance: float) -> ReadSpace:
    _, sensitivity, vectors = torch.linalg.svd(gradients, full_matrices=False)
    if not float(sensitivity[0]) > 0:
        raise ValueError(f"the next-token logits do not depend on {where}: choose other tokens")
    read = sensitivity > tolerance * sensitivity[0]
    return ReadSpace(hook_name, vectors[read].float(), sensitivity.float(), tolerance, len(gradients))


def _gradients(
    bridge: TransformerBridge,
    hook_names: Sequence[str],
    batch: Batch,
    mask: Bool[Tensor, "batch pos"],
    seed: int,
) -> list[Float[Tensor, "n width"]]:
    """Returns gradients of random sums at each point, two for each coordinate of the widest."""
    held = hold_from(bridge, batch, hook_names, mask | batch.last_prompt_mask)
    wide = variants_at_once(bridge, held)
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            # The first point begins the graph; later ones are inside it.
            kept[name] = activation if activation.requires_grad else activation.detach().requires_grad_()
            return kept[name]

        return hook_fn

    last = batch.last_prompt_mask.repeat(wide, 1)
    with torch.enable_grad(), hooked(bridge, [(name, keep(name)) for name in hook_names]):
        logits = run_cone(bridge, side_by_side(held, wide), [], logits_at=last)
    width, rows = max(h.shape[-1] for h in kept.values()), int(mask.sum())
    rounds = -(-2 * width // max(rows, 1))
    draws = _draws(len(batch), logits.shape[-1], seed)
    points = [kept[name] for name in hook_names]

    def gradients(numbers: range) -> list[Float[Tensor, "_n _width"]]:
        weight = torch.zeros_like(logits)
        for place, number in enumerate(numbers):
            weight[place * len(batch) : (place + 1) * len(batch)] = draws(number).to(logits)
        found = torch.autograd.grad(logits, points, weight, retain_graph=True, allow_unused=True)
        there = mask[:, held.start :].repeat(len(numbers), 1)
        full = (
            torch.zeros_like(point) if gradient is None else gradient
            for point, gradient in zip(points, found, strict=True)
        )
        # The last group may use fewer copies of the batch than were run.
        return [gradient[: len(there)][there].double().cpu() for gradient in full]

    groups = [range(begun, min(begun + wide, rounds)) for begun in range(0, rounds, wide)]
    return [torch.cat(parts) for parts in zip(*each(bridge, gradients, groups), strict=True)]


def _draws(n_rows: int, d_vocab: int, seed: int) -> Callable[[int], Float[Tensor, "row d_vocab"]]:
    """Returns a function that gives the weights of a random sum by its number; numbers are asked for in ascending order."""
    generator = torch.Generator().manual_seed(seed)
    drawn = 0

    def draw(number: int) -> Float[Tensor, "row d_vocab"]:
        nonlocal drawn
        # Another process uses those that are left out here.
        for _ in range(drawn, number + 1):
            part = torch.randn(n_rows, d_vocab, generator=generator)
        drawn = number + 1
        # Centred over the vocabulary, because a constant added to all logits changes no answer.
        return part - part.mean(dim=-1, keepdim=True)

    return draw
