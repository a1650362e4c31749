"""Where does an edit take activations along its own write directions? h and h + delta on the two strongest of them.

Write directions are those of `operator`: u_1, u_2 of the decomposition on the same tokens, so before = [u_1 . h, u_2 . h]
and after - before = [u_1 . delta, u_2 . delta].

Not evidence: the plane is chosen as the one in which the edit moves furthest, so it moves far there by construction.
Whether groups of prompts are told apart in it before the edit is another question than whether the model tells them
apart there. The control is the same change turned to random directions, in the same plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.data import encode
from reftlens.edit.reft import Reft
from reftlens.positions import Last, Positions
from reftlens.results import Projection


@torch.no_grad()
def project(
    bridge: TransformerBridge,
    reft: Reft,
    groups: Mapping[str, Sequence[str]],
    *,
    at: Positions | None = None,
    seed: int = 0,
) -> list[Projection]:
    """Activations along the two strongest write directions of each site, before and after the edit.

    Args:
        bridge: the base.
        reft: the edit.
        groups: name -> prompts, such as those that are to move and those that are to stay.
        at: which of the edited tokens; the last of each prompt if not given.
        seed: draws the control.

    Returns:
        One result for each site with two write directions at least, in order. What a later site meets has been through
        the earlier ones.

    Raises:
        NotAffineError: for an edit that is no A h + c.
        ValueError: for no prompts, tokens that are not edited, or no site with two directions.
    """
    prompts = [prompt for group in groups.values() for prompt in group]
    batch = encode(bridge, prompts)
    names = [name for name, group in groups.items() for _ in group]
    rule = Last(1) if at is None else at
    operators = decompose(bridge, reft, [batch], at=rule)
    wanted = rule.mask(batch.prompts)
    placebo = turned(reft, seed=seed).edits(batch)
    found = []
    for operator, (edit, h), control in zip(operators, edited_activations(bridge, reft, batch), placebo, strict=True):
        if len(operator.write) < 2:
            continue
        chosen, row = wanted[edit.mask], edit.mask.nonzero()[:, 0]
        plane = operator.write[:2].double().T.to(h.device)
        change, by_chance = edit.change(h), control.change(h)
        before, after, turned_to = (
            (state[chosen].double() @ plane).float().cpu() for state in (h, h + change, h + by_chance)
        )
        groups_of = tuple(names[index] for index in row[chosen].tolist())
        found.append(Projection(operator.hook_name, before, after, turned_to, groups_of, operator.site))
    if not found:
        raise ValueError("no site of this edit has two write directions: there is no plane to project onto")
    return found
