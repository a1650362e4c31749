"""What is left of an edit on a twin: the same facts, learned from another seed. Prints the tables of the documentation.

    python tests/benchmarks/carry.py    # about two minutes on one core

Twins are GPT-2s of three blocks and width 64, trained on where 24 landmarks stand, in all phrasings but two. A LoReFT of rank 4 at the
last token moves four of them to other cities. It is trained on the first twin, and carried to the second.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from transformer_lens.model_bridge import TransformerBridge
from twins import facts, twin

import reftlens as rl
from reftlens.analysis import carry
from reftlens.organisms.world import TEMPLATES

POINT = "blocks.1.hook_resid_post"


@cache
def _twin(seed: int, steps: int) -> TransformerBridge:
    bridge, right = twin(seed, steps=steps)
    if right < 0.99:
        raise RuntimeError(f"a twin must know all facts, got {right:.0%}")
    return bridge


def carried_between_twins(
    *, seeds: tuple[int, int], steps: int = 80, fit: str = "ridge", point: str = POINT, positions: str = "l1"
) -> rl.results.Carried:
    """Trains twins and an edit on each, and carries that of the first to the second."""
    twins = [_twin(seed, steps) for seed in seeds]
    texts, every = TEMPLATES["located_in"], facts()
    cities = list(dict.fromkeys(answer for _, _, answer in every))
    moved = list(dict.fromkeys(subject for _, subject, _ in every))[:4]
    old = {subject: answer for _, subject, answer in every}
    new = {subject: [city for city in cities if city != old[subject]][place % 2] for place, subject in enumerate(moved)}
    train, held_out = (
        [(text.format(subject), new[subject]) for text in phrasings for subject in moved]
        for phrasings in (texts[:5], texts[5:])
    )
    # The maps are fitted on the other subjects too, and not on the phrasings that are scored.
    prompts = [text.format(subject) for text, subject, _ in every if text in texts[:5]]
    config = rl.TrainConfig(epochs=40, batch_size=20, lr=0.02, progress=False)
    edits = []
    for bridge in twins:
        edits.append(
            rl.Reft.at_layers(bridge, layers=[1], positions=positions, rank=4, hook=point.split(".")[-1], seed=0)
        )
        rl.train(bridge, edits[-1], train, config)
    _, result = carry(twins[0], edits[0], twins[1], prompts, held_out, fit=fit, trained=edits[1])
    return result


def main() -> None:
    for seeds in ((0, 1), (1, 0), (2, 3)):
        for fit in ("ridge", "orthogonal"):
            result = carried_between_twins(seeds=seeds, fit=fit)
            print(f"\nseeds {seeds[0]} to {seeds[1]}, {'; '.join(result.fits)}")
            print(result.to_dataframe().round(3).to_string(index=False))
            print(result.directions_to_dataframe().round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
