"""Planted meanings: the plants do what they claim, and each method finds what its equation can see and misses the rest."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from reftlens.benchmark.models import random_weights
from reftlens.benchmark.readouts import (
    BY_METHOD,
    TOKENS,
    PlantedMeanings,
    _ends,
    _rank_one,
    _row,
    _true_row,
    alarm_rows,
    plant_meanings,
)

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


def test_the_edit_of_rank_one_is_its_formula() -> None:
    h, reading, write = torch.randn(9, 8), torch.randn(8), torch.randn(8)
    edit = _rank_one(0, h, reading, write).interventions[0]
    wanted = (2 + (h - h.mean(dim=0)) @ reading)[:, None] * write / 2
    torch.testing.assert_close(edit.delta(h), wanted, atol=1e-5, rtol=1e-5)


def test_a_push_leaves_the_blocks_own_output_as_it_was() -> None:
    hf, made = random_weights("random gpt2"), []
    first, second = hf.transformer.h[:2]

    def look(_module, _args, output) -> None:
        out = output[0] if isinstance(output, tuple) else output
        made.append((out, out.clone()))

    first.register_forward_hook(look)
    push = torch.ones(hf.config.n_embd)
    with torch.no_grad():
        plain, pushed = (
            _ends(hf, lambda text, **_: {"input_ids": torch.tensor([[1, 2]])}, ["a"], second, pushes)
            for pushes in ({}, {0: push})
        )
    assert not torch.allclose(plain, pushed)
    assert all(torch.equal(out, before) for out, before in made)
