"""How does an edit move activations along its write directions? Projects h and h + delta on the two strongest ones.

The write directions u_1, u_2 come from the decomposition (`decompose`) on the same tokens: before =
[u_1 . h, u_2 . h] and after - before = [u_1 . delta, u_2 . delta].

Not evidence: the plane is chosen as the one in which the edit moves furthest, so a large movement
in it is expected. If groups of prompts are separate in this plane before the edit, the model need
not distinguish them there. The control is changes of the same norm in random directions, projected
on the same plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from einops import einsum
from transformer_lens.model_bridge import TransformerBridge

from reftlens.analysis.controls.turned import turned
from reftlens.analysis.decompose import decompose
from reftlens.analysis.engine.activations import edited_activations
from reftlens.data import Batch, encode, str_tokens
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
    """Projects activations on the two strongest write directions of each site, before and after the edit.

    Args:
        bridge: the base.
        reft: the edit.
        groups: name -> prompts, such as those whose answer should change and those whose answer
            should not.
        at: the edited tokens to project; the last of each prompt by default.
        seed: seed of the control.

    Returns:
        One result per site with at least two write directions, in order. A later site receives
        activations already changed by the earlier ones.

    Raises:
        NotAffineError: If an edit is not of the form A h + c.
        ValueError: If there are no prompts, the tokens are not edited, or no site has two
            directions.
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
        chosen = wanted[edit.mask]
        plane = operator.write[:2].double().to(h.device)
        # Of the same h: the control is not run, where its other sites would change h as well.
        change, by_chance = edit.change(h), control.change(h)
        before, after, turned_to = (
            einsum(state[chosen].double(), plane, "token d_model, direction d_model -> token direction").float().cpu()
            for state in (h, h + change, h + by_chance)
        )
        places = edit.mask.nonzero()[chosen.to(edit.mask.device)].tolist()
        groups_of, said = (
            tuple(names[index] for index, _ in places),
            tuple(_up_to(bridge, batch, *there) for there in places),
        )
        found.append(Projection(operator.hook_name, before, after, turned_to, groups_of, operator.site, said))
    if not found:
        raise ValueError("no site of this edit has two write directions, so there is no plane to project onto")
    return found


def _up_to(bridge: TransformerBridge, batch: Batch, row: int, place: int) -> tuple[str, ...]:
    """Returns the tokens of a prompt from its first to this one."""
    tokens, there = (part[row, : place + 1] for part in (batch.tokens, batch.prompt_mask))
    return str_tokens(bridge, tokens[there])
