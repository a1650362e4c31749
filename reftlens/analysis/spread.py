"""How far does an edit's change spread through layers and positions, and where does the predicted token change?

At each layer and position, it measures |h_edited - h_base| / |h_base| of the residual stream, and
whether the most likely token by the logit lens (final norm and unembedding of h: nostalgebraist
2020) changes.

A large distance is not an effect: later layers do not read much of what an edit changes. The
control is changes of the same norm in random directions, which have the same distance from the base
at the edited sites. The logit lens is unreliable at early layers of many models, so an unchanged
token there is weak evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned_draws
from reftlens.analysis.tokens import require_aligned, starred
from reftlens.bridge import each
from reftlens.cone.recording import record
from reftlens.data import Batch, Prompt, as_prompts, as_texts, encode, str_tokens
from reftlens.edit.reft import Reft
from reftlens.results import Spread, TokenMap


@torch.no_grad()
def spread(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Iterable[Prompt],
    *,
    subjects: Iterable[str] | None = None,
    n_control: int = 4,
    seed: int = 0,
) -> Spread:
    """Compares the edited run with the base run, averaged over prompts.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: prompts with the same number of tokens.
        subjects: a part of each prompt, starred in plots; optional.
        n_control: random-direction controls to average over; at least one.
        seed: seed of the control.

    Raises:
        ValueError: If prompts differ in length, or n_control is below 1.
    """
    if n_control < 1:
        raise ValueError(f"n_control must be at least 1, got {n_control}: the map is compared with its control")
    prompts = as_prompts(prompts)
    subjects = None if subjects is None else as_texts(subjects, "subjects", count=len(prompts))
    batch = encode(bridge, prompts)
    require_aligned(batch)
    base = _states(bridge, batch)
    read = _read(bridge, base)

    def compare(edit: Reft) -> tuple[Tensor, Tensor]:
        with edit.hooks(bridge, batch):
            edited = _states(bridge, batch)
        # Relative, because the residual stream grows from layer to layer.
        distance = (edited - base).float().norm(dim=-1) / base.float().norm(dim=-1)
        moved = _moved(bridge, edited, (edited != base).any(-1), read)
        by_prompt = "layer prompt pos -> prompt layer pos"
        return rearrange(distance, by_prompt).cpu(), rearrange(moved, by_prompt).cpu()

    distance, mind = compare(reft)
    draws = list(each(bridge, compare, turned_draws(reft, n_control, seed=seed)))
    tokens = tuple(str_tokens(bridge, row) for row in batch.tokens)
    made = partial(
        TokenMap,
        rows=("blocks.0.hook_resid_pre", *(f"blocks.{layer}.hook_resid_post" for layer in range(bridge.cfg.n_layers))),
        tokens=tokens[0],
        starred=starred(bridge, prompts[0], subjects),
        control_name=f"the same change turned to random directions, mean of {n_control}",
        n_prompts=len(prompts),
        prompts=tokens,
    )

    def result(each: Tensor, controls: Sequence[Tensor], quantity: str) -> TokenMap:
        drawn = torch.stack(list(controls)).mean(0)
        return made(values=each.mean(0), control=drawn.mean(0), quantity=quantity, each=each, each_control=drawn)

    return Spread(
        distance=result(distance, [d for d, _ in draws], "distance of edited from base run / length of base"),
        mind=result(mind, [m for _, m in draws], "part of prompts where the logit lens names another token"),
    )


def _states(bridge: TransformerBridge, batch: Batch) -> Float[Tensor, "layer batch pos d_model"]:
    """The residual stream before the first block and after each."""
    return torch.stack(record(bridge, batch).resid)


def _read(bridge: TransformerBridge, resid: Float[Tensor, "*axes d_model"]) -> Tensor:
    """Returns the most likely token of each state by the logit lens."""
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    readout = logit_readout(bridge, resid, top_k=1)
    assert readout.top_ids is not None
    return readout.top_ids[..., 0]


def _moved(
    bridge: TransformerBridge,
    edited: Float[Tensor, "*axes d_model"],
    changed: Bool[Tensor, "*axes"],
    read: Int[Tensor, "*axes"],
) -> Float[Tensor, "*axes"]:
    """Returns 1 where a state names another token than `read`. Only changed states are read again."""
    moved = changed.float()
    if bool(changed.any()):
        moved[changed] = (_read(bridge, edited[changed]) != read[changed]).float()
    return moved
