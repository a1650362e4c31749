"""Measure what `facts-small` knows and where, and write it to `evaluation.json`.

Run `python -m organisms.evaluate DIR`. Every number in the model card comes from here.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from organisms.accuracy import accuracies
from organisms.tracing import POSITIONS, tracing_map, tracing_pairs
from reftlens.organisms.world import FACTS

EVALUATION = "evaluation.json"


def evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, pairs: int = 400) -> dict[str, Any]:
    """Return accuracies and tracing map as plain JSON values.

    Args:
        model: The language model, put in eval mode and back.
        tokenizer: Its tokenizer.
        pairs: Number of clean-corrupted pairs for the tracing map.
    """
    was_training = model.training
    model.eval()
    try:
        table = accuracies(model, tokenizer)
        traced = tracing_map(model, tokenizer, tracing_pairs(tokenizer, count=pairs))
    finally:
        model.train(was_training)
    cells = [[None if math.isnan(cell) else round(cell, 4) for cell in row] for row in traced.restored.tolist()]
    return {
        "facts": len(FACTS),
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy": {name: {split: round(v, 4) for split, v in row.items()} for name, row in table.items()},
        "tracing": {
            "site": "resid_pre",
            "positions": list(POSITIONS),
            "restored": cells,
            "pairs": traced.pairs,
            "mean_gap_nats": round(traced.gap, 3),
        },
    }


def tables(evaluation: dict[str, Any]) -> tuple[str, str]:
    """Return the accuracy table and the tracing table of an evaluation, in Markdown."""
    accuracy = ["| relation | trained pairs | held-out pairs |", "|---|---|---|"]
    for name, row in evaluation["accuracy"].items():
        accuracy.append(f"| {name} | {row['trained']:.1%} | {row['held_out']:.1%} |")
    traced = evaluation["tracing"]
    tracing = [
        f"| layer | {' | '.join(traced['positions'])} |",
        "|---" * (len(traced["positions"]) + 1) + "|",
    ]
    for layer, row in enumerate(traced["restored"]):
        cells = ["" if cell is None else f"{cell:.2f}" for cell in row]
        tracing.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(accuracy), "\n".join(tracing)


def evaluate_directory(directory: Path) -> dict[str, Any]:
    """Load the model in `directory`, evaluate it, and write `evaluation.json` next to it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    evaluation = evaluate(model, AutoTokenizer.from_pretrained(directory))
    (directory / EVALUATION).write_text(json.dumps(evaluation, indent=1) + "\n", encoding="utf-8")
    return evaluation


def main() -> None:
    """Print the tables for a directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    print("\n\n".join(tables(evaluate_directory(directory))))
    print(f"\nwrote {directory / EVALUATION}")


if __name__ == "__main__":
    main()
