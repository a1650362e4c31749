"""Every method on two problems of the embedded organism, one of which a constant can solve.

    python tests/benchmarks/baselines.py            # the tables, two seeds
    python tests/benchmarks/baselines.py --rates    # what other learning rates give in the second, on another seed

*Constant*: every landmark now stands in one city. *Moved on*: every landmark stands in the city that follows its own in the
alphabet, so that the answer depends on the input. Trained on five phrasings, scored on the others, which were not seen. All
methods take the same 80 steps; some would need more, and none is tuned.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformer_lens.model_bridge import TransformerBridge

import reftlens as rl
from reftlens.organisms.world import FACTS, TEMPLATES, prompt
from reftlens.paper.baselines import METHODS, LinearProbe, Problem, compare, completed

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
CONFIG = rl.TrainConfig(epochs=10, batch_size=25, lr=1e-2, progress=False)


def problems(bridge: TransformerBridge) -> dict[str, Problem]:
    landmarks = [fact for fact in FACTS if fact.relation == "located_in"]
    cities = sorted({fact.answer for fact in landmarks})
    after = dict(zip(cities, cities[1:] + cities[:1], strict=True))
    phrasings = range(len(TEMPLATES["located_in"]))
    answers = {"constant": dict.fromkeys(cities, cities[0]), "moved on": after}

    def pairs(new: dict[str, str], which: range) -> list[tuple[str, str]]:
        return [(prompt(fact, phrasing), " " + new[fact.answer]) for fact in landmarks for phrasing in which]

    return {
        name: completed(bridge, pairs(new, phrasings[:5]), pairs(new, phrasings[5:])) for name, new in answers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", action="store_true", help="try learning rates on 'moved on', with seed 100")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    bridge = rl.load_bridge("facts-small")
    methods = {name: method for name, method in METHODS.items() if not isinstance(method, LinearProbe)}
    if not wanted.rates:
        for name, problem in problems(bridge).items():
            print(f"\n{name}\n{compare(bridge, problem, methods, CONFIG, seeds=(0, 1)).to_markdown()}", flush=True)
        return
    for name, method in methods.items():
        tried = {f"{rate:g}": replace(method, lr=rate) for rate in RATES}
        found = compare(bridge, problems(bridge)["moved on"], tried, CONFIG, seeds=(100,), memory=False)
        print(name, [f"lr {run.method}: {run.score:.3f}, loss {run.loss:.3f}" for run in found.runs], flush=True)


if __name__ == "__main__":
    main()
