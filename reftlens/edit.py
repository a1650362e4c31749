"""One intervention on the tokens of one batch, as a TransformerLens hook function.

A `Reft` turns its rules into edits once a batch is known; whoever wants another mask or another strength
(an ablation, a dose curve) replaces that field of the edit, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import canonical_hook, has_hook, watch_forwards
from reftlens.interventions import Intervention

HookFunction = Callable[..., Tensor | None]
"""A TransformerLens hook: `fn(activation, hook) -> activation | None`."""

_MARK = "_reftlens_edits"
"""Attribute of an edited activation: which interventions it has been through, and where."""


class EditError(RuntimeError):
    """An edit did not reach the model, or reached the same activation twice."""


@final
@dataclass(frozen=True, eq=False)
class Edit:
    """An intervention at one hook on one batch."""

    hook_name: str
    intervention: Intervention
    mask: Bool[Tensor, "batch pos"]
    """The edited tokens."""
    scale: float = 1.0
    """The edit adds scale * delta."""
    generated: bool = False
    """Whether it also edits positions after the mask: those that a model generates."""

    def apply(
        self, resid: Float[Tensor, "batch pos d_model"], offset: int = 0
    ) -> Float[Tensor, "batch pos d_model"] | None:
        """The edited activation; None where this forward pass holds no edited token.

        Args:
            resid: the activation at the hook.
            offset: place of its first position in the whole sequence. Positions after the mask are generated
                ones, and are edited only if `generated` is set.

        Raises:
            ValueError: if the activation does not fit the mask or the intervention.
            EditError: if this intervention has already edited one of these activations.
        """
        self._check(resid, offset)
        mask = self._window(offset, resid.shape[1]).to(resid.device)
        if not bool(mask.any()):
            return None
        past = getattr(resid, _MARK, ())
        for intervention, edited in past:
            if intervention is self.intervention and bool((edited & self.mask).any()):
                raise EditError(
                    f"the same intervention reached one activation twice, at {self.hook_name}: it is attached twice, "
                    "or two of its sites name one point (resid_post of a block is resid_pre of the next)"
                )
        rows = mask.nonzero(as_tuple=True)
        # An edit computes in its own precision, also under a bfloat16 autocast.
        with torch.autocast(resid.device.type, enabled=False):
            tokens = resid[rows]
            change = self.intervention.delta_of(tokens, rows[0])
            edited_tokens = tokens + (change if self.scale == 1.0 else self.scale * change)
        edited_resid = resid.index_put(rows, edited_tokens)
        setattr(edited_resid, _MARK, (*past, (self.intervention, self.mask)))
        return edited_resid

    def _window(self, offset: int, length: int) -> Bool[Tensor, "batch length"]:
        """The mask from `offset` on, generated positions included."""
        window = self.mask[:, offset : offset + length]
        rest = window.new_full((len(window), length - window.shape[1]), self.generated)
        return torch.cat([window, rest], dim=1)

    def _check(self, resid: Tensor, offset: int) -> None:
        d_model = self.intervention.d_model
        if resid.ndim != 3 or resid.shape[-1] != d_model:
            raise ValueError(
                f"the edit at {self.hook_name} is {d_model} wide and wants activations [batch, pos, {d_model}], "
                f"got {list(resid.shape)}"
            )
        batch, pos = self.mask.shape
        if resid.shape[0] != batch or (offset == 0 and resid.shape[1] < pos):
            raise ValueError(
                f"the prompt mask is [{batch}, {pos}], but {self.hook_name} carries {list(resid.shape[:2])} "
                "(batch, pos): pass the mask of the batch that is run"
            )


def hook_function(edit: Edit) -> HookFunction:
    """The edit as a hook for a run over the whole batch, from its first position."""

    def hook_fn(resid: Tensor, hook: Any) -> Tensor | None:
        if resid.shape[1] != edit.mask.shape[1]:
            raise ValueError(
                f"the prompt mask is {list(edit.mask.shape)}, but {edit.hook_name} carries {list(resid.shape[:2])} (batch, "
                "pos): pass the mask of the batch that is run; for decoding use `with reft.hooks(bridge, prompt_mask):`"
            )
        return edit.apply(resid)

    return hook_fn


@contextmanager
def attach(bridge: TransformerBridge, edits: Sequence[Edit]) -> Iterator[TransformerBridge]:
    """Attaches edits to a bridge: whatever runs inside sees the edited model, decoding included.

    Outside, the base is what it was, also after an exception.

    Raises:
        ValueError: if a hook does not exist or cannot be edited.
        EditError: at the end, if an edit never met an activation or was taken off by `reset_hooks`.
    """
    names = [canonical_hook(bridge, edit.hook_name) for edit in edits]
    fired = [0] * len(edits)
    with watch_forwards(bridge) as start:

        def counted(index: int, edit: Edit) -> HookFunction:
            def hook_fn(resid: Tensor, hook: Any) -> Tensor | None:
                fired[index] += 1
                return edit.apply(resid, start.offset)

            return hook_fn

        hook_fns = [counted(index, edit) for index, edit in enumerate(edits)]
        with bridge.hooks(fwd_hooks=list(zip(names, hook_fns, strict=True))):
            yield bridge
            removed = [n for n, fn in zip(names, hook_fns, strict=True) if not has_hook(bridge, n, fn)]
    if removed:
        raise EditError(
            f"the edit at {', '.join(removed)} was taken off inside its context; do not call bridge.reset_hooks() there"
        )
    silent = [edit.hook_name for edit, count in zip(edits, fired, strict=True) if count == 0]
    if silent:
        raise EditError(
            f"the edit at {', '.join(silent)} never reached the model: nothing was run inside the context, the run "
            "stopped before it, or this hook does not fire on this architecture"
        )
