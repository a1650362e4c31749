"""At which layer and position will an edit train well? Predicts a map of trained edits from slopes of the base, without training.

Let h be the state of a cell and g the gradient of the wanted loss there. Three predictors, of an
edit h + A h + c of rank r:

- slope: the fall of the held-out loss to first order, under the best such edit of the training
  examples. Its change is as long as `size` times the states. The best edit is made of the r largest
  singular parts of E[g x^T], with x = (h - mean, 1) whitened.
- bounded gain: the fall of the held-out loss by a quadratic bound of it, whose best edit needs no
  size. The bound holds for any answers where logits are linear in the state (`engine/linearised.py`
  has its derivation).
- covariance: the sum of the r largest singular values of [Cov(g, h), |h| E[g]], |h| the root mean
  square: how far the wanted change depends on the state, and its constant part. Of the training
  examples alone.

One run of the examples, and 1 + n_probes passes back, give all cells at once. The control is the
same fit with shuffled answers. An edit can write an answer anywhere, so that map is no zero: what
the real one has beyond it comes from what can be read. `analysis.beside_training` scores a
prediction against trained edits.

Not evidence that an edit will work: slopes hold for small changes, and trained edits are large.
Training to convergence can also make good what a first step lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.retraining import permuted_labels
from reftlens.analysis.engine.linearised import Slopes, fit, slopes
from reftlens.bridge import is_main_process, require_causal
from reftlens.data import Batch
from reftlens.data.batches import as_batches
from reftlens.edit.reft import Reft
from reftlens.interventions import SteeringVector
from reftlens.numbers import require_number, require_whole_number
from reftlens.positions import Positions
from reftlens.results import PredictedMap

Pairs = Sequence[tuple[str, str]]

PREDICTORS = ("slope", "bounded gain", "covariance")


def predict_map(
    bridge: TransformerBridge,
    examples: Pairs,
    held_out: Pairs,
    *,
    positions: Mapping[str, Positions],
    layers: Sequence[int] | Literal["all"] = "all",
    hook: str = "hook_resid_pre",
    rank: int = 1,
    size: float = 0.1,
    damping: float = 0.1,
    n_probes: int = 8,
    batch_size: int = 32,
    seed: int = 42,
    progress: bool = True,
) -> PredictedMap:
    """Predicts the map that `rl.reft_map` trains. The progress bar shows the number of passes beforehand.

    Args:
        bridge: the frozen base; causal.
        examples: (prompt, completion) pairs that edits would be trained on.
        held_out: other pairs, on which the slopes of the fitted edits are taken.
        positions: name -> rule, one per column. Every prompt must have the tokens.
        layers: block indices, or "all".
        hook: the point inside a block.
        rank: of the edits.
        size: length of the change of the slope, as a part of the states' length. It scales this map
            and does not reorder it.
        damping: share of the mean eigenvalue that is added to covariances, as there are fewer
            examples than dimensions.
        n_probes: random passes back for the curvature of each example, at least 2: half of them
            find the edit of the bounded gain and half measure the curvature along it, in both
            roles.
        batch_size: examples in one pass. The activations of all their tokens are kept for the pass
            back.
        seed: seed of the probes, and of the shuffled answers.
        progress: show a progress bar.

    Raises:
        ValueError: If there is nothing to fit or to compare, a number is out of its range, a prompt
            lacks the tokens of a rule, or more than half of the examples have the same answer.
    """
    require_causal(bridge, "a predicted map")
    if not examples or not held_out or not positions:
        raise ValueError(
            "predict_map needs at least one example, one held-out pair and one position rule, got "
            f"{len(examples)}, {len(held_out)} and {len(positions)}"
        )
    require_whole_number("rank", rank, least=1)
    require_whole_number("n_probes", n_probes, least=2)
    require_number("size", size, above=0)
    require_number("damping", damping, above=0)
    cells = _cells(bridge, positions, layers, hook)
    rows = tuple(dict.fromkeys(cell.sites[0].hook_name for cell in cells))
    sets = {"real": examples, "shuffled": permuted_labels(examples, seed=seed), "held out": held_out}
    batches = {name: as_batches(bridge, list(pairs), name=name, batch_size=batch_size) for name, pairs in sets.items()}
    for of_set in batches.values():
        _require_tokens(of_set, cells[: len(positions)], tuple(positions))
    seen, losses = _slopes_of(bridge, cells, batches, n_probes, seed, progress=progress)
    found = {
        arm: torch.tensor(
            [_predicted(*of_cell, rank, size, damping) for of_cell in zip(seen[arm], seen["held out"], strict=True)]
        )
        for arm in ("real", "shuffled")
    }
    maps = {arm: _as_maps(values, len(rows)) for arm, values in found.items()}
    return PredictedMap(
        values=maps["real"],
        control=maps["shuffled"],
        predictors=PREDICTORS,
        rows=rows,
        columns=tuple(positions),
        loss=losses["held out"],
        n_held_out=len(held_out),
        settings=f"rank {rank}, {len(examples)} examples, size {size:g}, damping {damping:g}, {n_probes} probes, seed {seed}",
    )


def _cells(
    bridge: TransformerBridge, positions: Mapping[str, Positions], layers: Sequence[int] | Literal["all"], hook: str
) -> list[Reft]:
    """Makes a layout for each cell, row by row: where the slopes are taken."""
    chosen = list(range(bridge.cfg.n_layers) if layers == "all" else layers)
    cells = [
        Reft.at_layers(bridge, layers=[layer], positions=rule, intervention=SteeringVector, hook=hook)
        for layer in chosen
        for rule in positions.values()
    ]
    points = {cell.sites[0].hook_name for cell in cells}
    if not cells or len(points) * len(positions) != len(cells):
        raise ValueError(f'layers must be "all" or different layers, at least one, got {layers}')
    return cells


def _as_maps(values: Float[Tensor, "cell predictor"], n_rows: int) -> Float[Tensor, "predictor rows columns"]:
    return rearrange(values, "(row column) predictor -> predictor row column", row=n_rows).float()


def _require_tokens(batches: Sequence[Batch], cells: Sequence[Reft], columns: Sequence[str]) -> None:
    for name, cell in zip(columns, cells, strict=True):
        for batch in batches:
            for row in (~cell.edits(batch)[0].mask.any(1)).nonzero().flatten().tolist():
                prompt = "" if batch.texts is None else f" of {batch.texts[row]!r}"
                raise ValueError(f"{name!r} does not select any token{prompt}")


def _slopes_of(
    bridge: TransformerBridge,
    cells: Sequence[Reft],
    batches: Mapping[str, Sequence[Batch]],
    n_probes: int,
    seed: int,
    *,
    progress: bool,
) -> tuple[dict[str, list[Slopes]], dict[str, float]]:
    """Takes the slopes of each set of examples at all cells."""
    generator = torch.Generator().manual_seed(seed)
    # The bound of the curvature asks for no answer, so that of the real examples serves the
    # shuffled ones. (Only of an answer's later tokens it is another one, because they are predicted
    # behind its first.)
    probes = {"real": n_probes, "shuffled": 0, "held out": n_probes}
    n = sum(len(of_set) * (2 + probes[name]) for name, of_set in batches.items())
    bar = tqdm(total=n, desc=f"slopes of {len(cells)} cells", unit="pass", disable=not (progress and is_main_process()))
    found: dict[str, list[Slopes]] = {}
    losses: dict[str, float] = {}
    with bar:
        for name, of_set in batches.items():
            found[name], losses[name] = slopes(bridge, cells, of_set, n_probes=probes[name], generator=generator)
            bar.update(len(of_set) * (2 + probes[name]))
    found["shuffled"] = [
        replace(one, probes=real.probes) for one, real in zip(found["shuffled"], found["real"], strict=True)
    ]
    return found, losses


def _predicted(at: Slopes, held_out: Slopes, rank: int, size: float, damping: float) -> tuple[float, float, float]:
    """Returns the three predictors of one cell."""
    steep = fit(at, rank=rank, damping=damping, curves=None)
    length = steep.change(at.h).norm()
    # A cell that nothing reads has no direction to go.
    reach = size * at.h.norm() / length if float(length) > 0 else length
    slope = -float(reach) * held_out.along(steep.change(held_out.h))[0]
    return slope, _bounded(at, held_out, rank, damping), _covariance(at, rank)


def _bounded(at: Slopes, held_out: Slopes, rank: int, damping: float) -> float:
    """Returns the fall of the held-out loss by the quadratic bound, under the edit that is best on the examples.

    Half of the probes find the edit and the other half measure the curvature along it, then the
    other way round. Along an edit that was fitted to them, probes underrate the curvature, and the
    bound would promise a fall that does not come.
    """
    gains = []
    for first in (0, 1):
        curves = torch.cat([one.probes[first::2].flatten(0, 1) for one in (at, held_out)])
        best = fit(at, rank=rank, damping=damping, curves=curves)
        seen, held = (replace(one, probes=one.probes[1 - first :: 2]) for one in (at, held_out))
        steep, curved = seen.along(best.change(at.h))
        slope, curve = held.along(best.change(held_out.h))
        # Curvature of all prompts, because it asks for no answers.
        curvature = (at.n * curved + held_out.n * curve) / (at.n + held_out.n)
        step = -steep / curvature if curvature > 0 else 0.0
        gains.append(-(step * slope + step**2 * curve / 2))
    return sum(gains) / 2


def _covariance(at: Slopes, rank: int) -> float:
    centred, mean = at.h - at.h.mean(0), at.g.mean(0)
    state = at.h.square().sum(1).mean().sqrt()
    # [Cov, |h| E[g]] as a product of matrices with few rows: it has at most as many singular
    # values, whatever the width.
    left = torch.cat([(at.g - mean) / len(centred), state * mean[None]])
    right = torch.block_diag(centred, torch.ones_like(state)[None, None])
    return float(torch.linalg.svdvals(torch.linalg.qr(left.T).R @ torch.linalg.qr(right.T).R.T)[:rank].sum())
