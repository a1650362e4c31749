"""Hierarchical equality, the task of distributed alignment search (Geiger et al. 2023, arXiv:2303.02536).

A small GPT-2 is trained to decide whether (a = b) = (c = d). The high-level model has a variable for a = b. DAS fits a
subspace such that swapping it between two runs swaps that variable, and it is tested on held-out pairs. Two controls repeat
the fit with arbitrary labels, and on the same model with random weights. Their accuracy is what the method reaches if there
is nothing to find.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from reftlens.analysis import random_model
from reftlens.benchmark.known import Known
from reftlens.bridge import load_bridge
from reftlens.organisms import ORGANISMS

N_OBJECTS = 6
QUESTION = 2
"""Tokens 0 and 1 are "no" and "yes", 2 is the question mark, and the objects follow."""


def equality_rows(*, seeds: Sequence[int] = (0, 1)) -> Iterator[Known]:
    """Yields the rows for one model per seed, since where and how well a model stores the variable varies."""
    for seed in seeds:
        bridge, accuracy = train_equality(seed=seed)
        yield from _model_rows(bridge, accuracy, seed)


def _model_rows(bridge: TransformerBridge, accuracy: float, seed: int) -> Iterator[Known]:
    group = f"hierarchical equality, seed {seed}"
    yield Known(group, "the model knows the task", f"{accuracy:.1%} of all inputs right", 1 - accuracy, 0.01, "share")
    # a = b is known from token b (1) on. Chosen by fitted pairs only: held-out ones stay held out.
    best = max((fit(bridge, position, seed=seed) for position in (1, 4)), key=lambda found: found.fitted)
    place = f"after block 0 at token {best.position}"
    yield Known(
        group,
        f"the whole activation {place} carries a = b",
        f"interchange accuracy {best.whole:.1%} on held-out pairs",
        1 - best.whole,
        0.1,
        "share",
    )
    yield Known(
        group,
        "a subspace of rank 8 carries as much of it",
        f"{best.held_out:.1%} on held-out pairs, {best.fitted:.1%} on those it was fitted to",
        best.whole - best.held_out,
        0.05,
        "share",
    )
    others = {
        "to arbitrary labels": fit(bridge, best.position, seed=seed, arbitrary=True),
        "on a random model": fit(random_model(bridge, seed=seed), best.position, seed=seed),
    }
    for name, control in others.items():
        yield Known(
            group,
            f"the same fit {name} is at chance on held-out pairs",
            f"{control.held_out:.1%}, {control.fitted:.1%} on those it was fitted to",
            abs(control.held_out - 0.5),
            0.1,
            "share",
        )


def train_equality(*, seed: int, max_steps: int = 1000) -> tuple[TransformerBridge, float]:
    """Trains a GPT-2 of two blocks on random quadruples until all are right. Returns it and its accuracy on all."""
    config = GPT2Config(
        vocab_size=3 + N_OBJECTS,
        n_positions=5,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.1,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.cartesian_prod(*[torch.arange(N_OBJECTS)] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max_steps)
    accuracy = 0.0
    for step in range(max_steps):
        objects = quadruples(256, generator)
        loss = nn.functional.cross_entropy(model(tokens(objects)).logits[:, -1], answer(objects))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            with torch.no_grad():
                right = model(tokens(everything)).logits[:, -1].argmax(-1) == answer(everything)
            accuracy = float(right.float().mean())
            if accuracy == 1.0:
                break
    return load_bridge(
        hf_model=model.eval(), tokenizer=AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    ), accuracy


def quadruples(n: int, generator: torch.Generator) -> Int[Tensor, "n 4"]:
    """Draws objects a b c d; each pair is equal half of the time."""
    objects = torch.randint(N_OBJECTS, (n, 4), generator=generator)
    other = (objects[:, [0, 2]] + torch.randint(1, N_OBJECTS, (n, 2), generator=generator)) % N_OBJECTS
    equal = torch.rand(n, 2, generator=generator) < 0.5
    # Independent draws are equal in one of six cases, and "yes" would be right in 72%.
    objects[:, [1, 3]] = torch.where(equal, objects[:, [0, 2]], other)
    return objects


def tokens(objects: Int[Tensor, "n 4"]) -> Int[Tensor, "n 5"]:
    """Returns the prompts: a b c d and the question mark."""
    return torch.cat([objects + 3, torch.full((len(objects), 1), QUESTION)], dim=1)


def answer(objects: Int[Tensor, "n 4"], first: Int[Tensor, "n 4"] | None = None) -> Int[Tensor, " n"]:
    """Returns 1 for (a = b) = (c = d), with a and b from other quadruples if given."""
    pair = objects if first is None else first
    return ((pair[:, 0] == pair[:, 1]) == (objects[:, 2] == objects[:, 3])).long()


@final
@dataclass(frozen=True)
class Fit:
    """Interchange accuracies of one subspace."""

    position: int
    fitted: float
    """Accuracy on the pairs used in the fit."""
    held_out: float
    """Accuracy on the same number of held-out pairs."""
    whole: float
    """Accuracy of swapping the whole activation, on the held-out pairs: the expected upper limit for any subspace."""


def fit(
    bridge: TransformerBridge, position: int, *, seed: int, arbitrary: bool = False, rank: int = 8, n_pairs: int = 2000
) -> Fit:
    """Fits DAS after block 0 at one token."""
    from transformer_lens.tools.analysis.interchange import (
        SubspaceInterchange,
        arbitrary_targets,
        collect_activations,
        fit_das,
        intervened_logits,
    )

    def yes_or_no(inputs: Tensor) -> Tensor:
        logits: Tensor = bridge(inputs, use_cache=False)[:, -1, :2]
        return logits

    def pairs(part: str) -> tuple[Tensor, Tensor, Tensor]:
        base, source = quadruples(n_pairs, generator), quadruples(n_pairs, generator)
        # Each pair has an independent arbitrary label, so nothing generalises from one to another.
        labels = (
            arbitrary_targets([(part, row) for row in range(n_pairs)], 2, seed) if arbitrary else answer(base, source)
        )
        return tokens(base), tokens(source), labels

    def accuracy(basis: Tensor, base: Tensor, source: Tensor, labels: Tensor) -> float:
        states = collect_activations(bridge, hook_name, source, yes_or_no, positions=at)
        move = SubspaceInterchange(basis)
        logits = intervened_logits(bridge, hook_name, move, base, states, yes_or_no, positions=at)
        return float((logits.argmax(-1) == labels).float().mean())

    generator, hook_name = torch.Generator().manual_seed(seed + 1), "blocks.0.hook_resid_post"
    at = torch.full((n_pairs,), position)
    known, other = pairs("fitted"), pairs("held out")
    das = fit_das(
        bridge, hook_name, *known, yes_or_no,
        rank=rank, base_positions=at, source_positions=at, epochs=15, batch_size=100, seed=seed,
    )  # fmt: skip
    whole = torch.eye(bridge.cfg.d_model)
    return Fit(position, accuracy(das.basis, *known), accuracy(das.basis, *other), accuracy(whole, *other))
