"""Upper confidence bounds that assume no distribution: of a bounded mean, and of a fraction."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_HALVINGS = 60


def mean_bound(values: Float[Tensor, " n"], largest: float, risk: float) -> float:
    """Computes an upper bound of the mean of a quantity in [0, largest], from independent draws.

    mean + sqrt(2 V log(2 / risk) / n) + 7 largest log(2 / risk) / (3 (n - 1)), where V is the
    sample variance: empirical Bernstein (Maurer and Pontil 2009, arXiv:0907.3740, theorem 4). It is
    exceeded with at most the given probability.

    Args:
        values: the draws; at least two.
        largest: the largest value that the quantity can have.
        risk: probability that the bound may be wrong.
    """
    n, log = len(values), math.log(2 / risk)
    spread = math.sqrt(2 * float(values.double().var()) * log / n)
    return min(largest, float(values.double().mean()) + spread + 7 * largest * log / (3 * (n - 1)))


def fraction_bound(count: int, n: int, risk: float) -> float:
    """Computes an upper bound of a probability, from the number of successes in independent trials (Clopper and Pearson 1934).

    It is the probability at which so few successes would have the probability `risk`.

    Args:
        count: successes.
        n: trials.
        risk: probability that the bound may be wrong.
    """
    if count >= n:
        return 1.0
    k = torch.arange(count + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    low, high = count / n, 1.0
    for _ in range(_HALVINGS):
        p = (low + high) / 2
        # At p = 1 so few successes are impossible, and p never reaches 0.
        so_few = torch.logsumexp(ways + k * math.log(p) + (n - k) * math.log1p(-p), 0) if p < 1 else -math.inf
        low, high = (p, high) if float(so_few) > math.log(risk) else (low, p)
    return high
