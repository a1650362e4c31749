"""Known answers must come out; what must be missed is missed. The whole table is slow, its cheap lines are not."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from reftlens.benchmark import PARTS, run
from reftlens.benchmark.equality import answer, quadruples
from reftlens.benchmark.known import Known
from reftlens.benchmark.models import MODELS, load
from reftlens.benchmark.planted import angles_to, fit_student, plant
from reftlens.benchmark.sites import site_rows
from reftlens.cli import app


def misses(rows: list[Known]) -> list[str]:
    assert rows
    return [f"{row.group}: {row.planted}: {row.found}" for row in rows if not row.holds]


def test_planted_sites_are_found_whole_and_decoys_are_not() -> None:
    assert misses(list(site_rows("random gpt2"))) == []


def test_a_short_fit_finds_the_planted_directions_and_an_untrained_edit_does_not() -> None:
    planted = plant("random gpt2")
    truth = planted.operator(planted.teacher)
    assert truth.effective_rank > 1.8, "the truth has two directions of like strength"
    student, untrained = (fit_student(planted, rank=4, seed=0, steps=steps) for steps in (250, 4))
    operator = planted.operator(student)
    assert float(angles_to(planted, operator, truth).max()) < 10
    assert operator.effective_rank == pytest.approx(truth.effective_rank, abs=0.5)
    assert float(angles_to(planted, planted.operator(untrained), truth).min()) > 40


def test_the_variable_of_the_equality_task_is_counted_half_of_the_time() -> None:
    objects, other = (quadruples(4000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert float(answer(objects).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(answer(objects, objects), answer(objects))
    swapped = answer(objects, other)
    equal = other[:, 0] == other[:, 1]
    assert torch.equal(swapped.bool(), equal == (objects[:, 2] == objects[:, 3]))


def test_the_command_writes_the_table_and_refuses_what_it_does_not_know(tmp_path) -> None:
    done = CliRunner().invoke(app, ["benchmark", "--only", "handmade", "--out", str(tmp_path / "known.csv")])
    assert done.exit_code == 0, done.output
    assert "Makelov" in done.output
    frame = pd.read_csv(tmp_path / "known.csv")
    assert frame["found?"].tolist() == ["yes"] * 7
    assert "7 of 7 found" in done.output
    wrong = CliRunner().invoke(app, ["benchmark", "--only", "nothing"])
    assert wrong.exit_code == 1
    assert "the parts are" in wrong.output + wrong.stderr
    with pytest.raises(ValueError, match="wanted one of"):
        load("random no such model")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_planted_edits_are_found_and_a_rank_1_student_misses(model) -> None:
    from reftlens.benchmark.planted import planted_rows

    rows = list(planted_rows(model))
    narrow = [row for row in rows if "rank 1," in row.planted or row.planted.endswith("rank 1")]
    assert len(narrow) == 3
    assert not any(row.holds for row in narrow[:2]), "one direction cannot be two"
    assert misses([row for row in rows if row not in narrow]) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", ["sites", "equality", "nulls"])
def test_the_other_parts_hold(part) -> None:
    assert part in PARTS
    # Whether one activation holds the whole variable is the model's choice; a miss of that line is printed as one.
    assert [line for line in misses(list(run((part,)))) if "the whole activation" not in line] == []
