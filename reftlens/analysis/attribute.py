"""Attribution patching: a first-order approximation of a patching map, with its correlation with the exact map.

change of the metric at a cell ~ (a_source - a_base) . d metric / d a, with the gradient at the base
run (Nanda 2023; Syed et al. 2023, arXiv:2310.10348; uses
`transformer_lens.tools.analysis.attribution_patching`). Two forward passes and one backward pass
give all cells of a pair. The approximation is linear. It is poor at saturated softmaxes and at
residual streams early in the model, and only the exact map shows where. So the exact map is always
computed for some pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

from reftlens.analysis.engine.grid import Grid, grid
from reftlens.analysis.metrics import Counted, Metric, require_pairs_of
from reftlens.analysis.patch import patch, require_pairs
from reftlens.bridge import each, hooked, is_main_process
from reftlens.cone.recording import repeated
from reftlens.data import Batch, Given, as_batch
from reftlens.results import Attribution


def attribute(
    bridge: TransformerBridge,
    clean: Given,
    corrupted: Given,
    metric: Metric,
    *,
    point: str = "attn_out",
    over: str = "positions",
    direction: str = "denoise",
    n_checked: int = 4,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> Attribution:
    """Estimates the map that `patch` computes exactly.

    Args:
        bridge: the model; causal.
        clean: texts, conversations or one batch, without completions.
        corrupted: prompts with the same length as `clean`, row by row.
        metric: of the logits after each prompt; differentiable.
        point: as for `patch`.
        over: as for `patch`.
        direction: as for `patch`.
        n_checked: number of pairs, from the first on, whose exact map is computed too; at most the
            number of pairs.
        memory_bytes: approximate limit for the exact sweep.
        progress: show a progress bar.

    Raises:
        ValueError: As for `patch`, or if no pair is checked.
    """
    if n_checked < 1:
        raise ValueError(f"n_checked must be at least 1, got {n_checked}: the estimates are compared with exact maps")
    clean, corrupted = as_batch(bridge, clean, name="clean"), as_batch(bridge, corrupted, name="corrupted")
    require_pairs(clean, corrupted=corrupted)
    require_pairs_of(metric, len(clean))
    checked = torch.arange(min(n_checked, len(clean)))
    exact = patch(
        bridge,
        repeated(clean, checked),
        repeated(corrupted, checked),
        # Fewer pairs than the metric was made for. They are the first ones, so its indices fit.
        metric.of if isinstance(metric, Counted) else metric,
        point=point,
        over=over,
        direction=direction,
        memory_bytes=memory_bytes,
        progress=progress,
    )
    of = grid(bridge, point, over, n_pos=clean.tokens.shape[1])
    into, out_of = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    estimates = each(bridge, lambda pair: _estimate(bridge, into, out_of, metric, of, pair), range(len(clean)))
    hidden = not (progress and is_main_process())
    values = torch.stack(list(tqdm(estimates, desc="attribution", unit="pair", total=len(clean), disable=hidden)))
    changes = exact.values - rearrange(exact.base, "pair -> pair 1 1")
    return Attribution(
        values=values,
        exact=exact,
        correlation=torch.stack([_pearson(values[pair], changes[pair]) for pair in checked.tolist()]),
        rows=exact.rows,
        columns=exact.columns,
    )


def _estimate(
    bridge: TransformerBridge, into: Batch, out_of: Batch, metric: Metric, of: Grid, pair: int
) -> Float[Tensor, "rows columns"]:
    """Runs one pair without padding, because TransformerLens does not pass an attention mask here."""
    there = into.prompt_mask[pair]
    number = torch.tensor([pair], device=there.device)

    def scalar(logits: Tensor) -> Tensor:
        # The prompt runs without padding, so the last column is its last token.
        return metric(logits[:, -1], number)[0]

    def run(batch: Batch, *, gradient: bool) -> Any:
        tokens = batch.tokens[pair, there][None]
        # In a frozen model, activations have gradients only if the embedding requires one. The
        # first point has a gradient only if its hook receives the tensor that the model uses
        # afterwards, which is not the case for heads.
        asking = ("hook_embed", lambda embed, hook: embed.detach().requires_grad_(gradient))
        with torch.enable_grad(), hooked(bridge, [asking]):
            return cache_activation_and_gradient(
                bridge, tokens, scalar, names_filter=["blocks.0.hook_resid_pre", *of.names], compute_gradient=gradient
            )

    base, source = run(into, gradient=True), run(out_of, gradient=False)
    products = [
        ((source.activations[name] - base.activations[name]) * base.gradients[name])[0].float().sum(-1).cpu()
        for name in of.names
    ]
    at_all = torch.stack(products)  # [layer, pos], of z [layer, pos, head]
    if of.axes == ("layer", "head"):
        return reduce(at_all, "layer pos head -> layer head", "sum")
    if of.axes == ("layer", "head", "pos"):
        by_row = rearrange(at_all, "layer pos head -> (layer head) pos")
    else:
        by_row = at_all if at_all.ndim == 2 else at_all.sum(-1)
    out = torch.full((len(by_row), into.tokens.shape[1]), torch.nan)
    out[:, there.cpu()] = by_row
    return out


def _pearson(a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    there = a.isfinite() & b.isfinite()
    return torch.corrcoef(torch.stack([a[there], b[there]]).double())[0, 1].float()
