"""Tests that the nulls are valid: over many draws without an effect, p-values must be uniform.

Each row draws inputs without an effect, computes the p-value of the analysis for each, and compares
the p-values with the uniform distribution by a Kolmogorov-Smirnov test. The last rows are negative
controls: deliberately wrong nulls, which the test must detect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis import (
    covariance_matched,
    decompose,
    haar,
    interchange,
    off_manifold,
    overlap,
    random_readings,
    read_directions,
)
from reftlens.analysis.engine.activations import edited_activations
from reftlens.benchmark.handmade import attention_reads_it
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import load, texts
from reftlens.data import as_batches, encode
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.interventions import SteeringVector
from reftlens.positions import First, Last

N_DRAWS = 200
SMALLEST = 0.01


def uniform_p(p_values: Sequence[float]) -> float:
    """Tests uniformity on [0, 1]: Kolmogorov's limit with Stephens' correction for the number of draws."""
    n, ordered = len(p_values), sorted(p_values)
    distance = max(max((i + 1) / n - p, p - i / n) for i, p in enumerate(ordered))
    x = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * distance
    if x < 0.2:
        return 1.0  # the series below does not converge here
    return min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


def null_rows(name: str = "facts-small") -> Iterator[Known]:
    """Yields the rows, on the activations of one model."""
    bridge = load(name)
    prompts = [*texts(360), *texts(360, shift=2)]
    batches = as_batches(bridge, prompts, batch_size=8)
    point, d_model = f"blocks.{bridge.cfg.n_layers - 2}.hook_resid_post", bridge.cfg.d_model
    # It only names the site: activations are read before the edit.
    nothing = Reft([(Site(point, Last(1)), SteeringVector.of(torch.ones(d_model)))])
    h = torch.cat([edited_activations(bridge, nothing, batch)[0][1] for batch in batches])
    nulls = {"Haar": haar(d_model), "covariance-matched": covariance_matched(h), "random readings": random_readings(h)}
    for kind, null in nulls.items():
        yield _row(f"overlap with a random subspace, {kind} null", _overlap_p(null, null, h), uniform=True)
    yield _row("readout of a random direction, one token named beforehand", _readout_p(bridge, point), uniform=True)
    yield _row("interchange in a random subspace", _interchange_p(), uniform=True)
    (natural,) = off_manifold(bridge, nothing, batches)
    yield _row("percentile of held-out natural activations", (natural.natural / 100).tolist(), uniform=True)
    wrong = _overlap_p(nulls["covariance-matched"], nulls["Haar"], h)
    yield _row("control: activations' own directions against a Haar null", wrong, uniform=False)


def _row(what: str, p_values: list[float], *, uniform: bool) -> Known:
    p = uniform_p(p_values)
    return Known(
        "nulls",
        f"{what}: {'uniform' if uniform else 'must not be uniform'}",
        f"KS p = {p:.2g} over {len(p_values)} draws",
        max(0.0, SMALLEST - p) if uniform else max(0.0, p - SMALLEST),
        0.0,
        "of KS p",
    )


def _overlap_p(drawn: Callable[..., Tensor], null: Callable[..., Tensor], h: Tensor) -> list[float]:
    generator = torch.Generator().manual_seed(3)
    # Along large directions of the activations, as trained edits are.
    fixed = covariance_matched(h)(3, generator)
    return [
        overlap(drawn(2, generator), fixed, nulls={"null": null}, n_null=199, seed=draw).p("null")
        for draw in range(N_DRAWS)
    ]


def _readout_p(bridge: TransformerBridge, point: str) -> list[float]:
    generator, batch, p_values = torch.Generator().manual_seed(4), encode(bridge, texts(1)), []
    for draw in range(N_DRAWS):
        direction = torch.randn(bridge.cfg.d_model, generator=generator)
        reft = Reft([(Site(point, Last(1)), SteeringVector.of(3 * direction / direction.norm()))])
        (operator,) = decompose(bridge, reft, [batch])
        (readout,) = read_directions(bridge, operator, batch, watch=[" Ostra"], n_null=99, seed=draw)
        p_values.append(readout.watched[0][2])
    return p_values


def _interchange_p() -> list[float]:
    model = attention_reads_it(n_pairs=16)
    generator, p_values = torch.Generator().manual_seed(5), []
    for draw in range(N_DRAWS):
        subspace = torch.randn(2, model.true.shape[1], generator=generator)
        result = interchange(
            model.bridge,
            "blocks.0.hook_resid_post",
            subspace,
            model.base,
            model.source,
            at=First(1),
            n_random=39,
            n_placebo=1,
            seed=draw,
        )
        p_values.append(result.p)
    return p_values
