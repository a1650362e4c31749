"""Planted meanings: the plants do what they claim, and each method finds what its equation can see and misses the rest."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from reftlens.benchmark.readouts import BY_METHOD, TOKENS, PlantedMeanings, _row, _true_row, alarm_rows, plant_meanings

SEES = {
    "direct": ("at once", "superposed"),
    "jacobian": ("at once", "after two blocks", "through a head"),
    "patchscope": ("at once", "through a head", "with another", "superposed"),
}


@cache
def planted() -> PlantedMeanings:
    return plant_meanings("random gpt2")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("meaning", TOKENS)
def test_each_method_finds_what_its_equation_sees(meaning) -> None:
    model = planted()
    reft = model.edit(meaning)
    assert _true_row(model, meaning, reft).holds, "in whole runs, the edit raises its token most"
    for method in BY_METHOD:
        row = _row(model, meaning, method, model.read(reft, (method,), n_null=99))
        if meaning == "unread" or meaning in SEES[method]:
            assert row.holds, row
        elif method == "direct" or meaning == "with another":
            assert not row.holds, row


def test_one_of_a_pair_of_directions_alone_does_nothing() -> None:
    model = planted()
    alone = model.steer(model.directions["its partner"])
    assert not _true_row(model, "with another", alone).holds


@pytest.mark.slow
def test_no_method_raises_more_alarms_than_it_says() -> None:
    rows = list(alarm_rows("random gpt2", n_draws=100))
    assert len(rows) == 6
    assert all(row.holds for row in rows), rows


def test_planted_directions_are_apart() -> None:
    u = torch.stack(
        [planted().directions[name] for name in ("after two blocks", "through a head", "with another", "unread")]
    )
    torch.testing.assert_close(u @ u.T, torch.eye(4), atol=1e-5, rtol=0)
