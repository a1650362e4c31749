"""Principal angles against planted ones, and nulls whose p-values must be uniform."""

from __future__ import annotations

import pytest
import torch
from conftest import PROMPTS

import reftlens as rl
from reftlens.analysis import covariance_matched, directions, haar, overlap, random_readings
from reftlens.benchmark.nulls import uniform_p

D = 24


def rows(n: int, *, seed: int, d: int = D) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frame(*, seed: int, d: int = D) -> torch.Tensor:
    return torch.linalg.qr(rows(d, seed=seed, d=d)).Q


def stretched(n: int = 500, *, seed: int = 0) -> torch.Tensor:
    """Activations that are ten times as long in three directions as elsewhere."""
    return rows(n, seed=seed) * torch.where(torch.arange(D) < 3, 10.0, 1.0)


def test_the_test_for_uniform_p_values_has_its_known_quantile_and_tells_uniform_from_not() -> None:
    # The 5% point of Kolmogorov's distribution is 1.358.
    distance = 1.358 / (300**0.5 + 0.12 + 0.11 / 300**0.5)
    shifted = [(i + 1) / 300 - distance if i >= 150 else i / 300 for i in range(300)]
    assert uniform_p(shifted) == pytest.approx(0.05, abs=0.002)
    uniform = torch.rand(300, generator=torch.Generator().manual_seed(0))
    assert uniform_p(uniform.tolist()) > 0.05
    assert uniform_p((uniform**1.3).tolist()) < 0.01


def test_planted_angles_are_found_whatever_the_rows() -> None:
    Q = frame(seed=0)
    planted = torch.tensor([10.0, 40.0, 90.0], dtype=torch.float64)
    turned = torch.deg2rad(planted)[:, None].cos() * Q[:3] + torch.deg2rad(planted)[:, None].sin() * Q[3:6]
    mixed = rows(3, seed=1, d=3) @ turned
    result = overlap(5 * Q[:3], mixed, n_null=50)
    torch.testing.assert_close(result.angles.double(), planted, rtol=0, atol=1e-3)
    assert result.score == pytest.approx(float(torch.deg2rad(planted).cos().square().mean()), abs=1e-9)
    assert overlap(Q[:2], Q[:5], n_null=5).score == pytest.approx(1.0), "inside a larger one"
    assert overlap(Q[:2], Q[2:9], n_null=5).score == pytest.approx(0.0, abs=1e-12)


def test_haar_scores_have_their_known_mean() -> None:
    result = overlap(frame(seed=0)[:4], frame(seed=1)[:4], nulls={"haar": haar(D)}, n_null=2000)
    draws = result.null_scores["haar"].double()
    # E |U^T V|^2 = k m / d, and score divides by min(k, m).
    assert float(draws.mean()) == pytest.approx(4 / D, abs=4 * float(draws.std()) / 2000**0.5)
    assert result.p("haar") > 0.01


@pytest.mark.parametrize("name", ["haar", "covariance_matched", "random_readings"])
def test_null_p_values_are_uniform(name) -> None:
    activations = stretched(120)
    null = {"haar": haar(D), "covariance_matched": covariance_matched(activations)}.get(name)
    null = null or random_readings(activations)
    generator, fixed = torch.Generator().manual_seed(5), stretched(3, seed=3)
    p_values = [
        overlap(null(2, generator), fixed, nulls={"null": null}, n_null=99, seed=draw).p("null") for draw in range(200)
    ]
    assert uniform_p(p_values) > 0.01


def test_the_null_is_scored_as_the_overlap_is() -> None:
    fixed, seen = rows(3, seed=1), []

    def null(rank, generator):
        seen.append(haar(D)(rank, generator))
        return seen[-1]

    scores = overlap(rows(2, seed=0), fixed, nulls={"null": null}, n_null=20).null_scores["null"]
    one_by_one = [overlap(draw, fixed, n_null=1).score for draw in seen]
    torch.testing.assert_close(scores.double(), torch.tensor(one_by_one, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_a_haar_null_is_fooled_by_long_directions_and_the_matched_one_is_not() -> None:
    activations, generator = stretched(), torch.Generator().manual_seed(5)
    null = covariance_matched(activations)
    fixed, both = stretched(2, seed=3), {"haar": haar(D), "matched": null}
    results = [overlap(null(2, generator), fixed, nulls=both, n_null=99, seed=draw) for draw in range(40)]
    assert sum(result.p("haar") < 0.05 for result in results) > 30
    assert sum(result.p("matched") < 0.05 for result in results) < 8


def test_a_planted_overlap_is_beyond_every_null() -> None:
    activations = stretched()
    first = frame(seed=2)[:2]
    near = first + 0.02 * rows(2, seed=9)
    nulls = {"haar": haar(D), "matched": covariance_matched(activations), "readings": random_readings(activations)}
    result = overlap(first, near, nulls=nulls, n_null=199, names=("ours", "planted"))
    frame_of = result.to_dataframe()
    assert list(frame_of["p"]) == [pytest.approx(1 / 200)] * 3
    assert set(frame_of["null"]) == set(nulls)


def test_the_null_of_given_activations_is_the_matched_one_and_without_them_nothing_is_claimed() -> None:
    activations, generator = stretched(), torch.Generator().manual_seed(5)
    fixed, false = stretched(2, seed=3), 0
    for draw in range(40):
        own = covariance_matched(activations)(2, generator)
        result = overlap(own, fixed, activations, n_null=99, seed=draw)
        assert list(result.null_scores) == ["covariance-matched"]
        false += result.p("covariance-matched") < 0.05
    # Up to 6 of 40 are within 99% of the binomial distribution; against Haar over 30 of them passed.
    assert false <= 6
    bare = overlap(fixed, fixed)
    assert bare.null_scores == {}
    assert "no null was given" in bare.headline()
    assert bare.to_dataframe()["null"].tolist() == ["none"]
    with pytest.raises(ValueError, match="activations or nulls, not both"):
        overlap(fixed, fixed, activations, nulls={"haar": haar(D)})


def test_directions_of_an_edit_are_orthonormal_and_limited(gpt2, make_reft) -> None:
    (operator,) = rl.analysis.decompose(gpt2, make_reft(positions=rl.All()), [rl.encode(gpt2, PROMPTS)])
    for side in ("write", "read"):
        found = directions(operator, 2, side=side)
        torch.testing.assert_close(found @ found.T, torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="nonzero write directions"):
        directions(operator, 4)
    push = rl.Reft([(rl.Site("blocks.1.hook_resid_post", rl.All()), rl.SteeringVector(32))])
    with torch.no_grad():
        next(iter(push))[1].vector.fill_(1.0)
    (operator,) = rl.analysis.decompose(gpt2, push, [rl.encode(gpt2, PROMPTS)])
    with pytest.raises(ValueError, match="nonzero read directions"):
        directions(operator, 1, side="read")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="of the same width"):
        overlap(rows(2, seed=0), rows(2, seed=1, d=8))
    with pytest.raises(ValueError, match="rank"):
        overlap(torch.ones(2, D), rows(2, seed=0))
