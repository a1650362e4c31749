"""The input that all methods share: examples, the objective, and the scorer of a trained model.

problem = labelled(bridge, train, test)             # (text, label)
problem = completed(bridge, train, test)            # (prompt, completion)
problem = of_task(bridge, task, records, held_out)  # one of `reftlens.paper.tasks`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.hold import hold, run_cone
from reftlens.data import IGNORE, encode
from reftlens.edit.reft import Reft
from reftlens.paper.tasks import Record, Task, evaluate
from reftlens.training.objectives import Classification, Completion, Objective
from reftlens.training.objectives.base import Example, predictions


@final
@dataclass(frozen=True)
class Problem:
    """A learning problem."""

    examples: Sequence[Example]
    """Training examples."""
    objective: Callable[[], Objective]
    """Creates a new objective for each run."""
    score: Callable[[Reft | None, Objective], float]
    """Scores the bridge in its current state, with or without an edit, on held-out examples."""
    metric: str
    """Name of the score."""
    n_test: int
    """Number of scored examples."""


def completed(
    bridge: TransformerBridge,
    train: Sequence[tuple[str, str]],
    test: Sequence[tuple[str, str]],
    *,
    batch_size: int = 64,
) -> Problem:
    """Makes a problem of (prompt, completion) pairs, scored by the fraction that greedy decoding completes exactly."""
    _require(train, test)

    def score(reft: Reft | None, objective: Objective) -> float:
        return exact_match(bridge, reft, test, batch_size=batch_size)

    return Problem(list(train), Completion, score, "exact match", len(test))


def labelled(
    bridge: TransformerBridge,
    train: Sequence[tuple[str, int]],
    test: Sequence[tuple[str, int]],
    *,
    batch_size: int = 64,
) -> Problem:
    """Makes a problem of (text, label) pairs with labels 0 to n - 1, scored by accuracy."""
    _require(train, test)
    n_classes = 1 + max(label for _, label in (*train, *test))
    texts, labels = zip(*test, strict=True)

    def score(reft: Reft | None, objective: Objective) -> float:
        assert isinstance(objective, Classification), "it is what this problem makes"
        found = objective.predict(bridge, reft, texts, batch_size=batch_size)
        return sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels)

    return Problem(list(train), partial(Classification, bridge, n_classes), score, "accuracy", len(test))


def of_task(
    bridge: TransformerBridge,
    task: Task,
    train: Sequence[Record],
    tests: Sequence[tuple[Task, Sequence[Record]]],
    *,
    batch_size: int = 16,
) -> Problem:
    """Makes a problem of a task's records, scored by the mean over its tests, as in the paper's tables.

    Raises:
        ValueError: If there are no records, or the tests have different metrics.
    """
    _require(train, [record for _, records in tests for record in records])
    metrics = {test.metric for test, _ in tests}
    if len(metrics) > 1:
        raise ValueError(
            f"all tests must have the same metric, so that their mean is meaningful, got {', '.join(sorted(metrics))}"
        )
    (metric,) = metrics

    def score(reft: Reft | None, objective: Objective) -> float:
        found = [
            evaluate(bridge, reft, test, records, objective=objective, batch_size=batch_size, progress=False).score
            for test, records in tests
        ]
        return sum(found) / len(found)

    examples, n_test = task.examples(bridge, train), sum(len(records) for _, records in tests)
    name = metric if len(tests) == 1 else f"mean {metric} of {len(tests)} tasks"
    return Problem(examples, partial(task.objective, bridge), score, name, n_test)


@torch.no_grad()
def exact_match(
    bridge: TransformerBridge, reft: Reft | None, pairs: Sequence[tuple[str, str]], *, batch_size: int = 64
) -> float:
    """Returns the fraction of pairs that greedy decoding completes exactly, with one forward pass per batch.

    Equivalently, every token of the completion must be the most likely one after the tokens before
    it.
    """
    right = 0
    for start in range(0, len(pairs), batch_size):
        prompts, completions = zip(*pairs[start : start + batch_size], strict=True)
        batch = encode(bridge, prompts, completions)
        where = predictions(batch)
        edits = [] if reft is None else reft.edits(batch)
        found = run_cone(bridge, hold(bridge, batch, edits, wanted=where), edits, logits_at=where).argmax(dim=-1)
        # A prediction stands one column before its label, so both are in the same row order.
        wrong = (found != batch.labels[batch.labels != IGNORE]).long()
        errors = torch.zeros(len(batch), dtype=torch.long, device=wrong.device)
        right += int((errors.index_add(0, where.nonzero()[:, 0], wrong) == 0).sum())
    return right / len(pairs)


def _require(train: Sequence[object], test: Sequence[object]) -> None:
    for name, examples in (("train on", train), ("score on", test)):
        if not len(examples):
            raise ValueError(f"there are no examples to {name}")
