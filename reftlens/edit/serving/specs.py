"""TransformerLens's intervention specs (4.3): edits as data, for its bridges to a model that runs elsewhere."""

from __future__ import annotations

from typing import Any

from reftlens.data import Batch
from reftlens.edit.reft import Reft
from reftlens.edit.serving.places import block_of, factors_of


def intervention_specs(reft: Reft, batch: Batch) -> dict[str, dict[str, Any]]:
    """Describes a constant edit of one prompt: `bridge.forward(tokens, intervene=intervention_specs(reft, batch))`.

    TransformerLens's provider of transformers models takes all of these specs. The one of vllm-lens
    adds a vector at every token alone, and only if its norm is not matched, so an edit at some
    tokens fails there with an error of TransformerLens.

    Args:
        reft: constant edits of the residual stream after blocks, such as `SteeringVector`, one per
            block.
        batch: the prompt, from `encode(bridge, [prompt])`.

    Returns:
        Hook name -> spec, with the vector as a list of numbers, and "pos", the changed tokens,
        unless all are changed.

    Raises:
        ValueError: If an edit reads the activation, two edit one block, or there are several
            prompts.
    """
    if len(batch) != 1:
        raise ValueError(f"a spec has the places of one prompt, got a batch of {len(batch)}: make the specs of each")
    real = batch.attention_mask[0].bool()
    specs: dict[str, dict[str, Any]] = {}
    for (site, intervention), name, edit in zip(reft, reft.names, reft.edits(batch), strict=True):
        change = factors_of(site, intervention)
        if (len(change.write) and bool(change.read.any())) or change.diagonal is not None:
            raise ValueError(
                f"the edit at {site!r} reads the activation, and a spec of TransformerLens can only add a vector: use "
                "reft.fwd_hooks on a bridge, or attach_to_hf"
            )
        point = f"blocks.{block_of(site)}.hook_out"
        if point in specs:
            raise ValueError(
                f"two edits act after block {block_of(site)}, and TransformerLens takes one spec per point"
            )
        # The receiver gets the tokens without padding, so places count from the first real one.
        mask = edit.mask[0][real]
        vector = reft.scales.get(name, 1.0) * change.constant
        specs[point] = {"op": "add", "value": vector.tolist(), "norm_match": False}
        if not bool(mask.all()):
            specs[point]["pos"] = mask.nonzero()[:, 0].tolist()
    return specs
