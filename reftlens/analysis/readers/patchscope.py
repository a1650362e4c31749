"""Patchscope: what does the model itself say about the vector, on a prompt that asks (Ghandeharioun et al. 2024)?

The vector enters the run of an inspection prompt at its last token, at the site's own point. A
write direction of size s is added to the activation there, and the score is the change of the next
token's logits. For real tokens, the activation there is replaced by h + delta, and the score is its
logits minus those with h: the base's own state is the control. Random vectors of the same length
give p.

Not evidence of what the vector does in the edited prompts: another prompt asks, and its answer
depends on its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from reftlens.analysis.engine.sweep import writing
from reftlens.analysis.readers.correction import Scored
from reftlens.analysis.readers.tokens import likeliest, require_residual, scored_tokens
from reftlens.analysis.readers.vectors import Case, Kind, Look
from reftlens.bridge import hooked
from reftlens.cone.hold import Held, hold_from, run_cone
from reftlens.cone.variants import side_by_side, variants_at_once
from reftlens.data import encode

KINDS: tuple[Kind, ...] = ("write", "change")
IDENTITY = "cat -> cat; 135 -> 135; hello -> hello; ?"
"""The identity prompt of Ghandeharioun et al. 2024: it asks the model to repeat what stands at the question mark."""
_SETS = 16
"""Sets whose logits are held at a time."""


def patchscope(case: Case, looks: Sequence[Look]) -> list[Scored]:
    """Decodes vectors by the model.

    Args:
        case: the edit, with the option "inspect".
        looks: its write directions and changes.

    Raises:
        ValueError: If a site does not write to the residual stream.
    """
    require_residual(case, "patchscope")
    asked = [_Inspection.of(case, operator.hook_name) for operator in case.operators]
    return [_read(case, look, asked[look.place]) for look in looks if look.kind in KINDS]


@final
@dataclass(frozen=True, eq=False)
class _Inspection:
    """The run of the inspection prompt, from the site's point on."""

    case: Case
    hook_name: str
    held: Held
    column: int

    @classmethod
    def of(cls, case: Case, hook_name: str) -> _Inspection:
        batch = encode(case.bridge, [case.options.get("inspect") or IDENTITY])
        held = hold_from(case.bridge, batch, [hook_name], batch.last_prompt_mask)
        return cls(case, hook_name, held, int(batch.last_prompt_index) - held.start)

    @torch.no_grad()
    def logits(self, vectors: Float[Tensor, "n d_model"], *, added: bool) -> Float[Tensor, "n d_vocab"]:
        """Returns the logits after the prompt with each vector in it: added to the activation there, or in its place."""
        wide = variants_at_once(self.case.bridge, self.held)
        return torch.cat([self._run(some, added=added) for some in vectors.split(wide)])

    def _run(self, vectors: Float[Tensor, "n d_model"], *, added: bool) -> Float[Tensor, "n d_vocab"]:
        def write(activation: Tensor, hook: Any) -> Tensor:
            given = vectors.to(activation)
            written = activation.clone()
            written[:, self.column] = activation[:, self.column] + given if added else given
            return written

        wide = side_by_side(self.held, len(vectors))
        with hooked(self.case.bridge, writing(self.case.bridge, self.hook_name, write)):
            return run_cone(self.case.bridge, wide, [], logits_at=wide.batch.last_prompt_mask).float().cpu()


def _read(case: Case, look: Look, asked: _Inspection) -> Scored:
    states = look.states
    if states is None:
        # The prompt without the vector, by the same path, so that rounding is the same.
        neutral = asked.logits(torch.zeros_like(look.vectors[0]), added=True)
        return scored_tokens(case, "patchscope", look, lambda v: asked.logits(v[:, 0], added=True) - neutral)
    base = asked.logits(states, added=False)

    def score(vectors: Float[Tensor, "set token d_model"]) -> Float[Tensor, "set d_vocab"]:
        # In parts, because each set has the logits of all tokens.
        parts = [asked.logits((states + some).flatten(0, 1), added=False) for some in vectors.split(_SETS)]
        return torch.cat([(part.view(-1, *base.shape) - base).mean(dim=1) for part in parts])

    found = scored_tokens(case, "patchscope", look, score)
    edited = asked.logits(states + look.vectors[0], added=False)
    read = {"without the edit": base, "with the edit": edited}
    return replace(found, states=tuple((name, likeliest(case, logits.mean(dim=0))) for name, logits in read.items()))
