"""Saves an edit to a folder and loads it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from reftlens.edit.checkpoint.base_match import refuse_mismatch, stamp
from reftlens.edit.checkpoint.card import write_card
from reftlens.edit.checkpoint.files import CONFIG_NAME, read_config, read_tensors, write
from reftlens.edit.checkpoint.hub import fetch
from reftlens.edit.checkpoint.layout import Pairs, from_document, to_document
from reftlens.files.folder import Replacement
from reftlens.files.reading import consistently
from reftlens.files.seal import warn_unchecked
from reftlens.interventions import Intervention, registered
from reftlens.organisms import ORGANISMS
from reftlens.results import Certificate


def save(
    directory: str | Path,
    pairs: Pairs,
    bridge: TransformerBridge,
    *,
    card: bool = True,
    certificate: Certificate | None = None,
) -> Path:
    """Writes an edit, the stamp of its base model and a model card to a folder, atomically.

    Args:
        directory: the folder.
        pairs: the edit.
        bridge: the edit's base model.
        card: also write README.md and a figure. Drawing the figure takes longer than everything
            else.
        certificate: of this edit, for the card.

    Raises:
        ValueError: If the folder exists and is not a saved edit, or the model lacks one of the
            sites.
        OSError: If the folder cannot be written.
    """
    # Everything that may refuse comes before the folder is made.
    document, base = to_document(pairs, bridge), stamp(bridge)
    with Replacement(directory, marker=CONFIG_NAME) as folder:
        if card:
            write_card(folder, pairs, base, certificate)
        write(folder, document, _state(pairs).state_dict(), base)
    return Path(directory)


def base_named(folder: Path) -> str:
    """Returns the base model that a saved edit names, if it is available locally.

    Args:
        folder: of the edit.

    Raises:
        ValueError: If the edit is damaged, or its base is neither a local folder nor a model that
            ships with this package. An edit from elsewhere may name any repository, so nothing is
            downloaded unless the caller asks for it.
    """
    config, _ = read_config(folder)
    name = config["base"].get("base_model")
    if not isinstance(name, str):
        raise ValueError(f"the saved edit in {folder} is damaged: it does not name its base model")
    if name not in ORGANISMS and not Path(name).is_dir():
        raise ValueError(
            f"the base of the edit in {folder} is {name!r:.200}, which is not a local folder: pass --model {name:.200} to load "
            "it from the Hugging Face Hub, or pass --model with its folder"
        )
    return name


def load(
    source: str | Path,
    *,
    bridge: TransformerBridge,
    family: Sequence[type[Intervention]],
    revision: str | None = None,
    allow_mismatch: Collection[str] = (),
) -> Pairs:
    """Reads an edit from a folder or the hub; see `Reft.from_pretrained`.

    Raises:
        ValueError: If the edit is damaged, or was saved for another model.
    """
    folder = fetch(source, revision=revision)
    return consistently(folder, lambda: _load(folder, bridge, family, allow_mismatch))


def _load(
    folder: Path, bridge: TransformerBridge, family: Sequence[type[Intervention]], allow_mismatch: Collection[str]
) -> Pairs:
    family = tuple(dict.fromkeys([*family, *registered()]))
    config, digests = read_config(folder)
    if digests is None:
        warn_unchecked(folder)
    # Before the edit is built, which on another model fails with worse messages.
    refuse_mismatch(config["base"], bridge, where=str(folder), allow_mismatch=allow_mismatch)
    try:
        pairs = from_document(config, bridge, family)
    except ValueError as error:
        raise ValueError(f"cannot load {folder}: {error}") from error
    state = _state(pairs)
    tensors = read_tensors(folder, config, {name: tensor.shape for name, tensor in state.state_dict().items()}, digests)
    # Clones, so that comparing with `tensors` below shows what loading changed.
    state.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    for name, kept in state.state_dict().items():
        # Values that the edit changes on loading were not written by this package, such as an R
        # that is not orthonormal.
        if not torch.allclose(kept, tensors[name], rtol=0, atol=1e-4):
            raise ValueError(f"the saved edit in {folder} is damaged: the rows of {name} are not orthonormal")
    return pairs


def _state(pairs: Pairs) -> nn.Module:
    """Returns the interventions as one module whose parameter names are those in the tensor file."""
    return nn.ModuleDict({"interventions": nn.ModuleList(pairs.interventions)})
