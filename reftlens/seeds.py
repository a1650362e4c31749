"""The same edit trained again from other first weights and in another order, to see what depends on the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.retraining import untrained
from reftlens.reft import Reft
from reftlens.training import TrainConfig, train


def train_seeds(
    bridge: TransformerBridge,
    reft: Reft,
    examples: Sequence[tuple[str, str]],
    config: TrainConfig = TrainConfig(),
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, Reft]:
    """Trains fresh copies of an edit; compare them by `analysis.agreement`.

    Args:
        bridge: the frozen base.
        reft: gives sites, kinds and ranks. It is left as it is, trained or not.
        examples: (prompt, completion) pairs; with `analysis.permuted_labels`, a null.
        config: settings; its seed is replaced.
        seeds: one for each copy: of its first weights and of the order of examples.

    Returns:
        "seed 0" -> the trained copy, and so on.
    """
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds must differ, got {tuple(seeds)}: a repeated one trains the same edit twice")
    trained = {}
    for seed in seeds:
        copy = untrained(reft, seed=seed)
        train(bridge, copy, examples, replace(config, seed=seed))
        trained[f"seed {seed}"] = copy
    return trained
