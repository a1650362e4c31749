"""Measures the false-alarm rate of every null on draws without an effect: unrelated trained edits, maps and directions.

For comparison the table also has nulls that are known to be wrong for these draws, and they miss.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from reftlens.analysis import (
    agreement,
    beside_tracing,
    covariance_matched,
    decompose,
    directions,
    haar,
    interchange,
    overlap,
    read_directions,
)
from reftlens.analysis.engine.activations import edited_activations
from reftlens.benchmark.addition import batch_of, bridge_of, sums, train_addition, unrelated_edits
from reftlens.benchmark.handmade import illusion_in_residual
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import load, texts
from reftlens.benchmark.rates import alarm_row
from reftlens.data import encode
from reftlens.positions import Last
from reftlens.results import Operator, PatchMap, ReftMap

N_DRAWS, LEVEL = 200, 0.05
N_NULL_EDITS = 5
"""Seven edits make 21 pairs, so the closest pair is the right one by chance in 1/21 of draws."""


def trained_edit_rows(*, n_draws: int = N_DRAWS) -> Iterator[Known]:
    """Draws edits, each trained on its own random answers. They share only a model, a site and prompts."""
    model, right = train_addition()
    if right < 0.99:
        raise RuntimeError(f"the model of sums must get all sums right, got {right:.0%}")
    bridge = bridge_of(model)
    held_out = batch_of(sums()[torch.randperm(169, generator=torch.Generator().manual_seed(9))[:64]])
    size = 2 + N_NULL_EDITS
    edits = unrelated_edits(model, n_draws * size, seed=1)
    # Scaled to 0: the base's activations at the one site that all of these edits share.
    h = edited_activations(bridge, edits[0].scaled(0.0), held_out)[0][1]
    nulls = {"Haar": haar(h.shape[1]), "covariance-matched": covariance_matched(h)}
    alarms: dict[str, list[bool]] = {}
    for draw in range(n_draws):
        a, b, *null = edits[draw * size : (draw + 1) * size]
        (pair,) = agreement(bridge, {"a": a, "b": b}, [held_out], null=null, at=Last(1), n_null=1, seed=draw)
        spans = [directions(decompose(bridge, edit, [held_out], at=Last(1))[0], 2) for edit in (a, b)]
        # p is then a multiple of 1 / 200, as LEVEL is: a valid null alarms at exactly that rate.
        shared = overlap(*spans, nulls=nulls, n_null=199, seed=draw)
        found = {
            "cosine among edits of shuffled answers": pair.p_cosine <= LEVEL,
            "KL among edits of shuffled answers": pair.p_kl <= LEVEL,
            "angle among edits of shuffled answers": pair.p_angle <= LEVEL,
            "overlap, covariance-matched null": shared.p("covariance-matched") <= LEVEL,
            "overlap, Haar null (for what was never trained)": shared.p("Haar") <= LEVEL,
            "angle below that of random subspaces by 5 degrees (no null of trained edits)": pair.null_angle - pair.angle
            > 5,
        }
        for name, alarm in found.items():
            alarms.setdefault(name, []).append(alarm)
    for name, found_alarms in alarms.items():
        level = 1 / (size * (size - 1) // 2) if "among" in name else LEVEL
        yield alarm_row(f"trained edits that share nothing, {name}", found_alarms, level=level)


def map_rows(*, n_draws: int = N_DRAWS) -> Iterator[Known]:
    """Draws unrelated maps of 12 layers and 4 tokens."""
    for kind in ("smooth over layers", "with trends over layers (random walks)"):
        draw = np.random.default_rng(7)
        shifts, cells, prompts = [], [], []
        for number in range(n_draws):
            one, other = (_map(draw, trends="walks" in kind) for _ in range(2))
            result = beside_tracing(*_maps(one, other, seed=number), n_resamples=100, seed=number)
            shifts.append(result.p <= LEVEL)
            cells.append(not result.over_cells[0] < 0 < result.over_cells[1])
            prompts.append(not result.over_prompts[0] < 0 < result.over_prompts[1])
        # p is a multiple of 1 / cells, so this is the rate that a valid p has at LEVEL.
        level = int(LEVEL * one.numel()) / one.numel()
        yield alarm_row(f"unrelated maps {kind}, p of all shifts", shifts, level=level)
        yield alarm_row(f"unrelated maps {kind}, interval over cells (not a test)", cells, level=LEVEL)
        yield alarm_row(f"unrelated maps {kind}, interval over prompts (not a test)", prompts, level=LEVEL)


def _map(draw: np.random.Generator, *, trends: bool) -> torch.Tensor:
    noise = draw.standard_normal((16, 4))
    values = noise[:12].cumsum(0) if trends else np.stack([noise[row : row + 5].mean(0) for row in range(12)])
    return torch.tensor(values)


def _maps(gain: torch.Tensor, restored: torch.Tensor, *, seed: int, n: int = 12) -> tuple[ReftMap, PatchMap]:
    """Makes maps as if each were measured on n prompts."""
    generator = torch.Generator().manual_seed(seed)
    rows = tuple(f"blocks.{layer}.hook_resid_pre" for layer in range(len(gain)))
    columns, zeros = tuple(f"token {place}" for place in range(gain.shape[1])), torch.zeros(n)
    held_out = gain[..., None] + 0.3 * torch.randn(*gain.shape, n, generator=generator)
    reft = ReftMap(held_out, held_out, 0 * held_out, zeros, zeros, rows, columns, "score", "drawn")
    values = restored[None] + 0.3 * torch.randn(n, *restored.shape, generator=generator)
    return reft, PatchMap(values, None, zeros, zeros + 1, rows, columns, ("layer", "pos"), "", "denoise")


def readout_rows(*, n_draws: int = N_DRAWS) -> Iterator[Known]:
    """Draws random directions, two at each of two sites, and reads them through the unembedding together."""
    bridge, generator = load("random gpt2"), torch.Generator().manual_seed(4)
    batch, any_token, named, single = encode(bridge, texts(1)), [], [], []
    for draw in range(n_draws):
        operators = [_random_operator(name, bridge.cfg.d_model, generator) for name in ("one", "two")]
        found = read_directions(
            bridge, operators, batch, top=1, n_null=39, watch=[" Ostra", " Tharic", " the"], seed=draw
        )
        any_token.append(any(r.promoted[0][1] > r.null_high or r.suppressed[0][1] < r.null_low for r in found))
        named.append(min(p for r in found for p in r.p_all) <= LEVEL)
        single.append(min(p for r in found for _, _, p in r.watched) <= LEVEL)
    looks = f"{found[0].n_tokens} tokens x {found[0].n_directions} directions"
    yield alarm_row(f"random directions, any of {looks} out of its band", any_token, level=LEVEL)
    yield alarm_row("random directions, smallest corrected p of 12 named looks", named, level=LEVEL)
    yield alarm_row("random directions, smallest p of 12 named looks, uncorrected (wrong)", single, level=LEVEL)


def _random_operator(name: str, d_model: int, generator: torch.Generator) -> Operator:
    write = torch.linalg.qr(torch.randn(d_model, 2, generator=generator)).Q.T
    sizes, zeros = torch.tensor([3.0, 1.0]), torch.zeros(2)
    return Operator(name, write, 0 * write, sizes, sizes, zeros + 1, 10.0, 1, 0 * write)


def verdict_rows(*, n_draws: int = N_DRAWS) -> Iterator[Known]:
    """Runs interchange in toy models with known directions. Only the illusion should be called illusory."""
    point, missed = "blocks.0.hook_resid_post", []
    alarms: dict[str, list[bool]] = {"that carry the answer": [], "that nothing reads": []}
    for draw in range(n_draws):
        toy = illusion_in_residual(n_pairs=16, seed=draw)
        generator = torch.Generator().manual_seed(draw)
        unread = torch.randn(1, toy.true.shape[1], generator=generator) + toy.true + toy.illusory
        # Made of directions that vary as well, so that the test could take it for an illusion.
        unread -= unread @ toy.read.T @ toy.read
        named = {"that carry the answer": toy.true, "that nothing reads": unread, "": toy.illusory}
        for name, direction in named.items():
            result = interchange(toy.bridge, point, direction, toy.base, toy.source, n_random=1, n_placebo=1, seed=draw)
            if name:
                alarms[name].append(result.illusory)
            else:
                missed.append(not result.illusory)
    for name, found in alarms.items():
        yield alarm_row(f"directions {name} are called illusory", found, level=LEVEL, at_most=True)
    yield alarm_row("the illusory direction is not", missed, level=LEVEL, at_most=True)
