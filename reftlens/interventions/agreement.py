"""Checks that `affine` and `basis` agree with the change, on activations that an analysis has already computed.

Analyses read these two instead of the change itself. If a class defines them inconsistently, every
analysis is wrong: a decomposition may be ten times too large, or a random-direction control smaller
than the edit it should match.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reftlens.interventions.base import Affine, Intervention, NotAffineError

_MOST_TOKENS = 64
"""Maximum number of tokens compared per batch."""
_RELATIVE = 1e-3
_SEE = "Analyses and controls would get wrong numbers: fix the class, then test it with rl.check_intervention"


@torch.no_grad()
def require_agreement(
    intervention: Intervention, tokens: Float[Tensor, "n d_model"], example: Int[Tensor, " n"] | None = None
) -> None:
    """Refuses an intervention whose `affine` or `basis` disagrees with its change of these activations.

    Args:
        intervention: of any kind. If it is not affine, only its basis is compared; if it has
            neither, nothing is.
        tokens: activations before the edit.
        example: batch row of each token; all tokens belong to one row by default.

    Raises:
        ValueError: If one of them disagrees.
    """
    affine = _affine(intervention)
    # A basis that the class does not override follows from affine.
    by_hand = type(intervention).basis is not Intervention.basis
    if not len(tokens) or (affine is None and not by_hand):
        return
    example = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device) if example is None else example
    # Rounding of bfloat16 or autocast would hide a wrong factor.
    with torch.autocast(tokens.device.type, enabled=False):
        precise = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        change = intervention.delta_of(precise, example)
    # Picked after the change was computed: a token's change may depend on the others (ReFT-r1).
    picked = torch.linspace(0, len(tokens) - 1, min(_MOST_TOKENS, len(tokens))).long().to(tokens.device)
    h, change = precise[picked].double(), change[picked].double()
    if affine is not None:
        said = _in_float64(affine).delta(h)
        name = type(intervention).__name__
        _require_close(
            change, said, h, f"{name}.affine() gives a change of norm {{said}} where delta() gives one of norm {{is_}}"
        )
    if by_hand:
        require_within(change, intervention.basis(), h, type(intervention).__name__)


@torch.no_grad()
def require_within(
    change: Float[Tensor, "... d_model"],
    basis: Float[Tensor, "k d_model"],
    tokens: Float[Tensor, "... d_model"],
    name: str,
) -> None:
    """Refuses a basis that is not orthonormal, or that does not span these changes.

    Args:
        change: the change of each token.
        basis: the value of `basis()`.
        tokens: activations before the edit, which set the rounding tolerance.
        name: the class name, for the message.

    Raises:
        ValueError: If the basis is not orthonormal or does not span the changes.
    """
    h = tokens.double()
    # In bfloat16 each change is rounded separately and leaves the span slightly.
    relative = max(_RELATIVE, 4 * torch.finfo(change.dtype).eps)
    basis, change = basis.to(h), change.to(h)
    if not torch.allclose(basis @ basis.T, torch.eye(len(basis)).to(h), rtol=0, atol=1e-4):
        raise ValueError(f"the rows of {name}.basis() must be orthonormal; use torch.linalg.qr(rows.T).Q.T. {_SEE}")
    what = f"{name}.basis() contains only norm {{said}} of a change of norm {{is_}} by delta()"
    _require_close(change, change @ basis.T @ basis, h, what, relative=relative)


def _require_close(change: Tensor, said: Tensor, h: Tensor, what: str, *, relative: float = _RELATIVE) -> None:
    """Compares token by token. The tolerance allows for float32: a change may be a small difference of large terms."""
    off, lengths = (change - said).norm(dim=-1).flatten(), [one.norm(dim=-1).flatten() for one in (said, change, h)]
    # Below "highest", torch may multiply in TF32 or bfloat16.
    rounding = 1e-5 if torch.get_float32_matmul_precision() == "highest" else 1e-2
    room = relative * torch.maximum(lengths[0], lengths[1]) + rounding * lengths[2]
    if not bool((off <= room).all()):
        # A NaN is never within its room, so it is the worst.
        worst = int((off - room).nan_to_num(torch.inf).argmax())
        said_length, is_length = (f"{float(length[worst]):.3g}" for length in lengths[:2])
        text = what.format(said=said_length, is_=is_length)
        raise ValueError(f"{text} (they differ by {float(off[worst]):.3g}). {_SEE}")


def _affine(intervention: Intervention) -> Affine | None:
    try:
        return intervention.affine()
    except NotAffineError:
        return None


def _in_float64(affine: Affine) -> Affine:
    optional = [None if part is None else part.double() for part in (affine.diagonal, affine.erase)]
    return Affine(affine.write.double(), affine.read.double(), affine.constant.double(), *optional)
