"""The same edit with fresh weights: what its constructors draw before any training."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention


def untrained(reft: Reft, *, seed: int) -> Reft:
    """The same edit at the same sites with fresh weights, as its constructors draw them; sharing is kept.

    Args:
        reft: gives sites, kinds and ranks; left as it is.
        seed: draws the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: dict[int, Intervention] = {}
        for _, intervention in reft:
            if id(intervention) not in fresh:
                fresh[id(intervention)] = _fresh(intervention)
    pairs = [(site, fresh[id(intervention)]) for site, intervention in reft]
    device = next((parameter.device for parameter in reft.parameters()), torch.device("cpu"))
    return Reft(pairs, names=reft.names, scales=reft.scales).to(device)


def _fresh(intervention: Intervention) -> Intervention:
    make: Callable[..., Intervention] = type(intervention)
    return make(**intervention.settings())
