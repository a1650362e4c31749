"""Time and memory of a dissection of a model with 0.5 billion parameters: random weights in the form of Qwen2.

    OMP_NUM_THREADS=1 python tests/benchmarks/large.py                      # 24 layers, 64 examples of 60 tokens
    OMP_NUM_THREADS=2 python tests/benchmarks/large.py --layers 4 --examples 8

LoReFT of rank 4 at the last token of the layers at a third and two thirds of the model, with the default budgets of a
dissection (64 pairs, 19 random subspaces and placebos, nulls of 200). The edit takes one step of training first, so that it is no
identity. Wall time of each part, CPU time of all, and the peak of the process's resident memory so far.
"""

from __future__ import annotations

import argparse
import os
import resource
import time

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import reftlens as rl
from reftlens.organisms.landmarks import story_for

PARTS = ("works", "dose", "directions", "terms", "reads", "overlaps", "base", "natural")
FILLER = "The map shows the old road to the river. It leads past the mill and the bridge of the town."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=60, help="length of the prompts")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=arguments.vocabulary,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=arguments.layers,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    tokenizer = rl.load_bridge("facts-small").tokenizer
    bridge = rl.load_bridge(hf_model=Qwen2ForCausalLM(config).eval(), tokenizer=tokenizer)
    facts = story_for("facts-small").training_examples()[: arguments.examples]
    examples = [(_longer(tokenizer, prompt, arguments.tokens), completion) for prompt, completion in facts]
    layers = [arguments.layers // 3, 2 * arguments.layers // 3]
    reft = rl.Reft.at_layers(bridge, layers=layers, positions="l1", intervention=rl.LoReFT, rank=4)
    print(
        f"{sum(p.numel() for p in bridge.original_model.parameters()):,} parameters, {list(rl.encode(bridge, [p for p, _ in examples]).tokens.shape)} tokens",
        flush=True,
    )
    rl.train(bridge, reft, examples[:4], rl.TrainConfig(epochs=1, batch_size=4, progress=False))
    print(f"loaded and trained: {_peak():.2f} GB", flush=True)
    wall, cpu = time.perf_counter(), time.process_time()
    result = rl.dissect(bridge, reft, examples, rl.DissectConfig(at=rl.Last(1), parts=PARTS, progress=False))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for name, seconds in result.seconds:
        print(f"  {name:14s} {seconds:7.1f} s")
    for name, why in result.left_out:
        print(f"  left out: {name}, {why}")
    print(f"{wall:.0f} s, {cpu:.0f} s of CPU time with {torch.get_num_threads()} threads, at most {_peak():.2f} GB")


def _longer(tokenizer: object, prompt: str, length: int) -> str:
    """Puts words of a story before a prompt, until it has this many tokens."""
    words = (FILLER * 8).split()

    def count(n: int) -> int:
        return len(tokenizer(" ".join([*words[:n], prompt]))["input_ids"])  # type: ignore[operator]

    n = max(n for n in range(len(words)) if count(n) <= length)
    return " ".join([*words[:n], prompt])


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
