"""Does the edited model give the desired answers, and what else changes? Accuracy and KL on prompts, with a control."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import Turned
from reftlens.bridge import each, side_for_ends
from reftlens.cone.answers import Answers
from reftlens.data import IGNORE, Batch, Prompt, as_batches, as_prompts, completion_tokens
from reftlens.edit.reft import Reft
from reftlens.results import Outcome


@torch.no_grad()
def outcome(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Iterable[Prompt],
    answers: Iterable[Prompt],
    *,
    group: str,
    wanted: str,
    batch_size: int = 64,
    seed: int = 0,
) -> Outcome:
    """Measures how often the next token is the answer's first token, for the base, the edit and the control.

    The control makes changes of the same norm in random directions. If answers have several tokens,
    the result also says how often greedy decoding gives the whole answer.

    Args:
        bridge: the base.
        reft: the edit.
        prompts: texts or conversations.
        answers: the correct answers, one per prompt, with their leading space.
        group: name of the group of prompts, for display.
        wanted: the kind of answer: "new answer" or "old answer".
        batch_size: prompts in one forward pass.
        seed: seed of the control's directions.

    Raises:
        ValueError: If the number of answers differs from the number of prompts.
    """
    prompts = as_prompts(prompts)
    answers = as_prompts(answers, "answers", count=len(prompts))
    tails = completion_tokens(bridge, prompts, answers, name="answers")
    targets = torch.tensor([tail[0] for tail in tails])
    generator = torch.Generator().manual_seed(seed)
    turned = [Turned(intervention, generator) for _, intervention in reft]
    batches = as_batches(bridge, prompts, batch_size=batch_size, padding_side=side_for_ends(bridge))

    def measure(given: tuple[Batch, Int[Tensor, " n"]]) -> tuple[Float[Tensor, "3"], Float[Tensor, "2"]]:
        """Counts right answers of base, edit and control in a batch, and sums the KL divergences of the latter two."""
        batch, target = given
        edits = reft.edits(batch)
        control = [replace(edit, intervention=placebo) for edit, placebo in zip(edits, turned, strict=True)]
        answers_of = Answers(bridge, batch, edits)
        runs = [logits.float().log_softmax(-1).cpu() for logits in answers_of.many(((), edits, control))]
        right = torch.tensor([float((run.argmax(-1) == target).sum()) for run in runs])
        return right, torch.stack([(runs[0].exp() * (runs[0] - run)).sum() for run in runs[1:]])

    right, kl = torch.zeros(3), torch.zeros(2, dtype=torch.float64)
    for counted, divergence in each(bridge, measure, list(zip(batches, targets.split(batch_size), strict=True))):
        right += counted
        kl += divergence
    base, edited, placebo_right = (right / len(prompts)).tolist()
    # An answer of one token is whole where its first token is right.
    several = max(map(len, tails)) > 1
    whole = _whole_answers(bridge, reft, turned, prompts, answers, batch_size) if several else ()
    edited_kl, placebo_kl = (kl / len(prompts)).tolist()
    outcome = Outcome(group, wanted, len(prompts), base, edited, placebo_right, edited_kl, *whole)
    return replace(outcome, control_kl=placebo_kl)


def _whole_answers(
    bridge: TransformerBridge,
    reft: Reft,
    turned: Sequence[Turned],
    prompts: Sequence[Prompt],
    answers: Sequence[Prompt],
    batch_size: int,
) -> tuple[float, ...]:
    """Returns the fraction of answers that greedy decoding gives whole: base, edited, control.

    Greedy decoding gives an answer if each of its tokens is the most likely one after the previous
    ones.
    """

    def measure(batch: Batch) -> Float[Tensor, "3"]:
        right = torch.zeros(3)
        labels = batch.labels[:, 1:]
        edits = reft.edits(batch)
        control = [replace(edit, intervention=placebo) for edit, placebo in zip(edits, turned, strict=True)]
        wanted = labels != IGNORE
        # Logits at a column predict the next one.
        runs = Answers(bridge, batch, edits, at=torch.nn.functional.pad(wanted, (0, 1)))
        for place, logits in enumerate(runs.many(((), edits, control))):
            wrong = torch.zeros_like(wanted)
            wrong[wanted] = logits.argmax(-1) != labels[wanted]
            right[place] += float((~wrong.any(1)).sum())
        return right

    batches = as_batches(bridge, list(zip(prompts, answers, strict=True)), batch_size=batch_size)
    return tuple((torch.stack(list(each(bridge, measure, batches))).sum(0) / len(prompts)).tolist())
