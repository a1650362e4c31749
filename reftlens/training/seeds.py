"""Retrains edits from other initialisations and in another order of examples, also at other ranks or layers.

trained = train_seeds(bridge, {"rank 2": narrow, "rank 8": wide}, examples, config, seeds=(0, 1))
agreement(bridge, trained, held_out)                # every pair of the four
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import each
from reftlens.edit.reft import Reft
from reftlens.edit.untrained import untrained
from reftlens.training.train import TrainConfig, train


def train_seeds(
    bridge: TransformerBridge,
    reft: Reft | Mapping[str, Reft],
    examples: Sequence[tuple[str, str]],
    config: TrainConfig = TrainConfig(),
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, Reft]:
    """Trains a fresh copy of an edit for each seed; compare them with `analysis.agreement`.

    Args:
        bridge: the frozen base.
        reft: the edit to copy: its sites, classes and ranks, not its weights. It is not changed. Or
            a mapping of names to edits, which may differ in rank or layers.
        examples: (prompt, completion) pairs. Examples from `analysis.permuted_labels` give a null.
        config: settings; its seed is replaced. With several processes, each copy is trained by one
            of them.
        seeds: one per copy. Each sets the initialisation and the order of examples.

    Returns:
        "seed 0" -> the trained copy, and so on; for several edits, "name, seed 0".

    Raises:
        ValueError: If a seed is given twice.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds must differ, got {tuple(seeds)}: a repeated seed trains the same edit twice")
    layouts = {f"{name}, ": layout for name, layout in reft.items()} if isinstance(reft, Mapping) else {"": reft}
    copies = {f"{name}seed {seed}": (layout, examples, seed) for name, layout in layouts.items() for seed in seeds}
    return dict(zip(copies, trained_copies(bridge, list(copies.values()), config), strict=True))


def trained_copies(
    bridge: TransformerBridge,
    copies: Sequence[tuple[Reft, Sequence[tuple[str, str]], int]],
    config: TrainConfig,
) -> list[Reft]:
    """Trains fresh copies of edits. Of several processes, each trains some of them by itself.

    Args:
        bridge: the frozen base.
        copies: for each copy, the edit that gives its layout, its examples, and its seed.
        config: settings; the seed is replaced.
    """

    def weights(copy: tuple[Reft, Sequence[tuple[str, str]], int]) -> dict[str, Tensor]:
        layout, examples, seed = copy
        reft = untrained(layout, seed=seed)
        train(bridge, reft, examples, replace(config, seed=seed))
        return {name: value.detach().cpu() for name, value in reft.state_dict().items()}

    trained = [untrained(layout, seed=seed) for layout, _, seed in copies]
    for reft, found in zip(trained, each(bridge, weights, copies), strict=True):
        reft.load_state_dict(found)
    return trained
