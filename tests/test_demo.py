"""The main job as a user runs it: one command, and every file it leaves; then on a model it knows nothing of."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import make_hf, make_tokenizer
from typer.testing import CliRunner

from reftlens.cli import app

FIGURES = [
    "dissect_dose",
    "dissect_interchange",
    "dissect_ledger",
    "dissect_off_manifold",
    "dissect_overlaps",
    "dissect_sizes",
    "effect",
    "outcomes",
    "readout",
    "size_moved",
    "size_unmoved",
    "spectrum",
    "tracing",
    "training",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The whole command in a process of its own: exit status and output, and its folder."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "reftlens", "demo", "--quiet", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False), out


@pytest.fixture(scope="module")
def numbers(finished):
    done, out = finished
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "results.json").read_text())


def by_group(numbers, start):
    (found,) = (outcome for outcome in numbers["outcomes"] if outcome["group"].startswith(start))
    return found


def test_it_leaves_the_edit_the_figures_the_report_and_the_numbers(finished, numbers) -> None:
    _, out = finished
    assert sorted(path.name for path in out.iterdir()) == [
        "dissection",
        "edit",
        "figures",
        "report.html",
        "results.json",
    ]
    assert sorted(path.stem for path in (out / "figures").iterdir()) == FIGURES
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in (out / "figures").iterdir())
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no temporary folder is left"


def test_the_landmarks_moved_and_nothing_else_did(numbers) -> None:
    for group, least in (("moved, trained phrasings", 0.95), ("moved, new phrasings", 0.8)):
        moved = by_group(numbers, group)
        assert moved["base"] < 0.05
        assert moved["edited"] >= least
        assert moved["control"] < 0.1, "random directions must not do it"
    for group in ("others, trained", "others, never", "what the moved", "facts about people"):
        stayed = by_group(numbers, group)
        assert stayed["base"] >= 0.9
        assert stayed["edited"] >= 0.85


def test_two_destinations_use_two_of_four_directions(numbers) -> None:
    late = numbers["operators"][-1]
    energy = [size**2 for size in late["spectrum"]]
    assert 1.5 < sum(energy) ** 2 / sum(e**2 for e in energy) < 3.0
    direct = [
        line
        for readout in numbers["readouts"]
        if readout["hook_name"] == late["hook_name"]
        for line in readout["watched"]
    ]
    assert min(p for _, change, p in direct if change > 0) < 0.05, "no write direction says a new city"


def test_the_reloaded_edit_is_the_same_to_the_bit(numbers) -> None:
    assert numbers["reload_difference"] == 0.0


def test_effect_and_trace_stand_beside_controls_that_show_little(numbers) -> None:
    for name in ("effect", "tracing"):
        values, control = (
            max(abs(v) for row in numbers[name][part] for v in row if v is not None) for part in ("values", "control")
        )
        assert values > 0.5
        assert control < 0.5 * values


def test_the_table_says_what_the_numbers_say(finished, numbers) -> None:
    text = " ".join(finished[0].stdout.split())
    moved = by_group(numbers, "moved, new")
    assert f"{moved['edited']:.0%}" in text
    assert "largest difference of a logit 0" in text


@pytest.mark.slow
def test_it_runs_on_a_model_it_knows_nothing_of(tmp_path) -> None:
    from reftlens.demo.page import write_all
    from reftlens.demo.run import DemoConfig, run_demo

    model = make_hf("gpt2", n_positions=128)
    model.save_pretrained(tmp_path / "model")
    cities = ["Paris", "Berlin", "London", "Moscow", "Vienna", "Sydney"]
    make_tokenizer(" ".join(cities * 9)).save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    config = DemoConfig(model=str(tmp_path / "model"), epochs=1, progress=False)
    result = run_demo(config, tmp_path / "out")
    write_all(result, tmp_path / "out")
    assert by_group({"outcomes": [vars(o) for o in result.outcomes]}, "moved, new")["base"] < 0.5
    assert "Eiffel Tower" in (tmp_path / "out" / "report.html").read_text()


# Bad input: a clear message, exit status 1, and nothing left behind.


def refused(tmp_path, *arguments: str) -> str:
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["demo", "--quiet", *arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert sorted(tmp_path.rglob("*")) == before
    return result.output + result.stderr


def test_unknown_model(tmp_path) -> None:
    message = refused(tmp_path, "--model", "no-such-model", "--out", str(tmp_path / "out"))
    assert "cannot load the model 'no-such-model'" in message
    assert "facts-small" in message


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    assert "file" in refused(tmp_path, "--out", str(tmp_path / "file"))
    assert "out cannot be written" in refused(tmp_path, "--out", str(tmp_path / "file" / "out"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "locked" in refused(tmp_path, "--out", str(tmp_path / "locked" / "out"))


def test_someone_elses_folder(tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    assert "so it is not replaced" in refused(tmp_path, "--out", str(tmp_path / "thesis"))
