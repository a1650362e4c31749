"""Memorisation: how long a string can one rank-1 edit at one token reproduce, word for word?

h + R^T(b - Rh) with one row R, at the last token of one fixed prompt, is a free vector: d_model + 1
numbers. Greedy decoding must reproduce the whole string, and later tokens read the vector only
through attention. There are three controls: an untrained vector; the last block, after which no
later token can read the vector, so that it decides at most one token; and random words, which the
model cannot guess from the previous ones. Recall also depends on what the model knows: after its
first word the model may be able to produce a long text by itself.
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
    """Settings. The defaults are the paper's."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    """Lengths in tokens. Those longer than the text or the context are left out, and the result lists them."""
    depth: float = 15 / 32
    """The edited block, as a fraction of the depth."""
    epochs: int = 1000
    lr: float = 4e-3
    """Peak learning rate, with linear decay to zero."""
    seed: int = 0


SMALL = MemoriseConfig(lengths=(1, 2, 4, 8), depth=0.34, epochs=250, lr=5e-2)
"""Settings for the organism, whose context is 64 tokens."""


def memorise(
    bridge: TransformerBridge,
    text: str,
    config: MemoriseConfig = MemoriseConfig(),
    *,
    model: str,
    progress: bool = True,
) -> Memorised:
    """Trains one edit for each length of the text and of random words, and two more controls.

    Args:
        bridge: the model.
        text: the text to reproduce; its first tokens are used.
        config: the settings.
        model: name of the model in the result.
        progress: show a progress bar.

    Raises:
        ValueError: If no length fits.
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
        raise ValueError(
            f"no length in {config.lengths} fits both the context of {bridge.cfg.n_ctx} tokens and the text"
        )
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
    """Returns the beginning of a text with this number of tokens, or as close as whole characters allow."""
    ids = bridge.tokenizer(text, add_special_tokens=False).input_ids[:length]
    return str(bridge.tokenizer.decode(ids))


def run(model: str, *, seed: int = 0, text: str | None = None, progress: bool = True) -> Memorised:
    """Tests the claim on a named model, with the paper's settings; an organism uses small ones.

    Args:
        model: an organism, a local directory or a hub name.
        seed: seed of the initialisation and of the random words.
        text: the text to reproduce. The default is a document of the organism's world, or the
            opening of Alice.
        progress: show a progress bar.
    """
    config = replace(config_for(model, paper=MemoriseConfig(), organism=SMALL), seed=seed)
    if text is None:
        text = " " + " ".join(corpus(seed)[:8]) if model in ORGANISMS else ALICE
    return memorise(load_bridge(model), text, config, model=model, progress=progress)
