"""Reads counterfactual examples from the public files of MIB and RAVEL, from a local folder. Nothing is downloaded.

MIB (Mueller et al. 2025, arXiv:2504.13151) publishes a data set per task. A row has a `prompt`, its
answer, and columns that end in `_counterfactual`, each with the prompt and the answer of another
input. `from_mib` reads `.json`, `.jsonl` and `.parquet` files of such rows.

RAVEL (Huang et al. 2024, arXiv:2402.17700) publishes five JSON files for each type of entity;
`from_ravel` reads four: entities with their attributes, prompt templates of each attribute, and the
splits of entities and of templates.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from reftlens.data.counterfactual import Counterfactual, Counterfactuals
from reftlens.files.reading import json_lines, read_json

_MOST = 2**30
"""Bytes of a file, at most."""


def from_mib(
    path: str | Path,
    counterfactual: str,
    *,
    variable: str = "variable",
    label: Literal["source", "base"] = "source",
) -> list[Counterfactual]:
    """Reads one split of a MIB task.

    Args:
        path: a file of rows: `.json` (a list), `.jsonl` or `.parquet`.
        counterfactual: the column of the sources, such as "symbol_counterfactual".
        variable: the name of the variable that these sources change, for the examples.
        label: whose answer is the label: the source's, if the variable decides the answer (so that
            the base then answers as its source does), or the base's, if the swap should not change
            it. Where the counterfactual answer is neither, write a `CausalModel`.

    Returns:
        The examples. Answers begin with a space.

    Raises:
        ValueError: If the file is missing or has another ending, no rows, or a row lacks a column.
            The message names it.
        OSError: If it cannot be read.
    """
    rows = _rows(Path(path))
    if not rows:
        raise ValueError(f"{path} has no rows")
    found = []
    for number, row in enumerate(rows):
        other = row.get(counterfactual)
        if not isinstance(other, Mapping):
            columns = ", ".join(sorted(name for name in row if str(name).endswith("_counterfactual")))
            raise ValueError(
                f"row {number} of {path} has no {counterfactual!r}; its counterfactual columns: {columns or 'none'}"
            )
        own, theirs = (_answer(one, f"row {number} of {path}") for one in (row, other))
        prompts = [_field(one, "prompt", f"row {number} of {path}") for one in (row, other)]
        wanted = theirs if label == "source" else own
        found.append(Counterfactual(prompts[0], prompts[1], wanted, variable, own, theirs))
    return found


def from_ravel(
    folder: str | Path,
    entity_type: str,
    attributes: Sequence[str],
    *,
    n: int,
    n_held_out: int,
    seed: int = 0,
) -> Counterfactuals:
    """Reads RAVEL's files of one type of entity, and pairs prompts as RAVEL does.

    Half of the examples of an attribute ask the base for that attribute: the label is the source
    entity's value (cause). The others ask it for another of the attributes: the label stays the
    base's (isolate). Held-out pairs have entities and templates of RAVEL's test splits; the others
    have those of its train splits.

    Args:
        folder: with `ravel_{entity_type}_entity_attributes.json`, `..._attribute_to_prompts.json`,
            `..._entity_to_split.json` and `..._prompt_to_split.json`.
        entity_type: such as "city".
        attributes: at least two, such as ["Country", "Continent"]. They are the variables of the
            examples.
        n: examples to train on.
        n_held_out: held-out examples.
        seed: seed of the draws.

    Raises:
        ValueError: If a file is missing or has another form, an attribute is unknown, or a split
            has too little to pair.
        OSError: If a file cannot be read.
    """
    files = {
        name: dict(read_json(Path(folder) / f"ravel_{entity_type}_{name}.json", most=_MOST))
        for name in ("entity_attributes", "attribute_to_prompts", "entity_to_split", "prompt_to_split")
    }
    known = files["attribute_to_prompts"]
    missing = [name for name in attributes if name not in known]
    if missing or len(attributes) < 2:
        raise ValueError(
            f"attributes must name at least two of {', '.join(known)}, got {', '.join(attributes) or 'none'}"
        )
    draw = random.Random(seed)
    parts = [
        _paired(files, list(attributes), split, count, draw) for split, count in (("train", n), ("test", n_held_out))
    ]
    return Counterfactuals(*parts)


def _paired(
    files: Mapping[str, Mapping[str, Any]], attributes: list[str], split: str, n: int, draw: random.Random
) -> tuple[Counterfactual, ...]:
    entities = [
        name
        for name, values in files["entity_attributes"].items()
        if files["entity_to_split"].get(name) == split and all(values.get(one) for one in attributes)
    ]
    templates = {
        name: [text for text in files["attribute_to_prompts"][name] if files["prompt_to_split"].get(text) == split]
        for name in attributes
    }
    if len(entities) < 2 or not all(templates.values()):
        raise ValueError(f"the split {split!r} has {len(entities)} entities with all attributes, and templates of "
                         f"{', '.join(name for name in attributes if templates[name]) or 'no attribute'}: two entities and a "
                         "template of each attribute are needed")  # fmt: skip
    found: dict[tuple[str, str, str], Counterfactual] = {}
    for tried in range(50 * n):
        name = attributes[tried % len(attributes)]
        # All attributes in turn as causes, then all isolated: both kinds stay about equally many.
        causes = tried // len(attributes) % 2 == 0
        asked = name if causes else draw.choice([one for one in attributes if one != name])
        base, source = draw.sample(entities, 2)
        values = files["entity_attributes"]
        own, other = (f" {values[entity][asked]}" for entity in (base, source))
        if own == other:
            continue  # Neither kind of pair says anything if both entities have the same value.
        prompt, theirs = (
            draw.choice(templates[one]).replace("%s", entity) for one, entity in ((asked, base), (name, source))
        )
        pair = Counterfactual(prompt, theirs, other if causes else own, name, own, f" {values[source][name]}")
        found.setdefault((prompt, theirs, name), pair)
        if len(found) == n:
            return tuple(found.values())
    raise ValueError(f"the split {split!r} gives only {len(found)} of {n} different pairs: ask for fewer")


def _rows(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".json":
            return [dict(row) for row in read_json(path, most=_MOST)]
        case ".jsonl":
            return [dict(row) for _, row in json_lines(path, most=_MOST)]
        case ".parquet":
            return [
                {str(name): value for name, value in row.items()} for row in pd.read_parquet(path).to_dict("records")
            ]
        case other:
            raise ValueError(f"{path} must end in .json, .jsonl or .parquet, got {other or 'no ending'}")


def _answer(row: Mapping[str, Any], where: str) -> str:
    """Returns a row's answer. MIB gives it as a label, or as the place of one among choices."""
    choices, key = row.get("choices"), row.get("answerKey")
    if choices is not None and key is not None:
        labels = choices["label"] if isinstance(choices, Mapping) else choices
        answer = str(labels[int(key)])
    else:
        answer = str(_field(row, "label", where))
    return answer if answer.startswith(" ") else f" {answer}"


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    # The number 0 is an answer.
    if not row.get(name) and row.get(name) != 0:
        raise ValueError(f"{where} has no {name!r}; it has {', '.join(map(str, row))}")
    return str(row[name])
