"""Searches for a prompt that an edit changes most: token swaps, guided by the gradient of KL(base, edited).

The derivative of KL by the embedding of a token says, to first order, what each other token in its
place would do (Ebrahimi et al. 2018, arXiv:1712.06751). The most promising swaps are run, and the
best one is kept if it is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.cone.answers import Answers
from reftlens.cone.light_cone import run_cone, whole
from reftlens.data import IGNORE, Batch
from reftlens.edit.reft import Reft
from reftlens.results import WorstPrompt

_TRIED = 24
"""Swaps of a prompt that are run in each round."""


def worst_prompts(
    bridge: TransformerBridge,
    reft: Reft,
    batches: Sequence[Batch],
    kl: Float[Tensor, " prompt"],
    *,
    n: int,
    rounds: int,
    seed: int,
) -> list[WorstPrompt]:
    """Improves the prompts with the largest KL by token swaps.

    Args:
        bridge: the base.
        reft: the edit.
        batches: the prompts.
        kl: of each of them.
        n: prompts to start from.
        rounds: swaps of each, at most.
        seed: seed of the choice among equally promising swaps.

    Returns:
        What was found, largest KL first.
    """
    generator = torch.Generator().manual_seed(seed)
    starts = torch.cat([torch.full((len(batch),), place) for place, batch in enumerate(batches)])
    rows = torch.cat([torch.arange(len(batch)) for batch in batches])
    found = []
    for one in kl.argsort(descending=True)[:n].tolist():
        batch = batches[int(starts[one])]
        # Without its padding and its completion, so that only the prompt itself is swapped.
        start = batch.tokens[int(rows[one])][batch.prompt_mask[int(rows[one])]]
        before, value, tokens = float(kl[one]), float(kl[one]), start
        for _ in range(rounds):
            swapped = _swaps(bridge, reft, tokens, generator)
            values = _measure(bridge, reft, swapped) if len(swapped) else torch.zeros(1)
            if float(values.max()) <= value:
                break
            value, tokens = float(values.max()), swapped[int(values.argmax())]
        text, was = (bridge.tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in (tokens, start))
        found.append(WorstPrompt(text, was, value, before, int((tokens != start).sum()), tuple(tokens.tolist())))
    return sorted(found, key=lambda one: -one.kl)


def _swaps(
    bridge: TransformerBridge, reft: Reft, tokens: Int[Tensor, " pos"], generator: torch.Generator
) -> Int[Tensor, "swap pos"]:
    """Returns the most promising swaps of one token."""
    embedding = bridge.original_model.get_input_embeddings()
    batch = _batch(tokens[None])
    with torch.enable_grad(), _pushed(embedding, tokens) as push:
        base, edited = (
            run_cone(bridge, whole(batch), edits, logits_at=batch.last_prompt_mask).double().log_softmax(-1)
            for edits in ((), reft.edits(batch))
        )
        (slope,) = torch.autograd.grad((base.exp() * (base - edited)).sum(), [push])
    table = embedding.weight.detach().to(slope)
    gain = slope @ table.T - (slope * table[tokens]).sum(-1, keepdim=True)
    special = torch.tensor(bridge.tokenizer.all_special_ids, device=gain.device)
    # Special tokens stay where they are and come nowhere else: what is found shall be a text.
    gain[torch.isin(tokens, special)] = -torch.inf
    gain[:, special[special < gain.shape[1]]] = -torch.inf
    gain.scatter_(1, tokens[:, None], -torch.inf)
    # Half by the promise of one swap; half by the best token of other places, where the promise is
    # not to be trusted.
    best = gain.flatten().topk(min(_TRIED // 2, gain.numel())).indices
    places = torch.randint(len(tokens), (_TRIED // 2,), generator=generator).to(best.device)
    ranks = gain[places].topk(min(8, gain.shape[1]), dim=1).indices
    chosen = torch.randint(ranks.shape[1], (len(places), 1), generator=generator).to(best.device)
    flat = torch.cat([best, places * gain.shape[1] + ranks.gather(1, chosen)[:, 0]]).unique()
    flat = flat[gain.flatten()[flat] > -torch.inf]
    out = tokens.repeat(len(flat), 1)
    out[torch.arange(len(flat)), flat // gain.shape[1]] = flat % gain.shape[1]
    return out


def _measure(bridge: TransformerBridge, reft: Reft, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, " n"]:
    batch = _batch(tokens)
    edits = reft.edits(batch)
    base, edited = (logits.double().log_softmax(-1) for logits in Answers(bridge, batch, edits).many([(), edits]))
    return (base.exp() * (base - edited)).sum(-1).cpu()


def _batch(tokens: Int[Tensor, "n pos"]) -> Batch:
    ones = torch.ones_like(tokens)
    return Batch(tokens, ones, ones.bool(), torch.full_like(tokens, IGNORE))


@contextmanager
def _pushed(embedding: torch.nn.Module, tokens: Int[Tensor, " pos"]) -> Iterator[Float[Tensor, "pos d"]]:
    """Adds a push of zero to the embeddings, for the derivative by them."""
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    push = torch.zeros(len(tokens), weight.shape[1], device=tokens.device, dtype=weight.dtype, requires_grad=True)
    handle = embedding.register_forward_hook(lambda _module, _given, output: output + push)
    try:
        yield push
    finally:
        handle.remove()
