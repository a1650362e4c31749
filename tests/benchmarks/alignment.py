"""How long an alignment takes to train, beside a LoReFT of the same rank at the same site on as many examples.

    python tests/benchmarks/alignment.py --pairs 200 --epochs 3

The model has GPT-2 small's shape and random weights. Both trainings are whole calls of `rl.train`, with their base runs;
the alignment runs each source once as well. They take turns, and the ratio is that of the medians in one run.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import reftlens as rl
from reftlens.organisms import ORGANISMS

LAYER, RANK = 6, 8


def bridge_of_the_shape() -> object:
    torch.manual_seed(0)
    config = GPT2Config(attn_implementation="eager", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    tokenizer = AutoTokenizer.from_pretrained(ORGANISMS["facts-small"])
    return rl.load_bridge(hf_model=GPT2LMHeadModel(config).eval(), tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--words", type=int, default=12)
    given = parser.parse_args()
    bridge, draw = bridge_of_the_shape(), random.Random(0)
    words = ["the", "tower", "river", "city", "old", "stands", "weaver", "by"]
    prompts = [" ".join(draw.choices(words, k=given.words)) for _ in range(2 * given.pairs)]
    pairs = [(base, source, " the") for base, source in zip(prompts[::2], prompts[1::2], strict=True)]
    plain = [(base, label) for base, _, label in pairs]
    config = rl.TrainConfig(epochs=given.epochs, batch_size=20, lr=1e-3, progress=False)
    kinds = {
        "LoReFT": (rl.LoReFT, plain, None),
        "alignment": (rl.Interchange, pairs, rl.objectives.Interchange()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for place in range(-1, given.rounds):
        for name, (kind, examples, objective) in kinds.items():
            reft = rl.Reft.at_layers(bridge, layers=[LAYER], positions="last", intervention=kind, rank=RANK, seed=0)
            start = time.perf_counter()
            # The first round is short: what is done once per process is not a part of either.
            rl.train(bridge, reft, examples if place >= 0 else examples[:20], config, objective=objective)
            if place >= 0:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name}: {medians[name]:.1f} s (" + ", ".join(f"{value:.1f}" for value in times) + ")")
    print(f"alignment / LoReFT: {medians['alignment'] / medians['LoReFT']:.2f}")


if __name__ == "__main__":
    main()
