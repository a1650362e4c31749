"""What a patching map costs: reftlens beside transformer_lens.patching and beside a batched loop of whole runs.

    python tests/benchmarks/patching.py             # about ten minutes on two free cores
    python tests/benchmarks/patching.py --quick     # a small model: to see that it runs

The shape of GPT-2 small, random weights, eager attention, float32; `resid_pre` at 12 layers x 24 positions, one pair of
prompts that differ in every token, so that no cell can be left out. Rounds alternate between the variants; figures are
medians with the range in brackets, and a ratio is taken within a round. CPU time is the main clock: other work on the
machine lengthens the wall's. All variants must give the same map.

- transformer_lens: `transformer_lens.patching.get_act_patch_resid_pre`, one whole run for each cell
- batched: whole runs of 24 cells at a time, written by hand, the logits of the last token alone
- reftlens: `rl.analysis.patch`
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformer_lens.patching as tl
from tokenizers import Tokenizer, models
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import reftlens as rl
from reftlens.bridge import unembedded_alone

CELLS_TOGETHER = 24
ANSWER, FOIL = 11, 42
"""Tokens whose logits the metric compares."""


def make_hf(n_layers: int = 12, *, quick: bool = False) -> GPT2LMHeadModel:
    """Random weights three times as large as GPT-2 starts with, so that a patch moves the logits of the last token."""
    size = {"n_embd": 64, "n_head": 4, "vocab_size": 5000} if quick else {}
    model = GPT2LMHeadModel(GPT2Config(n_layer=n_layers, attn_implementation="eager", **size)).eval()
    generator = torch.Generator().manual_seed(0)
    for _, weight in sorted(model.named_parameters()):
        if weight.ndim > 1:
            weight.data.normal_(0.0, 0.06, generator=generator)
    return model


def make_model(n_layers: int = 12, *, quick: bool = False) -> TransformerBridge:
    model = make_hf(n_layers, quick=quick)
    # A bridge wants a tokenizer, and nothing here is text.
    words = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return rl.load_bridge(hf_model=model, tokenizer=tokenizer)


def make_batch(n_pairs: int, n_pos: int, vocabulary: int, *, seed: int) -> rl.Batch:
    tokens = torch.randint(vocabulary, (n_pairs, n_pos), generator=torch.Generator().manual_seed(seed))
    everywhere = torch.ones_like(tokens)
    return rl.Batch(tokens, everywhere, everywhere.bool(), torch.full_like(tokens, -100))


def metric(logits: Tensor, pair: Tensor) -> Tensor:
    return logits[:, ANSWER] - logits[:, FOIL]


def with_transformer_lens(bridge: TransformerBridge, clean: rl.Batch, corrupted: rl.Batch) -> Tensor:
    """`[layer, pos]`, mean over pairs."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean.tokens, names_filter=names)
        return tl.get_act_patch_resid_pre(
            bridge, corrupted.tokens, cache, lambda logits: (logits[:, -1, ANSWER] - logits[:, -1, FOIL]).mean()
        )


@torch.no_grad()
def batched(bridge: TransformerBridge, clean: rl.Batch, corrupted: rl.Batch) -> Tensor:
    """`[layer, pos]`: whole runs, many cells in each."""
    n_pairs, n_pos = clean.tokens.shape
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(bridge.cfg.n_layers)]
    _, cache = bridge.run_with_cache(clean.tokens, names_filter=names, use_cache=False)
    together = max(1, CELLS_TOGETHER // n_pairs)
    out = torch.zeros(len(names), n_pos)
    for layer, name in enumerate(names):
        for first in range(0, n_pos, together):
            columns = torch.arange(first, min(first + together, n_pos))
            where = (torch.arange(n_pos) == columns[:, None]).repeat_interleave(n_pairs, dim=0)[..., None]
            source = cache[name].repeat(len(columns), 1, 1)
            tokens = corrupted.tokens.repeat(len(columns), 1)
            last = (torch.arange(n_pos) == n_pos - 1).expand_as(tokens)
            hook = (name, lambda resid, hook, where=where, source=source: torch.where(where, source, resid))
            with unembedded_alone(bridge, last):
                logits = bridge.run_with_hooks(tokens, fwd_hooks=[hook], use_cache=False)[0]
            out[layer, columns] = metric(logits, torch.arange(len(tokens))).view(len(columns), n_pairs).mean(1)
    return out


def with_reftlens(bridge: TransformerBridge, clean: rl.Batch, corrupted: rl.Batch) -> Tensor:
    return rl.analysis.patch(bridge, clean, corrupted, metric, progress=False).mean()


VARIANTS = {"transformer_lens": with_transformer_lens, "batched": batched, "reftlens": with_reftlens}
Variant = Callable[[TransformerBridge, rl.Batch, rl.Batch], Tensor]


def timed(variant: Variant, *given: object) -> tuple[float, float, Tensor]:
    """CPU and wall seconds, and the map."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = variant(*given)  # type: ignore[arg-type]
    return time.process_time() - cpu, time.perf_counter() - wall, found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def main_table(bridge: TransformerBridge, n_pos: int, *, rounds: int) -> None:
    """All variants on one pair, in alternating order."""
    clean, corrupted = (make_batch(1, n_pos, bridge.cfg.d_vocab, seed=seed) for seed in (1, 2))
    cpu: dict[str, list[float]] = {name: [] for name in VARIANTS}
    wall: dict[str, list[float]] = {name: [] for name in VARIANTS}
    apart = dict.fromkeys(VARIANTS, 0.0)
    for number in range(rounds):
        maps = {}
        for name in list(VARIANTS)[:: 1 - 2 * (number % 2)]:
            seconds, clock, maps[name] = timed(VARIANTS[name], bridge, clean, corrupted)
            cpu[name].append(seconds)
            wall[name].append(clock)
        reference = maps["transformer_lens"]
        for name, found in maps.items():
            apart[name] = max(apart[name], float((found - reference).abs().max()))
        if not (float(reference.std()) > 1e-2 and max(apart.values()) < 1e-4):
            raise RuntimeError(
                f"the maps differ, or are flat: {apart}, standard deviation {float(reference.std()):.2g}"
            )
    print(f"\nresid_pre, {bridge.cfg.n_layers} layers x {n_pos} positions, one pair, {rounds} rounds\n")
    header("variant", "CPU s", "wall s", "transformer_lens / this, CPU", "batched / this, CPU", "largest difference")
    for name in VARIANTS:
        ratios = [spread([a / b for a, b in zip(cpu[other], cpu[name], strict=True)]) for other in VARIANTS][:2]
        row(name, spread(cpu[name]), spread(wall[name]), *ratios, f"{apart[name]:.1e}")


def growth_table(*, rounds: int, quick: bool) -> None:
    """reftlens beside the batched loop as one of three things grows."""
    print("\nCPU seconds as one thing grows, from 6 layers x 12 positions and one pair\n")
    header("what grows", "cells", "batched", "reftlens", "batched / reftlens")
    cases = [
        *((f"{n} layers", n, 12, 1) for n in (3, 6, 12)),
        *((f"{n} positions", 6, n, 1) for n in (6, 12, 24, 48)),
        *((f"{n} pairs", 6, 12, n) for n in (1, 4, 16)),
    ]
    for name, n_layers, n_pos, n_pairs in cases:
        bridge = make_model(n_layers, quick=quick)
        clean, corrupted = (make_batch(n_pairs, n_pos, bridge.cfg.d_vocab, seed=seed) for seed in (1, 2))
        loop, ours = [], []
        for _ in range(rounds):
            loop.append(timed(batched, bridge, clean, corrupted)[0])
            ours.append(timed(with_reftlens, bridge, clean, corrupted)[0])
        ratio = [a / b for a, b in zip(loop, ours, strict=True)]
        row(name, str(n_layers * n_pos * n_pairs), spread(loop), spread(ours), spread(ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("main", "growth"), help="only one of the two tables")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over the variants (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a model 64 wide, 6 layers x 12 positions, two rounds")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    args = parser.parse_args()
    rounds = 2 if args.quick else args.rounds
    torch.set_num_threads(args.threads)
    names = ("reftlens", "torch", "transformers", "transformer-lens")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    print(f"{versions}; {args.threads} threads, {cpu}, {platform.system()}")
    if args.table != "growth":
        main_table(make_model(6 if args.quick else 12, quick=args.quick), 12 if args.quick else 24, rounds=rounds)
    if args.table != "main":
        growth_table(rounds=rounds, quick=args.quick)


if __name__ == "__main__":
    main()
