"""Models with hand-set weights, so that their computation and its location are known.

They are GPT-2s of one to three blocks with almost all weights zero. A prompt has one token that
carries a binary variable, some tokens without information, and a question mark. The answer is one
of two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from reftlens.bridge import load_bridge
from reftlens.data import IGNORE, Batch
from reftlens.organisms import ORGANISMS

D_MODEL, N_TOKENS, LENGTH = 16, 24, 5
QUESTION = 2
"""Tokens 0 and 1 are the answers, 2 is the question mark, 3 to 12 carry the variable, the others no information."""


@final
@dataclass(frozen=True, eq=False)
class Handmade:
    """A model, pairs of prompts with different answers, and the directions that it was built from."""

    bridge: TransformerBridge
    base: Batch
    source: Batch
    true: Tensor
    """Unit row `[1, width]` that carries the variable to the answer."""
    illusory: Tensor
    """Unit row that changes the answer if swapped but does not carry the variable to it; the true row if there is none."""
    read: Tensor
    """Orthonormal rows that span all that the answers depend on at the first point."""


def attention_reads_it(*, n_pairs: int = 64, seed: int = 0) -> Handmade:
    """Makes a model in which token 0 holds the variable along one direction, and a head of block 1 moves it to the end."""
    model, Q = _blank(n_layer=2, seed=seed)
    v, w = Q[0], Q[1]
    with torch.no_grad():
        model.transformer.wte.weight += 2 * _variable()[:, None] * v
        attention = model.transformer.h[1].attn
        # Queries and keys are zero, so the head attends to all tokens equally. It reads v and
        # writes w. c_attn is [d, 3 d]: queries, keys, values, each with 8 columns for each of the
        # two heads.
        attention.c_attn.weight[:, 2 * D_MODEL] = 4 * v
        attention.c_proj.weight[0] = 4 * w
        # Opposite logits, so the answer is the sign of the activation along w.
        model.lm_head.weight[:2] = torch.stack([w, -w])
    return _with_pairs(model, true=v[None], illusory=v[None], n_pairs=n_pairs, seed=seed)


def attention_turns(*, moves: bool = False, n_pairs: int = 64, seed: int = 0) -> Handmade:
    """Makes a model in which head 1.0 moves the variable to the end, and a direction of the question is its query.

    Turning that direction round turns the head's pattern and changes nothing that it moves.

    Args:
        moves: whether head 1.1, which attends to all tokens equally, moves the query's direction to
            the answer as well.
        n_pairs: number of prompt pairs.
        seed: seed of directions and prompts.
    """
    model, Q = _blank(n_layer=2, seed=seed)
    v, query, w = Q
    with torch.no_grad():
        model.transformer.wte.weight += 2 * _variable()[:, None] * v
        model.transformer.wte.weight[QUESTION] += 2 * query
        attention = model.transformer.h[1].attn
        # Columns of queries, keys and values of head 0.
        for column, read in ((0, query), (D_MODEL, v), (2 * D_MODEL, v)):
            attention.c_attn.weight[:, column] = 2 * read
        attention.c_proj.weight[0] = 4 * w
        if moves:
            attention.c_attn.weight[:, 2 * D_MODEL + 8], attention.c_proj.weight[8] = 2 * query, 4 * w
        model.lm_head.weight[:2] = torch.stack([w, -w])
    return _with_pairs(model, true=query[None], illusory=v[None], n_pairs=n_pairs, seed=seed)


def two_steps(*, second: str = "mlp", n_pairs: int = 64, seed: int = 0) -> Handmade:
    """Makes a model in which head 1.0 copies the variable to every token, and block 2 computes the answer from its output.

    There are two decoys. Head 1.1 also copies the variable, into a direction that nothing reads.
    The MLP of block 1 writes the answer at the variable's token, where nothing reads it. Flipping
    the variable does not change any norm, so nothing leaks through LayerNorm.

    Args:
        second: the component that computes the answer, "mlp" or "head" (2.0).
        n_pairs: number of prompt pairs.
        seed: seed of directions and prompts.
    """
    model, Q = _blank(n_layer=3, seed=seed, n_free=4)
    v, w, answer, unread = Q
    with torch.no_grad():
        model.transformer.wte.weight += 2 * _variable()[:, None] * v
        carry, make = model.transformer.h[1], model.transformer.h[2]
        for head, written in enumerate((w, unread)):
            carry.attn.c_attn.weight[:, 2 * D_MODEL + 8 * head] = 4 * v
            carry.attn.c_proj.weight[8 * head] = 4 * written
        _linear(carry.mlp, reads=v, writes=answer)
        if second == "mlp":
            _linear(make.mlp, reads=w, writes=answer)
        else:
            make.attn.c_attn.weight[:, 2 * D_MODEL] = 4 * w
            make.attn.c_proj.weight[0] = 4 * answer
        model.lm_head.weight[:2] = torch.stack([answer, -answer])
    return _with_pairs(model, true=v[None], illusory=v[None], n_pairs=n_pairs, seed=seed)


def _linear(mlp: Any, *, reads: Tensor, writes: Tensor) -> None:
    """Makes an MLP linear with its first two units: gelu(a) - gelu(-a) = a."""
    mlp.c_fc.weight[:, 0], mlp.c_fc.weight[:, 1] = reads, -reads
    mlp.c_proj.weight[0], mlp.c_proj.weight[1] = writes, -writes


def illusion_in_residual(*, n_pairs: int = 64, seed: int = 0, weight: float = 0.01) -> Handmade:
    """Makes the same illusion in the residual stream.

    Three directions matter. v follows the variable, and neurons of block 1 compute the answer from
    it. u also follows the variable, but only the logits of tokens that are not answers read it,
    scaled by `weight`. s is always zero; separate neurons of block 1 would compute the answer from
    it, twice as strongly as from v. Swapping along (u + s) therefore changes the answer completely,
    although u + s does not carry it.

    Args:
        n_pairs: number of prompt pairs.
        seed: seed of directions and prompts.
        weight: how strongly the logits of irrelevant tokens read u.
    """
    model, Q = _blank(n_layer=2, seed=seed, n_free=4)
    v, u, s, answer = Q
    with torch.no_grad():
        model.transformer.wte.weight += 2 * _variable()[:, None] * (v + u)
        mlp = model.transformer.h[1].mlp
        _linear(mlp, reads=v, writes=answer)
        mlp.c_fc.weight[:, 2], mlp.c_fc.weight[:, 3] = 2 * s, -2 * s
        mlp.c_proj.weight[2], mlp.c_proj.weight[3] = answer, -answer
        model.lm_head.weight[:2] = torch.stack([answer, -answer])
        model.lm_head.weight[13:] = weight * torch.randn(N_TOKENS - 13, 1, generator=_generator(seed)) * u
    fake = torch.nn.functional.normalize(u + s, dim=0)
    return _with_pairs(
        model, true=v[None], illusory=fake[None], read=torch.stack([v, s, answer]), n_pairs=n_pairs, seed=seed, length=1
    )


def illusion(*, n_pairs: int = 64, seed: int = 0, weight: float = 0.01) -> Handmade:
    """Makes three hidden units, two of which form an illusion (Makelov et al. 2023, arXiv:2311.17030, section 3).

    Unit 0 follows the variable, but nothing reads it. Unit 1 is always zero, and would be read
    twice as strongly as unit 2. Unit 2 follows the variable and determines the answer. Swapping
    along (1, 1, 0) therefore changes the answer completely. Here the question token carries the
    variable, so that attention is not needed.

    Args:
        n_pairs: number of prompt pairs.
        seed: seed of directions and prompts.
        weight: how strongly the logits of irrelevant tokens read the outputs of units 1 and 2, with
            independent random weights; 0 in the paper's toy model.
    """
    model, Q = _blank(n_layer=1, seed=seed)
    v, read = Q[0], Q[1:3]
    with torch.no_grad():
        model.transformer.wte.weight += 2 * _variable()[:, None] * v
        mlp = model.transformer.h[0].mlp
        # Far from zero, GELU is the identity on one side and zero on the other, so a unit is 8 or
        # 0. LayerNorm scales h to length sqrt(d), so its part 2 along v becomes 2 sqrt(d) / |h|.
        reach = 8 / (2 * D_MODEL**0.5 / _norm_of_embedding(model))
        mlp.c_fc.weight[:, 0] = mlp.c_fc.weight[:, 2] = reach * v
        mlp.c_fc.bias.fill_(-30)
        mlp.c_fc.bias[[0, 2]] = 0
        mlp.c_proj.weight[1], mlp.c_proj.weight[2] = 2 * read[0], read[1]
        # Unit 2 is 8 or 0; centred, the two answers are mirror images.
        mlp.c_proj.bias -= 4 * read[1]
        # The answers read both outputs equally; other tokens distinguish them.
        both = read.sum(dim=0)
        model.lm_head.weight[:2] = torch.stack([both, -both])
        model.lm_head.weight[13:] = weight * torch.randn(N_TOKENS - 13, 2, generator=_generator(seed)) @ read
    units = torch.eye(4 * D_MODEL)
    fake = (units[:1] + units[1:2]) / 2**0.5
    return _with_pairs(model, true=units[2:3], illusory=fake, n_pairs=n_pairs, seed=seed, length=1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _variable() -> Tensor:
    """Returns +1 or -1 for the tokens that carry the variable, 0 for the others."""
    value = torch.zeros(N_TOKENS)
    value[3:13] = torch.tensor([1.0, -1.0]).repeat(5)
    return value


def _blank(*, n_layer: int, seed: int, n_free: int = 3) -> tuple[GPT2LMHeadModel, Tensor]:
    """Makes a GPT-2 of zeros whose tokens differ along directions that nothing reads, and returns the free directions.

    All directions are perpendicular to (1, ..., 1), which LayerNorm removes.
    """
    config = GPT2Config(
        vocab_size=N_TOKENS,
        n_positions=LENGTH,
        n_embd=D_MODEL,
        n_layer=n_layer,
        n_head=2,
        # The head is set by hand, apart from the embedding.
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).eval()
    frame = torch.randn(D_MODEL, D_MODEL, generator=_generator(seed))
    # QR keeps the first column's direction, so the other columns of Q are perpendicular to it.
    frame[:, 0] = 1.0
    Q = torch.linalg.qr(frame).Q.T[1:]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
        noise = torch.randn(N_TOKENS, len(Q) - n_free, generator=_generator(seed + 1))
        model.transformer.wte.weight += torch.nn.functional.normalize(noise, dim=-1) @ Q[n_free:]
    return model, Q[:n_free]


def _norm_of_embedding(model: GPT2LMHeadModel) -> float:
    return float(model.transformer.wte.weight[3].norm())


def _with_pairs(
    model: GPT2LMHeadModel,
    *,
    true: Tensor,
    illusory: Tensor,
    read: Tensor | None = None,
    n_pairs: int,
    seed: int,
    length: int = LENGTH,
) -> Handmade:
    """Draws prompt pairs that differ in the variable and in the other tokens."""
    generator = _generator(seed + 2)
    # Tokens 3, 5, ... carry +1, and 4, 6, ... carry -1 (`_variable`).
    plus = 3 + 2 * torch.randint(5, (n_pairs,), generator=generator)
    minus = 4 + 2 * torch.randint(5, (n_pairs,), generator=generator)
    swap = torch.rand(n_pairs, generator=generator) < 0.5
    first, second = torch.where(swap, minus, plus), torch.where(swap, plus, minus)
    rest = torch.randint(13, N_TOKENS, (2, n_pairs, LENGTH), generator=generator)
    rest[:, :, -1] = QUESTION
    tokens = [
        torch.cat([head[:, None], tail[:, 1:]], dim=1)[:, :length]
        for head, tail in zip((first, second), rest, strict=True)
    ]
    tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    base, source = (_batch(t) for t in tokens)
    return Handmade(
        load_bridge(hf_model=model, tokenizer=tokenizer), base, source, true, illusory, true if read is None else read
    )


def _batch(tokens: Tensor) -> Batch:
    ones = torch.ones_like(tokens)
    return Batch(tokens, ones, ones.bool(), torch.full_like(tokens, IGNORE))
