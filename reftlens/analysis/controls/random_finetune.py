"""Random finetune: the change of every matrix with its rows and columns in random order and with random signs.

W + P (W' - W) Q, with random signed permutations P and Q: same norm, rank and singular values as
the change W' - W of that matrix, in random directions. A vector is changed in the same way. What a
finetuned model shares with this one is what any change of that size does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge


@contextmanager
def random_finetune(bridge: TransformerBridge, finetuned: TransformerBridge, *, seed: int) -> Iterator[float]:
    """Opens a context in which the finetuned model is a random one. Its weights come back bit by bit.

    Args:
        bridge: the base; not changed.
        finetuned: the finetuned model, changed in place inside the context.
        seed: seed of the permutations.

    Yields:
        Norm of the whole change of the weights.

    Raises:
        ValueError: If the two models do not have the same weights by name and shape, or no weight
            differs.
    """
    # By every name: a finetune may have its own output layer where the base shares one with the
    # embedding.
    base, own_names = _used(bridge, tied=True), _used(finetuned, tied=True)
    own = _used(finetuned, tied=False)
    if {name: value.shape for name, value in base.items()} != {name: value.shape for name, value in own_names.items()}:
        raise ValueError(
            "a random finetune needs a finetuned model with the weights of its base, by name and shape, and this one has "
            "others, such as those of an adapter inside it: merge the adapter first, or pass random_finetunes=0"
        )
    changed = [name for name in own if not torch.equal(own[name].to(base[name]), base[name])]
    if not changed:
        raise ValueError("the finetuned model has the weights of its base: there is no change to explain")
    generator = torch.Generator().manual_seed(seed)
    # Copies, because adding and subtracting a change would not give back the same bits.
    before = {name: own[name].detach().clone() for name in changed}
    square = 0.0
    try:
        with torch.no_grad():
            for name in changed:
                change = (own[name] - base[name].to(own[name])).detach()
                square += float(change.double().square().sum())
                own[name].copy_(base[name] + scrambled(change, generator))
        yield square**0.5
    finally:
        with torch.no_grad():
            for name, value in before.items():
                own[name].copy_(value)


def _used(bridge: TransformerBridge, *, tied: bool) -> dict[str, Tensor]:
    """Returns a bridge's parameters by name, without the fused matrices that it keeps beside the parts that it uses.

    Args:
        bridge: the model.
        tied: whether a weight that several modules share is there under each of its names.
    """
    saved = bridge.original_model.state_dict().keys()
    named = bridge.original_model.named_parameters(remove_duplicate=not tied)
    return {name: value for name, value in named if name in saved}


def scrambled(change: Tensor, generator: torch.Generator) -> Tensor:
    """Puts each axis of a tensor in random order with random signs.

    Args:
        change: a matrix, or a tensor with any number of axes.
        generator: on the CPU, so that a seed gives the same order on every device.
    """
    for axis, size in enumerate(change.shape):
        order = torch.randperm(size, generator=generator).to(change.device)
        signs = (2 * torch.randint(2, (size,), generator=generator) - 1).to(change)
        change = change.index_select(axis, order) * signs.view(*(-1 if a == axis else 1 for a in range(change.ndim)))
    return change
