"""What all exports ask of an edit: the block after which it acts, and its change as write^T (read h) + constant."""

from __future__ import annotations

import re

import torch

from reftlens.edit.site import Site
from reftlens.interventions import Affine, Intervention, NotAffineError


def block_of(site: Site) -> int:
    """Returns the block after which an edit of the residual stream acts.

    Raises:
        ValueError: If the site is elsewhere.
    """
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(resid_post|out|resid_pre)", site.hook_name)
    if found is None or site.head is not None or (found[2] == "resid_pre" and found[1] == "0"):
        raise ValueError(
            f"{site!r} cannot be served: vLLM's layers hand on only the residual stream after a block, such as "
            "blocks.3.hook_resid_post"
        )
    # The input of a block is the output of the one before.
    return int(found[1]) - (found[2] == "resid_pre")


@torch.no_grad()
def factors_of(site: Site, intervention: Intervention) -> Affine:
    """Returns the change of an edit in factors, in float32 on the CPU.

    Raises:
        ValueError: If the change is not of that form, or that of a token depends on other tokens.
    """
    if intervention.across_tokens:
        raise ValueError(
            f"the edit at {site!r} cannot be served: the change of a token depends on other tokens, which are not in the "
            "same step of decoding"
        )
    try:
        affine = intervention.affine()
    except NotAffineError as error:
        raise ValueError(f"the edit at {site!r} cannot be served: {error}") from error
    write, read, constant = (part.detach().float().cpu() for part in affine[:3])
    diagonal = None if affine.diagonal is None else affine.diagonal.detach().float().cpu()
    return Affine(write, read, constant, diagonal)
