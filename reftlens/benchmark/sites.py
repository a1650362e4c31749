"""Two planted sites among decoys: large edits without an effect must score about zero.

The decoys write changes as large as the planted pushes: at the last block and a token that no later
layer reads; at every token along the direction that LayerNorm removes; and by writing back exactly
what they erase.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis import edit_size, effect_map, logit_difference_of
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import load, texts
from reftlens.data import encode, first_tokens
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import LoReFT, SteeringVector
from reftlens.positions import All, At

_NEW, _OLD = " Ostra", " Tharic"
_SIZE = 10.0
"""Length of each push."""


def site_rows(name: str) -> Iterator[Known]:
    """Yields the rows for one model with LayerNorm."""
    bridge = load(name)
    prompts = _one_length(bridge)
    reft = _planted(bridge, prompts)
    new, old = ([answer] * len(prompts) for answer in (_NEW, _OLD))
    found = effect_map(bridge, reft, prompts, logit_difference_of(bridge, prompts, new, old), progress=False)
    planted = torch.stack([found.values[1, -1], found.values[2, -1]])
    decoys = found.values[[0, 3, 4]].flatten()
    decoys = decoys[~torch.isnan(decoys)]
    written = float(edit_size(bridge, reft, prompts[0]).relative[[3, 4]].max())
    group = f"two planted sites, {name}"
    yield Known(
        group,
        "each planted cell alone has an effect",
        " and ".join(f"{float(value):.2f}" for value in planted) + " of the whole",
        float((0.1 - planted).clamp(min=0).max()),
        0.0,
        "of the whole effect",
    )
    yield Known(
        group,
        f"{len(decoys)} decoy cells that write up to {written:.0%} of |h| have none",
        f"{float(decoys.abs().max()):.4f} at most",
        float(decoys.abs().max()),
        0.01,
        "of the whole effect",
    )
    control = found.control
    assert control is not None
    turned = float(control[1:3, -1].abs().max())
    yield Known(
        group,
        "planted cells turned to random directions have less",
        f"{turned:.2f}",
        turned / float(planted.max()),
        0.5,
        "of the planted effect",
    )


def _planted(bridge: TransformerBridge, prompts: list[str]) -> Reft:
    """Two pushes towards the new answer (sites 1 and 2) among three decoys."""
    ids = first_tokens(bridge, prompts[:1] * 2, [_NEW, _OLD]).tolist()
    # The direction that raises the new answer's logit over the old one's most.
    toward = torch.nn.functional.normalize(bridge.W_U[:, ids[0]] - bridge.W_U[:, ids[1]], dim=0).detach()
    n_layers, d_model = bridge.cfg.n_layers, bridge.cfg.d_model
    same = LoReFT(d_model, 4)
    with torch.no_grad():
        # W = R and b = 0: this edit acts everywhere, and changes nothing.
        same.source.weight.copy_(same.R)
        same.source.bias.zero_()
    # LayerNorm removes the mean: a push along it is as long as the others, and unseen.
    unseen = torch.ones(d_model) * _SIZE / d_model**0.5
    return Reft(
        [
            (Site("blocks.0.hook_resid_post", All()), same),
            (Site("blocks.1.hook_resid_post", At(-1)), SteeringVector.of(_SIZE * toward)),
            (Site(f"blocks.{n_layers - 2}.hook_resid_post", At(-1)), SteeringVector.of(_SIZE * toward)),
            (Site(f"blocks.{n_layers - 2}.hook_resid_post", All()), SteeringVector.of(unseen)),
            (Site(f"blocks.{n_layers - 1}.hook_resid_post", At(1) | At(2)), SteeringVector.of(_SIZE * toward)),
        ]
    )


def _one_length(bridge: TransformerBridge, n: int = 16) -> list[str]:
    """Returns prompts of the organism's world with equal token counts."""
    sets: dict[int, list[str]] = {}
    for text in texts(200):
        sets.setdefault(encode(bridge, [text]).tokens.shape[1], []).append(text)
    return max(sets.values(), key=len)[:n]
