"""Hierarchical equality, the task of distributed alignment search (Geiger et al. 2023, arXiv:2303.02536).

A small GPT-2 is trained to decide whether (a = b) = (c = d). The causal model has a variable for a
= b. The token is chosen by swaps of the whole activation, on the pairs that the subspace is fitted
to. `align` then fits a subspace such that swapping it between two runs swaps that variable, and
tests it on held-out pairs. Two controls repeat the fit with arbitrary labels, and on the same model
with random weights. Their accuracy is what the method reaches if there is nothing to find.

Alignment presupposes a model that computes the relation. Of six objects, a model can learn the
inputs by heart: one answered nearly all of them right without storing the variable at any token, or
at several together. Hence there are twelve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

from reftlens.analysis import align, alignment
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import small_gpt2
from reftlens.benchmark.words import word_tokenizer
from reftlens.bridge import load_bridge
from reftlens.data.counterfactual import CausalModel, Counterfactual, Counterfactuals, counterfactuals
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import Interchange
from reftlens.positions import At
from reftlens.results import Alignment
from reftlens.results.alignments import ARBITRARY, BLANK
from reftlens.training.train import TrainConfig

N_OBJECTS, RANK = 12, 8
QUESTION = 2
"""Tokens 0 and 1 are "no" and "yes", 2 is the question mark, and the objects follow."""
OBJECTS = "ABCDEFGHIJKL"
HOOK = "blocks.0.hook_resid_post"
CONFIG = TrainConfig(epochs=15, batch_size=100, lr=1e-2, progress=False)


EQUAL = 0.7
"""How often each pair is equal in training. At one half neither equality alone says anything about
the answer, and training stays where it starts.
"""


def equality_rows(*, seeds: Sequence[int] = (0, 1)) -> Iterator[Known]:
    """Yields the rows for one model per seed, since where and how well a model stores the variable varies."""
    for seed in seeds:
        bridge, accuracy = train_equality(seed=seed)
        yield from _model_rows(bridge, accuracy, seed)


def _model_rows(bridge: TransformerBridge, accuracy: float, seed: int) -> Iterator[Known]:
    group = f"hierarchical equality, seed {seed}"
    yield Known(
        group,
        "the model knows the task",
        f"{accuracy:.2%} of all {N_OBJECTS**4} inputs right",
        1 - accuracy,
        0.0,
        "share",
    )
    pairs = equality_pairs(seed=seed)
    # Chosen by the pairs to fit to: held-out ones stay held out.
    scores = {position: whole_swaps(bridge, pairs.train, position) for position in range(5)}
    best = max(scores, key=lambda position: scores[position])
    found = fit(bridge, pairs, best, seed=seed)
    place, whole = f"after block 0 at token {best}", float(found.whole.mean())
    others = ", ".join(f"{position}: {score:.1%}" for position, score in scores.items() if position != best)
    yield Known(
        group,
        f"the whole activation {place} carries a = b",
        f"interchange accuracy {whole:.1%} on held-out pairs (on pairs to fit to {scores[best]:.1%}; other tokens {others})",
        1 - whole,
        0.05,
        "share",
    )
    yield Known(
        group,
        f"a subspace of rank {RANK} carries it",
        f"{found.accuracy():.1%} on held-out pairs, {found.trained:.1%} on those it was fitted to; random subspaces "
        f"{float(found.random.mean()):.1%}",
        1 - found.accuracy(),
        0.05,
        "share",
    )
    yield from _control_rows(found, group)


def _control_rows(found: Alignment, group: str) -> Iterator[Known]:
    for name in (ARBITRARY, BLANK):
        low, high = found.interval(name)
        yield Known(
            group,
            f"{name}, the fit is at chance on held-out pairs",
            f"{float(found.controls[name].mean()):.1%}, 95% interval {low:.1%} to {high:.1%}",
            max(low - found.chance, found.chance - high, 0.0),
            0.0,
            "share outside the interval",
        )


def train_equality(*, seed: int, max_steps: int = 1500) -> tuple[TransformerBridge, float]:
    """Trains a GPT-2 of two blocks on random quadruples until all are right. Returns it and its accuracy on all.

    In 500 steps, training draws at most a third of the inputs with two unequal pairs, which are 84%
    of all.
    """
    model = _untrained(seed)
    generator = torch.Generator().manual_seed(seed)
    everything = torch.cartesian_prod(*[torch.arange(N_OBJECTS)] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max_steps)
    accuracy = 0.0
    for step in range(max_steps):
        objects = quadruples(128, generator, equal=EQUAL)
        loss = nn.functional.cross_entropy(model(tokens(objects)).logits[:, -1], answer(objects))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            with torch.no_grad():
                right = model(tokens(everything)).logits[:, -1].argmax(-1) == answer(everything)
            accuracy = float(right.float().mean())
            if accuracy == 1.0:
                break
    words = word_tokenizer(["no", "yes", "?", *OBJECTS])
    return load_bridge(hf_model=_with_room(model).eval(), tokenizer=words, prepend_bos=False), accuracy


def _untrained(seed: int) -> GPT2LMHeadModel:
    """Makes the model with random weights."""
    return small_gpt2(vocab_size=3 + N_OBJECTS, n_positions=5, n_layer=2, initializer_range=0.1, seed=seed)


def _with_room(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Adds a position behind the prompt, where an answer can stand. Nothing before it changes."""
    config = GPT2Config(**{**model.config.to_dict(), "n_positions": 6})
    config._attn_implementation = "eager"
    longer, state = GPT2LMHeadModel(config), model.state_dict()
    places = state["transformer.wpe.weight"]
    longer.load_state_dict({**state, "transformer.wpe.weight": torch.cat([places, places[-1:]])})
    return longer


def quadruples(n: int, generator: torch.Generator, *, equal: float = 0.5) -> Int[Tensor, "n 4"]:
    """Draws objects a b c d; each pair is equal with this probability."""
    objects = torch.randint(N_OBJECTS, (n, 4), generator=generator)
    other = (objects[:, [0, 2]] + torch.randint(1, N_OBJECTS, (n, 2), generator=generator)) % N_OBJECTS
    same = torch.rand(n, 2, generator=generator) < equal
    # Independent draws are equal in one of twelve cases, and "yes" would be right in 85%.
    objects[:, [1, 3]] = torch.where(same, objects[:, [0, 2]], other)
    return objects


def tokens(objects: Int[Tensor, "n 4"]) -> Int[Tensor, "n 5"]:
    """Returns the prompts: a b c d and the question mark."""
    return torch.cat([objects + 3, torch.full((len(objects), 1), QUESTION)], dim=1)


def answer(objects: Int[Tensor, "n 4"]) -> Int[Tensor, " n"]:
    """Returns 1 for (a = b) = (c = d)."""
    return ((objects[:, 0] == objects[:, 1]) == (objects[:, 2] == objects[:, 3])).long()


def equality_model() -> CausalModel:
    """Returns the task as a causal model."""
    return CausalModel(
        inputs=dict.fromkeys("abcd", OBJECTS),
        variables={"left": lambda a, b: a == b, "right": lambda c, d: c == d},
        answer=lambda left, right: " yes" if left == right else " no",
        prompt=lambda a, b, c, d: f"{a} {b} {c} {d} ?",
    )


def equality_pairs(*, n: int = 1000, n_held_out: int = 500, seed: int = 0) -> Counterfactuals:
    """Draws pairs that swap a = b. No prompt is in both splits.

    Args:
        n: pairs to train on.
        n_held_out: held-out pairs.
        seed: of the draws.
    """
    return counterfactuals(equality_model(), "left", n=n, n_held_out=n_held_out, share_held_out=0.3, seed=seed)


def whole_swaps(bridge: TransformerBridge, pairs: Sequence[Counterfactual], position: int) -> float:
    """Computes how often swapping the whole activation after block 0 at one token gives the predicted answer."""
    reft = Reft([(Site(HOOK, At(position)), Interchange(bridge.cfg.d_model, 1))])
    return float(alignment(bridge, reft, pairs, among="labels", n_random=1, shares=False).whole.mean())


def fit(
    bridge: TransformerBridge, pairs: Counterfactuals, position: int, *, seed: int, config: TrainConfig = CONFIG
) -> Alignment:
    """Fits a subspace after block 0 at one token, and its controls."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reft = Reft([(Site(HOOK, At(position)), Interchange(bridge.cfg.d_model, RANK))])
    return align(bridge, reft, pairs.train, pairs.held_out, config, among="labels", shares=False, seed=seed)
