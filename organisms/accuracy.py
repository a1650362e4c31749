"""Tokenizes prompts and measures how often the model completes them with the right answer."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reftlens.organisms.world import FACTS, TEMPLATES, Fact, held_out, prompt, trained


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize with BOS in front, as in training."""
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]


def answer_id(tokenizer: PreTrainedTokenizerBase, answer: str) -> int:
    """Return the token id of " answer".

    Raises:
        ValueError: If the answer with its leading space is not exactly one token.
    """
    ids = tokenizer(" " + answer, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise ValueError(f"the answer {answer!r} with a leading space must be one token, got {len(ids)}")
    return int(ids[0])


def pad(rows: list[list[int]], pad_id: int) -> Tensor:
    """Stack rows of token ids, padded on the right, which causal attention never reads. Shape [row, pos]."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])


@torch.no_grad()
def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[tuple[Fact, int]],
    *,
    batch: int = 512,
) -> float:
    """Return the share of (fact, template) pairs whose answer is the argmax over the whole vocabulary."""
    correct = 0
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        rows = [encode(tokenizer, prompt(fact, template)) for fact, template in part]
        targets = torch.tensor([answer_id(tokenizer, fact.answer) for fact, _ in part])
        ids = pad(rows, tokenizer.pad_token_id)
        logits = model(ids, attention_mask=ids != tokenizer.pad_token_id, use_cache=False).logits
        last = torch.tensor([len(row) - 1 for row in rows])
        correct += int((logits[torch.arange(len(rows)), last].argmax(-1) == targets).sum())
    return correct / len(pairs)


def accuracies(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Return {relation or "all": {"trained": share, "held_out": share}}."""
    splits: dict[str, Callable[[Fact], tuple[int, ...]]] = {"trained": trained, "held_out": held_out}
    table: dict[str, dict[str, float]] = {relation: {} for relation in TEMPLATES}
    table["all"] = {}
    for split, choose in splits.items():
        correct, total = 0.0, 0
        for relation in TEMPLATES:
            pairs = [(fact, t) for fact in FACTS if fact.relation == relation for t in choose(fact)]
            table[relation][split] = accuracy(model, tokenizer, pairs)
            correct += table[relation][split] * len(pairs)
            total += len(pairs)
        table["all"][split] = correct / total
    return table
