"""A small GPT-2 trained on modular addition, and many edits of it trained in parallel on random answers.

The edits share only the model, the site and the prompts, so any other similarity is a product of
training.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2LMHeadModel

from reftlens.benchmark.models import small_gpt2
from reftlens.bridge import load_bridge
from reftlens.data import IGNORE, Batch
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import LoReFT
from reftlens.organisms import ORGANISMS
from reftlens.positions import Last

P = 13
"""Numbers 0 to 12 are tokens 1 to 13; token 0 starts each prompt."""
POINT, RANK = "blocks.1.hook_resid_post", 4


def train_addition(*, seed: int = 0, max_steps: int = 500) -> tuple[GPT2LMHeadModel, float]:
    """Trains three blocks of width 64 on all sums until all are right. Returns the model and its accuracy."""
    model = small_gpt2(vocab_size=P + 1, n_positions=8, n_layer=3, initializer_range=0.05, seed=seed)
    tokens = sums()
    # Number n is token n + 1.
    wanted = 1 + tokens[:, 1:].sub(1).sum(1) % P
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    right = 0.0
    for _ in range(max_steps):
        logits = model(tokens, use_cache=False).logits[:, -1]
        loss = nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = float((logits.argmax(-1) == wanted).float().mean())
        if float(loss.detach()) < 0.02:
            break
    return model.eval().requires_grad_(False), right


def bridge_of(model: GPT2LMHeadModel) -> TransformerBridge:
    """Makes a bridge from a copy, so that the original model is unchanged."""
    tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    return load_bridge(hf_model=deepcopy(model), tokenizer=tokenizer)


def sums() -> Int[Tensor, "prompt 3"]:
    """Returns all pairs of numbers, after the start token."""
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P)) + 1
    return torch.cat([torch.zeros(len(pairs), 1, dtype=torch.long), pairs], dim=1)


def batch_of(tokens: Int[Tensor, "prompt 3"]) -> Batch:
    """Makes a batch of prompts without completions."""
    ones = torch.ones_like(tokens)
    return Batch(tokens, ones, ones.bool(), torch.full_like(tokens, IGNORE))


def unrelated_edits(
    model: GPT2LMHeadModel, n: int, *, seed: int, n_examples: int = 24, steps: int = 40, at_once: int = 140
) -> list[Reft]:
    """Trains LoReFTs at the last token, each on the same prompts with different random answers.

    Args:
        model: the model from `train_addition`.
        n: number of edits.
        seed: seed of prompts, answers and initialisation.
        n_examples: number of prompts.
        steps: number of Adam steps.
        at_once: number of edits in one forward pass.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(P * P, generator=generator)[:n_examples]
    with torch.no_grad():
        # hidden_states[0] is the embedding, so [2] is the output of block 1, which is POINT.
        h = model.transformer(sums()[chosen], output_hidden_states=True, use_cache=False).hidden_states[2].clone()
    edits = []
    for start in range(0, n, at_once):
        many = min(at_once, n - start)
        answers = torch.randint(1, P + 1, (many, n_examples), generator=generator)
        edits += _fit(model, h, answers, steps, generator)
    return edits


def _fit(
    model: GPT2LMHeadModel,
    h: Float[Tensor, "example 3 d"],
    answers: Int[Tensor, "edit example"],
    steps: int,
    generator: torch.Generator,
) -> list[Reft]:
    n, d = len(answers), h.shape[-1]
    # As a new LoReFT starts: a uniform subspace, and W as `nn.Linear` has it, in ±1 / sqrt(d).
    raw = torch.randn(n, d, RANK, generator=generator).requires_grad_()
    weight = ((2 * torch.rand(n, RANK, d, generator=generator) - 1) / d**0.5).requires_grad_()
    bias = torch.zeros(n, RANK, requires_grad=True)
    optimizer = torch.optim.Adam([raw, weight, bias], lr=2e-2)
    for _ in range(steps):
        # Batched, one R for each edit; `Orthonormal` holds only one.
        R = torch.linalg.qr(raw).Q.mT
        last = h[:, -1]
        inside = einsum(weight - R, last, "edit rank d, example d -> edit example rank") + bias[:, None]
        edited = last + einsum(inside, R, "edit example rank, edit rank d -> edit example d")
        # Edits act at the last token only, so the earlier tokens are the same for all of them.
        before = repeat(h[:, :-1], "example pos d -> (edit example) pos d", edit=n)
        resid = torch.cat([before, rearrange(edited, "edit example d -> (edit example) 1 d")], dim=1)
        out = model.transformer.h[2](resid)
        states = out[0] if isinstance(out, tuple) else out
        logits = model.lm_head(model.transformer.ln_f(states[:, -1]))
        # Sum over edits, so that each edit gets the same gradient as if trained alone.
        loss = nn.functional.cross_entropy(logits, answers.flatten()) * n
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    R = torch.linalg.qr(raw.detach()).Q.mT
    return [_reft(R[i], weight[i].detach(), bias[i].detach()) for i in range(n)]


def _reft(R: Tensor, weight: Tensor, bias: Tensor) -> Reft:
    edit = LoReFT(R.shape[1], RANK)
    with torch.no_grad():
        edit.rotation.weight.copy_(R)
        edit.source.weight.copy_(weight)
        edit.source.bias.copy_(bias)
    return Reft([(Site(POINT, Last(1)), edit)])
