"""One alignment by causalab's DAS and by this package: the same model, pairs, rank, steps and learning rate.

    git clone https://github.com/goodfire-ai/causalab
    python -m venv causalab-venv && causalab-venv/bin/pip install -r causalab/requirements.txt tensorboard datasets
    python tests/benchmarks/causalab_alignment.py --causalab causalab --python causalab-venv/bin/python

The model is the hand-made one with a planted variable of two dimensions (`benchmark/planted_variable.py`), so the angle to
the truth is known. causalab trains in its own environment, in a process of its own. Seconds are CPU seconds of the
training on one thread, with the base runs here and without imports; both subspaces are scored by `analysis.alignment`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from patching import header, row

import reftlens as rl
from reftlens.benchmark.planted_variable import (
    CONFIG,
    D_MODEL,
    HOOK,
    PlantedVariable,
    found_angle,
    planted_model,
    planted_variable,
)
from reftlens.benchmark.words import word_tokenizer

RANK = 2
HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--causalab", type=Path, required=True, help="a clone of its repository")
    parser.add_argument("--python", type=Path, required=True, help="the Python of its environment")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    header("seed", "tool", "held-out accuracy", "95% interval", "off by, degrees", "training, CPU s", "wall, s")
    for seed in given.seeds:
        planted = planted_variable(n=given.pairs, seed=seed)
        # causalab has no clipping, and a constant learning rate.
        config = replace(CONFIG, epochs=given.epochs, schedule="constant", max_grad_norm=1e9)
        for name, (edit, seconds, wall) in {
            "causalab": by_causalab(given.causalab, given.python, planted, config, seed),
            "reftlens": by_reftlens(planted, config, seed),
        }.items():
            report(planted, seed, name, edit, seconds, wall)


def by_reftlens(planted: PlantedVariable, config: rl.TrainConfig, seed: int) -> tuple[rl.Interchange, float, float]:
    torch.manual_seed(seed)
    edit = rl.Interchange(D_MODEL, RANK)
    start = time.process_time(), time.perf_counter()
    rl.train(planted.bridge, site_of(edit), planted.pairs.train, config, objective=rl.objectives.Interchange("value"))
    return edit, time.process_time() - start[0], time.perf_counter() - start[1]


def by_causalab(
    root: Path, python: Path, planted: PlantedVariable, config: rl.TrainConfig, seed: int
) -> tuple[rl.Interchange, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        case = Path(folder)
        write_case(case, planted, config, seed)
        command = [str(python.absolute()), str(HERE / "causalab_worker.py"), str(root.resolve()), str(case)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"causalab failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"causalab's own count: {found['own']:.1%} of the held-out pairs")
    # float32 rounding of its parametrisation is more than `along` allows.
    rows = torch.linalg.qr(torch.tensor(found["subspace"], dtype=torch.float64).T).Q.T.float()
    return rl.Interchange.along(rows.contiguous()), found["seconds"], found["wall"]


def write_case(case: Path, planted: PlantedVariable, config: rl.TrainConfig, seed: int) -> None:
    words, model, _ = planted_model(seed=seed)
    model.save_pretrained(case / "model")
    # causalab pads with the end token, ignores it in labels and leaves it out of answers, so it must not be an answer.
    word_tokenizer(words, special="?").save_pretrained(case / "model")
    pairs = {"train": planted.pairs.train, "held_out": planted.pairs.held_out}
    settings = {"batch_size": config.batch_size, "epochs": config.epochs, "lr": config.lr, "seed": seed}
    place = {"layer": 0, "position": 0, "rank": RANK}
    listed = {name: [(pair.base, pair.source, pair.label) for pair in some] for name, some in pairs.items()}
    (case / "case.json").write_text(json.dumps({**listed, **settings, **place}))


def report(planted: PlantedVariable, seed: int, name: str, edit: rl.Interchange, seconds: float, wall: float) -> None:
    scored = rl.analysis.alignment(
        planted.bridge, site_of(edit), planted.pairs.held_out, among="labels", n_random=1, shares=False
    )
    low, high = scored.interval()
    angle = found_angle(edit, planted.true)
    row(str(seed), name, f"{scored.accuracy():.1%}", f"{low:.1%} to {high:.1%}", f"{angle:.1f}", f"{seconds:.1f}", f"{wall:.1f}")  # fmt: skip


def site_of(edit: rl.Interchange) -> rl.Reft:
    return rl.Reft([(rl.Site(HOOK, rl.First(1)), edit)])


if __name__ == "__main__":
    main()
