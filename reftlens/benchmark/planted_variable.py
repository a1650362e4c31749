"""A hand-made model with a planted variable of two dimensions, and what alignment search finds of it.

Token 0 of a prompt carries a value from 0 to 3, stored as two signs along two directions v and w. A
head of block 1 moves both to the last token, where the answers read them. So the true subspace
after block 0 at token 0 is span(v, w). The rest of an embedding is noise. Several tokens carry each
value, and held-out pairs use carriers that no training pair has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from reftlens.analysis import align, overlap
from reftlens.benchmark.known import Known
from reftlens.benchmark.words import word_tokenizer
from reftlens.bridge import load_bridge
from reftlens.data.counterfactual import CausalModel, Counterfactuals, counterfactuals
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import BoundlessInterchange, Interchange, SourceIntervention
from reftlens.positions import First
from reftlens.results import Alignment
from reftlens.results.alignments import ARBITRARY, BLANK
from reftlens.training.train import TrainConfig

D_MODEL, N_CARRIERS, N_FILLERS = 24, 48, 12
SIGNS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
"""The two signs of each value."""
HOOK = "blocks.0.hook_resid_post"
CONFIG = TrainConfig(epochs=40, batch_size=50, lr=5e-2, progress=False)


@final
@dataclass(frozen=True, eq=False)
class PlantedVariable:
    """The model, its causal model, pairs, and the true subspace."""

    bridge: TransformerBridge
    causal: CausalModel
    pairs: Counterfactuals
    true: Float[Tensor, "2 d_model"]
    """Orthonormal rows."""


def planted_variable(*, n: int = 200, n_held_out: int = 200, seed: int = 0) -> PlantedVariable:
    """Makes the model and its pairs.

    Args:
        n: pairs to train on.
        n_held_out: held-out pairs.
        seed: seed of directions, embeddings and pairs.
    """
    words, model, Q = planted_model(seed=seed)
    carriers, fillers = words[5 : 5 + 4 * N_CARRIERS], words[5 + 4 * N_CARRIERS :]
    causal = CausalModel(
        inputs={"carrier": carriers, "one": fillers, "two": fillers},
        variables={"value": lambda carrier: int(carrier[1])},
        answer=lambda value: f" a{value}",
        prompt=lambda carrier, one, two: f"{carrier} {one} {two} ?",
    )
    kept = [f"v{value}_{number}" for value in range(4) for number in range(N_CARRIERS // 2, N_CARRIERS)]
    bridge = load_bridge(hf_model=model, tokenizer=word_tokenizer(words), prepend_bos=False)
    pairs = counterfactuals(causal, "value", n=n, n_held_out=n_held_out, by_value={"carrier": kept}, seed=seed)
    return PlantedVariable(bridge, causal, pairs, Q[:2])


@torch.no_grad()
def planted_model(*, seed: int) -> tuple[list[str], GPT2LMHeadModel, Float[Tensor, "n d_model"]]:
    """Makes the model alone, as transformers has it, for other tools.

    Args:
        seed: seed of directions and embeddings.

    Returns:
        The word of each token; the model; and orthonormal rows: v, w, the two directions that the
        answers read, and those of the noise.
    """
    carriers = [f"v{value}_{number}" for value in range(4) for number in range(N_CARRIERS)]
    fillers = [f"f{number}" for number in range(N_FILLERS)]
    words = [*(f"a{value}" for value in range(4)), "?", *carriers, *fillers]
    generator = torch.Generator().manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(words), n_positions=6, n_embd=D_MODEL, n_layer=2, n_head=2, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
    frame = torch.randn(D_MODEL, D_MODEL, generator=generator)
    frame[:, 0] = 1.0
    # All rows are perpendicular to (1, ..., 1), which LayerNorm removes.
    Q = torch.linalg.qr(frame).Q.T[1:].contiguous()
    noise = torch.randn(len(words), len(Q) - 4, generator=generator)
    model.transformer.wte.weight += torch.nn.functional.normalize(noise, dim=-1) @ Q[4:]
    # Four answers and the question mark come before the carriers.
    first = 5
    for value, signs in enumerate(SIGNS):
        rows = slice(first + value * N_CARRIERS, first + (value + 1) * N_CARRIERS)
        model.transformer.wte.weight[rows] += 2 * signs @ Q[:2]
    attention = model.transformer.h[1].attn
    # Queries and keys are zero, so the head attends to all tokens equally.
    attention.c_attn.weight[:, 2 * D_MODEL : 2 * D_MODEL + 2] = 2 * Q[:2].T
    attention.c_proj.weight[:2] = 2 * Q[2:4]
    # A small gap between answers keeps the loss informative until the subspace is right.
    model.lm_head.weight[:4] = 0.5 * SIGNS @ Q[2:4]
    return words, model, Q


def found_angle(alignment_of: SourceIntervention, true: Float[Tensor, "2 d_model"]) -> float:
    """Returns the largest principal angle between what an interchange swaps and the true subspace, in degrees."""
    rows = alignment_of.subspace()
    if len(rows) < len(true):
        return 90.0
    return float(overlap(rows, true.double(), n_null=1).angles.max())


def found(
    planted: PlantedVariable, *, boundless: bool = False, seed: int = 0, n_random: int = 20
) -> tuple[Reft, Alignment]:
    """Trains an alignment of rank 2, or one that learns its width from at most 8 rows, with its controls."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        edit = BoundlessInterchange(D_MODEL, {"value": 8}) if boundless else Interchange(D_MODEL, 2)
    reft = Reft([(Site(HOOK, First(1)), edit)])
    config = replace(CONFIG, l1=1.0) if boundless else CONFIG
    scored = align(
        planted.bridge, reft, planted.pairs.train, planted.pairs.held_out, config, among="labels",
        controls=not boundless, n_random=n_random, seed=seed,
    )  # fmt: skip
    return reft, scored


def planted_variable_rows(*, seed: int = 0) -> Iterator[Known]:
    """Yields the rows of the table."""
    planted, group = planted_variable(seed=seed), "planted variable of two dimensions"
    reft, scored = found(planted, seed=seed)
    ((_, edit),) = reft
    assert isinstance(edit, SourceIntervention)
    angle = found_angle(edit, planted.true)
    yield Known(group, "span(v, w) is found from 200 pairs", f"off by {angle:.1f} degrees", angle, 5.0, "degrees")
    yield Known(
        group, "it gives the predicted answer on carriers that were not seen",
        f"{scored.accuracy():.1%} of held-out pairs; random subspaces {float(scored.random.mean()):.1%}",
        1 - scored.accuracy(), 0.05, "share",
    )  # fmt: skip
    for name in (ARBITRARY, BLANK):
        low, high = scored.interval(name)
        yield Known(
            group, f"{name}, it is at chance ({scored.chance:.0%})",
            f"{float(scored.controls[name].mean()):.1%}, 95% interval {low:.1%} to {high:.1%}",
            max(low - scored.chance, scored.chance - high, 0.0), 0.0, "share outside the interval",
        )  # fmt: skip
    wide, _ = found(planted, boundless=True, seed=seed)
    ((_, edit),) = wide
    assert isinstance(edit, SourceIntervention)
    width, angle = edit.widths()["value"], found_angle(edit, planted.true)
    yield Known(group, "Boundless finds its width among 8", f"{width} dimensions", abs(width - 2), 0.0, "dimensions")
    yield Known(group, "and its directions", f"off by {angle:.1f} degrees", angle, 5.0, "degrees")
