"""Writes to the residual between attention and MLP, for which TransformerLens has no single point.

`blocks.l.hook_resid_mid` is an alias of the MLP branch's input. A write there does not reach the
skip connection, which keeps the old value. But resid_mid = resid_pre + attn_out, so returning
attn_out + f(resid_mid) - resid_mid at `hook_attn_out` writes an edit f for both. Every run checks,
at the input of the MLP branch, that the residual really is this sum on this architecture and with
the other hooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

HookFunction = Callable[..., Tensor | None]
"""A TransformerLens hook: `fn(activation, hook) -> activation | None`."""

_NAME = re.compile(r"(blocks\.\d+)\.hook_resid_mid")


class EditError(RuntimeError):
    """An edit did not reach the model, or reached the same activation twice."""


def is_resid_mid(hook_name: str) -> bool:
    """Returns whether a hook name is that of the residual between attention and MLP."""
    return _NAME.fullmatch(hook_name) is not None


def resid_pre_inside(bridge: TransformerBridge, hook_name: str) -> str:
    """Returns the first point in a block that receives its resid_pre after all hooks on it.

    `hook_resid_pre` itself is outside the part that gradient checkpointing recomputes, and more
    hooks may follow there.
    """
    block = _block(hook_name)
    return f"{block}.ln1.hook_in" if f"{block}.ln1.hook_in" in bridge.hook_dict else f"{block}.attn.hook_in"


def written_whole(
    hook_name: str, writes: Sequence[HookFunction], *, read_at: str | None = None
) -> list[tuple[str, HookFunction]]:
    """Returns hooks that write resid_mid for both of its readers.

    Attach them after all other hooks of the block. The state that they share is reset whenever the
    block begins, so a block may run again, even after an exception.

    Args:
        hook_name: `blocks.l.hook_resid_mid`.
        writes: hook functions on resid_mid, in order.
        read_at: the point at which resid_pre is read, from `resid_pre_inside`; `hook_resid_pre` if
            there is no model.
    """
    block = _block(hook_name)
    held: dict[str, Tensor] = {}

    def begin(resid_pre: Tensor, hook: Any) -> None:
        held.clear()
        held["resid_pre"] = resid_pre

    def write(attn_out: Tensor, hook: Any) -> Tensor | None:
        if "resid_pre" not in held:
            raise EditError(
                f"the edit at {hook_name} ran twice in one block, or the block did not run from its beginning"
            )
        resid_pre = held.pop("resid_pre")
        before = after = resid_pre + attn_out
        for write_one in writes:
            edited = write_one(after, hook)
            after = after if edited is None else edited
        if after is before:
            return None
        # Not after - resid_pre: this difference is exactly 0 at tokens that no edit touches.
        written = attn_out + (after - before)
        # Only compared, so the graph must not be held.
        held["expected"] = (resid_pre + written).detach()
        return written

    def check(resid_mid: Tensor, hook: Any) -> None:
        expected = held.pop("expected", None)
        if expected is None or _equal(resid_mid.detach(), expected):
            return
        raise EditError(
            f"{hook_name} does not hold what the edit wrote there. Either another hook changed the residual or the attention "
            "output of this block after the edit (attach that hook first, or put both edits into one Reft), or on this "
            "architecture resid_mid is not resid_pre + attn_out"
        )

    return [(read_at or f"{block}.hook_resid_pre", begin), (f"{block}.hook_attn_out", write), (hook_name, check)]


def _block(hook_name: str) -> str:
    match = _NAME.fullmatch(hook_name)
    assert match is not None, "callers ask is_resid_mid first"
    return match[1]


def _equal(actual: Tensor, expected: Tensor) -> bool:
    """Returns whether two tensors are equal up to the rounding error of one sum."""
    tolerance = 8 * torch.finfo(expected.dtype).eps * expected.abs().max()
    return bool((actual.to(expected.dtype) - expected).abs().max() <= tolerance)
