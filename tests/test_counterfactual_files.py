"""The public formats of MIB and RAVEL, on small made files."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import reftlens as rl
from reftlens.data.counterfactual_files import from_mib, from_ravel

ROWS = [
    {
        "prompt": "A box is red. What color is it? A. red B. blue Answer:",
        "choices": {"label": ["A", "B"], "text": ["red", "blue"]},
        "answerKey": 0,
        "symbol_counterfactual": {
            "prompt": "A box is red. What color is it? X. red Y. blue Answer:",
            "choices": {"label": ["X", "Y"], "text": ["red", "blue"]},
            "answerKey": 0,
        },
    },
    {
        "prompt": "The sum of 23 and 45 is",
        "label": "68",
        "symbol_counterfactual": {"prompt": "The sum of 23 and 12 is", "label": "35"},
    },
]


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet"])
def test_a_file_of_mib_is_read(tmp_path, ending) -> None:
    file, rows = tmp_path / f"train{ending}", ROWS[:1] if ending == ".parquet" else ROWS
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(rows).to_parquet(file)
    else:
        lines = [json.dumps(row) for row in rows]
        file.write_text("\n".join(lines) if ending == ".jsonl" else f"[{','.join(lines)}]")
    found = from_mib(file, "symbol_counterfactual", variable="symbol")
    first = rl.Counterfactual(ROWS[0]["prompt"], ROWS[0]["symbol_counterfactual"]["prompt"], " X", "symbol", " A", " X")
    assert found[0] == first
    assert len(found) == len(rows)
    if len(rows) == 2:
        assert found[1][2:] == (" 35", "symbol", " 68", " 35", ())
    kept = from_mib(file, "symbol_counterfactual", label="base")
    assert kept[0].label == " A"
    assert not kept[0].changes


def test_lines_of_mib_end_at_line_feeds_only_and_a_bad_one_is_named(tmp_path) -> None:
    """JSON may hold U+2028 as it is, and a byte order mark may stand in front."""
    file, row = tmp_path / "train.jsonl", {**ROWS[1], "prompt": "23 and\u202845 make"}
    file.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8-sig")
    assert [pair.base for pair in from_mib(file, "symbol_counterfactual")] == [row["prompt"]]
    file.write_text(json.dumps(row) + "\n{")
    with pytest.raises(ValueError, match=r"line 2 of .*train\.jsonl is not JSON"):
        from_mib(file, "symbol_counterfactual")


def test_what_is_wrong_with_a_file_of_mib_is_named(tmp_path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS))
    with pytest.raises(
        ValueError, match=r"row 0 of .* has no 'other'; its counterfactual columns: symbol_counterfactual"
    ):
        from_mib(file, "other")
    file.write_text(json.dumps([{"symbol_counterfactual": {"prompt": "x", "label": "y"}, "label": "z"}]))
    with pytest.raises(ValueError, match=r"row 0 of .* has no 'prompt'"):
        from_mib(file, "symbol_counterfactual")
    file.write_text("[]")
    with pytest.raises(ValueError, match="has no rows"):
        from_mib(file, "symbol_counterfactual")
    with pytest.raises(ValueError, match=r"must end in .json, .jsonl or .parquet, got .csv"):
        from_mib(tmp_path / "rows.csv", "symbol_counterfactual")


@pytest.fixture
def ravel(tmp_path):
    cities = {
        f"City{number}": {"Country": f"Land{number}", "Continent": f"Part{number % 3}", "Language": ""}
        for number in range(12)
    }
    prompts = {
        name: [f"%s is a city in the {name.lower()} of", f"The {name.lower()} of %s is"]
        for name in ("Country", "Continent", "Language")
    }
    files = {
        "entity_attributes": cities,
        "attribute_to_prompts": prompts,
        "entity_to_split": {name: "train" if place < 6 else "test" for place, name in enumerate(cities)},
        "prompt_to_split": {
            text: ("train", "test")[place] for texts in prompts.values() for place, text in enumerate(texts)
        },
    }
    for name, content in files.items():
        (tmp_path / f"ravel_city_{name}.json").write_text(json.dumps(content))
    return tmp_path, cities


def test_files_of_ravel_give_cause_and_isolate_pairs(ravel) -> None:
    folder, cities = ravel
    found = from_ravel(folder, "city", ["Country", "Continent"], n=24, n_held_out=16)
    assert (len(found.train), len(found.held_out)) == (24, 16)
    for part, of_split in ((found.train, range(6)), (found.held_out, range(6, 12))):
        allowed = {f"City{number}" for number in of_split}
        assert {pair.variable for pair in part} == {"Country", "Continent"}
        assert 0.3 < sum(pair.changes for pair in part) / len(part) < 0.7
        for pair in part:
            base, source = (next(name for name in cities if name in text.split()) for text in pair[:2])
            assert {base, source} <= allowed
            asked = next(name for name in ("Country", "Continent") if name.lower() in pair.base)
            assert pair.base_label == f" {cities[base][asked]}"
            assert pair.label == f" {cities[source if asked == pair.variable else base][asked]}"
            assert pair.variable.lower() in pair.source
    assert found == from_ravel(folder, "city", ["Country", "Continent"], n=24, n_held_out=16)


def test_what_ravel_cannot_pair_is_refused(ravel) -> None:
    folder, _ = ravel
    with pytest.raises(ValueError, match="at least two of Country, Continent, Language, got Country"):
        from_ravel(folder, "city", ["Country"], n=4, n_held_out=4)
    with pytest.raises(ValueError, match=r"the split 'train' has 0 entities with all attributes"):
        from_ravel(folder, "city", ["Country", "Language"], n=4, n_held_out=4)
    with pytest.raises(ValueError, match=r"gives only .* of 9999 different pairs"):
        from_ravel(folder, "city", ["Country", "Continent"], n=9999, n_held_out=4)
    with pytest.raises(ValueError, match=r"ravel_verb_entity_attributes\.json is missing"):
        from_ravel(folder, "verb", ["Country", "Continent"], n=4, n_held_out=4)
