"""What `analysis.identify` costs, in whole passes of its prompts, beside what it says beforehand.

    python tests/benchmarks/identify.py                     # the last token, layer 6
    python tests/benchmarks/identify.py --positions f1+l1   # from the first token on

The shape of GPT-2 small, random weights: a LoReFT of rank 4. Counted in tokens that pass through a block, a backward run as
two forward ones, and not in seconds: the count is the same on every machine. The unembedding is not counted.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import reftlens as rl
from reftlens.analysis import identify, identify_cost
from reftlens.organisms.landmarks import story_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", default="l1", help="positions of the edit: l1, f1+l1, all, ...")
    parser.add_argument("--layer", type=int, default=6, help="the edit is at the output of this block")
    parser.add_argument("--prompts", type=int, default=8, help="number of prompts, of which half are held out")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = rl.load_bridge("facts-small").tokenizer
    bridge = rl.load_bridge(hf_model=GPT2LMHeadModel(GPT2Config()).eval(), tokenizer=tokenizer)
    prompts = [prompt for prompt, _ in story_for("facts-small").training_examples()[: arguments.prompts]]
    reft = rl.Reft.at_layers(bridge, layers=[arguments.layer], positions=arguments.positions, rank=4)
    batch = rl.encode(bridge, prompts)
    columns = batch.tokens.shape[1]
    first = int(torch.stack([edit.mask for edit in reft.edits(batch)]).any(0).any(0).int().argmax())
    cone = (columns - first) / columns * (bridge.cfg.n_layers - 1 - arguments.layer) / bridge.cfg.n_layers
    # The decomposition, and the base runs that the cones start from.
    print(f"beforehand: at most {identify_cost():.0f} cones, {2 + cone * identify_cost():.1f} whole passes")

    tokens = {"forward": 0, "backward": 0}

    def count(block: object, given: object, output: object) -> None:
        resid = output[0] if isinstance(output, tuple) else output
        assert isinstance(resid, torch.Tensor)
        tokens["forward"] += resid.shape[:2].numel()
        if resid.requires_grad:
            n = resid.shape[:2].numel()
            resid.register_hook(lambda _: tokens.update(backward=tokens["backward"] + n))

    handles = [block.register_forward_hook(count) for block in bridge.blocks]
    try:
        found = identify(bridge, reft, batch, eps=1e-4)
    finally:
        for handle in handles:
            handle.remove()
    # A skipped block that still calls its hooks is counted as if it ran, so the count is never too small.
    whole = batch.tokens.numel() * bridge.cfg.n_layers
    print(f"counted: {(tokens['forward'] + 2 * tokens['backward']) / whole:.1f} whole passes of {len(prompts)} prompts")
    print(found.headline())


if __name__ == "__main__":
    main()
