"""LoFiT: selects attention heads by learned scales, then trains a vector on the selected heads (arXiv:2406.01563).

    scales = scale_heads(bridge, positions=All())          # a factor for each coordinate of every head
    train(bridge, scales, examples, TrainConfig(l1=1e-3))  # the loss + l1 times the sum of |factor - 1|
    heads = strongest_heads(scales, 8)                     # by the norm of (factor - 1)
    pushes = push_heads(bridge, heads, positions=All())
    train(bridge, pushes, examples)                        # the final edit

(Yin et al. 2024.) The L1 term keeps most factors at 1, so that few heads stand out. The right
strength of this term depends on the model and the data. A large scale is not evidence that a head
stores anything. It only shows that scaling the head reduced this loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import width_of
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Rescale, SteeringVector
from reftlens.positions import Positions, parse

Head = tuple[int, int]
"""(layer, head)."""


def scale_heads(
    bridge: TransformerBridge, *, positions: Positions | str, layers: Sequence[int] | Literal["all"] = "all"
) -> Reft:
    """Makes a trainable factor for each coordinate of every head's output (`attn.hook_z`), all initialised to 1.

    Args:
        bridge: the base.
        positions: edited tokens.
        layers: block indices, or "all".
    """
    chosen = range(bridge.cfg.n_layers) if layers == "all" else layers
    heads = [(int(layer), head) for layer in chosen for head in range(bridge.cfg.n_heads)]
    return _at_heads(bridge, heads, positions, Rescale)


def strongest_heads(scales: Reft, k: int) -> list[Head]:
    """Returns the k heads whose learned factors are furthest from 1, in descending order.

    Args:
        scales: a trained edit from `scale_heads`.
        k: number of heads.

    Raises:
        ValueError: If k is not between 1 and the number of scaled heads, or an edit is not a scale
            of one head.
    """
    lengths: list[tuple[float, Head]] = []
    for site, intervention in scales:
        if site.head is None or not isinstance(intervention, Rescale):
            raise ValueError(
                f"every edit must be a Rescale of a single head, as from scale_heads, got {intervention!r} at {site!r}"
            )
        layer = int(site.hook_name.split(".")[1])
        lengths.append((float(intervention.excess.detach().norm()), (layer, site.head)))
    if not 1 <= k <= len(lengths):
        raise ValueError(f"k must be in [1, {len(lengths)}], the number of scaled heads, got {k}")
    return [head for _, head in sorted(lengths, key=lambda pair: -pair[0])[:k]]


def push_heads(bridge: TransformerBridge, heads: Sequence[Head], *, positions: Positions | str) -> Reft:
    """Makes a trainable vector for each of these heads, added to its output and initialised to zero.

    Args:
        bridge: the base.
        heads: (layer, head) pairs, from `strongest_heads`.
        positions: edited tokens.

    Raises:
        ValueError: If the model does not have one of the heads, or no head is given.
    """
    return _at_heads(bridge, heads, positions, SteeringVector)


def _at_heads(
    bridge: TransformerBridge, heads: Sequence[Head], positions: Positions | str, kind: type[Rescale | SteeringVector]
) -> Reft:
    rule = parse(positions)
    names = [(f"blocks.{layer}.attn.hook_z", head) for layer, head in heads]
    pairs = [(Site(name, rule, head), kind(width_of(bridge, name, head))) for name, head in names]
    return Reft(pairs).to(bridge.cfg.device)
