"""What a dissection costs, in whole passes of its examples.

    python tests/benchmarks/dissection.py                   # an edit of the last token, prompts of up to 17 tokens
    python tests/benchmarks/dissection.py --repeats 7       # prompts of about 120 tokens
    python tests/benchmarks/dissection.py --positions all   # an edit of every token

The shape of GPT-2 small, random weights, float32, one thread: 32 examples, LoReFT of rank 4 at the output of layers 4 and 8,
16 pairs and 9 random subspaces. CPU time, and a whole pass is the median of three. The parts are those that were measured
when every analysis ran whole passes, which took 119 of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import reftlens as rl
from reftlens.organisms.landmarks import story_for

N_EXAMPLES = 32
PARTS = ("works", "dose", "directions", "terms", "reads", "overlaps", "base", "natural")
FILLER = "The map shows the old road to the river."


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", default="l1", help="positions of the edit: l1, all, ...")
    parser.add_argument("--repeats", type=int, default=0, help="sentences of nine words before each prompt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = rl.load_bridge("facts-small").tokenizer
    bridge = rl.load_bridge(hf_model=GPT2LMHeadModel(GPT2Config()).eval(), tokenizer=tokenizer)
    before = " ".join([FILLER] * arguments.repeats)
    facts = story_for("facts-small").training_examples()[:N_EXAMPLES]
    examples = [(f"{before} {prompt}".strip(), completion) for prompt, completion in facts]
    positions = rl.All() if arguments.positions == "all" else arguments.positions
    reft = rl.Reft.at_layers(bridge, layers=[4, 8], positions=positions, intervention=rl.LoReFT, rank=4)
    batch = rl.encode(bridge, [prompt for prompt, _ in examples])

    def whole() -> None:
        with torch.no_grad():
            bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)

    whole()
    one = statistics.median(cpu_seconds(whole) for _ in range(3))
    config = rl.DissectConfig(
        at=rl.Last(1), max_examples=N_EXAMPLES, n_pairs=16, n_random=9, n_null=100, parts=PARTS, progress=False
    )
    start = time.process_time()
    result = rl.dissect(bridge, reft, examples, config)
    total = time.process_time() - start
    print(f"{list(batch.tokens.shape)} tokens, edits at {arguments.positions}: {total:.1f} s of CPU time")
    for name, seconds in result.seconds:
        print(f"  {name:14s} {seconds / one:6.1f} whole passes (wall time)")
    print(f"{total / one:.1f} whole passes of {one:.2f} s")


if __name__ == "__main__":
    main()
