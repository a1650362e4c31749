"""Trains a small sparse dictionary of one point's activations: for a model without a published one, in seconds for a small one.

The autoencoder is "topk" (Gao et al. 2024, arXiv:2406.04093): the k largest of the features
reconstruct the activation, with the mean square error as the only loss, and unit decoder rows.
Features that nothing turns on in a tenth of the steps are put on activations that are reconstructed
worst.

Not evidence of what the model computes with: another seed finds other features, and a feature is
named after where it is large.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.activations import edited_activations
from reftlens.analysis.engine.dictionary import Dictionary
from reftlens.bridge import side_for_ends, width_of
from reftlens.data import Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import SteeringVector
from reftlens.numbers import require_number, require_whole_number
from reftlens.positions import All

_ROWS = 256
_RENEWALS = 10


def train_dictionary(
    bridge: TransformerBridge,
    hook_name: str,
    prompts: Given,
    *,
    features: int = 512,
    k: int = 8,
    steps: int = 500,
    lr: float = 3e-3,
    seed: int = 0,
) -> Dictionary:
    """Trains a dictionary on the activations of all prompt tokens, which are held in memory.

    Args:
        bridge: the base.
        hook_name: the point.
        prompts: texts, conversations, pairs or batches.
        features: number of features.
        k: features that reconstruct one activation.
        steps: steps of 256 activations.
        lr: learning rate of Adam.
        seed: seed of the first weights and of the draws.

    Raises:
        ValueError: If k is larger than the number of features, the learning rate is negative, or
            there is no such point.
    """
    require_whole_number("features", features, least=1)
    require_whole_number("k", k, least=1)
    require_whole_number("steps", steps, least=1)
    require_number("lr", lr, least=0)
    if k > features:
        raise ValueError(f"k must be at most the number of features, {features}, got {k}")
    h = _activations(bridge, hook_name, prompts)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(h), (features,), generator=generator)
    centre = h.mean(dim=0)
    # The same activation may be drawn twice, and would give two equal features.
    noise = torch.randn(features, h.shape[1], generator=generator) * h.std()
    decoder = torch.nn.functional.normalize(h[rows] - centre + 0.3 * noise, dim=-1)
    parts = [part.clone().requires_grad_() for part in (decoder.T, decoder, centre, torch.zeros(features))]
    optimizer, alive = torch.optim.Adam(parts, lr=lr), torch.zeros(features, dtype=torch.bool)
    for step in range(1, steps + 1):
        some = h[torch.randint(len(h), (min(_ROWS, len(h)),), generator=generator)]
        # The caller may have turned gradients off.
        with torch.enable_grad():
            made = _dictionary(hook_name, k, *parts)
            found = made.encode(some)
            error = (found @ made.decoder + made.bias - some).square().sum(dim=-1)
            optimizer.zero_grad()
            error.mean().backward()
        optimizer.step()
        with torch.no_grad():
            parts[1].copy_(torch.nn.functional.normalize(parts[1], dim=-1))
            alive |= (found > 0).any(dim=0)
            if step % max(1, steps // _RENEWALS) == 0 and step < 0.8 * steps:
                _renew(parts, ~alive, some[error.argsort(descending=True)])
                alive = torch.zeros_like(alive)
    return _dictionary(hook_name, k, *(part.detach() for part in parts))


def _dictionary(hook_name: str, k: int, encoder: Tensor, decoder: Tensor, bias: Tensor, before: Tensor) -> Dictionary:
    return Dictionary("topk", hook_name, encoder, decoder, bias, {"b_enc": before}, k=k)


def _renew(parts: list[Tensor], dead: Tensor, worst: Float[Tensor, "n d_model"]) -> None:
    """Points dead features at activations that are reconstructed worst."""
    places = dead.nonzero().flatten()[: len(worst)]
    rows = torch.nn.functional.normalize(worst[: len(places)] - parts[2], dim=-1)
    parts[0][:, places], parts[1][places], parts[3][places] = rows.T, rows, 0.0


def _activations(bridge: TransformerBridge, hook_name: str, prompts: Given) -> Float[Tensor, "n d_model"]:
    # Changes nothing: only an edit tells edited_activations where to look.
    nothing = SteeringVector.of(torch.zeros(width_of(bridge, hook_name)))
    reft = Reft([(Site(hook_name, All()), nothing)])
    batches = as_batches(bridge, prompts, padding_side=side_for_ends(bridge))
    return torch.cat([edited_activations(bridge, reft, batch)[0][1].float().cpu() for batch in batches])
