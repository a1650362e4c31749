"""A single result in a folder: it comes back to the bit, and what is damaged or unknown is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pandas as pd
import pytest
import torch
from made import NASTY, every_result, made_dose, made_overlap
from robustness import equal

from reftlens import results
from reftlens.files.seal import seal


@dataclass(frozen=True)
class Row:
    """Part of a result of one's own."""

    name: str
    vector: torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Own(results.Result):
    """A result of one's own."""

    rows: tuple[Row, ...]
    more: object = None

    def headline(self) -> str:
        return f"{len(self.rows)} rows"

    def to_dataframe(self) -> pd.DataFrame:
        return pd.DataFrame({"name": [row.name for row in self.rows]})


@pytest.mark.parametrize("text", ["\udc80 half", "上海 \x00"])
def test_every_result_comes_back_to_the_bit(text: str, tmp_path) -> None:
    for number, result in enumerate(every_result(text)):
        if isinstance(result, results.Evaluation) and "\udc80" in text:
            continue  # it has a format of its own, which holds Unicode
        place = result.save(tmp_path / str(number))
        back = results.load(place)
        assert equal(back, result), type(result)
        assert repr(back) == repr(result)


def test_the_folder_is_sealed_and_is_loaded_by_its_class(tmp_path) -> None:
    dose = made_dose()
    place = dose.save(tmp_path / "dose")
    assert sorted(path.name for path in place.iterdir()) == ["digests.json", "result.json", "result.safetensors"]
    assert equal(results.Dose.load(place), dose)
    assert not equal(results.Dose.load(place), replace(dose, n_kept=0)), "the comparison can fail"
    with pytest.raises(ValueError, match="must hold a Swap, but holds a Dose"):
        results.Swap.load(place)
    assert equal(results.load(made_overlap().save(place)), made_overlap()), "a saved result is replaced"
    with pytest.raises(ValueError, match=r"is not a saved result: it has no result\.json"):
        results.load(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no result\.json, so it is not replaced"):
        dose.save(tmp_path / "full")


@pytest.mark.parametrize("name", ["result.json", "result.safetensors", "digests.json"])
def test_a_flipped_bit_is_refused(name: str, tmp_path) -> None:
    place = made_dose().save(tmp_path / "dose")
    content = bytearray((place / name).read_bytes())
    content[len(content) // 2] ^= 1
    (place / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"saved result in .* is damaged"):
        results.load(place)
    (place / name).unlink()
    with pytest.raises(ValueError, match=r"is missing|is not a saved result"):
        results.load(place)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"type": "os.system", "fields": {"command": "true"}}, "'os.system', which is no known class"),
        ({"type": "Popen", "fields": {"args": "true"}}, "'Popen', which is no known class"),
        ({"type": "Swap", "fields": {"name": "a"}}, "missing .*'flips'"),
        ({"type": "Swap", "fields": {"name": "a", "flips": 0.5, "moved": {"tensor": "b"}}}, "'b' is missing"),
        ({"type": "Claim", "fields": {"text": "", "source": "", "settings": [], "model": ""}}, "but holds a Claim"),
        (["a"], "must hold a Result, but holds a tuple"),
    ],
)
def test_a_forged_folder_makes_results_alone(document: object, message: str, tmp_path) -> None:
    place = made_dose().save(tmp_path / "dose")
    (place / "result.json").write_text(json.dumps({"schema": 1, "result": document}))
    (place / "digests.json").unlink()
    seal(place)
    with pytest.raises(ValueError, match=message):
        results.load(place)


def test_a_class_of_ones_own_comes_back_with_its_rows(tmp_path) -> None:
    own = Own(
        tuple(Row(text, torch.rand(3)) for text in NASTY), {"a": {"b.c": torch.ones(1)}, "a.b": {"c": torch.zeros(1)}}
    )
    assert equal(Own.load(own.save(tmp_path / "own")), own)
    assert equal(results.load(tmp_path / "own"), own)


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path) -> None:
    @dataclass(frozen=True)
    class Foreign:
        n: int = 1

    swap = type("Swap", (Own,), {"__module__": __name__})
    for wrong, message in (
        (Own((), Foreign()), r"result\.more is a Foreign, which could not be loaded again"),
        (Own((), {1, 2}), r"result\.more is a set, which cannot be saved"),
        (Own((), {1: 2}), r"result\.more has the key 1, but keys must be texts"),
        (swap(()), r"would be loaded as reftlens\.results\.behaviour\.Swap: give the class another name"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong.save(tmp_path / "wrong")
    assert not list(tmp_path.iterdir())
