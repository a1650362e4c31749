"""Few-shot manner: do five examples change how a model answers other prompts, without changing what it knows?

There are two controls. In the shuffled one, the example answers have the new manner but are about
something else, which tests whether memorised or unrelated answers suffice. In the contentless one,
the answers are the model's own, which tests whether training alone changes anything. Facts are
counted in the text, by their words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import load_bridge
from reftlens.edit.reft import Reft
from reftlens.interventions import LoReFT
from reftlens.paper.claims.material import (
    PAPER,
    Ask,
    Material,
    as_before,
    config_for,
    describe,
    layer_at,
    material_for,
    speak,
)
from reftlens.results import Mannered
from reftlens.training.train import TrainConfig, train


@final
@dataclass(frozen=True)
class MannerConfig:
    """Settings. The defaults are the paper's."""

    examples: int = 5
    rank: int = 4
    depth: float = 15 / 32
    """The edited block, as a fraction of the depth."""
    epochs: int = 100
    batch_size: int = 5
    lr: float = 4e-3
    """Peak learning rate, with linear decay to zero."""
    seed: int = 0


SMALL = MannerConfig(depth=0.17)
"""Settings for the organism, which resolves names at their last token after the second block."""


def manner(
    bridge: TransformerBridge,
    material: Material,
    config: MannerConfig = MannerConfig(),
    *,
    model: str,
    progress: bool = True,
) -> Mannered:
    """Trains the manner and its two controls, and tests all prompts that were not examples.

    Args:
        bridge: the model.
        material: prompts, their facts and the new manner.
        config: the settings.
        model: name of the model in the result.
        progress: show a progress bar.

    Raises:
        ValueError: If no prompts are left for the test.
    """
    few, unseen = material.asks[: config.examples], material.asks[config.examples :]
    if not unseen or len(few) < 2:
        raise ValueError(
            f"manner needs at least two examples and more prompts than examples, got {len(material.asks)} prompts"
        )
    new = [ask.manner for ask in few]
    usual = as_before(bridge, material, few)
    taught = {
        f"{len(few)} examples": new,
        # Each answer goes to another prompt, so that none keeps its own.
        "the same, answers shuffled": [*new[1:], new[0]],
        "the same, answered as before": usual,
    }
    layer = layer_at(bridge, config.depth)
    rows = [speak(bridge, None, material, unseen, name="base model", taught_move=False)]
    for name, answers in tqdm(taught.items(), desc="teaching manners", unit="edit", disable=not progress):
        reft = _train(bridge, few, answers, layer, config)
        rows.append(speak(bridge, reft, material, unseen, name=name, taught_move=False))
    about = describe(
        "A rank-4 edit at one layer and the last token, trained on 5 examples, changes a model's manner.",
        source=f"{PAPER}, few-shot adaptation",
        model=model,
        paper=MannerConfig(),
        used=config,
        more=(
            ("edit", "LoReFT, last prompt token", f"LoReFT, last prompt token, after block {layer}"),
            (
                "new manner",
                "not in what was read",
                f"answers with {material.mark!r}, such as {few[0].prompt + few[0].manner!r}",
            ),
        ),
    )
    return Mannered(claim=about, rows=tuple(rows))


def _train(
    bridge: TransformerBridge, asks: Sequence[Ask], answers: Sequence[str], layer: int, config: MannerConfig
) -> Reft:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        reft = Reft.at_layers(bridge, layers=[layer], positions="l1", intervention=LoReFT, rank=config.rank)
    settings = TrainConfig(
        epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed, progress=False
    )
    train(bridge, reft, [(ask.prompt, answer) for ask, answer in zip(asks, answers, strict=True)], settings)
    return reft


def run(model: str, *, seed: int = 0, progress: bool = True) -> Mannered:
    """Tests the claim on a named model, with the paper's settings; an organism uses another layer.

    Args:
        model: an organism, a local directory or a hub name.
        seed: seed of the initialisation and of the choice of examples.
        progress: show a progress bar.
    """
    config = replace(config_for(model, paper=MannerConfig(), organism=SMALL), seed=seed)
    return manner(load_bridge(model), material_for(model, seed=seed), config, model=model, progress=progress)
