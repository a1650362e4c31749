"""What a dissection is said to cost beforehand, and what it costs: each part, in CPU seconds.

    python tests/benchmarks/costs.py                        # facts-small, an edit of the last token
    python tests/benchmarks/costs.py --positions all
    python tests/benchmarks/costs.py --shape gpt2           # the shape of GPT-2 small, random weights

LoReFT of rank 4 at two layers, 64 examples, one thread. `rl.dissect` estimates with the wall clock; here the processor's
clock takes its place, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import reftlens as rl
from reftlens.dissection import estimate_cost
from reftlens.organisms.landmarks import story_for

SETTINGS = {
    "facts-small": {"layers": [2, 4], "config": rl.DissectConfig(at=rl.Last(1), progress=False)},
    "gpt2": {"layers": [4, 8], "config": rl.DissectConfig(at=rl.Last(1), n_pairs=16, n_random=9, progress=False)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SETTINGS, default="facts-small")
    parser.add_argument("--positions", default="l1", help="positions of the edit: l1, all, ...")
    parser.add_argument("--preset", default="full", help="quick, standard or full")
    parser.add_argument("--examples", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    time.perf_counter = time.process_time  # the clock of `rl.dissect`
    bridge = rl.load_bridge("facts-small")
    if arguments.shape == "gpt2":
        bridge = rl.load_bridge(hf_model=GPT2LMHeadModel(GPT2Config()).eval(), tokenizer=bridge.tokenizer)
    examples = story_for("facts-small").training_examples()[: arguments.examples]
    positions = rl.All() if arguments.positions == "all" else arguments.positions
    setting = SETTINGS[arguments.shape]
    reft = rl.Reft.at_layers(bridge, layers=setting["layers"], positions=positions, intervention=rl.LoReFT, rank=4)
    rl.train(bridge, reft, examples[:8], rl.TrainConfig(epochs=2, batch_size=8, progress=False))
    config = replace(setting["config"], parts=arguments.preset)
    said = estimate_cost(bridge, reft, examples, config)
    found = rl.dissect(bridge, reft, examples, config)
    total = sum(seconds for _, seconds in found.seconds)
    for name, why in found.left_out:
        print(f"left out: {name}, {why}")
    print(f"{'part':12s} {'said':>8s} {'measured':>9s} {'said / measured':>16s} {'share':>6s}")
    for (name, seconds), (_, expected) in zip(found.seconds, said.parts, strict=True):
        print(f"{name:12s} {expected:8.2f} {seconds:9.2f} {expected / seconds:16.2f} {seconds / total:6.0%}")
    print(f"{'all':12s} {said.seconds:8.2f} {total:9.2f} {said.seconds / total:16.2f}")


if __name__ == "__main__":
    main()
