"""A patching map with nnsight's engine and with this one, in one process and in turn.

    python -m venv nnsight-venv && nnsight-venv/bin/pip install nnsight reftlens
    nnsight-venv/bin/python tests/benchmarks/nnsight_map.py [--quick]

The map of `patching.py`: `resid_pre` of 12 layers x 24 positions at GPT-2 small's shape, one pair. With nnsight, each trace
patches 24 cells of a layer, as rows of one batch. Figures are CPU seconds, medians with the range in brackets.
"""

from __future__ import annotations

import argparse
import importlib.metadata

import torch
from patching import ANSWER, FOIL, header, make_batch, make_hf, make_model, row, spread, timed, with_reftlens
from torch import Tensor
from transformers import GPT2LMHeadModel

import reftlens as rl


@torch.no_grad()
def with_nnsight(model: GPT2LMHeadModel, clean: rl.Batch, corrupted: rl.Batch) -> Tensor:
    """`[layer, pos]`, each layer in one trace."""
    import nnsight  # here, so that collecting doctests does not need it

    wrapped = nnsight.NNsight(model)
    n_layers, n_pos = len(model.transformer.h), clean.tokens.shape[1]
    kept = []
    with wrapped.trace(clean.tokens):
        for layer in range(n_layers):
            kept.append(wrapped.transformer.h[layer].input.clone().save())
    places = torch.arange(n_pos)
    tokens = corrupted.tokens.repeat(n_pos, 1)
    out = torch.zeros(n_layers, n_pos)
    for layer in range(n_layers):
        source = kept[layer][0]
        with wrapped.trace(tokens):
            wrapped.transformer.h[layer].input[places, places] = source
            last = wrapped.lm_head.output[:, -1].save()
        out[layer] = last[:, ANSWER] - last[:, FOIL]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a model 64 wide, 6 layers x 12 positions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    n_layers, n_pos = (6, 12) if arguments.quick else (12, 24)
    model, bridge = (make(n_layers, quick=arguments.quick) for make in (make_hf, make_model))
    clean, corrupted = (make_batch(1, n_pos, bridge.cfg.d_vocab, seed=seed) for seed in (1, 2))
    theirs, ours, apart = [], [], 0.0
    # The first of each proves or compiles what it does once.
    for number in range(arguments.rounds + 1):
        seconds, _, expected = timed(with_nnsight, model, clean, corrupted)
        own, _, found = timed(with_reftlens, bridge, clean, corrupted)
        apart = max(apart, float((found - expected).abs().max()))
        if number:
            theirs.append(seconds)
            ours.append(own)
    if not (apart < 1e-4 and float(expected.std()) > 1e-2):
        raise RuntimeError(f"the maps differ by {apart:.2g}, or are flat")
    print(f"nnsight {importlib.metadata.version('nnsight')}, {n_layers} layers x {n_pos} positions")
    header("nnsight, CPU s", "reftlens, CPU s", "nnsight / reftlens", "largest difference")
    row(spread(theirs), spread(ours), spread([a / b for a, b in zip(theirs, ours, strict=True)]), f"{apart:.1e}")


if __name__ == "__main__":
    main()
