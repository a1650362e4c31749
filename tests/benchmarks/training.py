"""What a training step of an edit costs: reftlens beside the bare model, hooks written by hand, and pyreft.

    python tests/benchmarks/training.py                  # everything, about ten minutes on two free cores
    python tests/benchmarks/training.py --table main --rounds 3 --without-pyreft
    python tests/benchmarks/training.py --table map --rounds 1 --threads 1    # a map of trained edits, cell by cell

One model (the shape of GPT-2 small, random weights, eager attention, float32) and one edit (a LoReFT after each of
some layers) in five variants, each in a process of its own; rounds alternate between them, and a ratio is taken within
a round. Figures are medians, with quartiles in brackets. CPU time is the main clock: other work on the machine
lengthens the wall's. Threads wait passively, so waiting is not counted as CPU time.

- bare: Hugging Face, forward and backward to the input embeddings, no edit and no optimiser
- hooks: Hugging Face forward hooks written by hand, R by QR of a free matrix in each forward
- full: reftlens, the whole model under `reft.hooks`
- cone: reftlens as `rl.train` runs it, `cone.run_cone` on a base run that was held once, logits of labelled tokens alone
- pyreft: pyreft 0.1.0 on pyvene 0.1.8, in an environment of its own, which this script makes

All but the bare one end with a step of AdamW. All but the cone compute the logits of every token; pyreft takes its
model's own loss over them, the others the same loss at the completion tokens alone. All edits begin with the same weights: their losses at the first step must agree.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyreft_environment import DEFAULT, environment
from training_case import LAYERS, Case

HERE = Path(__file__).parent
WORKERS = {
    "bare": "hf_worker.py",
    "hooks": "hf_worker.py",
    "full": "reftlens_worker.py",
    "cone": "reftlens_worker.py",
    "pyreft": "pyreft_worker.py",
}
ALL, MIDDLE = tuple(range(LAYERS)), (5,)
EDITS = {
    "all layers, f5+l5": (ALL, 5, 5),
    "layer 5, l1": (MIDDLE, 0, 1),
    "layer 5, f1": (MIDDLE, 1, 0),
}
"""Layers, first and last tokens."""
SHAPES = ((8, 128, 1), (1, 32, 3))
"""Rows, tokens of each, and steps that make up one round."""
QUICK = ((2, 64, 1), (1, 32, 1))


class Worker:
    """A variant in its own process."""

    def __init__(self, variant: str, python: Path, threads: int) -> None:
        self.variant = variant
        environ = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        self._process = subprocess.Popen(
            [str(python), str(HERE / WORKERS[variant]), variant, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )

    def ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.variant!r} stopped with code {self._process.wait()}; see above")
        return json.loads(line)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@dataclass
class Times:
    """One variant in one case."""

    loss: float
    """At the first step, in nats per token."""
    once: float
    """CPU seconds of what is done once."""
    cpu: list[float] = field(default_factory=list)
    """CPU seconds of one step, for each round."""
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0
    """Largest resident memory of the process during this case, in MiB."""


def measure(workers: Sequence[Worker], case: Case, *, rounds: int, steps: int) -> dict[str, Times]:
    """Sets all variants up for a case, checks that they do the same, and times them round by round."""
    times = {}
    for worker in workers:
        worker.ask("case " + case.to_json())
        answer = worker.answer()
        times[worker.variant] = Times(answer["loss"], answer["once"])
    require_agreement({variant: result.loss for variant, result in times.items()}, case)
    for number in range(rounds):
        # The other way round every second time, so that none always runs behind the same one.
        for worker in workers[:: 1 - 2 * (number % 2)]:
            worker.ask(f"step {steps}")
            answer = worker.answer()
            result = times[worker.variant]
            result.cpu.append(statistics.mean(answer["cpu"]))
            result.wall.append(statistics.mean(answer["wall"]))
            result.peak = answer["peak"]
    return times


def require_agreement(losses: dict[str, float], case: Case) -> None:
    """Every edit has the same loss at its first step, and another one than the bare model."""
    edited = {variant: loss for variant, loss in losses.items() if variant != "bare"}
    apart = max(edited.values()) - min(edited.values())
    if apart > 1e-5 * max(edited.values()):
        raise RuntimeError(f"the variants do not compute the same: first losses {losses} in {case}")
    if min(abs(loss - losses["bare"]) for loss in edited.values()) < 1e-3:
        raise RuntimeError(f"the edit hardly changes the loss, so agreement shows nothing: {losses} in {case}")


def spread(values: Iterable[float]) -> str:
    """Median, and the quartiles in brackets."""
    values = list(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """The spread of ratios within rounds."""
    return spread(a / b for a, b in zip(above, below, strict=True))


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(seconds):,.0f}"


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def main_table(workers: Sequence[Worker], shapes: Sequence[tuple[int, int, int]], *, rounds: int) -> None:
    """Every variant, for each shape and edit; then the README's summary of it."""
    summary = []
    for rows, tokens, steps in shapes:
        print(f"\nOne training step, {rows} x {tokens} tokens, rank 4\n")
        header(
            "edit",
            "variant",
            "CPU ms",
            "wall ms",
            "x bare, CPU",
            "x bare, wall",
            "pyreft / this, CPU",
            "peak MiB",
            "first loss",
        )
        held = []
        for name, edit in EDITS.items():
            times = measure(workers, Case(rows, tokens, *edit), rounds=rounds, steps=steps)
            for variant, of in times.items():
                bare, pyreft = times["bare"], times.get("pyreft")
                row(
                    name,
                    variant,
                    milliseconds(of.cpu),
                    milliseconds(of.wall),
                    ratio(of.cpu, bare.cpu),
                    ratio(of.wall, bare.wall),
                    "" if pyreft is None else ratio(pyreft.cpu, of.cpu),
                    f"{of.peak:,.0f}",
                    f"{of.loss:.6f}",
                )
            held.append(f"{milliseconds([times['cone'].once])} ({name})")
            summary.append((f"{rows} x {tokens}", name, times))
        print(f"\nBefore the first step the cone runs the base once, CPU ms: {', '.join(held)}.")

    print("\nA step's CPU time as a multiple of the bare model's\n")
    header("tokens", "edit", "hooks by hand", "reftlens, whole run", "reftlens, `train`", "pyreft", "pyreft / `train`")
    for shape, name, times in summary:
        parts = [
            ratio(times[v].cpu, times["bare"].cpu) if v in times else "" for v in ("hooks", "full", "cone", "pyreft")
        ]
        row(shape, name, *parts, ratio(times["pyreft"].cpu, times["cone"].cpu) if "pyreft" in times else "")


def growth_table(workers: Sequence[Worker], *, rounds: int) -> None:
    """reftlens beside the bare model as one of three things grows from a common middle."""
    print("\nOne training step, 1 row; l1 at layer 5, 116 prompt tokens, rank 4, but for what the first column says\n")
    header(
        "what grows", "bare, CPU ms", "full x bare, CPU", "cone x bare, CPU", "full x bare, wall", "cone x bare, wall"
    )
    cases = {
        **{f"prompt of {n} tokens": Case(1, n + 12, MIDDLE, 0, 1) for n in (32, 64, 128, 256)},
        **{f"{len(layers)} edited layers": Case(1, 128, layers, 0, 1) for layers in (MIDDLE, (2, 5, 8, 11), ALL)},
        **{f"rank {rank}": Case(1, 128, MIDDLE, 0, 1, rank) for rank in (1, 4, 16, 64)},
    }
    three = [worker for worker in workers if worker.variant in ("bare", "full", "cone")]
    for name, case in cases.items():
        times = measure(three, case, rounds=rounds, steps=1)
        bare, full, cone = (times[variant] for variant in ("bare", "full", "cone"))
        row(
            name,
            milliseconds(bare.cpu),
            ratio(full.cpu, bare.cpu),
            ratio(cone.cpu, bare.cpu),
            ratio(full.wall, bare.wall),
            ratio(cone.wall, bare.wall),
        )


def map_table(workers: Sequence[Worker], *, rounds: int) -> None:
    """Steps of `reft_map` beside those of pyreft: 4 of the cells of 12 layers x 20 prompt tokens."""
    print(
        "\nOne step in a cell of a map, 4 x 32 tokens, rank 4; the middles of both halves of the layers and of the prompt\n"
    )
    header("layer", "prompt token of 20", "bare, CPU ms", "pyreft, CPU ms", "reftlens, CPU ms", "pyreft / reftlens")
    total = {"pyreft": 0.0, "cone": 0.0}
    for layer in (2, 8):
        for at in (5, 15):
            times = measure(workers, Case(4, 32, (layer,), 0, 1, at=at), rounds=rounds, steps=1)
            cpu = {variant: of.cpu for variant, of in times.items()}
            row(
                str(layer),
                str(at),
                *(milliseconds(cpu[variant]) for variant in ("bare", "pyreft", "cone")),
                ratio(cpu["pyreft"], cpu["cone"]),
            )
            for variant in total:
                total[variant] += statistics.median(cpu[variant])
    print(f"\nAll four: pyreft takes {total['pyreft'] / total['cone']:.2f} times as long")


def processor() -> str:
    """The CPU's model, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=("main", "growth", "map"), help="only one table")
    parser.add_argument("--rounds", type=int, default=7, help="rounds over the variants (default: 7)")
    parser.add_argument("--quick", action="store_true", help="two rounds on small batches: to see that it runs")
    parser.add_argument("--threads", type=int, default=2, help="threads of each process (default: 2)")
    parser.add_argument("--pyreft-venv", type=Path, default=DEFAULT, help=f"pyreft's environment (default: {DEFAULT})")
    parser.add_argument("--without-pyreft", action="store_true", help="leave pyreft out")
    args = parser.parse_args()
    args.rounds = 2 if args.quick else args.rounds
    if min(args.rounds, args.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    return args


def main() -> None:
    args = arguments()
    ours = ("bare", "cone") if args.table == "map" else ("bare", "hooks", "full", "cone")
    pythons = dict.fromkeys(ours, Path(sys.executable))
    print(versions(("reftlens", "torch", "transformers", "transformer-lens")), end="")
    if not args.without_pyreft and args.table != "growth":
        pythons["pyreft"], installed = environment(args.pyreft_venv)
        print(f"; in its own environment {installed}", end="")
    print(f"; {args.threads} threads, {args.rounds} rounds, {processor()}, {platform.system()}", flush=True)
    workers = [Worker(variant, python, args.threads) for variant, python in pythons.items()]
    try:
        if args.table == "map":
            map_table(workers, rounds=args.rounds)
        if args.table in ("main", None):
            main_table(workers, QUICK if args.quick else SHAPES, rounds=args.rounds)
        if args.table in ("growth", None):
            growth_table(workers, rounds=args.rounds)
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    main()
