"""What a dissection costs, in whole passes of its examples; how the cost grows; and the memory of many prompts.

    python tests/benchmarks/dissection.py                   # an edit of the last token, prompts of up to 17 tokens
    python tests/benchmarks/dissection.py --repeats 7       # prompts of about 120 tokens
    python tests/benchmarks/dissection.py --positions all --examples 8      # an edit of every token, 8 examples and 4 pairs
    python tests/benchmarks/dissection.py --table growth    # as prompts, tokens, layers and rank grow, on a small model
    python tests/benchmarks/dissection.py --table memory    # of 250 to 1,000 prompts, on a small model

The shape of GPT-2 small, random weights, float32, one thread: 32 examples, LoReFT of rank 4 at the output of layers 4 and 8,
16 pairs and 9 random subspaces. CPU time, and a whole pass is the median of three. The parts are those that were measured
when every analysis ran whole passes, which took 119 of them.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel

import reftlens as rl
from reftlens.organisms.landmarks import story_for

N_EXAMPLES = 32
PARTS = ("works", "dose", "directions", "terms", "reads", "overlaps", "base", "natural")
CONFIG = rl.DissectConfig(at=rl.Last(1), n_pairs=16, n_random=9, n_null=100, parts=PARTS, progress=False)
FILLER = "The map shows the old road to the river."
GROWING = {"examples": (16, 32, 64), "tokens": (0, 4, 12), "layers": (3, 6, 12), "rank": (1, 4, 16)}
"""What grows -> its sizes; for tokens, sentences before each prompt."""
PROMPTS = (250, 500, 1000)


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def make_bridge(**size: int) -> TransformerBridge:
    torch.manual_seed(0)
    tokenizer = rl.load_bridge("facts-small").tokenizer
    return rl.load_bridge(hf_model=GPT2LMHeadModel(GPT2Config(**size)).eval(), tokenizer=tokenizer)


def make_examples(n: int, repeats: int) -> list[tuple[str, str]]:
    """Facts with sentences before them. Where there are fewer facts, they come again after other orders of the words."""
    facts, words = story_for("facts-small").training_examples(), FILLER.split()
    examples = []
    for place in range(n):
        (prompt, completion), turn = facts[place % len(facts)], place // len(facts)
        sentence = " ".join([*words[turn:], *words[:turn]])
        examples.append((" ".join([*[sentence] * repeats, prompt]), completion))
    return examples


def make_edit(bridge: TransformerBridge, positions: str, rank: int = 4) -> rl.Reft:
    n = bridge.cfg.n_layers
    rules = rl.All() if positions == "all" else positions
    return rl.Reft.at_layers(bridge, layers=[n // 3, 2 * n // 3], positions=rules, intervention=rl.LoReFT, rank=rank)


def main_table(positions: str, repeats: int, n: int) -> None:
    bridge, examples = make_bridge(), make_examples(n, repeats)
    reft = make_edit(bridge, positions)
    batch = rl.encode(bridge, [prompt for prompt, _ in examples])

    def whole() -> None:
        with torch.no_grad():
            bridge(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)

    whole()
    one = statistics.median(cpu_seconds(whole) for _ in range(3))
    config = replace(CONFIG, n_pairs=n // 2)
    start = time.process_time()
    result = rl.dissect(bridge, reft, examples, config)
    total = time.process_time() - start
    print(f"{list(batch.tokens.shape)} tokens, edits at {positions}: {total:.1f} s of CPU time")
    for name, seconds in result.seconds:
        print(f"  {name:14s} {seconds / one:6.1f} whole passes (wall time)")
    print(f"{total / one:.1f} whole passes of {one:.2f} s")


def growth_table(positions: str) -> None:
    """CPU seconds as one thing grows, and the exponent that fits them: seconds ~ size ** exponent."""
    print("256 wide, 6 layers, 32 examples without sentences before them, rank 4, but for what grows")
    known: dict[tuple[int, ...], tuple[float, int]] = {}
    for what, sizes in GROWING.items():
        seconds, counted = [], []
        for size in sizes:
            now = {"examples": N_EXAMPLES, "tokens": 0, "layers": 6, "rank": 4, what: size}
            case = tuple(now.values())
            if case not in known:
                known[case] = one_case(positions, **now)
            seconds.append(known[case][0])
            counted.append(known[case][1] if what == "tokens" else size)
        cells = ", ".join(f"{size}: {time:.1f}" for size, time in zip(counted, seconds, strict=True))
        print(f"{what:9s} {cells}; exponent {exponent(counted, seconds):.2f}", flush=True)


def one_case(positions: str, *, examples: int, tokens: int, layers: int, rank: int) -> tuple[float, int]:
    """CPU seconds of a dissection, and the number of tokens of the longest prompt."""
    bridge = make_bridge(n_embd=256, n_head=4, vocab_size=8192, n_layer=layers)
    pairs, reft = make_examples(examples, tokens), make_edit(bridge, positions, rank)
    # What is proved of a model is proved once.
    rl.analysis.outcome(bridge, reft, [pairs[0][0]], [pairs[0][1]], group="first", wanted="new answer")
    longest = rl.encode(bridge, [prompt for prompt, _ in pairs]).tokens.shape[1]
    return cpu_seconds(partial(rl.dissect, bridge, reft, pairs, CONFIG)), longest


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the least-squares line through the logarithms."""
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def memory_table(positions: str) -> None:
    """The most memory of a dissection and an agreement beyond what was there, with 16 MiB for base runs."""
    bridge = make_bridge(n_embd=128, n_head=4, vocab_size=16_384, n_layer=3)
    refts = [make_edit(bridge, positions) for _ in range(3)]
    for n in (PROMPTS[0], *PROMPTS):  # the first one twice: the allocator keeps what it has got
        examples = make_examples(n, 1)
        config = replace(CONFIG, max_examples=n, memory_bytes=2**24)
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        rl.dissect(bridge, refts[0], examples, config)
        dissected = _memory("VmHWM") - before
        prompts = [prompt for prompt, _ in examples]
        rl.analysis.agreement(bridge, {"a": refts[0], "b": refts[1]}, prompts, null=refts[2:], at=rl.Last(1), n_null=5)
        both = _memory("VmHWM") - before
        print(f"{n:5d} prompts: {dissected:.0f} MiB; with an agreement of edits {both:.0f} MiB", flush=True)


def _memory(name: str) -> float:
    """A line of this process's status in Linux, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", default="l1", help="positions of the edit: l1, all, ...")
    parser.add_argument("--examples", type=int, default=N_EXAMPLES, help="and half as many pairs")
    parser.add_argument("--repeats", type=int, default=0, help="sentences of nine words before each prompt")
    parser.add_argument("--table", choices=("main", "growth", "memory"), default="main")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table == "growth":
        growth_table(arguments.positions)
    elif arguments.table == "memory":
        memory_table(arguments.positions)
    else:
        main_table(arguments.positions, arguments.repeats, arguments.examples)


if __name__ == "__main__":
    main()
