"""The language-model loss: cross-entropy of completion tokens after their prompt (Wu et al. 2024, eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import Held, run_cone
from reftlens.data import IGNORE, Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.training.objectives.base import Example, Objective, completion_logprobs, predictions, widened


@final
class Completion(Objective):
    """-log p(completion | prompt), averaged over completion tokens."""

    fields: ClassVar[dict[str, type]] = {"prompt": str, "completion": str}
    unit: ClassVar[str] = "nats per token"

    def encode(self, bridge: TransformerBridge, example: Example) -> Batch:
        prompt, completion = example
        return encode(bridge, [prompt], [completion])

    def weights(self, batch: Batch) -> Int[Tensor, " examples"]:
        return (batch.labels != IGNORE).sum(dim=1)

    def losses(
        self, bridge: TransformerBridge, held: Held, edits: Sequence[Edit], reference: Tensor | None
    ) -> Float[Tensor, " examples"]:
        logits = run_cone(bridge, held, edits, logits_at=predictions(held.batch))
        return -completion_logprobs(logits, held.batch)


def completion_loss(logits: Float[Tensor, "batch pos d_vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Computes the completion loss from given logits: the mean over completion tokens, in nats per token, in at least float32.

    Args:
        logits: of a whole batch, or of its columns from some position on.
        labels: `batch.labels` in the same columns.

    Raises:
        ValueError: If there are no completion tokens, or logits and labels cover different columns.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits must match the labels {list(labels.shape)}, got {list(logits.shape)}")
    predicted = labels[:, 1:] != IGNORE
    if not bool(predicted.any()):
        raise ValueError("the batch has no completion tokens: pass completions to encode")
    if int(labels.max()) >= logits.shape[-1]:
        raise ValueError(
            f"labels must be smaller than {logits.shape[-1]}, the vocabulary of the logits, got {int(labels.max())}"
        )
    return nn.functional.cross_entropy(widened(logits[:, :-1][predicted]), labels[:, 1:][predicted])
