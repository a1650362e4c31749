"""Compares the outputs of a base and a finetuned model, and puts activations of one into runs of the other.

    outputs = Outputs(bridge, Finetuned(other), pairs)
    outputs.left([])              # KL(finetuned || base) at every compared token
    outputs.left(reft)            # KL(finetuned || edited)

Compared tokens are the last token of each prompt and all completion tokens but the last: their
logits predict the completion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import canonical_hooks, hooked, layer_of, side_for_ends
from reftlens.cone.answers import Answers
from reftlens.cone.hold import hold_from, run_cone
from reftlens.cone.recording import record
from reftlens.data import Batch, Given, as_batches
from reftlens.edit.hooks import Edit, attach
from reftlens.edit.reft import Reft
from reftlens.results.finetunes import Explained
from reftlens.training.objectives.base import predictions


@final
@dataclass(frozen=True, eq=False)
class Finetuned:
    """A finetuned model: a model of its own, or the base with an edit."""

    bridge: TransformerBridge
    reft: Reft | None = None

    @property
    def teacher(self) -> Reft | TransformerBridge:
        """What `Distillation` takes."""
        return self.bridge if self.reft is None else self.reft

    def edits(self, batch: Batch) -> list[Edit]:
        return [] if self.reft is None else self.reft.edits(batch)

    def logits(self, batch: Batch, at: Bool[Tensor, "batch pos"]) -> Float[Tensor, "n d_vocab"]:
        edits = self.edits(batch)
        return Answers(self.bridge, batch, edits, at=at).logits(edits)

    def activations(self, batch: Batch, hook_names: Sequence[str]) -> Mapping[str, Float[Tensor, "batch pos *axes"]]:
        edits = self.edits(batch)
        with attach(self.bridge, edits) if edits else nullcontext():
            return record(self.bridge, batch, hook_names).activations


@final
@dataclass(frozen=True, eq=False)
class _Compared:
    """One batch, and the finetuned model's outputs on it."""

    batch: Batch
    at: Bool[Tensor, "batch pos"]
    logits: Float[Tensor, "n d_vocab"]
    """On the CPU: of all compared tokens, in row order."""

    @property
    def places(self) -> Int[Tensor, " n"]:
        """The number of each compared token in its row."""
        return (self.at.long().cumsum(1) - 1)[self.at].cpu()


@final
class Outputs:
    """A finetuned model's outputs on some prompts, and how far those of the base and of edits are from them."""

    @torch.no_grad()
    def __init__(
        self,
        bridge: TransformerBridge,
        finetuned: Finetuned,
        prompts: Given,
        *,
        name: str,
        floor: float,
        batch_size: int = 64,
    ) -> None:
        """Runs both models.

        Args:
            bridge: the base.
            finetuned: the other model.
            prompts: texts, conversations, pairs of prompt and completion, or batches of either.
            name: of the prompts, in results and errors.
            floor: of `Explained`.
            batch_size: prompts in one forward pass.
        """
        self.bridge, self.name, self.floor = bridge, name, floor
        self._parts = []
        side = side_for_ends(bridge)
        for batch in as_batches(bridge, prompts, name=name, batch_size=batch_size, padding_side=side):
            at = batch.last_prompt_mask | predictions(batch)
            self._parts.append(_Compared(batch, at, finetuned.logits(batch, at).cpu()))
        self.base = self.left(None)

    @torch.no_grad()
    def left(self, reft: Reft | None) -> Float[Tensor, " n"]:
        """Computes KL(finetuned || edited) at each compared token, in nats, in float64 on the CPU.

        Args:
            reft: the edit; None for the base.
        """
        found = []
        for part in self._parts:
            edits = [] if reft is None else reft.edits(part.batch)
            found.append(divergence(part.logits, Answers(self.bridge, part.batch, edits, at=part.at).logits(edits)))
        return torch.cat(found)

    def explained(self, name: str, reft: Reft) -> Explained:
        """Returns what an edit explains, token by token.

        Args:
            name: of the edit.
            reft: the edit.
        """
        return self.shares(name, self.left(reft))

    def shares(self, name: str, left: Float[Tensor, " n"]) -> Explained:
        """Returns the same from what is left at each compared token.

        Args:
            name: of what is left.
            left: from `left`.
        """
        places = torch.cat([part.places for part in self._parts])
        zeros = torch.zeros(int(places.max()) + 1, dtype=torch.float64)
        base, rest, n = (zeros.index_add(0, places, values) for values in (self.base, left, torch.ones_like(self.base)))
        return Explained(name, self.name, base.float(), rest.float(), n.float(), self.floor)

    def of_each(self) -> list[Float[Tensor, "n d_vocab"]]:
        """Returns the finetuned model's logits at the compared tokens of each prompt, in order, on the CPU."""
        return [row for part in self._parts for row in part.logits.split(part.at.sum(1).tolist())]


def divergence(finetuned: Float[Tensor, "n d_vocab"], other: Float[Tensor, "n d_vocab"]) -> Float[Tensor, " n"]:
    """Computes KL(finetuned || other) of next-token distributions in nats, in float64 on the CPU.

    Args:
        finetuned: logits.
        other: logits.
    """
    p, q = (logits.double().log_softmax(-1) for logits in (finetuned.to(other.device), other))
    # Rounding may make the KL of nearly equal distributions negative.
    return (p.exp() * (p - q)).sum(-1).clamp(min=0).cpu()


@final
@dataclass(frozen=True)
class Component:
    """What one replacement writes: some points of one block, at all tokens."""

    point: str
    layer: int
    writes: tuple[tuple[str, tuple[int, ...] | None], ...]
    """(hook name, heads; None for all of the activation)."""
    head: int | None = None

    @property
    def hook_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.writes)


@torch.no_grad()
def replaced(
    bridge: TransformerBridge,
    batch: Batch,
    component: Component,
    own: Mapping[str, Float[Tensor, "batch pos *axes"]],
    edits: Sequence[Edit],
    at: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "n d_vocab"]:
    """Computes the base's logits with one component's activations replaced, at all tokens, under edits.

    An edit of a replaced point is left out: the other model's activation takes the place of what
    the edit makes there.

    Args:
        bridge: the base.
        batch: the prompts.
        component: what is replaced.
        own: the other model's activations by hook name, on this batch.
        edits: of this batch.
        at: the tokens whose logits are returned.
    """
    names = component.hook_names
    here = {_activation(bridge, name): heads for name, heads in component.writes}
    kept = [edit for edit in edits if not _overwritten(edit, here.get(_activation(bridge, edit.hook_name), ()))]
    everywhere = batch.attention_mask.bool()
    held = hold_from(bridge, batch, [*names, *(edit.hook_name for edit in kept)], everywhere)

    def writing(name: str, heads: tuple[int, ...] | None) -> Any:
        def hook_fn(activation: Tensor, hook: Any) -> Tensor:
            other = own[name][:, held.start :].to(activation).reshape(activation.shape)
            if heads is None:
                return other
            written = activation.clone()
            written[:, :, list(heads)] = other[:, :, list(heads)]
            return written

        return hook_fn

    with hooked(bridge, [(name, writing(name, heads)) for name, heads in component.writes]):
        return run_cone(bridge, held, kept, logits_at=at)


def _overwritten(edit: Edit, heads: tuple[int, ...] | None) -> bool:
    """Whether an edit writes to replaced heads of its point: all of them if None, nothing if empty."""
    return heads is None or (bool(heads) and (edit.head is None or edit.head in heads))


def _activation(bridge: TransformerBridge, hook_name: str) -> str:
    """Returns one name for an activation that is the output of a block and the input of the next."""
    (name,) = canonical_hooks(bridge, [hook_name])
    layer = layer_of(name)
    return f"blocks.{layer - 1}.hook_out" if layer and name == f"blocks.{layer}.hook_in" else name
