"""What is explained if components of the base give the finetuned model's own activations, one component after another."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.two_models import Component, Finetuned, divergence, replaced
from reftlens.bridge import activation_shape, canonical_hook, side_for_ends
from reftlens.cone.answers import Answers
from reftlens.data import Batch, Given, as_batches
from reftlens.data.texts import as_list
from reftlens.edit.reft import Reft
from reftlens.results.finetunes import Replaced
from reftlens.training.objectives.base import predictions

_POINTS = {
    "resid_post": ("hook_resid_post",),
    "attn_out": ("hook_attn_out",),
    "q and k": ("attn.hook_q", "attn.hook_k"),
    "v": ("attn.hook_v",),
    "mlp_out": ("hook_mlp_out",),
}
"""What is replaced in each layer. Queries and keys together decide the attention pattern."""

_Activations = Mapping[str, Float[Tensor, "batch pos *axes"]]


@final
class Replacing:
    """Replacements on a few prompts, in the base and in the base with an edit."""

    @torch.no_grad()
    def __init__(
        self,
        bridge: TransformerBridge,
        finetuned: Finetuned,
        prompts: Given,
        reft: Reft,
        *,
        most: int,
        floor: float,
        seed: int,
    ) -> None:
        """Args: most: prompts that are used. floor: mean nats below which a share is NaN. seed: of the prompts drawn."""
        self.bridge, self.floor = bridge, floor
        self.batch = _some(bridge, prompts, most, seed)
        self.at = self.batch.last_prompt_mask | predictions(self.batch)
        self.edits = reft.edits(self.batch)
        self.wanted = finetuned.logits(self.batch, self.at)
        base, edited = Answers(bridge, self.batch, self.edits, at=self.at).many([(), self.edits])
        self.base = divergence(self.wanted, base)
        self.share = self._share(edited)
        self.n = len(self.batch)
        self.layers = [part for layer in range(bridge.cfg.n_layers) for part in _of_layer(bridge, layer)]
        # Recorded now, because the finetuned model changes inside the context of the control.
        self.names = list(dict.fromkeys(name for one in self._all() for name in one.hook_names))
        self.own = finetuned.activations(self.batch, self.names)

    def _all(self) -> list[Component]:
        heads = [part for layer in range(self.bridge.cfg.n_layers) for part in _of_heads(self.bridge, layer)]
        return [*self.layers, *heads]

    def table(self, control: AbstractContextManager[Finetuned] | None) -> tuple[Replaced, ...]:
        """Replaces each layer's components, and the heads of the layer whose attention explains most by itself.

        Args:
            control: opens a random finetune.
        """
        random_own = None
        if control is not None:
            with control as other:
                random_own = other.activations(self.batch, self.names)
        rows = [self._row(one, random_own) for one in self.layers]
        attention = [row for row in rows if row.point == "attn_out" and row.alone == row.alone]
        if attention:
            layer = max(attention, key=lambda row: row.alone).layer
            rows += [self._row(one, random_own) for one in _of_heads(self.bridge, layer)]
        return tuple(rows)

    def _row(self, component: Component, random_own: _Activations | None) -> Replaced:
        return Replaced(
            component.point,
            component.layer,
            component.head,
            alone=self._explained(component, self.own, edited=False),
            with_edit=self._explained(component, self.own, edited=True),
            random=float("nan") if random_own is None else self._explained(component, random_own, edited=False),
        )

    def _explained(self, component: Component, own: _Activations, *, edited: bool) -> float:
        edits = self.edits if edited else []
        return self._share(replaced(self.bridge, self.batch, component, own, edits, self.at))

    def _share(self, logits: Float[Tensor, "n d_vocab"]) -> float:
        if float(self.base.mean()) < self.floor:
            return float("nan")
        return 1 - float(divergence(self.wanted, logits).sum() / self.base.sum())


def _some(bridge: TransformerBridge, prompts: Given, most: int, seed: int) -> Batch:
    """Draws prompts, and makes one batch of them. Of given batches it takes the first."""
    if not isinstance(prompts, Batch):
        items = as_list(prompts, "held_out")
        texts = not any(isinstance(item, Batch) for item in items)
        # Drawn, because prompts often come sorted by their subject.
        prompts = random.Random(seed).sample(items, min(most, len(items))) if texts else items
    return as_batches(bridge, prompts, name="held_out", batch_size=most, padding_side=side_for_ends(bridge))[0]


def _of_layer(bridge: TransformerBridge, layer: int) -> Iterator[Component]:
    for point, hooks in _POINTS.items():
        names = [f"blocks.{layer}.{hook}" for hook in hooks]
        # Not every architecture has every point: some have no attention in some layers, or none at
        # all.
        if all(_there(bridge, name) for name in names):
            yield Component(point, layer, tuple((name, None) for name in names))


def _of_heads(bridge: TransformerBridge, layer: int) -> Iterator[Component]:
    q, k, z = (f"blocks.{layer}.attn.hook_{name}" for name in "qkz")
    if not all(_there(bridge, name) and len(activation_shape(bridge, name)) == 2 for name in (q, k, z)):
        return
    n_heads, n_keys = activation_shape(bridge, q)[0], activation_shape(bridge, k)[0]
    for head in range(n_heads):
        # Grouped queries: several heads read one head's keys.
        yield Component("q and k", layer, ((q, (head,)), (k, (head * n_keys // n_heads,))), head)
        yield Component("z", layer, ((z, (head,)),), head)


def _there(bridge: TransformerBridge, hook_name: str) -> bool:
    try:
        canonical_hook(bridge, hook_name)
    except ValueError:
        return False
    return True
