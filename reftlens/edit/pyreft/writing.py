"""Writes a `Reft` to a folder that pyreft loads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from reftlens.edit.pyreft.archive import dump
from reftlens.edit.pyreft.classes import to_tensors
from reftlens.edit.pyreft.places import CONFIG_NAME, make_config, make_key
from reftlens.edit.reft import Reft
from reftlens.edit.site import Site
from reftlens.files.folder import Replacement


def save_pyreft(reft: Reft, directory: str | Path) -> Path:
    """Writes a folder for pyreft's `ReftModel.load`.

    Positions are not part of the format: pyreft takes them with every call. Edits are in pyreft's
    order, which `share_weights=False` requires: first the first edits of all layers, then the
    second ones. An edit at several sites is written once per site and not linked, because pyreft
    0.1.0 gives every site of a link the activation of the first (observed in a run).

    W is written in float32. `ReftModel.load` rounds W to bfloat16, so LoReFT fails in a float32
    model. It cannot create Noreft and Nodireft from any folder. In these cases, create pyreft's
    interventions with `dtype=torch.float32, add_bias=False` and load the state dict of its file
    into each.

    Args:
        reft: edits of the residual stream after blocks, of classes that pyreft has.
        directory: a new or empty folder, or an earlier one with the same sites.

    Raises:
        ValueError: If pyreft has no equivalent. The message gives the reason.
        OSError: If it cannot be written.
    """
    turns: Counter[int] = Counter()
    entries = []
    for (site, edit), name in zip(reft, reft.names, strict=True):
        # The factor cannot go into the tensors: it would scale R^T R, which a LoReFT cannot.
        if reft.scales.get(name, 1.0) != 1.0:
            raise ValueError(
                f"{name!r} has the scale {reft.scales[name]:g}, but pyreft has no scales: set the scale to 1"
            )
        layer = _layer(site)
        entries.append((turns[layer], layer, *to_tensors(edit), edit))
        turns[layer] += 1
    # Python's sort is stable, so the order of the layers is kept.
    entries.sort(key=lambda entry: entry[0])
    keys = [make_key(layer, turn) for turn, layer, *_ in entries]
    _, layers, names, states, edits = zip(*entries, strict=True)
    if len({edit.d_model for edit in edits}) > 1:
        raise ValueError("the edits have different widths, so they do not all edit the residual stream")
    config = make_config(names, layers, [edit.rank for edit in edits], keys, edits[0].d_model)
    with Replacement(directory, marker=f"intkey_{keys[0]}.bin") as folder:
        for key, state in zip(keys, states, strict=True):
            file = folder / f"intkey_{key}.bin"
            file.write_bytes(dump(state, file.stem))
        (folder / CONFIG_NAME).write_text(config, encoding="utf-8")
    return Path(directory)


def _layer(site: Site) -> int:
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(?:resid_post|out)", site.hook_name)
    if found is None or site.head is not None:
        raise ValueError(
            f"{site!r} cannot be written: pyreft's block_output corresponds only to the residual stream after a block, "
            "blocks.<n>.hook_resid_post"
        )
    return int(found[1])
