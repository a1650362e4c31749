"""A patching map with causalab's engine and with this one, in one process and in turn.

    git clone https://github.com/goodfire-ai/causalab
    python -m venv causalab-venv && causalab-venv/bin/pip install -r causalab/requirements.txt tensorboard datasets reftlens
    causalab-venv/bin/python tests/benchmarks/causalab_map.py --causalab causalab [--quick]

The map of `patching.py`: `resid_pre` of 12 layers at GPT-2 small's shape, one pair of 24 tokens. causalab runs one
intervention after another, so every cell costs the same, and `--every 6` takes every sixth column of it. This package computes
the whole map. Figures are CPU seconds for each cell, medians with the range in brackets.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from patching import ANSWER, FOIL, header, make_batch, make_hf, make_model, row, spread, timed, with_reftlens
from torch import Tensor
from transformers import GPT2LMHeadModel

import reftlens as rl
from reftlens.benchmark.words import word_tokenizer


def engine(model: GPT2LMHeadModel, folder: str) -> Any:
    """causalab's pipeline around a model. A text is the numbers of its tokens."""
    from neural.pipeline import LMPipeline  # type: ignore[import-not-found]

    word_tokenizer([f"t{token}" for token in range(model.config.vocab_size)]).save_pretrained(folder)
    model.config.save_pretrained(folder)
    model.config.name_or_path = folder
    return LMPipeline(model, max_new_tokens=1, device="cpu", dtype=torch.float32)


def with_causalab(pipeline: Any, clean: rl.Batch, corrupted: rl.Batch, columns: list[int]) -> Tensor:
    """`[layer, column]`, each cell by itself."""
    from causal.counterfactual_dataset import CounterfactualDataset  # type: ignore[import-not-found]
    from experiments.LM_experiments.residual_stream_experiment import (  # type: ignore[import-not-found]
        PatchResidualStream,
    )
    from experiments.pyvene_core import _run_interchange_interventions  # type: ignore[import-not-found]
    from neural.LM_units import TokenPosition  # type: ignore[import-not-found]

    into, source = (
        {"raw_input": " ".join(f"t{token}" for token in batch.tokens[0].tolist())} for batch in (corrupted, clean)
    )
    data = CounterfactualDataset.from_dict({"input": [into], "counterfactual_inputs": [[source]]}, id="pair")
    places = [TokenPosition(lambda _, at=at: [at], pipeline, id=f"at {at}") for at in columns]
    # Its layer -1 is the input of the first block.
    layers = range(-1, pipeline.model.config.n_layer - 1)
    experiment = PatchResidualStream(pipeline, layers, places, config={"id": "map", "evaluation_batch_size": 1})
    values = []
    for units in experiment.model_units_lists:
        (output,) = _run_interchange_interventions(pipeline, data, units, verbose=False, batch_size=1)
        logits = output["scores"][0][0]
        values.append(logits[ANSWER] - logits[FOIL])
    return torch.stack(values).view(len(layers), len(columns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--causalab", type=Path, required=True, help="a clone of its repository")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=6, help="columns from one to the next that causalab patches")
    parser.add_argument("--quick", action="store_true", help="a model 64 wide, 6 layers x 12 positions")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.causalab))
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    n_layers, n_pos = (6, 12) if arguments.quick else (12, 24)
    model, bridge = (make(n_layers, quick=arguments.quick) for make in (make_hf, make_model))
    clean, corrupted = (make_batch(1, n_pos, bridge.cfg.d_vocab, seed=seed) for seed in (1, 2))
    columns = list(range(0, n_pos, arguments.every))
    theirs, ours, apart = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        pipeline = engine(model, folder)
        for _ in range(arguments.rounds):
            seconds, _, expected = timed(with_causalab, pipeline, clean, corrupted, columns)
            own, _, found = timed(with_reftlens, bridge, clean, corrupted)
            apart = max(apart, float((found[:, columns] - expected).abs().max()))
            theirs.append(1e3 * seconds / expected.numel())
            ours.append(1e3 * own / found.numel())
    if not (apart < 1e-4 and float(expected.std()) > 1e-2):
        raise RuntimeError(f"the maps differ by {apart:.2g}, or are flat")
    print(f"{n_layers} layers x {n_pos} positions")
    header("causalab, CPU ms for a cell", "reftlens", "causalab / reftlens", "largest difference")
    row(spread(theirs), spread(ours), spread([a / b for a, b in zip(theirs, ours, strict=True)]), f"{apart:.1e}")


if __name__ == "__main__":
    main()
