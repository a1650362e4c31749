"""What else does an edit change, at most? An upper bound on KL(base, edited) over a population, and a search for the worst prompt.

KL has no largest value, so the bound has two parts. The mean of min(KL, cap) is bounded by an
empirical Bernstein inequality, and the fractions of prompts whose KL exceeds the cap and other
thresholds are bounded by binomial tails. They assume that the measured prompts are independent
draws from the population, and nothing about the distribution of KL. All parts hold together with
the stated confidence.

The search starts from some prompts, and swaps tokens where the gradient of KL by their embeddings
promises most. What it finds is a prompt with a large KL. It is not a draw from the population, and
it is no part of the bound: a bound on a population says nothing about prompts outside it. That the
search finds nothing is no evidence that there is nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.engine.bounds import fraction_bound, mean_bound
from reftlens.analysis.engine.worst_prompt import worst_prompts
from reftlens.bridge import side_for_ends
from reftlens.cone.answers import Answers
from reftlens.data import IGNORE, Batch, Given, as_batches
from reftlens.edit.reft import Reft
from reftlens.numbers import require_number, require_whole_number
from reftlens.results import Certificate

THRESHOLDS = (0.01, 0.1, 1.0)


@torch.no_grad()
def certify(
    bridge: TransformerBridge,
    reft: Reft,
    population: Given,
    *,
    cap: float = 1.0,
    thresholds: Sequence[float] = THRESHOLDS,
    confidence: float = 0.95,
    n_searched: int = 8,
    rounds: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> Certificate:
    """Bounds what an edit changes on a population of prompts, and searches for a prompt that it changes most.

    Args:
        bridge: the base.
        reft: the edit.
        population: independent draws from the prompts that matter: lines of a text file, rows of a
            dataset, or `sampled_prompts`. The certificate has a digest of their tokens.
        cap: nats at which KL is cut for its mean.
        thresholds: nats whose exceedance is bounded; the cap is added.
        confidence: probability that all bounds hold together.
        n_searched: prompts from which the search starts, those with the largest KL; 0 for no
            search.
        rounds: token swaps of each of them, at most.
        batch_size: prompts in one forward pass.
        seed: seed of the search.

    Raises:
        ValueError: If there are fewer than two prompts, or a number is out of range.
    """
    require_number("cap", cap, above=0)
    require_number("confidence", confidence, above=0, below=1)
    require_whole_number("n_searched", n_searched, least=0)
    require_whole_number("rounds", rounds, least=0)
    for threshold in thresholds:
        require_number("a threshold", threshold, above=0)
    batches = as_batches(
        bridge, population, name="population", batch_size=batch_size, padding_side=side_for_ends(bridge)
    )
    kl = torch.cat([divergences(bridge, reft, batch) for batch in batches])
    if len(kl) < 2:
        raise ValueError(f"certify needs at least two prompts of the population, got {len(kl)}")
    levels = sorted({float(cap), *map(float, thresholds)})
    # The union bound: each part may be wrong with so much less.
    risk = (1 - confidence) / (1 + len(levels))
    counts = [int((kl > level).sum()) for level in levels]
    return Certificate(
        n=len(kl),
        digest=_digest(batches),
        confidence=confidence,
        cap=float(cap),
        mean=float(kl.clamp(max=cap).mean()),
        mean_bound=mean_bound(kl.clamp(max=cap), cap, risk),
        thresholds=tuple(levels),
        exceeding=tuple(counts),
        exceeding_bound=tuple(fraction_bound(count, len(kl), risk) for count in counts),
        largest=float(kl.max()),
        worst=tuple(worst_prompts(bridge, reft, batches, kl, n=n_searched, rounds=rounds, seed=seed)),
    )


@torch.no_grad()
def divergences(bridge: TransformerBridge, reft: Reft, batch: Batch) -> Float[Tensor, " prompt"]:
    """Computes KL(base || edited) of the next token after each prompt, in nats, on the CPU.

    Args:
        bridge: the base.
        reft: the edit.
        batch: the prompts.
    """
    edits = reft.edits(batch)
    base, edited = (logits.double().log_softmax(-1) for logits in Answers(bridge, batch, edits).many([(), edits]))
    # Rounding may make the KL of nearly equal distributions negative.
    return (base.exp() * (base - edited)).sum(-1).clamp(min=0).cpu()


@torch.no_grad()
def sampled_prompts(
    bridge: TransformerBridge, n: int, *, n_tokens: int = 16, batch_size: int = 64, seed: int = 0
) -> list[Batch]:
    """Draws prompts from the base model itself, token by token at temperature 1, as a population.

    Args:
        bridge: the base; causal, with a token that begins texts.
        n: number of prompts.
        n_tokens: length of each, besides the first token.
        batch_size: prompts in one forward pass.
        seed: seed of the draws.

    Raises:
        ValueError: If a number is below 1, or the tokenizer has no token that begins texts.
    """
    require_whole_number("n", n, least=1)
    require_whole_number("n_tokens", n_tokens, least=1)
    begin = bridge.tokenizer.bos_token_id
    if begin is None:
        raise ValueError(
            "this tokenizer has no token that begins texts, so there is nothing to sample after: pass prompts"
        )
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for start in range(0, n, batch_size):
        rows = torch.full((min(batch_size, n - start), 1), begin, device=bridge.cfg.device)
        for _ in range(n_tokens):
            # On the CPU, so that a seed draws the same prompts on every device.
            p = bridge(rows)[:, -1].float().softmax(-1).cpu()
            rows = torch.cat([rows, torch.multinomial(p, 1, generator=generator).to(rows)], dim=1)
        ones = torch.ones_like(rows)
        batches.append(Batch(rows, ones, ones.bool(), torch.full_like(rows, IGNORE)))
    return batches


def _digest(batches: Sequence[Batch]) -> str:
    """Returns a checksum of the prompts' tokens, whatever their padding and their division into batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for tokens, mask in zip(batch.tokens.tolist(), batch.attention_mask.bool().tolist(), strict=True):
            kept = [token for token, there in zip(tokens, mask, strict=True) if there]
            digest.update(f"{kept}\n".encode())
    return digest.hexdigest()[:32]
