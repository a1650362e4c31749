"""A training step of one edit with nnsight's engine and with this one, in one process and in turn.

    python -m venv nnsight-venv && nnsight-venv/bin/pip install nnsight reftlens
    nnsight-venv/bin/python tests/benchmarks/nnsight_edit.py

The steps of `training.py`: a LoReFT of rank 4 after block 5, at the prompt's last token, in GPT-2 small's shape. Both start from
the same weights and must have the same loss. Figures are CPU seconds on one thread, medians with the range in brackets.
"""

from __future__ import annotations

import argparse
import importlib.metadata

import reftlens_worker
import torch
from hf_worker import Edit
from patching import header, row, spread, timed
from torch import Tensor, nn
from training_case import Case, Ready, base_model, completion_loss, trained
from transformers import GPT2LMHeadModel

SHAPES = ((1, 32), (8, 128))
"""Rows and tokens of a batch."""
LARGEST = 1e-4
"""Difference of the first losses by rounding."""


def with_nnsight(model: GPT2LMHeadModel, case: Case) -> Ready:
    import nnsight  # here, so that collecting doctests does not need it

    wrapped, (layer,) = nnsight.NNsight(model), case.layers
    tokens, labels = case.batch()
    edit = Edit(case.columns, *case.start()[0])

    def loss() -> Tensor:
        with wrapped.trace(tokens, use_cache=False):
            wrapped.transformer.h[layer].output = edit(wrapped.transformer.h[layer].output)
            logits = wrapped.lm_head.output.save()
        return completion_loss(logits, labels)

    return Ready(trained(nn.ModuleList([edit]), loss))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, bridge = base_model(), reftlens_worker.make_bridge()
    print(f"nnsight {importlib.metadata.version('nnsight')}, torch {torch.__version__}")
    header("rows x tokens", "nnsight, CPU s", "reftlens, CPU s", "nnsight / reftlens", "losses differ by")
    for rows, tokens in SHAPES:
        case = Case(rows, tokens, (5,), 0, 1)
        steps = with_nnsight(model, case).step, reftlens_worker.set_up(bridge, case, reftlens_worker.on_the_cone).step
        first, second = (step() for step in steps)  # not counted: each proves or compiles what it does once
        apart = abs(float(first.detach() - second.detach()))
        if not apart < LARGEST:
            raise RuntimeError(f"the losses differ by {apart:.2g}")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(arguments.rounds):
            for step, taken in zip(steps, times, strict=True):
                taken.append(timed(step)[0])
        theirs, ours = times
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        row(f"{rows} x {tokens}", spread(theirs), spread(ours), spread(ratios), f"{apart:.1e}")


if __name__ == "__main__":
    main()
