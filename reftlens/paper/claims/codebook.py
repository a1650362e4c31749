"""Codebook: to how many keys can one edit at their last token give each its own random word?

The edit adds the same few directions to every key, so the activations must already distinguish the
keys. The control scores every key against the next key's word. An edit that learned only the words,
and not which word belongs to which key, would score equally well there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.reft import Reft
from reftlens.interventions import LoReFT
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS
from reftlens.paper.claims.decoding import returned
from reftlens.paper.claims.material import PAPER, config_for, describe, layer_at, words
from reftlens.results.claims import Codebook, Coded
from reftlens.training.train import TrainConfig, train


@final
@dataclass(frozen=True)
class CodebookConfig:
    """Settings. Defaults are the paper's if it states them (rank, pairs), else those of its memorisation experiment."""

    pairs: tuple[int, ...] = (8, 32, 128)
    ranks: tuple[int, ...] = (1,)
    depth: float = 15 / 32
    """The edited block, as a fraction of the depth."""
    epochs: int = 1000
    lr: float = 4e-3
    """Peak learning rate, with linear decay to zero."""
    seed: int = 0


SMALL = CodebookConfig(pairs=(8, 32, 120), ranks=(1, 4, 16), depth=0.17, epochs=80, lr=5e-2)
"""Settings for the organism, which knows 120 names."""

PAPER_KEYS = "RAND#ID{i}->"
"""The form of the paper's keys."""


def codebook(
    bridge: TransformerBridge,
    keys: Mapping[str, Sequence[str]],
    config: CodebookConfig = CodebookConfig(),
    *,
    model: str,
    progress: bool = True,
) -> Codebook:
    """Trains one edit per form of keys, number of pairs and rank.

    Args:
        bridge: the model.
        keys: keys by their form, at least as many as the largest number of pairs.
        config: the settings.
        model: name of the model in the result.
        progress: show a progress bar.

    Raises:
        ValueError: If there are too few keys, or the vocabulary has too few words.
    """
    for form, several in keys.items():
        if len(several) < max(config.pairs):
            raise ValueError(f"{max(config.pairs)} pairs need as many keys, but {form!r} has {len(several)}")
    layer = layer_at(bridge, config.depth)
    values = words(bridge, max(config.pairs), seed=config.seed)
    plan = [(form, n, rank) for form in keys for rank in config.ranks for n in config.pairs]
    rows = [
        _coded(bridge, form, keys[form][:n], values[:n], layer, rank, config)
        for form, n, rank in tqdm(plan, desc="filling codebooks", unit="codebook", disable=not progress)
    ]
    about = describe(
        "One rank-1 edit holds a codebook of 128 pairs, RAND#ID{i}-> to a word, nearly perfectly (LLaMA-7B).",
        source=f"{PAPER}, memorisation",
        model=model,
        paper=CodebookConfig(),
        used=config,
        more=(
            ("edit", "rank 1, last prompt token", f"LoReFT, last prompt token, after block {layer}"),
            ("keys", PAPER_KEYS, ", ".join(keys)),
        ),
    )
    return Codebook(claim=about, rows=tuple(rows))


def _coded(
    bridge: TransformerBridge,
    form: str,
    keys: Sequence[str],
    values: Sequence[str],
    layer: int,
    rank: int,
    config: CodebookConfig,
) -> Coded:
    # Initialisation draws from torch's global generator, which the caller gets back as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reft = Reft.at_layers(bridge, layers=[layer], positions="l1", intervention=LoReFT, rank=rank)
    settings = TrainConfig(epochs=config.epochs, batch_size=128, lr=config.lr, seed=config.seed, progress=False)
    train(bridge, reft, list(zip(keys, values, strict=True)), settings)
    # The same words in another order: an edit that knows only the words scores alike on both.
    turned = [*values[1:], values[0]]
    right, wrong, base = (
        _accuracy(bridge, edit, keys, wanted) for edit, wanted in ((reft, values), (reft, turned), (None, values))
    )
    return Coded(form, len(keys), rank, right, wrong, base)


def _accuracy(bridge: TransformerBridge, reft: Reft | None, keys: Sequence[str], values: Sequence[str]) -> float:
    given, lengths = returned(bridge, reft, keys, values)
    return sum(count == length for count, length in zip(given, lengths, strict=True)) / len(keys)


def run(model: str, *, seed: int = 0, progress: bool = True) -> Codebook:
    """Tests the claim on a named model, with the paper's settings; an organism uses small ones, and the names it knows as keys.

    Args:
        model: an organism, a local directory or a hub name.
        seed: seed of the initialisation and of the words.
        progress: show a progress bar.
    """
    config = replace(config_for(model, paper=CodebookConfig(), organism=SMALL), seed=seed)
    keys = {PAPER_KEYS: [PAPER_KEYS.format(i=i) for i in range(1, max(config.pairs) + 1)]}
    if model in ORGANISMS:
        keys["names that the model knows"] = list(dict.fromkeys(fact.subject for fact in FACTS))
    return codebook(load_bridge(model), keys, config, model=model, progress=progress)
