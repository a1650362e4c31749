"""causalab's half of `causalab_alignment.py`: `causalab_worker.py CAUSALAB CASE` trains one subspace by its DAS.

CASE is the folder that `causalab_alignment.py` wrote: `model/`, and `case.json` with the pairs and the settings. Prints one
line of JSON: the seconds of training, causalab's own accuracy on the held-out pairs, and the subspace.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    root, case = Path(sys.argv[1]), Path(sys.argv[2])
    # causalab is a folder of scripts rather than a package that can be installed.
    sys.path.insert(0, str(root))
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    given = json.loads((case / "case.json").read_text())
    torch.manual_seed(given["seed"])
    print(json.dumps(trained(case, given)))


def trained(case: Path, given: dict[str, Any]) -> dict[str, Any]:
    from causal.counterfactual_dataset import CounterfactualDataset
    from experiments.LM_experiments.residual_stream_experiment import PatchResidualStream
    from neural.LM_units import TokenPosition
    from neural.pipeline import LMPipeline

    pipeline = LMPipeline(str(case / "model"), max_new_tokens=1, device="cpu", dtype=torch.float32)
    place = TokenPosition(lambda _: [given["position"]], pipeline, id="place")
    config = {
        "id": "case",
        "train_batch_size": given["batch_size"],
        "evaluation_batch_size": 100,
        "training_epoch": given["epochs"],
        "init_lr": given["lr"],
        "DAS": {"n_features": given["rank"]},
        "log_dir": str(case / "logs"),
    }
    experiment = PatchResidualStream(pipeline, [given["layer"]], [place], config=config)
    start = time.process_time(), time.perf_counter()
    experiment.train_interventions(examples(given["train"]), method="DAS")
    seconds, wall = time.process_time() - start[0], time.perf_counter() - start[1]
    held_out = examples(given["held_out"])
    data = {name: [example[name] for example in held_out] for name in ("input", "counterfactual_inputs")}
    results = experiment.perform_interventions(CounterfactualDataset.from_dict(data, id="held out"))
    (unit,) = results["dataset"]["held out"]["model_unit"].values()
    said = [text for batch in unit["raw_outputs"] for text in batch["string"]]
    right = [one.strip() == example["label"].strip() for one, example in zip(said, held_out, strict=True)]
    (((site,),),) = experiment.model_units_lists
    subspace = site.featurizer.featurizer.rotate.weight.detach().T
    return {"seconds": seconds, "wall": wall, "own": sum(right) / len(right), "subspace": subspace.tolist()}


def examples(pairs: list[list[str]]) -> list[dict[str, Any]]:
    """In causalab's format."""
    return [
        {"input": {"raw_input": base}, "counterfactual_inputs": [{"raw_input": source}], "label": label}
        for base, source, label in pairs
    ]


if __name__ == "__main__":
    main()
