"""Reads the sites of a pyreft folder from its `config.json` and its file names, which are pyvene keys.

No path is built from the contents of a config: the config must name exactly the files in the
folder.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from reftlens.files.reading import read_json

CONFIG_NAME = "config.json"
_BLOCK_PATH = re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\[(\d{1,4})\]\.output")
_TYPE = re.compile(r"<class 'pyreft\.interventions\.(\w+)'>")
# Up to pyvene 0.1.6 the parts were joined by dots.
_KEY = re.compile(
    r"layer[_.](\d{1,4})[_.]comp[_.]block_output[_.]unit[_.]pos[_.]nunit[_.]1#(\d{1,4})"
    r"|comp_(?:model_layers|transformer_h|gpt_neox_layers)\[(\d{1,4})\]_output_unit_pos_nunit_1#(\d{1,4})"
)


class Representation(NamedTuple):
    """pyvene's settings of one edit, in the order of a config. Version 0.1.2 did not have the last one."""

    layer: Any
    component: Any
    unit: Any
    max_number_of_units: Any
    low_rank_dimension: Any
    intervention_type: None = None
    intervention: None = None
    subspace_partition: None = None
    group_key: None = None
    intervention_link_key: Any = None
    moe_key: None = None
    source_representation: None = None
    hidden_source_representation: None = None
    latent_dim: None = None


@final
@dataclass(frozen=True)
class Place:
    """One edit in a folder."""

    key: str
    layer: int
    turn: int
    """0 for the first edit after its layer, 1 for the second."""
    name: str | None = None
    """pyreft's class, if there is a config."""
    rank: int | None = None
    link: str | int | None = None
    """Edits with the same link share their weights."""


def find_places(folder: Path) -> list[Place]:
    """Finds the edits in a folder, in pyreft's order.

    Raises:
        ValueError: If there are none, the config is damaged, or it has edits of anything but block
            outputs.
    """
    places = {key: _from_key(key) for key in _keys(folder)}
    if not places:
        inside = sorted({file.parent.name for file in folder.glob("*/intkey_*.bin")})
        where = f"; {', '.join(inside)} inside it may be one" if inside else ""
        raise ValueError(f"{folder} is not a pyreft checkpoint: it has no intkey_*.bin{where}")
    # pyvene orders both kinds of names differently, and positions are given in this order.
    if len({key.startswith("comp_") for key in places}) > 1:
        raise ValueError(
            f"{folder} names some blocks as block_output and others by a path, so the order of its edits is unknown"
        )
    if not (folder / CONFIG_NAME).exists():
        # Without a config: pyreft lists the first edits of all layers, then the second ones.
        return sorted(places.values(), key=lambda place: (place.turn, place.layer))
    try:
        config = read_json(folder / CONFIG_NAME)
        return _from_config(config, places)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        said = f"it has no {error!s}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{CONFIG_NAME} in {folder}: {said:.500}") from error


def make_key(layer: int, turn: int) -> str:
    """Returns pyvene's key of the edit at this turn after a block."""
    return f"layer_{layer}_comp_block_output_unit_pos_nunit_1#{turn}"


def make_config(
    names: Sequence[str], layers: Sequence[int], ranks: Sequence[int], keys: Sequence[str], width: int
) -> str:
    """Returns the text of `config.json`."""
    document = {
        "intervention_constant_sources": [True] * len(names),
        "intervention_dimensions": [width] * len(names),
        "intervention_types": [f"<class 'pyreft.interventions.{name}'>" for name in names],
        "mode": "parallel",
        "representations": [
            Representation(layer, "block_output", "pos", 1, rank) for layer, rank in zip(layers, ranks, strict=True)
        ],
        "sorted_keys": list(keys),
    }
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _keys(folder: Path) -> list[str]:
    return sorted(file.name.removeprefix("intkey_").removesuffix(".bin") for file in folder.glob("intkey_*.bin"))


def _from_key(key: str) -> Place:
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(
            f"intkey_{key:.200}.bin does not edit a block's output at single positions; other edits are not supported"
        )
    layer, turn = (number for number in found.groups() if number is not None)
    return Place(key, int(layer), int(turn))


def _from_config(config: Mapping[str, Any], places: Mapping[str, Place]) -> list[Place]:
    turns: Counter[int] = Counter()
    ordered = []
    types, representations = config["intervention_types"], config["representations"]
    if len(types) != len(representations):
        raise ValueError(f"it has {len(representations)} representations but {len(types)} classes")
    for type_name, values in zip(types, representations, strict=True):
        given = _representation(values)
        layer, by_path = _layer(given)
        found = _TYPE.fullmatch(type_name)
        if found is None:
            raise ValueError(f"{type_name!r:.200} is not one of pyreft's own classes")
        turn = turns[layer]
        turns[layer] += 1
        mine = [p for p in places.values() if (p.layer, p.turn, p.key.startswith("comp")) == (layer, turn, by_path)]
        if not mine:
            raise ValueError(f"there is no file for edit {turn} after block {layer}")
        ordered.append(Place(mine[0].key, layer, turn, found[1], given.low_rank_dimension, given.intervention_link_key))
    if len(ordered) != len(places):
        raise ValueError(f"it names {len(ordered)} edits, but there are files for {len(places)}")
    return ordered


def _representation(values: object) -> Representation:
    if not isinstance(values, list) or len(values) not in (13, 14):
        raise ValueError("a representation must be a list of 13 or 14 settings")
    given = Representation(*values)
    if (given.unit, given.max_number_of_units) != ("pos", 1):
        raise ValueError("only edits of single positions are supported: unit 'pos', max_number_of_units 1")
    others = given._replace(intervention_link_key=None)._asdict()
    # A setting that is not read could change the edit, so it is refused, not dropped.
    unread = [field for field in Representation._field_defaults if others[field] is not None]
    if unread:
        raise ValueError(f"a representation sets {', '.join(unread)}, which is not supported")
    if type(given.low_rank_dimension) is not int or not isinstance(given.intervention_link_key, str | int | None):
        raise ValueError("low_rank_dimension must be an integer, and intervention_link_key a string or an integer")
    return given


def _layer(given: Representation) -> tuple[int, bool]:
    """Returns the block, and whether the component is a module path instead of pyvene's own name."""
    if given.component == "block_output" and type(given.layer) is int:
        return given.layer, False
    found = _BLOCK_PATH.fullmatch(given.component)
    if found is None:
        raise ValueError(
            f"the component {given.component!r:.200} is not supported: only block_output, or a path such as "
            "model.layers[3].output"
        )
    return int(found[1]), True
