"""Checks that an edit reaches the model at each of its sites, by running the model on a short random batch.

It checks three things for each site separately. The hook point fires exactly once in a forward
pass. A push there changes the logits. The parameters of the edit there receive a gradient. The push
has half of the activation's norm and a random direction for each token, because attention is
invariant to a push that all its keys share. A push is used instead of the edit itself, since an
edit that starts as the identity does not change anything yet.

Not evidence that an edit there can be trained to work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import EditError, canonical_hook, hooked
from reftlens.edit.hooks import Edit, attach
from reftlens.edit.reft import Reft
from reftlens.interventions import Affine, Intervention, NotAffineError
from reftlens.results import SiteCheck, SiteChecks

_LENGTH = 16


def check_sites(bridge: TransformerBridge, reft: Reft, *, seed: int = 0) -> SiteChecks:
    """Checks that each site of an edit exists on this model and that edits there take effect.

    Args:
        bridge: the base.
        reft: the edit; trained or not.
        seed: seed of the tokens and the pushes.

    Returns:
        A check for each site, in order. A site that the model refuses is listed with the reason.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(_LENGTH, bridge.cfg.n_ctx)
    tokens = torch.randint(bridge.cfg.d_vocab, (2, length), generator=generator).to(bridge.cfg.device)
    with torch.no_grad():
        base = _logits(bridge, tokens)
    # Random weights, because a sum of all logits may not depend on the edit (a norm removes means).
    weight = torch.randn(base.shape, generator=generator).to(base.device)
    edits = reft.edits(torch.ones_like(tokens, dtype=torch.bool))
    checks = []
    for site, edit in zip(reft.sites, edits, strict=True):
        try:
            fired, change = _push(bridge, edit, tokens, base, generator)
            checks.append(SiteCheck(repr(site), fired, change, _gradient(bridge, edit, tokens, weight)))
        except (ValueError, EditError) as error:
            checks.append(SiteCheck(repr(site), 0, 0.0, 0.0, refused=str(error)))
    return SiteChecks(tuple(checks))


def _logits(bridge: TransformerBridge, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
    logits: Tensor = bridge(tokens, attention_mask=torch.ones_like(tokens), use_cache=False)
    return logits.float()


@torch.no_grad()
def _push(
    bridge: TransformerBridge, edit: Edit, tokens: Tensor, base: Tensor, generator: torch.Generator
) -> tuple[int, float]:
    """Returns how often a site's point fires, and the relative change of the logits under a push there."""
    push, count = _Push(edit.intervention.d_model, generator), 0

    def counter(_activation: Any, hook: Any) -> None:
        nonlocal count
        count += 1

    with (
        hooked(bridge, [(canonical_hook(bridge, edit.hook_name), counter)]),
        attach(bridge, [replace(edit, intervention=push)]),
    ):
        pushed = _logits(bridge, tokens)
    return count, float((pushed - base).norm() / base.norm())


def _gradient(bridge: TransformerBridge, edit: Edit, tokens: Tensor, weight: Tensor) -> float:
    """Returns the gradient norm of the edit's parameters, for a random weighted sum of the logits."""
    parameters = [parameter for parameter in edit.intervention.parameters() if parameter.requires_grad]
    with torch.enable_grad(), attach(bridge, [edit]):
        total = (_logits(bridge, tokens) * weight).sum()
        # Without a trainable parameter there is no graph, and autograd.grad would raise.
        if not total.requires_grad or not parameters:
            return 0.0
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return float(sum((g.double().square().sum() for g in gradients if g is not None), torch.zeros(())).sqrt())


class _Push(Intervention):
    """Adds a vector with half of each activation's norm, in a random direction for each token."""

    kind = "push"

    def __init__(self, d_model: int, generator: torch.Generator) -> None:
        super().__init__(d_model, 1)
        self.generator = generator

    def delta(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        direction = torch.randn(resid.shape, generator=self.generator).to(resid)
        return 0.5 * resid.norm(dim=-1, keepdim=True) * direction / direction.norm(dim=-1, keepdim=True)

    def affine(self) -> Affine:
        raise NotAffineError("this push is scaled by the norm of the activation, so it is not affine")
