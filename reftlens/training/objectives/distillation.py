"""Distillation: the teacher's next-token distributions at the completion tokens, KL(teacher || edited model).

With an edit on the same base as teacher, it asks which edits can do what that one does (a planted
edit, say).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import fingerprint
from reftlens.cone.hold import Held, run_cone
from reftlens.data import IGNORE, Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.edit.reft import Reft
from reftlens.training.objectives.base import Example, Objective, predictions, widened


@final
class Distillation(Objective):
    """KL(teacher || edited model), averaged over the tokens that predict a completion token.

    The teacher's logits, `[completion tokens, d_vocab]` per example, are cached with the base runs
    in the teacher's dtype.
    """

    fields: ClassVar[dict[str, type]] = {"prompt": str, "completion": str}
    unit: ClassVar[str] = "nats per token"

    def __init__(
        self, teacher: Reft | TransformerBridge, *, known: Mapping[tuple[str, str], Tensor] | None = None
    ) -> None:
        """Args: teacher: an edit of the same base, or another model with the same vocabulary.

        known: (prompt, completion) -> the teacher's logits `[completion tokens, d_vocab]`, where
        they were computed before.
        """
        super().__init__()
        # A tuple keeps the teacher from being registered, trained and saved.
        self._teacher = (teacher,)
        self._known = known or {}

    def identity(self) -> str:
        (teacher,) = self._teacher
        if isinstance(teacher, TransformerBridge):
            return f"Distillation(from the model {fingerprint(teacher)})"
        digest = hashlib.sha256(repr(teacher).encode())
        for value in teacher.state_dict().values():
            # With the values: another training of the same layout is another teacher.
            digest.update(value.detach().cpu().numpy().tobytes())
        return f"Distillation(from the edit {digest.hexdigest()[:32]})"

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        prompt, completion = example
        return encode(bridge, [prompt], [completion])

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        return (batch.labels != IGNORE).sum(dim=1)

    def check(self, bridge: TransformerBridge) -> None:
        super().check(bridge)
        (teacher,) = self._teacher
        if isinstance(teacher, TransformerBridge) and teacher.cfg.d_vocab != bridge.cfg.d_vocab:
            raise ValueError(
                f"teacher and base must have the same vocabulary, got {teacher.cfg.d_vocab} and {bridge.cfg.d_vocab} tokens"
            )

    @torch.no_grad()
    def reference(self, bridge: TransformerBridge, held: Held, example: Example) -> Float[Tensor, "n d_vocab"]:
        # A conversation is a list, which no key can be.
        if all(isinstance(part, str) for part in example) and example in self._known:
            return self._known[example].to(held.batch.tokens.device)
        (teacher,) = self._teacher
        batch = held.batch
        model, edited = (
            (teacher, nullcontext()) if not isinstance(teacher, Reft) else (bridge, teacher.hooks(bridge, batch))
        )
        with edited:
            logits = model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
        return logits[predictions(batch)]

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        assert reference is not None, "the trainer passes what reference() gave"
        where = predictions(held.batch)
        student = widened(run_cone(bridge, held, edits, logits_at=where)).log_softmax(dim=-1)
        # Held as logits in the teacher's dtype; normalised here in the student's, at least float32.
        teacher = reference.to(student).log_softmax(dim=-1)
        costs = (teacher.exp() * (teacher - student)).sum(dim=-1)
        rows = where.nonzero()[:, 0].to(costs.device)
        return torch.zeros(len(held.batch), dtype=costs.dtype, device=costs.device).index_add(0, rows, costs)
