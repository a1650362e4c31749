"""A `Reft` -> a folder that pyreft loads."""

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

    Positions are not part of the format: pyreft takes them with every call. Edits come in pyreft's order, the first ones of
    all layers, then the second ones, as `share_weights=False` wants them. An edit at several sites is written once for each
    and not linked: pyreft 0.1.0 gives every site of a link the activation of the first (seen in a run of it).

    W is written in float32. `ReftModel.load` does not know that: it rounds W to bfloat16, so that LoReFT fails in a float32
    model, and it cannot make Noreft and Nodireft at all, whoever wrote the folder. There, make pyreft's interventions with
    `dtype=torch.float32, add_bias=False` and give each the state dict of its file.

    Args:
        reft: edits of the residual stream after blocks, of the classes that pyreft has.
        directory: a new or empty folder, or an earlier one of the same sites.

    Raises:
        ValueError: if pyreft cannot express it; it says why.
        OSError: if it cannot be written.
    """
    turns: Counter[int] = Counter()
    entries = []
    for (site, edit), name in zip(reft, reft.names, strict=True):
        if reft.scales.get(name, 1.0) != 1.0:
            raise ValueError(f"{name!r} has the scale {reft.scales[name]:g}, and pyreft has none: save it without")
        layer = _layer(site)
        entries.append((turns[layer], layer, *to_tensors(edit), edit))
        turns[layer] += 1
    # Python's sort keeps the order of the layers.
    entries.sort(key=lambda entry: entry[0])
    keys = [make_key(layer, turn) for turn, layer, *_ in entries]
    _, layers, names, states, edits = zip(*entries, strict=True)
    if len({edit.d_model for edit in edits}) > 1:
        raise ValueError("the edits are of different widths, and so not of one residual stream")
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
            f"{site!r} cannot be written: only edits of the residual stream after a block, blocks.<n>.hook_resid_post, are compared "
            "with pyreft's block_output"
        )
    return int(found[1])
