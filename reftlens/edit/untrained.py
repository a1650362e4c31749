"""Untrained copies of an edit, with newly initialised weights."""

from __future__ import annotations

import torch

from reftlens.edit.reft import Reft
from reftlens.interventions import Intervention


def untrained(reft: Reft, *, seed: int) -> Reft:
    """Makes a copy of an edit with the same sites and sharing, and newly initialised weights.

    Args:
        reft: the edit to copy: its sites, classes and ranks. It is not changed.
        seed: seed of the initialisation.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh: dict[int, Intervention] = {}
        for _, intervention in reft:
            # A shared intervention stays shared in the copy.
            if id(intervention) not in fresh:
                fresh[id(intervention)] = intervention.untrained()
    pairs = [(site, fresh[id(intervention)]) for site, intervention in reft]
    device = next((parameter.device for parameter in reft.parameters()), torch.device("cpu"))
    return Reft(pairs, names=reft.names, scales=reft.scales).to(device)
