"""What is left of an edit on a twin: the same facts, learned from another seed. Prints the tables of the documentation.

    python tests/benchmarks/carry.py                 # about three minutes on one core
    python tests/benchmarks/carry.py --seeds 0 1     # from one twin to another

Twins are GPT-2s of three blocks and width 64, trained on where 24 landmarks stand. A LoReFT of rank 4 at the last token moves four of
them to other cities. It is trained on each twin, in five of eight phrasings, and carried to another twin by maps that are fitted on all
landmarks in these five. The other three phrasings are scored.
"""

from __future__ import annotations

import argparse
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

CONFIG = rl.TrainConfig(epochs=40, batch_size=20, lr=0.02, progress=False)
TEXTS = TEMPLATES["located_in"]
TRAINED, SCORED = TEXTS[:5], TEXTS[5:]


def pairs(phrasings: tuple[str, ...]) -> list[tuple[str, str]]:
    """The moved landmarks with their new cities."""
    old = {subject: answer for _, subject, answer in facts()}
    cities, moved = list(dict.fromkeys(old.values())), list(old)[:4]
    new = {one: [city for city in cities if city != old[one]][place % 2] for place, one in enumerate(moved)}
    return [(text.format(subject), new[subject]) for text in phrasings for subject in moved]


@cache
def edited_twin(seed: int) -> tuple[TransformerBridge, rl.Reft]:
    """Trains a twin, and an edit of it."""
    bridge, right = twin(seed)
    if right < 0.99:
        raise RuntimeError(f"a twin must know all facts, got {right:.0%}")
    reft = rl.Reft.at_layers(bridge, layers=[1], positions="l1", rank=4, seed=0)
    rl.train(bridge, reft, pairs(TRAINED), CONFIG)
    return bridge, reft


def carried_between_twins(*, seeds: tuple[int, int], fit: str = "ridge") -> rl.results.Carried:
    """Carries the edit of the first twin to the second."""
    (first, reft), (second, trained) = (edited_twin(seed) for seed in seeds)
    prompts = [text.format(subject) for text, subject, _ in facts() if text in TRAINED]
    _, result = carry(first, reft, second, prompts, pairs(SCORED), fit=fit, trained=trained)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, help="of the source and of the target")
    arguments = parser.parse_args()
    for seeds in [tuple(arguments.seeds)] if arguments.seeds else ((0, 1), (1, 0), (2, 3), (3, 2)):
        for fit in ("ridge", "orthogonal"):
            result = carried_between_twins(seeds=seeds, fit=fit)
            print(f"\nseed {seeds[0]} to seed {seeds[1]}, {'; '.join(result.fits)}")
            print(result.to_dataframe().round(3).to_string(index=False))
            print(result.directions_to_dataframe().round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
