"""Which later heads and MLPs carry an edit's effect? Patches their outputs between the edited run and the base run.

"edited into base" patches one component's output from the edited run into the base run, on the same
prompt. This measures the part of the effect that the component carries alone (the indirect effect
of Vig et al. 2020, arXiv:2004.12265). "base into edited" patches the base's output into the edited
run. This measures the part that is lost without the component's change. The direct effect is what
remains when all later components have their base outputs: the effect through the residual stream
only.

Parts need not sum to one: paths run through several components, and components can substitute for
one another. The control patches the same outputs from a run with changes of the same norm in random
directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.engine.grid import Cell, grid
from reftlens.analysis.engine.sweep import sweep
from reftlens.analysis.metrics import Metric
from reftlens.analysis.patch import metric_of, require_pairs, token_labels
from reftlens.bridge import canonical_hooks, require_heads_alone_mix
from reftlens.cone.recording import Recording, record
from reftlens.data import Batch, Given, as_batch
from reftlens.edit.reft import Reft
from reftlens.results import PatchMap


def mediate(
    bridge: TransformerBridge,
    reft: Reft,
    prompts: Given,
    metric: Metric,
    *,
    point: str = "z",
    over: str = "heads",
    direction: str = "edited into base",
    seed: int = 0,
    memory_bytes: int = 1 << 30,
    progress: bool = True,
) -> PatchMap:
    """Computes the metric with one component's output patched, for each component and example.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        point: "z" for heads, "attn_out" or "mlp_out".
        over: "heads" (each at all positions), "positions" or "heads and positions".
        direction: "edited into base" or "base into edited".
        seed: seed of the control's random directions.
        memory_bytes: approximate limit for the activations of one run.
        progress: show a progress bar.

    Returns:
        For "edited into base", `base` is the base run, `source` the edited run, and `restored` the
        part of the effect that is carried. For "base into edited" it is the other way round:
        `restored` is the part that is lost, and there is no control.

    Raises:
        ValueError: If there is no such map, or the edit itself acts at the patched point.
    """
    if direction not in ("edited into base", "base into edited"):
        raise ValueError(f"direction must be 'edited into base' or 'base into edited', got {direction!r}")
    if point == "resid_pre":
        raise ValueError("resid_pre is not the output of a component: use point='z', 'attn_out' or 'mlp_out'")
    batch = as_batch(bridge, prompts)
    require_pairs(batch)
    of = grid(bridge, point, over, n_pos=batch.tokens.shape[1])
    require_elsewhere(bridge, reft, of.names)
    base, edited = record(bridge, batch, of.names), edited_run(bridge, reft, batch, of.names)
    inward = direction == "edited into base"
    into, out_of = (base, edited) if inward else (edited, base)
    bar = "mediation" if progress else ""
    # In the edited run, the edits after a patch must act again on what the patch changed.
    edits = () if inward else reft.edits(batch)
    flat = sweep(bridge, into, out_of, of.cells, metric, memory_bytes=memory_bytes, edits=edits, progress=bar)
    by_cell, n_rows = "pair (row column) -> pair row column", len(of.rows)
    values = rearrange(flat, by_cell, row=n_rows)
    control = None
    if inward:
        placebo = edited_run(bridge, turned(reft, seed=seed), batch, of.names)
        flat = sweep(bridge, base, placebo, of.cells, metric, memory_bytes=memory_bytes)
        control = rearrange(flat, by_cell, row=n_rows)
    said = token_labels(bridge, batch)
    return PatchMap(
        values=values,
        control=control,
        base=metric_of(metric, into),
        source=metric_of(metric, out_of),
        rows=of.rows,
        columns=tuple(map(str, range(values.shape[2]))) if over == "heads" else said[0],
        axes=of.axes,
        control_name="the same outputs under the edit turned to random directions" if inward else "",
        direction=direction,
        prompts=said,
    )


def direct_effect(
    bridge: TransformerBridge, reft: Reft, prompts: Given, metric: Metric, *, memory_bytes: int = 1 << 30
) -> Float[Tensor, " example"]:
    """Computes the edit's effect on the metric with every attention and MLP output fixed to the base's: edited minus base.

    Args:
        bridge: the base; causal.
        reft: the edit.
        prompts: texts, conversations or one batch, without completions.
        metric: of the logits after each prompt.
        memory_bytes: approximate limit for the activations of one run.

    Raises:
        ValueError: If the edit itself acts at one of these outputs, or the model has a recurrent
            part, which they leave out.
    """
    batch = as_batch(bridge, prompts)
    require_pairs(batch)
    names = [name for point in ("attn_out", "mlp_out") for name in grid(bridge, point, "positions", n_pos=1).names]
    require_elsewhere(bridge, reft, names)
    require_heads_alone_mix(bridge, names)
    base, edited = record(bridge, batch, names), edited_run(bridge, reft, batch, names)
    # One cell that patches all these points at once.
    everything = [Cell(tuple(names))]
    values = sweep(bridge, edited, base, everything, metric, memory_bytes=memory_bytes, edits=reft.edits(batch))
    return values[:, 0] - metric_of(metric, base)


def edited_run(bridge: TransformerBridge, reft: Reft, batch: Batch, names: Sequence[str]) -> Recording:
    """Records a run of the edited model."""
    with torch.no_grad(), reft.hooks(bridge, batch):
        return record(bridge, batch, names)


def require_elsewhere(bridge: TransformerBridge, reft: Reft, names: Sequence[str]) -> None:
    """Raises if an edit itself acts at one of these points.

    Raises:
        ValueError: If it does. The message names the point.
    """
    edited = dict(zip(canonical_hooks(bridge, [site.hook_name for site in reft.sites]), reft.sites, strict=True))
    for name, point in zip(names, canonical_hooks(bridge, list(names)), strict=True):
        if point in edited:
            raise ValueError(
                f"the edit acts at {name} itself, so its own change cannot be separated from the component's response: leave "
                "that site out, or choose another point"
            )
