"""The language-model loss: cross-entropy of completion tokens after their prompt (Wu et al. 2024, eq. 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, final

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.arguments import warn
from reftlens.cone.hold import Held, run_cone
from reftlens.data import IGNORE, Batch, encode
from reftlens.edit.hooks import Edit
from reftlens.training.objectives.base import Example, Examples, Objective, completion_logprobs, predictions, widened


@final
class Completion(Objective):
    """-log p(completion | prompt), averaged over completion tokens."""

    fields: ClassVar[dict[str, type]] = {"prompt": str, "completion": str}
    unit: ClassVar[str] = "nats per token"

    def read(self, examples: Examples) -> list[Example]:
        found = super().read(examples)
        _warn_of_glued(found)
        return found

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


def _warn_of_glued(examples: Sequence[Example]) -> None:
    """Warns if completions continue the last word of their prompts, which is rarely meant and slow to learn."""
    glued = [pair for pair in examples if all(isinstance(text, str) for text in pair) and _is_glued(*pair)]
    if glued:
        prompt, completion = glued[0]
        # A run's completions end with EOS, which nobody has typed.
        word = re.split(r"\W", completion, maxsplit=1)[0][:24]
        warn(
            f"{len(glued)} of {len(examples)} completions begin with a letter or a digit directly behind their prompt, as in "
            f"{prompt[-24:] + word!r}. Most models expect a space there: begin the completions with one "
            f"({' ' + word!r}), or end the prompts with white space"
        )


def _is_glued(prompt: str, completion: str) -> bool:
    """Whether a word begins where the prompt ends. Only letters of scripts with case count, which put spaces between words."""
    before, after = prompt[-1:], completion[:1]
    return (_cased(before) or before.isdigit() or before in tuple(".,:;?!")) and (_cased(after) or after.isdigit())


def _cased(char: str) -> bool:
    return char.lower() != char.upper()


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
    # Picked before widening, so that only the logits of completion tokens are copied.
    return nn.functional.cross_entropy(widened(logits[:, :-1][predicted]), labels[:, 1:][predicted])
