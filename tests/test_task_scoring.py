"""Scorers: outputs judged by hand, the rules read once more in other words, and the reference implementation where it is at hand.

`task_outputs.json` holds outputs as models write them, what the rule reads from each, and how many are right, all by hand.
A checkout of https://github.com/stanfordnlp/pyreft, named by REFTLENS_PYREFT_CHECKOUT, is compared with as well.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reftlens as rl
from reftlens.paper.tasks import TASKS, Record, TextTask, arithmetic, commonsense, task_named
from reftlens.paper.tasks.instruct import save_for_alpaca_eval
from reftlens.paper.tasks.scoring import TRIGGER, is_number, read_letter, read_number, read_trigger, same_number
from reftlens.results import Evaluation

STORED = json.loads((Path(__file__).parent / "task_outputs.json").read_text())
CHECKOUT = Path(os.environ.get("REFTLENS_PYREFT_CHECKOUT", "not-at-hand"))
REFERENCE = CHECKOUT / "examples" / "loreft" / "compute_metrics.py"


@pytest.mark.parametrize("name", STORED)
def test_stored_outputs_count_as_by_hand(name) -> None:
    rows = STORED[name]["rows"]
    records = [Record("", "", row["answer"]) for row in rows]
    evaluation = task_named(name).score([row["output"] for row in rows], records)
    for found, row in zip(evaluation.rows, rows, strict=True):
        assert (found.prediction, found.right) == (row["prediction"], row["right"]), row
    assert evaluation.score == STORED[name]["right"] / len(rows)
    assert (evaluation.task, evaluation.metric, evaluation.n) == (name, "accuracy", len(rows))


def last_number(output: str) -> str:
    """Read from left to right: a number is an optional minus, digits, and a point with digits after it, if any."""
    text, found, place = output.replace(",", ""), "", 0
    while place < len(text):
        start = place
        end = place + 1 if text[place] == "-" else place
        digits = end
        while end < len(text) and text[end].isdigit():
            end += 1
        if end == digits:
            place += 1
            continue
        if end < len(text) and text[end] == ".":
            end += 1
            while end < len(text) and text[end].isdigit():
                end += 1
        found, place = text[start:end], end
    return found


@given(st.text(alphabet="0123456789..--,, ax$", max_size=25))
def test_numbers_are_read_as_from_left_to_right(output) -> None:
    assert read_number(output) == last_number(output)
    if read_number(output):
        assert is_number(read_number(output))


@given(st.text(alphabet="ABCDEFabcde (.", max_size=12))
def test_the_letter_is_the_first_of_five_wherever_it_stands(output) -> None:
    assert read_letter(output) == next((letter for letter in output if letter in "ABCDE"), "")


@given(st.lists(st.sampled_from([TRIGGER, "answer1", " ", "\n", "the correct answer", "."]), max_size=6))
def test_the_answer_is_all_that_follows_the_first_trigger(pieces) -> None:
    output = "".join(pieces)
    parts = output.split(TRIGGER)
    assert read_trigger(output) == (TRIGGER.join(parts[1:]).strip() if len(parts) > 1 else "")


def test_a_number_of_any_length_is_judged() -> None:
    assert not same_number("9" * 400, "9")
    assert same_number("-0", "0")


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no checkout of pyreft is named by REFTLENS_PYREFT_CHECKOUT")
def test_the_reference_counts_the_same() -> None:
    """Its functions are taken out of their file, whose imports want another environment."""
    wanted = {"is_float", "extract_answer_number", "extract_answer_letter", "extract_output"}
    tree = ast.parse(REFERENCE.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    there: dict = {"re": re}
    exec(compile(tree, str(REFERENCE), "exec"), there)  # the user's own checkout
    for name, stored in STORED.items():
        triggers = {"commonsense": TRIGGER, "arithmetic": "### Response:"}
        trigger = triggers[task_named(name).family]
        prompt = "" if trigger == TRIGGER else "### Response:\n"
        count = 0
        for row in stored["rows"]:
            output, answer = there["extract_output"](prompt + row["output"], trigger), row["answer"]
            if trigger == TRIGGER:
                count += output.strip() == answer
            elif there["is_float"](answer):
                count += abs(float(answer) - there["extract_answer_number"](output)) <= 0.001
            else:
                count += there["extract_answer_letter"](output) == answer
        assert count == stored["right"], name


def test_responses_are_right_word_for_word_alone() -> None:
    records = [Record("", "Hello there.", "Hello there."), Record("", "No.", "No.")]
    evaluation = task_named("ultrafeedback").score(["Hello there.\n", "no."], records)
    assert [row.right for row in evaluation.rows] == [True, False]
    assert (evaluation.metric, evaluation.score) == ("exact match", 0.5)


@pytest.mark.parametrize("name", ["boolq", "gsm8k", "ultrafeedback"])
def test_outputs_and_records_must_be_as_many(name) -> None:
    task = task_named(name)
    with pytest.raises(ValueError, match="got 1 outputs for 2 records"):
        task.score(["1"], [Record("", "", "1")] * 2)
    with pytest.raises(ValueError, match="got 0 outputs for 0 records"):
        task.score([], [])


def test_an_evaluation_is_saved_and_read_back(tmp_path) -> None:
    records = [Record("one\u2028line\nand two", "", "true"), Record("ü", "", "false")]
    outputs = [TRIGGER + "true", "no\rtrigger\x85"]
    evaluation = task_named("boolq").score(outputs, records)
    file = evaluation.save(tmp_path / "new" / "boolq.jsonl")
    assert Evaluation.load(file) == evaluation
    assert [path.name for path in file.parent.iterdir()] == ["boolq.jsonl"]
    head, *rows = map(json.loads, file.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    assert head == {"task": "boolq", "metric": "accuracy", "score": 0.5, "n": 2}
    assert rows[0] == {
        "prompt": records[0].prompt, "output": outputs[0], "prediction": "true", "answer": "true", "right": True
    }  # fmt: skip
    frame = evaluation.to_dataframe()
    assert frame["right"].tolist() == [True, False]
    assert frame["output"].tolist() == outputs
    assert repr(evaluation) == "Evaluation(boolq: accuracy 0.5000 on 2 records)"


def test_a_damaged_evaluation_is_refused_by_its_line(tmp_path) -> None:
    evaluation = task_named("boolq").score(["x", "y"], [Record("", "", "true")] * 2)
    lines = evaluation.save(tmp_path / "it.jsonl").read_text().splitlines()
    for damaged, message in [
        (lines[:2], "should hold 2 records, but holds 1"),
        ([*lines[:2], lines[2][:9]], "line 3: not JSON"),
        ([lines[0], lines[1], '{"prompt": ""}'], "line 3: not a line of a saved evaluation"),
        (["[]", *lines[1:]], "line 1: not a line of a saved evaluation"),
        ([""], "line 1: not JSON"),
    ]:
        (tmp_path / "damaged.jsonl").write_text("\n".join(damaged) + "\n")
        with pytest.raises(ValueError, match=message):
            Evaluation.load(tmp_path / "damaged.jsonl")


def test_responses_are_written_for_alpaca_eval(tmp_path) -> None:
    file = save_for_alpaca_eval(tmp_path / "out.json", ["Say hi."], ["hi"], generator="mine")
    (row,) = json.loads(file.read_text())
    assert row == {"instruction": "Say hi.", "output": "hi", "dataset": "alpaca_eval", "generator": "mine"}
    with pytest.raises(ValueError, match="got 0 outputs for 1"):
        save_for_alpaca_eval(tmp_path / "out.json", ["Say hi."], [], generator="mine")


def test_tasks_have_names() -> None:
    assert {task.family for task in TASKS.values()} >= {"commonsense", "arithmetic", "instruct"}
    assert all(task_named(name).name == name for name in TASKS)
    with pytest.raises(ValueError, match=r"Unknown task 'bool'. Choose from: boolq, piqa"):
        rl.tasks.task_named("bool")


def test_decoding_and_training_length_are_the_papers() -> None:
    """Table of hyperparameters: greedy, 32 tokens; greedy, 512; no 5-gram twice and a penalty of 1.1, 2,048."""
    wanted = {
        "commonsense": (rl.Decoding(max_new_tokens=32), 512),
        "arithmetic": (rl.Decoding(max_new_tokens=512), 512),
        "instruct": (rl.Decoding(max_new_tokens=2048, no_repeat_ngram_size=5, repetition_penalty=1.1), 768),
    }
    for task in TASKS.values():
        if isinstance(task, TextTask):
            assert (task.decoding, task.max_length) == wanted[task.family]
    beams = {"num_beams": 4, "top_p": 0.75, "top_k": 40}
    assert rl.Decoding(max_new_tokens=512, temperature=0.3, **beams) == arithmetic.BEAMS
    assert rl.Decoding(max_new_tokens=32, temperature=0.1, **beams) == commonsense.BEAMS
