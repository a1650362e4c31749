"""Memorisation: how long a string does one rank-1 edit at one token give back, word for word?

h + R^T(b - Rh) with one row R, at the last token of one fixed prompt, is a free vector: d_model + 1 numbers. Greedy decoding has to
follow it for the whole string, and every later token sees it by attention alone. So the controls are an untrained vector, the
last block (behind which no later token can see the vector: it decides one token at most) and random words, which the
model cannot guess from the ones before. What comes back also shows what the model knows: a long text after its first word may
be the model's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import final

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.reft import Reft
from reftlens.interventions import ConsReFT
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import corpus
from reftlens.paper.claims.decoding import returned
from reftlens.paper.claims.material import PAPER, config_for, describe, layer_at, words
from reftlens.paper.claims.passage import ALICE
from reftlens.results.claims import Memorised, Recall
from reftlens.training.train import TrainConfig, train

PROMPT = "ALIC#ID1->"


@final
@dataclass(frozen=True)
class MemoriseConfig:
    """Settings; the defaults are the paper's."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Tokens to give back; those that the text or the context is too short for are left out, and said to be."""
    depth: float = 15 / 32
    """Which block is edited, as a part of the depth."""
    epochs: int = 1000
    lr: float = 4e-3
    """Peak learning rate, falling to zero in a line."""
    seed: int = 0


SMALL = MemoriseConfig(lengths=(1, 2, 4, 8), depth=0.34, epochs=250, lr=5e-2)
"""For the organism, whose context is 64 tokens."""


def memorise(
    bridge: TransformerBridge,
    text: str,
    config: MemoriseConfig = MemoriseConfig(),
    *,
    model: str,
    progress: bool = True,
) -> Memorised:
    """Trains one edit for each length of a text, and of random words; two controls besides.

    Args:
        bridge: the model.
        text: what to give back; its first tokens are taken.
        config: settings.
        model: what to call the model.
        progress: show a bar.

    Raises:
        ValueError: if no length fits.
    """
    layer, last = layer_at(bridge, config.depth), bridge.cfg.n_layers - 1
    room = bridge.cfg.n_ctx - len(bridge.tokenizer(PROMPT).input_ids) - 1
    n_words = min(max(config.lengths), room)
    drawn = words(bridge, min(n_words, 100), seed=config.seed)
    drawn += random.Random(config.seed).choices(drawn, k=n_words - len(drawn))
    strings = {"text": text, "random words": "".join(drawn)}
    plan = [
        (series, strings[source], at, length)
        for series, source, at in (
            ("text", "text", layer),
            ("random words", "random words", layer),
            ("text, edited after the last block", "text", last),
            ("text, vector not trained", "text", layer),
        )
        for length in config.lengths
        if length <= min(room, _n_tokens(bridge, strings[source]))
    ]
    if not plan:
        raise ValueError(f"no length of {config.lengths} fits a context of {bridge.cfg.n_ctx} and a text this long")
    rows = []
    for series, string, at, length in tqdm(plan, desc="memorising", unit="string", disable=not progress):
        epochs = 0 if series.endswith("not trained") else config.epochs
        rows.append(_recall(bridge, series, _cut(bridge, string, length), at, config, epochs))
    tried = {row.length for row in rows if row.series == "text"}
    left_out = [length for length in config.lengths if length not in tried]
    about = describe(
        "One rank-1 vector at one layer and one token gives back up to 2,048 tokens exactly (LLaMA-7B).",
        source=f"{PAPER}, memorisation; the reference's examples/memorisation",
        model=model,
        paper=MemoriseConfig(),
        used=config,
        more=(
            ("edit", "ConsReFT, rank 1, last prompt token", f"the same, after block {layer}"),
            ("text", "Alice's Adventures in Wonderland", repr(text.strip()[:40]) + "..."),
            ("left out", "none", f"lengths {left_out}: text or context too short" if left_out else "none"),
        ),
    )
    return Memorised(claim=about, rows=tuple(rows))


def _recall(
    bridge: TransformerBridge, series: str, string: str, layer: int, config: MemoriseConfig, epochs: int
) -> Recall:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reft = Reft.at_layers(bridge, layers=[layer], positions="l1", intervention=ConsReFT, rank=1)
    if epochs:
        settings = TrainConfig(epochs=epochs, lr=config.lr, seed=config.seed, progress=False)
        train(bridge, reft, [(PROMPT, string)], settings)
    (count,), (length,) = returned(bridge, reft, [PROMPT], [string])
    (base,), _ = returned(bridge, None, [PROMPT], [string])
    return Recall(series, layer, length, count, base)


def _n_tokens(bridge: TransformerBridge, text: str) -> int:
    return len(bridge.tokenizer(text, add_special_tokens=False).input_ids)


def _cut(bridge: TransformerBridge, text: str, length: int) -> str:
    """The beginning of a text that has so many tokens, or as close to it as whole characters come."""
    ids = bridge.tokenizer(text, add_special_tokens=False).input_ids[:length]
    return str(bridge.tokenizer.decode(ids))


def run(model: str, *, seed: int = 0, text: str | None = None, progress: bool = True) -> Memorised:
    """The claim on a named model: with the paper's settings, or small ones on an organism.

    Args:
        model: an organism, a local directory or a hub name.
        seed: of first weights and random words.
        text: what to give back; a document of the organism's own world, or the opening of Alice, if not given.
        progress: show a bar.
    """
    config = replace(config_for(model, paper=MemoriseConfig(), organism=SMALL), seed=seed)
    if text is None:
        text = " " + " ".join(corpus(seed)[:8]) if model in ORGANISMS else ALICE
    return memorise(load_bridge(model), text, config, model=model, progress=progress)
