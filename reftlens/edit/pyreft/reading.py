"""Reads a pyreft folder into a `Reft`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit.pyreft.archive import StoredTensor, describe, load
from reftlens.edit.pyreft.classes import CLASSES, OPTIONAL, UNCONSTRAINED, names_with, shapes, to_edit
from reftlens.edit.pyreft.places import CONFIG_NAME, Place, find_places
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.files.reading import read_bytes
from reftlens.interventions import Intervention
from reftlens.positions import Positions, parse, union_parts

_MOST_BASE = 2**20
"""Maximum size in bytes of a `pytorch_model.bin` that is inspected."""
_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def load_pyreft(
    directory: str | Path,
    *,
    bridge: TransformerBridge,
    positions: str | Positions | Sequence[str | Positions],
    intervention: type[Intervention] | None = None,
    act_fn: str | None = None,
) -> Reft:
    """Reads a folder of pyreft's `reft_model.save(dir)` or of its trainer. Nothing in the folder is executed.

    pyreft does not save all settings. The missing ones are arguments; nothing is guessed. Dropout
    has no effect on a trained edit. pyreft usually saves W in bfloat16, which converts to float32
    without rounding.

    Args:
        directory: the folder. For a trainer's checkpoint, the checkpoint or its
            `intervenable_model`.
        bridge: the base model.
        positions: the rule that it was trained with, such as `"f5+l5"`. If a layer is listed twice
            (`share_weights=False`), its first edit gets the first part of the rule and its second
            edit the second part. Or a list with one rule per edit, in pyreft's order. In some of
            pyreft's data sets "l1" is the token before the prompt's last one: use `At(-2)` for
            these.
        intervention: the class, which a trainer's checkpoint does not always record. `NoReFT` (for
            pyreft's LoReFT) and `DiReFT` (for its Direft) read an R that is no longer orthonormal
            without changing it.
        act_fn: pyreft's activation function inside the edit. Only None and "linear" are supported.

    Raises:
        ValueError: If the folder is damaged or belongs to another model, or has an edit with no
            equivalent here. The message gives the reason.
    """
    if act_fn not in (None, "linear"):
        raise ValueError(
            f"act_fn must be None or 'linear', got {act_fn!r}: no class of this package has an activation function inside the "
            "edit"
        )
    folder = Path(directory)
    folder = folder / "intervenable_model" if (folder / "intervenable_model").is_dir() else folder
    places = find_places(folder)
    for place in places:
        if place.layer >= bridge.cfg.n_layers:
            raise ValueError(
                f"{place.key} is after block {place.layer}: this model has blocks 0 to {bridge.cfg.n_layers - 1}"
            )
    rules = _rules(positions, places)
    # Without these tensors the edit would load, and give other logits without an error.
    _refuse_trained_base(folder)
    edits = _shared(places, [_edit(folder, place, bridge.cfg.d_model, intervention) for place in places])
    pairs = [
        (Site(f"blocks.{place.layer}.hook_resid_post", rule), edit)
        for place, rule, edit in zip(places, rules, edits, strict=True)
    ]
    return Reft(pairs).to(bridge.cfg.device)


def _rules(positions: str | Positions | Sequence[str | Positions], places: Sequence[Place]) -> list[Positions]:
    """Returns the position rule of each edit."""
    if not isinstance(positions, str | Positions):
        if len(positions) != len(places):
            keys = ", ".join(place.key for place in places)
            raise ValueError(
                f"positions must have one rule for each of {len(places)} edits ({keys:.500}), got {len(positions)}"
            )
        return [parse(rule) for rule in positions]
    rule = parse(positions)
    parts = union_parts(rule)
    each = set(Counter(place.layer for place in places).values())
    if each == {1}:
        return [rule] * len(places)
    if each == {len(parts)}:
        return [parts[place.turn] for place in places]
    raise ValueError(
        f"the folder has {max(each)} edits after one block, but {positions!r} has {len(parts)} parts: pass a list of "
        f"{len(places)} rules, for {', '.join(place.key for place in places):.500}"
    )


def _edit(folder: Path, place: Place, d_model: int, wanted: type[Intervention] | None) -> Intervention:
    """Reads one file. Its description must be valid before any of its numbers is read."""
    try:
        # The largest possible file: three square matrices in double precision, and names.
        file = folder / f"intkey_{place.key}.bin"
        data = read_bytes(file, most=3 * 8 * d_model**2 + 2**20)
        # From here on only what was described is read; torch allocates whatever a pickle asks for.
        described = describe(data, file.stem)
        name = _name(place, described, wanted)
        _check(described, name, d_model, place.rank)
        tensors = load(data)
        for key, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{key} holds NaN or infinite values")
        return to_edit(name, tensors, wanted or CLASSES[name])
    except ValueError as error:
        raise ValueError(f"cannot read {folder / place.key!s:.500}: {error}") from error


def _name(place: Place, described: dict[str, StoredTensor], wanted: type[Intervention] | None) -> str:
    """Returns pyreft's class of a file, from the config if there is one, else from its tensors."""
    fits = names_with(described)
    if place.name is not None:
        fits = [name for name in fits if name == place.name]
    if not fits:
        raise ValueError(
            f"its tensors are not those of {place.name or 'any pyreft class'}: {', '.join(sorted(described)):.300}"
        )
    if wanted is None:
        if len(fits) > 1:
            ours = " or ".join(f"intervention={CLASSES[name].__name__}" for name in fits)
            raise ValueError(f"without a {CONFIG_NAME} it could be {' or '.join(fits)}: pass {ours}")
        return fits[0]
    for name in fits:
        if wanted in (CLASSES[name], UNCONSTRAINED.get(CLASSES[name])):
            return name
    raise ValueError(f"it is {' or '.join(fits)}, which is not {wanted.__name__}")


def _check(described: dict[str, StoredTensor], name: str, d_model: int, rank: int | None) -> None:
    """Checks shapes and dtypes against the model's width and the folder's rank."""
    first = next(key for key in ("learned_source", "learned_source.bias", "bias") if key in described)
    shape = described[first].shape
    # 0 is refused below with the message about ranks.
    rank = (shape[0] if len(shape) == 1 else 0) if rank is None else rank
    if not 1 <= rank <= d_model:
        raise ValueError(f"rank must be in [1, {d_model}], got {rank}")
    wanted = shapes(name, d_model, rank) | dict.fromkeys(OPTIONAL & set(described), (rank,))
    for key, tensor in described.items():
        if tensor.shape != wanted[key]:
            raise ValueError(f"{key} must be {list(wanted[key])} on this model, got {list(tensor.shape)!s:.80}")
        if tensor.dtype not in ((torch.int64,) if key.endswith("_dim") else _FLOATS):
            raise ValueError(f"{key} must have a floating-point dtype, got {str(tensor.dtype).removeprefix('torch.')}")


def _shared(places: Sequence[Place], edits: Sequence[Intervention]) -> list[Intervention]:
    """Returns one intervention for all sites with the same link. Their files must agree."""
    first: dict[str | int, Intervention] = {}
    shared = []
    for place, edit in zip(places, edits, strict=True):
        one = edit if place.link is None else first.setdefault(place.link, edit)
        same: dict[str, Tensor] = one.state_dict()
        # Each file has its own copy of linked weights; unequal ones leave open which one acts.
        if type(one) is not type(edit) or any(not torch.equal(t, same[name]) for name, t in edit.state_dict().items()):
            raise ValueError(f"{place.key} is linked to another edit by {place.link!r}, but their weights differ")
        shared.append(one)
    return shared


def _refuse_trained_base(folder: Path) -> None:
    """Refuses a trainer's checkpoint that also holds trained weights of the base model, such as a classifier's."""
    path = folder / "pytorch_model.bin"
    if not path.exists():
        return
    try:
        # Without tensors it has a few hundred bytes, so a larger file can be refused without
        # reading it.
        names = sorted(describe(read_bytes(path, most=_MOST_BASE), path.stem))
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read, and may hold trained tensors of the base model, which are not part of an edit: {error}"
        ) from error
    if names:
        raise ValueError(
            f"{path} holds {len(names)} trained tensors of the base model itself ({', '.join(names):.300}), which are not part of "
            "an edit: load them into the base model, then remove the file"
        )
