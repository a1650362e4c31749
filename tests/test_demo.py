"""The main job as a user runs it: one command, and every file it leaves; the README's code; a model it knows nothing of."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_hf, make_tokenizer
from typer.testing import CliRunner

import reftlens as rl
from figures import NAMES, NUMBERS
from figures import main as put
from reftlens.cli import app

README = Path(__file__).parent.parent / "README.md"
FIGURES_FOLDER = README.parent / "figures"

FIGURES = ["dose", "effect", "interchange", "outcomes", "readout", "spectrum", "tracing", "training"]


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
    assert len(page.encode()) < 2_000_000
    assert page.count('<li><div class="question">') == 8
    # Maps, sizes and doses are on the page as tables, strips and curves.
    assert page.count('<figure class="map"') >= 3
    assert page.count('<figure class="dose"') == 1
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
    late = numbers["dissection"]["operators"][-1]
    energy = [size**2 for size in late["spectrum"]]
    assert 1.5 < sum(energy) ** 2 / sum(e**2 for e in energy) < 3.0
    direct = [
        line
        for readout in numbers["dissection"]["readouts"]
        if readout["site"] == late["where"]
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
    for finding in numbers["dissection"]["findings"]:
        assert " ".join(finding["answer"].split()) in text


# The README, and its figures.


def test_every_number_of_the_readmes_demo_is_one_of_the_committed_run() -> None:
    told, given = numbers_told(README.read_text()), numbers_given(json.loads((FIGURES_FOLDER / NUMBERS).read_text()))
    assert told == given


def test_a_number_that_parts_from_the_run_is_found() -> None:
    results = json.loads((FIGURES_FOLDER / NUMBERS).read_text())
    results["outcomes"][1]["edited"] -= 0.01
    assert numbers_told(README.read_text()) != numbers_given(results)


def test_figures_and_numbers_that_differ_from_those_committed_are_found_and_replaced(tmp_path, capsys) -> None:
    (tmp_path / "demo" / "figures").mkdir(parents=True)
    results = json.loads((FIGURES_FOLDER / NUMBERS).read_text())
    (tmp_path / "demo" / NUMBERS).write_text(json.dumps(results))
    for name in NAMES:
        shutil.copyfile(FIGURES_FOLDER / f"{name}.png", tmp_path / "demo" / "figures" / f"{name}.png")
    assert put(tmp_path / "demo", tmp_path / "figures") == 0
    assert put(tmp_path / "demo", tmp_path / "figures") == 0
    shutil.copyfile(FIGURES_FOLDER / "dose.png", tmp_path / "demo" / "figures" / "effect.png")
    results["outcomes"][0]["edited"] -= 0.1
    (tmp_path / "demo" / NUMBERS).write_text(json.dumps(results))
    capsys.readouterr()
    assert put(tmp_path / "demo", tmp_path / "figures") == 1
    said = capsys.readouterr().out
    assert "effect.png: was" in said
    assert "/outcomes/0/edited: was" in said
    assert put(tmp_path / "demo", tmp_path / "figures") == 0, "the new ones are in their place"


def numbers_told(readme: str) -> list[str]:
    """Those of the part on the demo, in order, without the words around them."""
    part = readme[readme.index("## What the demo finds") : readme.index("## Which question")]
    return re.findall(r"\d+(?:\.\d+)?%?", re.sub(r"\]\([^)]*\)", "", part))


def numbers_given(results: dict[str, Any]) -> list[str]:
    """The same from the demo's results; those that the demo sets rather than finds stand here as they are."""
    found = results["dissection"]
    table = [
        text
        for one in results["outcomes"]
        for text in (str(one["n"]), *(f"{one[name]:.0%}" for name in ("base", "edited", "control")))
    ]
    *_, people = results["outcomes"]
    beyond, late = found["beyond the 95th percentile"], found["interchanges"][-1]
    return [
        *("4", "40", "28", "8", "0"),
        *table,
        f"{people['base'] - people['edited']:.0%}",
        *(f"{one['effective_rank']:.1f}" for one in found["operators"]),
        *(f"{one['untrained']:.1f}" for one in found["operators"]),
        *(f"{one['edited']:.0%}" for one in beyond),
        "95%",
        *(f"{one['control']:.0%}" for one in beyond),
        *(f"{late[name]:.0%}" for name in ("inside", "random", "complement")),
    ]


def check_the_readme(folder, monkeypatch, capsys) -> None:
    """Runs its code in a folder, and checks what it says of it."""
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for line in first.splitlines() if line]
    assert len(lines) == 12
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for block in (first, *others):
            exec(compile(block, str(README), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    answers = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
    assert answers.count("Halvik") + answers.count("Wexmoor") >= 10, answers
    assert (folder / "spectrum.png").stat().st_size > 10_000
    assert (folder / "dissection").is_dir()
    assert names["logits"].shape[0] == len(names["prompts"]) == 12


def test_the_readmes_code_does_what_it_says_with_the_edit_of_the_demo(finished, tmp_path, monkeypatch, capsys) -> None:
    """The two long calls are the demo's own, which has just run them: what it saved stands in for a second run."""
    _, out = finished
    train, dissect = inspect.signature(rl.train), inspect.signature(rl.dissect)

    def trained(*args, **kwargs):
        given = train.bind(*args, **kwargs).arguments
        reft, config = given["reft"], replace(given["config"], seed=0)
        assert config == rl.TrainConfig(epochs=30, batch_size=35, lr=4e-3, seed=0), "the demo's settings"
        saved = rl.Reft.from_pretrained(out / "edit", bridge=given["bridge"])
        assert repr(saved) == repr(reft)
        reft.load_state_dict(saved.state_dict())

    def dissected(*args, **kwargs):
        given = dissect.bind(*args, **kwargs).arguments
        assert (type(given["reft"]), given["config"].at) == (rl.Reft, rl.Last(1))
        assert all(prompt and answer.startswith(" ") for prompt, answer in given["examples"])
        return rl.load_dissection(out / "dissection")

    monkeypatch.setattr(rl, "train", trained)
    monkeypatch.setattr(rl, "dissect", dissected)
    check_the_readme(tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_the_readmes_code_runs_as_it_stands(tmp_path, monkeypatch, capsys) -> None:
    check_the_readme(tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
def test_links_lead_somewhere(link) -> None:
    assert (README.parent / link).exists()


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
