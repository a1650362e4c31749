"""An intervention on the tokens of one batch, as a TransformerLens hook function.

A `Reft` resolves its position rules to edits for a given batch. To apply the change at fewer tokens
or with another strength (an ablation, a dose curve), use `dataclasses.replace` on the edit's
`lands` or `scale`. If the change of a token depends on other tokens (ReFT-r1), it is always
computed from the whole `mask`, whatever `lands` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import dropout
from transformer_lens.model_bridge import TransformerBridge

from reftlens.bridge import (
    EditError,
    canonical_hooks,
    in_this_thread,
    is_resid_mid,
    one_thread,
    removed_hooks,
    require_bridge,
    resid_pre_inside,
    watch_forwards,
    written_whole,
)
from reftlens.interventions import Intervention
from reftlens.numbers import require_number, require_whole_number

HookFunction = Callable[..., Tensor | None]
"""A TransformerLens hook: `fn(activation, hook) -> activation | None`."""

Watch = Callable[[Float[Tensor, "n d_model"], Int[Tensor, " n"]], None]
"""Called with the activations of the edited tokens before the edit, on its device, and each token's row of the batch."""

# On the tensor, not by hook name: two names may be one activation.
_MARK = "_reftlens_edits"
"""Attribute of an edited activation: the interventions applied so far, with their tokens and heads."""

__all__ = ["Edit", "EditError", "HookFunction", "attach", "hook_functions"]


@final
@dataclass(frozen=True, eq=False)
class Edit:
    """An intervention at one hook on one batch."""

    hook_name: str
    intervention: Intervention
    mask: Bool[Tensor, "batch pos"]
    """Tokens that the position rule selects. The change is computed from these."""
    scale: float = 1.0
    """The edit adds scale * delta."""
    generated: bool = False
    """Whether the edit also applies to positions after the mask, which are generated tokens."""
    head: int | None = None
    """The edited head of activations `[batch, pos, head, d_head]`; None edits all heads as one vector."""
    dropout: float = 0.0
    """Fraction of each edited state's coordinates that is set to zero (the rest is scaled up). Training only."""
    watch: Watch | None = None
    """Called with the edit's input."""
    lands: Bool[Tensor, "batch pos"] | None = None
    """Tokens of the mask that are changed; None changes all of them."""

    def __post_init__(self) -> None:
        require_number("scale", self.scale)
        require_number("dropout", self.dropout, least=0, below=1)
        if self.head is not None:
            require_whole_number("head", self.head, least=0)

    @property
    def changed(self) -> Bool[Tensor, "batch pos"]:
        """The tokens that are changed."""
        return self.mask if self.lands is None else self.mask & self.lands

    @property
    def read(self) -> Bool[Tensor, "batch pos"]:
        """The tokens whose activations the changes depend on. A light cone must begin no later than the first of them."""
        if self.lands is None or not self.intervention.across_tokens:
            return self.changed
        # A generated token depends on all prompt tokens of its row.
        # A row without a change is not read: its tokens cannot influence those of another row.
        return self.mask if self.generated else self.mask & self.changed.any(1, keepdim=True)

    def change(self, tokens: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_model"]:
        """Computes the scaled change of the tokens in `read`.

        Args:
            tokens: their activations, in row order.
        """
        example = self.read.nonzero()[:, 0].to(tokens.device)
        return self.scale * self.intervention.delta_of(tokens, example)

    def apply(
        self, resid: Float[Tensor, "batch pos *axes"], offset: int = 0
    ) -> Float[Tensor, "batch pos *axes"] | None:
        """Computes the edited activation. Returns None if this forward pass contains no edited token.

        Args:
            resid: the activation at the hook.
            offset: index of its first position in the whole sequence. Positions after the mask are
                generated tokens, which are edited only if `generated` is set.

        Raises:
            ValueError: If the activation's shape does not match the mask or the intervention.
            EditError: If this intervention has already edited one of these activations, or reads
                tokens before `offset`.
        """
        self._check(resid, offset)
        landing = self._window(self.changed, offset, resid.shape[1]).to(resid.device)
        if not bool(landing.any()):
            return None
        # After the return above: a decoding step that changes nothing may lack the tokens.
        self._require_read(offset)
        reading = self._window(self.read, offset, resid.shape[1]).to(resid.device)
        # TransformerLens reshapes heads between two hooks, so the mark may be on the tensor that
        # this is a view of.
        past = getattr(resid, _MARK, getattr(resid._base, _MARK, ()))
        for intervention, edited, head in past:
            same_head = self.head is None or head is None or head == self.head
            if intervention is self.intervention and same_head and bool((edited & self.changed).any()):
                raise EditError(
                    f"the same intervention edited one activation twice, at {self.hook_name}: either it is attached twice, or two "
                    "of its sites are the same point (resid_post of a block is resid_pre of the next)"
                )
        rows: tuple[Tensor, ...] = reading.nonzero(as_tuple=True)
        lands = landing[rows]
        if self.head is not None:
            rows = (*rows, torch.full_like(rows[0], self.head))
        # Edits compute in their own precision, even under bfloat16 autocast.
        with torch.autocast(resid.device.type, enabled=False):
            there = resid[rows]
            tokens = there.flatten(1)
            # The model may span several devices. The edit stays on one, so only the edited tokens
            # are moved.
            home = next(self.intervention.parameters(), tokens).device
            given, example = tokens.to(home), rows[0].to(home)
            if self.watch is not None:
                self.watch(given, example)
            change = self.intervention.delta_of(given, example).to(tokens.device)
            edited_tokens = tokens + (change if self.scale == 1.0 else self.scale * change)
            if self.dropout:
                edited_tokens = dropout(edited_tokens, self.dropout)
        edited_there = edited_tokens.view_as(there)
        if self.lands is not None:
            rows, edited_there = tuple(place[lands] for place in rows), edited_there[lands]
        # A new tensor: writing in place would break autograd and what others hold.
        edited_resid = resid.index_put(rows, edited_there)
        setattr(edited_resid, _MARK, (*past, (self.intervention, self.changed, self.head)))
        return edited_resid

    def _require_read(self, offset: int) -> None:
        """Raises if the pass does not contain all tokens that the changes depend on."""
        if not (offset and self.intervention.across_tokens):
            return
        behind = self.generated and offset >= self.mask.shape[1]
        if behind or bool(self.read[:, :offset].any()):
            raise EditError(
                f"the change of {type(self.intervention).__name__} at {self.hook_name} depends on edited tokens before column "
                f"{offset}, which a pass with cached keys and values does not compute: run whole sequences "
                "(generate(..., use_cache=False)), or edit only prompt tokens"
            )

    def _window(self, mask: Bool[Tensor, "batch pos"], offset: int, length: int) -> Bool[Tensor, "batch length"]:
        """Returns the part of a mask from `offset` on, extended to generated positions."""
        window = mask[:, offset : offset + length]
        rest = window.new_full((len(window), length - window.shape[1]), self.generated)
        return torch.cat([window, rest], dim=1)

    def _check(self, resid: Tensor, offset: int) -> None:
        width, axes = self.intervention.d_model, resid.shape[2:]
        if self.head is None:
            wanted = f"[batch, pos, {width}]"
            fits = resid.ndim in (3, 4) and axes.numel() == width
        else:
            wanted = f"[batch, pos, head, {width}] with head {self.head}"
            fits = resid.ndim == 4 and axes[1] == width and self.head < axes[0]
        if not fits:
            raise ValueError(
                f"the edit at {self.hook_name} has width {width} and needs activations {wanted}, got {list(resid.shape)}. "
                "Without a head, its width must be that of all heads together; Reft.at_layers takes it from the model"
            )
        batch, pos = self.mask.shape
        # A prefill may be longer than the mask (a completion); a decoding step is shorter.
        if resid.shape[0] != batch or (offset == 0 and resid.shape[1] < pos):
            raise ValueError(
                f"the prompt mask has shape [{batch}, {pos}], but {self.hook_name} has [batch, pos] = {list(resid.shape[:2])}: "
                "pass the mask of the batch that is run"
            )


def hook_functions(edits: Sequence[Edit]) -> list[tuple[str, HookFunction]]:
    """Makes hooks for a run over the whole batch, from its first position."""

    def whole_batch(edit: Edit) -> HookFunction:
        @in_this_thread
        def hook_fn(resid: Tensor, hook: Any) -> Tensor | None:
            if resid.shape[1] != edit.mask.shape[1]:
                raise ValueError(
                    f"the prompt mask has shape {list(edit.mask.shape)}, but {edit.hook_name} has [batch, pos] = "
                    f"{list(resid.shape[:2])}: pass the mask of the batch that is run; for decoding use "
                    "`with reft.hooks(bridge, prompt_mask):`"
                )
            return edit.apply(resid)

        return hook_fn

    return _in_order([(edit.hook_name, whole_batch(edit)) for edit in edits])


def _in_order(
    writes: Sequence[tuple[str, HookFunction]], bridge: TransformerBridge | None = None
) -> list[tuple[str, HookFunction]]:
    """Returns hooks in the given order, except that resid_mid hooks, which use other points, come last."""
    hooks = [(name, write) for name, write in writes if not is_resid_mid(name)]
    for mid in dict.fromkeys(name for name, _ in writes if is_resid_mid(name)):
        there = [write for name, write in writes if name == mid]
        hooks += written_whole(mid, there, read_at=None if bridge is None else resid_pre_inside(bridge, mid))
    return hooks


@contextmanager
def attach(bridge: TransformerBridge, edits: Sequence[Edit]) -> Iterator[TransformerBridge]:
    """Attaches edits to a bridge. Inside the context, every run sees the edited model, including generation.

    On exit the base is restored, also after an exception.

    Args:
        bridge: the model.
        edits: from `reft.edits(batch)`.

    Raises:
        ValueError: If a hook does not exist or cannot be edited.
        EditError: On entry, if another thread is using the bridge. On exit, if an edit never ran or
            was removed by `reset_hooks`.
    """
    require_bridge(bridge, "attach")
    fired = [0] * len(edits)
    with one_thread(bridge), watch_forwards(bridge) as start:
        names = canonical_hooks(bridge, [edit.hook_name for edit in edits])

        def counted(index: int, edit: Edit) -> HookFunction:
            @in_this_thread
            def hook_fn(resid: Tensor, hook: Any) -> Tensor | None:
                fired[index] += 1
                return edit.apply(resid, start.offset)

            return hook_fn

        writes = [counted(index, edit) for index, edit in enumerate(edits)]
        hooks = _in_order(list(zip(names, writes, strict=True)), bridge)
        with bridge.hooks(fwd_hooks=hooks):
            yield bridge
            # Asked while the hooks are attached: leaving bridge.hooks removes them all.
            removed = removed_hooks(bridge, hooks)
    if removed:
        raise EditError(
            f"the edit at {', '.join(removed)} was removed inside its context: do not call bridge.reset_hooks() there"
        )
    silent = [edit.hook_name for edit, count in zip(edits, fired, strict=True) if count == 0]
    # Outside of `with`, so that an error of the run itself is not hidden by this one.
    if silent:
        raise EditError(
            f"the edit at {', '.join(silent)} was never applied: the model did not run inside the context, the run stopped "
            "before this hook, or the hook does not fire on this architecture"
        )
