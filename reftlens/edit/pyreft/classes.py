"""pyreft's six classes: the tensors that each saves, and the intervention here with the same equation.

pyreft's R has orthonormal columns, `[d_model, rank]`; here it has rows. Four of its classes save R
in torch's orthogonal parametrisation (Householder): with A the strict lower triangle of `original`
and tau = 2 / (1 + sum of A^2 by column), R = base (householder_product(A, tau) *
int(diag(original))).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from reftlens.interventions import (
    AdditiveLoReFT,
    ConsReFT,
    DiReFT,
    Intervention,
    LobiReFT,
    LoReFT,
    NoReFT,
)

CLASSES: dict[str, type[Intervention]] = {
    "LoreftIntervention": LoReFT,
    "NoreftIntervention": NoReFT,
    "ConsreftIntervention": ConsReFT,
    "LobireftIntervention": LobiReFT,
    "DireftIntervention": AdditiveLoReFT,
    "NodireftIntervention": DiReFT,
}
"""pyreft's class names and the classes here."""

NAMES = {edit: name for name, edit in CLASSES.items()}

_ORIGINAL, _BASE = "rotate_layer.parametrizations.weight.original", "rotate_layer.parametrizations.weight.0.base"
UNCONSTRAINED: dict[type[Intervention], type[Intervention]] = {LoReFT: NoReFT, AdditiveLoReFT: DiReFT}
"""The same equation with an unconstrained matrix instead of R."""


def shapes(name: str, d_model: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each tensor that pyreft saves for a class, in pyreft's order."""
    linear = {"learned_source.weight": (rank, d_model), "learned_source.bias": (rank,)}
    scalars: dict[str, tuple[int, ...]] = {"embed_dim": (), "interchange_dim": ()}
    rotation = {_ORIGINAL: (d_model, rank), _BASE: (d_model, d_model)}
    match name:
        case "LoreftIntervention":
            return {"weight": (rank, d_model), "bias": (rank,), "rotate_layer": (d_model, rank)}
        case "DireftIntervention":
            return {**scalars, **rotation, **linear}
        case "ConsreftIntervention" | "LobireftIntervention":
            return {"learned_source": (rank,), **scalars, **rotation}
        case _:
            return {**scalars, "proj_layer.weight": (rank, d_model), **linear}


OPTIONAL = {"proj_layer.bias"}
"""Saved with pyreft's `add_bias=True`: p in W1 h + b - (P h + p). It has no effect in Nodireft."""


def names_with(tensors: Collection[str]) -> list[str]:
    """Returns pyreft's classes that save tensors with exactly these names."""
    plain = set(tensors) - OPTIONAL
    fits = [name for name in CLASSES if set(shapes(name, 1, 1)) == plain]
    # Only pyreft's unconstrained classes have proj_layer, so only they can have its bias.
    return [name for name in fits if name.startswith("No") or plain == set(tensors)]


def to_edit(name: str, tensors: Mapping[str, Tensor], wanted: type[Intervention]) -> Intervention:
    """Converts pyreft's tensors to an edit.

    Args:
        name: pyreft's class.
        tensors: its saved tensors, with the shapes of `shapes`.
        wanted: `CLASSES[name]`, or the same equation without the constraint on R.

    Raises:
        ValueError: If `wanted` requires an orthonormal R and the saved R is not.
    """
    t = {key: tensor.float() for key, tensor in tensors.items()}
    if name in ("NoreftIntervention", "NodireftIntervention"):
        # W1 h + b - (P h + p): p joins b. Nodireft saves p but never uses it.
        shift = t.get("proj_layer.bias", torch.zeros(())) if wanted is NoReFT else torch.zeros(())
        return _unconstrained(
            wanted, t["proj_layer.weight"], t["learned_source.weight"], t["learned_source.bias"] - shift
        )
    R = (_householder(tensors) if _BASE in tensors else tensors["rotate_layer"]).float().T.contiguous()
    W, b = t.get("weight", t.get("learned_source.weight")), t.get("bias", t.get("learned_source.bias"))
    if wanted is UNCONSTRAINED.get(CLASSES[name]):
        return _unconstrained(wanted, R, W, b)
    _require_orthonormal(R, tensors.get("rotate_layer", R).dtype, UNCONSTRAINED.get(wanted))
    edit = wanted(R.shape[1], R.shape[0])
    own = (
        {"rotation.weight": R, "target": t["learned_source"]}
        if "learned_source" in t
        else {"rotation.weight": R, "source.weight": W, "source.bias": b}
    )
    edit.load_state_dict(own)
    # Keep R bit-identical to the one that the edit uses, so that a written folder reads back the
    # same. Asking for the state retracts R (a pre-hook of Orthonormal).
    edit.state_dict()
    return edit


def to_tensors(edit: Intervention) -> tuple[str, OrderedDict[str, Tensor]]:
    """Returns pyreft's class of an edit, and the tensors that it saves.

    Raises:
        ValueError: If pyreft has no such class.
    """
    name = NAMES.get(type(edit))
    if name is None:
        raise ValueError(
            f"pyreft has no class for {type(edit).__name__}, only for {', '.join(kind.__name__ for kind in NAMES)}"
        )
    d_model, rank = edit.d_model, edit.rank
    own = {key: tensor.detach().float().cpu() for key, tensor in edit.state_dict().items()}
    given = {"embed_dim": torch.tensor(d_model), "interchange_dim": torch.tensor(d_model)}
    if "rotation.weight" in own:
        R = own["rotation.weight"].T.contiguous()
        # With A = 0, column i of Q is -e_i; the -1 turns its sign, so R is base's first columns.
        given |= {"rotate_layer": R, _ORIGINAL: -torch.eye(d_model, rank), _BASE: _completed(R)}
    linear = "source" if "source.weight" in own else "read"
    for ours, theirs in (
        (f"{linear}.weight", "learned_source.weight"),
        (f"{linear}.bias", "learned_source.bias"),
        ("source.weight", "weight"),
        ("source.bias", "bias"),
        ("write", "proj_layer.weight"),
        ("target", "learned_source"),
    ):
        if ours in own:
            given[theirs] = own[ours]
    return name, OrderedDict((key, given[key].clone()) for key in shapes(name, d_model, rank))


def _unconstrained(kind: type[Intervention], W2: Tensor, W1: Tensor | None, b: Tensor | None) -> Intervention:
    edit = kind(W2.shape[1], W2.shape[0])
    edit.load_state_dict({"write": W2, "read.weight": W1, "read.bias": b})
    return edit


def _householder(tensors: Mapping[str, Tensor]) -> Tensor:
    original, base = tensors[_ORIGINAL].double(), tensors[_BASE].double()
    A = original.tril(diagonal=-1)
    tau = 2.0 / (1.0 + (A * A).sum(dim=0))
    # torch's own formula for a stored base; int() because the diagonal holds signs as floats.
    return base @ (torch.linalg.householder_product(A, tau) * original.diagonal().int())


def _completed(R: Tensor) -> Tensor:
    """Returns an orthogonal matrix `[d_model, d_model]` whose first columns are R."""
    Q = torch.linalg.qr(R, mode="complete").Q
    return torch.cat([R, Q[:, R.shape[1] :]], dim=1)


def _require_orthonormal(R: Tensor, dtype: torch.dtype, instead: type[Intervention] | None) -> None:
    off = float((R.double() @ R.double().T - torch.eye(len(R), dtype=torch.float64)).abs().max())
    # 2e-2 allows for an R that was stored in bfloat16 (8 bits).
    if off <= (1e-5 if dtype in (torch.float32, torch.float64) else 2e-2):
        return
    way = "" if instead is None else f"; pass intervention={instead.__name__}, the same equation without the constraint"
    raise ValueError(
        f"its R is not orthonormal (R^T R is off by {off:.2g}), as happens when pyreft continues training after loading, so "
        f"this class cannot represent it{way}"
    )
