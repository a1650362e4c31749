"""Locates the facts in `facts-small`: a causal-tracing map over layers x positions.

Tracing patches the residual stream `resid_pre` of a clean run into a corrupted run, which is the same prompt
about another subject (Meng et al. 2022, arXiv:2202.05262, but with symmetric token replacement instead of
noise: Zhang & Nanda 2024, arXiv:2309.16042). With g = logit(clean answer) - logit(corrupted answer) at the
last token, the restored fraction of one site is the least-squares slope over the pairs

    sum (g_patched - g_corrupted) (g_clean - g_corrupted) / sum (g_clean - g_corrupted)^2,

an average of the per-pair fractions weighted by the squared gap. The plain average is undefined for a model
that does not tell the two subjects apart; the slope is not, so an untrained model can serve as a control.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from organisms.accuracy import answer_id, encode, pad
from reftlens.organisms.world import FACTS, TEMPLATES, Fact, prompt

POSITIONS = ("BOS", "first subject", "other subject", "last subject", "between", "last")
"""Position groups of the map. All tokens of a group are patched at once; "between" is what stands after the
subject and before the last token."""

MIN_BETWEEN = 3
"""Tokens that must stand between the subject and the answer for a template to be used in tracing."""


@dataclass(frozen=True)
class Pair:
    """A clean prompt and its corrupted twin: the same template about a subject with other name parts."""

    clean: list[int]
    """Token ids of the clean prompt, BOS included."""
    corrupted: list[int]
    """Token ids of the corrupted prompt, of the same length."""
    subject: tuple[int, int]
    """Half-open token span of the subject, the same in both."""
    answers: tuple[int, int]
    """Token ids of the clean and of the corrupted answer."""


@dataclass(frozen=True)
class TracingMap:
    """Restored fraction of the logit difference for every layer and position group."""

    restored: Tensor
    """Shape [layer, position]; row l patches `resid_pre` of block l; NaN where no pair has such a position."""
    pairs: int
    """Number of clean-corrupted pairs."""
    gap: float
    """Mean of g_clean - g_corrupted over the pairs, in nats."""


def _located(tokenizer: PreTrainedTokenizerBase, fact: Fact, template: int) -> tuple[list[int], int, int]:
    """Return token ids, and start and end of the subject. The parts are tokenized apart, at word borders."""
    before = TEMPLATES[fact.relation][template].split("{}")[0].rstrip(" ")
    head = encode(tokenizer, before)
    through = encode(tokenizer, f"{before} {fact.subject}" if before else fact.subject)
    ids = encode(tokenizer, prompt(fact, template))
    assert ids[: len(through)] == through
    assert through[: len(head)] == head
    return ids, len(head), len(through)


def tracing_pairs(tokenizer: PreTrainedTokenizerBase, *, count: int = 240, seed: int = 0) -> list[Pair]:
    """Draw `count` pairs: same relation, template and lengths, another answer, no name part in common."""
    rng = random.Random(seed)
    pairs: list[Pair] = []
    while len(pairs) < count:
        clean = rng.choice(FACTS)
        corrupted = rng.choice([f for f in FACTS if f.relation == clean.relation and f.answer != clean.answer])
        template = rng.randrange(len(TEMPLATES[clean.relation]))
        ids, start, end = _located(tokenizer, clean, template)
        other, _, other_end = _located(tokenizer, corrupted, template)
        same_length = end == other_end and len(ids) == len(other)
        # One more: the last token of the prompt is a position group of its own.
        if (
            not same_length
            or len(ids) - end < MIN_BETWEEN + 1
            or ids[start] == other[start]
            or ids[end - 1] == other[end - 1]
        ):
            continue
        answers = (answer_id(tokenizer, clean.answer), answer_id(tokenizer, corrupted.answer))
        pairs.append(Pair(ids, other, (start, end), answers))
    return pairs


def _position_masks(pairs: list[Pair], width: int) -> Tensor:
    """Return which tokens belong to which group, shape [group, row, pos]."""
    masks = torch.zeros(len(POSITIONS), len(pairs), width, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        (start, end), last = pair.subject, len(pair.clean) - 1
        spans = (
            (0, 1),
            (start, start + 1),
            (start + 1, end - 1),
            (end - 1, end),
            (end, last),
            (last, last + 1),
        )
        for group, (left, right) in enumerate(spans):
            masks[group, row, left:right] = True
    return masks


@contextmanager
def _patched(block: nn.Module, resid: Tensor, where: Tensor) -> Iterator[None]:
    """Context in which the input of `block` is `resid` [row, pos, d_model] wherever `where` [row, pos] is true."""

    def patch(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (torch.where(where[..., None], resid, args[0]), *args[1:])

    handle = block.register_forward_pre_hook(patch)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def tracing_map(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> TracingMap:
    """Patch `resid_pre` from the clean into the corrupted run, at every layer and position group.

    Args:
        model: A GPT-2 language model, in eval mode.
        tokenizer: Its tokenizer.
        pairs: What `tracing_pairs` returned.
    """
    clean = pad([pair.clean for pair in pairs], tokenizer.pad_token_id)
    corrupted = pad([pair.corrupted for pair in pairs], tokenizer.pad_token_id)
    visible = clean != tokenizer.pad_token_id
    rows, last = torch.arange(len(pairs)), visible.sum(-1) - 1
    right, wrong = torch.tensor([pair.answers for pair in pairs]).T

    def run(ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = model(ids, attention_mask=visible, use_cache=False, output_hidden_states=True)
        final = out.logits[rows, last]
        return final[rows, right] - final[rows, wrong], out.hidden_states

    # hidden_states[l] is the input of block l, which is resid_pre.
    g_clean, resid_pre = run(clean)
    g_corrupted, _ = run(corrupted)
    gap = g_clean - g_corrupted
    blocks = model.transformer.h
    restored = torch.full((len(blocks), len(POSITIONS)), float("nan"))
    for layer, block in enumerate(blocks):
        for group, mask in enumerate(_position_masks(pairs, clean.shape[1])):
            # Only pairs that have such a position count: two-token subjects have no token in the middle.
            has = mask.any(-1)
            if has.any():
                with _patched(block, resid_pre[layer], mask):
                    moved = run(corrupted)[0] - g_corrupted
                restored[layer, group] = (moved * gap)[has].sum() / gap[has].square().sum()
    return TracingMap(restored, len(pairs), float(gap.mean()))
