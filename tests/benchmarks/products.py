"""What part of a training step and of a patching map is matrix products: the floor of both.

    python tests/benchmarks/products.py             # about three minutes on a free core
    python tests/benchmarks/products.py --quick     # the map alone, of a small model: to see that it runs

The cases of `training.py` (layer 5, `l1`, and four cells of a map of trained edits) and of `patching.py`, on one thread, by the
profiler of torch. Times are those of the kernels themselves. Below them, the rate of a large product by itself, on the same core
and in the same minute.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from patching import make_batch, make_model, with_reftlens
from torch.profiler import ProfilerActivity, profile

import reftlens as rl
from reftlens.analysis.engine import sweep

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def shares(name: str, work: Callable[[], object]) -> None:
    """Prints the time of the products and of everything, after one run that is not counted."""
    work()
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as kernels:
        work()
    events = kernels.key_averages()
    every = sum(event.self_cpu_time_total for event in events) / 1e6
    products = [event for event in events if event.key in PRODUCTS]
    taken, operations = sum(event.self_cpu_time_total for event in products) / 1e6, sum(e.flops or 0 for e in products)
    print(
        f"{name}: products {taken:.3f} s of {every:.3f} s ({taken / every:.0%}), {operations / 1e9:.1f} billion operations"
    )


def steps() -> None:
    import hf_worker
    import reftlens_worker
    from training_case import Case, base_model

    model, bridge = base_model(), reftlens_worker.make_bridge()
    for rows, tokens in ((1, 32), (8, 128)):
        case = Case(rows, tokens, (5,), 0, 1)
        shares(f"a step of {rows} x {tokens} tokens, bare", hf_worker.bare(model, case).step)
        ready = reftlens_worker.set_up(bridge, case, reftlens_worker.on_the_cone)
        shares(f"a step of {rows} x {tokens} tokens, train", ready.step)
    # The cells that `training.py --table map` measures.
    for layer, at in ((2, 5), (2, 15), (8, 5), (8, 15)):
        case = Case(4, 32, (layer,), 0, 1, at=at)
        shares(f"a step of 4 x 32 tokens at layer {layer}, token {at}, bare", hf_worker.bare(model, case).step)
        ready = reftlens_worker.set_up(bridge, case, reftlens_worker.on_the_cone)
        shares(f"a step of 4 x 32 tokens at layer {layer}, token {at}, train", ready.step)


def patching_map(*, quick: bool) -> None:
    n_layers, n_pos = (6, 12) if quick else (12, 24)
    bridge = make_model(n_layers, quick=quick)
    clean, corrupted = (make_batch(1, n_pos, bridge.cfg.d_vocab, seed=seed) for seed in (1, 2))
    counted, run = [], sweep._run

    def count(*given: object) -> torch.Tensor:
        cells, starts = given[3], given[5]
        counted.append(sum(n_layers - cell.layer for cell in cells) * (n_pos - int(starts.min())))  # type: ignore[attr-defined]
        return run(*given)  # type: ignore[arg-type]

    sweep._run = count  # type: ignore[assignment]
    with_reftlens(bridge, clean, corrupted)
    sweep._run = run
    whole = n_layers * n_pos * n_layers * n_pos
    print(f"a map in {len(counted)} runs: {sum(counted):,} tokens, counted in every layer; {whole:,} in whole runs")
    shares("a map", partial(with_reftlens, bridge, clean, corrupted))


def rate(rows: int, n: int) -> None:
    tokens, weight = torch.randn(rows, 768), torch.randn(768, 3072)
    start = time.process_time()
    for _ in range(n):
        tokens @ weight
    seconds = time.process_time() - start
    print(f"a product of {rows} rows: {2 * n * rows * 768 * 3072 / seconds / 1e9:.0f} billion operations a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"reftlens {rl.__version__}, torch {torch.__version__}")
    patching_map(quick=arguments.quick)
    if not arguments.quick:
        steps()
    for rows, n in ((24, 50), (576, 10)):
        rate(rows, n)


if __name__ == "__main__":
    main()
