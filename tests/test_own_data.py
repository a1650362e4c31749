"""Your own data: every layout and file gives the same examples, and outputs are compared as the metric says."""

from __future__ import annotations

import json
import subprocess
import sys

import pandas as pd
import pytest
from conftest import PROMPTS
from datasets import Dataset, DatasetDict
from test_attach_to_hf import edit_at

import reftlens as rl
from reftlens.data.layouts import example_of, layout_of, prompt_of
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.testing import pairs_in
from reftlens.paper.tasks.measures import measure_named
from reftlens.paper.tasks.own import Pairs
from reftlens.training.objectives import Completion

ROWS = [("The tower is in", " Rome"), ("The bridge, it's in", ' "Ostra"\nand more')]
RECORDS = [{"prompt": prompt, "completion": completion} for prompt, completion in ROWS]


@pytest.mark.parametrize(
    ("record", "example"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
         (({"role": "user", "content": "Hi"},), "Ho")),
        ({"question": "Where?", "answer": "Rome"}, ("Question: Where?\nAnswer:", " Rome")),
        ({"instruction": "Say hi.", "input": "", "output": "hi"},
         ("Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
          "### Instruction:\nSay hi.\n\n### Response:\n", "hi")),
        ({"instruction": "Add.", "input": "1 1", "output": "2", "answer": "2"},
         ("Below is an instruction that describes a task, paired with an input that provides further context. Write a response "
          "that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 1\n\n### Response:\n", "2")),
        (RECORDS[0], ROWS[0]),
    ],
)  # fmt: skip
def test_each_layout(record, example) -> None:
    assert example_of(record) == example
    assert prompt_of(record) == example[0]
    assert Completion().read([record]) == [example]
    assert Completion().read(Dataset.from_list([record])) == [example]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a", "label": "b"}, "no layout fits the fields text, label: a record has messages; or prompt and"),
        ({"prompt": "a"}, "the field 'completion' is missing"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a string, got 3"),
        ({"question": "a", "answer": " "}, "'answer' is empty"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "must end with the assistant's turn"),
    ],
)
def test_what_fits_no_layout_is_named(record, message) -> None:
    with pytest.raises(ValueError, match=message):
        example_of(record)
    with pytest.raises(ValueError, match=f"example 1: .*{message}"):
        Completion().read([RECORDS[0], record])


def test_fields_of_other_names_are_named() -> None:
    record = {"text": "The tower is in", "label": " Rome", "prompt": "other"}
    assert example_of(record, prompt_field="text", completion_field="label") == ROWS[0]
    with pytest.raises(ValueError, match="pass both prompt_field and completion_field"):
        example_of(record, prompt_field="text")
    assert layout_of({"question": "a", "answer": "b"}) == "question and answer"


def test_a_prompt_needs_no_completion() -> None:
    turns = ({"role": "user", "content": "Hi"},)
    assert prompt_of({"messages": list(turns)}) == prompt_of(
        {"messages": [*turns, {"role": "assistant", "content": "a"}]}
    )
    assert prompt_of({"messages": list(turns)}) == turns
    assert prompt_of({"question": "Where?"}) == "Question: Where?\nAnswer:"
    assert prompt_of({"question": "Where?"}, prompt_field="question") == "Where?"
    both = {"instruction": "Add.", "question": "Where?", "answer": "Rome"}
    assert prompt_of(both) == example_of(both)[0], "the layout that training takes"
    with pytest.raises(ValueError, match="the field 'prompt' is missing; the record has text"):
        prompt_of({"text": "a"})


def test_the_warning_shows_the_word_and_not_the_end_of_text() -> None:
    with pytest.warns(UserWarning, match=r"as in 'is inRome'\. .* one \(' Rome'\)"):
        Completion().read([("is in", "Rome<|endoftext|>")])


def test_every_kind_of_file_gives_the_same_records(tmp_path) -> None:
    frame = pd.DataFrame(RECORDS)
    (tmp_path / "a.json").write_text(json.dumps(RECORDS))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "one"))
    DatasetDict({"train": Dataset.from_list(RECORDS)}).save_to_disk(str(tmp_path / "dict"))
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet", "one", "dict"):
        records = Pairs(str(tmp_path / name)).load("train")
        assert [(record.prompt, record.completion) for record in records] == ROWS, name
        assert pairs_in(tmp_path / name) == ROWS, name
    assert Completion().read(frame) == ROWS
    with pytest.raises(ValueError, match="must be one of train, got 'test'"):
        Pairs(str(tmp_path / "dict")).load("test")
    (tmp_path / "short.csv").write_text("prompt,completion\na,b\nc\n")
    with pytest.raises(ValueError, match=r"record 2 \(line 3\): the number of values differs from that of the header"):
        Pairs(str(tmp_path / "short.csv")).load("train")
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        Pairs(str(tmp_path / "no.parquet")).load("train")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        Pairs(str(tmp_path / "nowhere")).load("train")


def test_words_that_run_together_are_noticed() -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 completions begin .* as in 'The tower is inRome'"):
        Completion().read([("The tower is in", "Rome"), ROWS[0]])
    # An equation, another script, a prompt that ends in space, a conversation.
    Completion().read([("1+1=", "2"), ("塔在", "罗马"), ("In: ", "Rome"), ([{"role": "user", "content": "a"}], "b")])


def test_own_data_gets_enough_steps_by_default() -> None:
    own = RunConfig.from_values({"model": "facts-small", "data": "mine.jsonl", "batch_size": 4})
    assert own.for_examples(40).epochs == 30
    assert own.for_examples(10**6).epochs == 3
    assert own.with_values({"epochs": 2}).for_examples(40).epochs == 2
    assert RunConfig.from_values({"model": "facts-small", "task": "cola"}).for_examples(40).epochs == 3


@pytest.mark.parametrize(
    ("name", "output", "target", "value"),
    [
        ("prefix", " Rome, and more", " Rome", True),
        ("prefix", " Romeo", " Rome", False),
        ("prefix", " 12", " 1", False),
        ("prefix", "Ro", " Rome", False),
        ("exact", " Rome\n", " Rome", True),
        ("exact", " Rome, and more", " Rome", False),
        ("first word", " Rome is", " Rome was", True),
        ("first word", "", " Rome", False),
        # Longest common subsequence "the cat the mat" of 6 and 6 words: F = 2 * 4 / 12.
        ("rouge-l", "the cat lay by the mat", "the fat cat hit the mat", 2 * 4 / 12),
        ("rouge-l", "", "a", 0.0),
        ("math:dist", "", "", None),
    ],
)  # fmt: skip
def test_measures_by_hand(name, output, target, value) -> None:
    measure = measure_named(name)
    if value is None:
        assert measure.label == "dist"
    else:
        assert measure.compare(output, target) == pytest.approx(value)


def test_an_unknown_measure_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match=r"Unknown metric 'bleu'. Choose from: prefix, exact"):
        Pairs("mine.jsonl", measure="bleu")
    with pytest.raises(ValueError, match="math has no function 'nothing'"):
        measure_named("math:nothing")


def test_outputs_may_be_as_long_as_the_longest_target(gpt2) -> None:
    """Targets of 40 tokens and more, where decoding stops at 32 by default: the model's own text is exactly right."""
    said = rl.generate(gpt2, None, PROMPTS, max_new_tokens=40)
    task = Pairs("mine.jsonl")
    records = [rl.tasks.Record(prompt, text, text) for prompt, text in zip(PROMPTS, said, strict=True)]
    result = rl.tasks.evaluate(gpt2, None, task, records, progress=False)
    assert (result.score, result.metric) == (1.0, "match up to the target's end")
    edited = rl.tasks.evaluate(gpt2, edit_at("hook_resid_post").scaled(8.0), task, records, progress=False)
    assert edited.score < 1
    short = rl.tasks.evaluate(gpt2, None, Pairs("mine.jsonl", whole=False), records, progress=False)
    assert short.score == 0
    graded = rl.tasks.evaluate(gpt2, None, Pairs("mine.jsonl", whole=False, measure="rouge-l"), records, progress=False)
    assert 0 < graded.score < 1
    assert any(row.right is None for row in graded.rows)


def test_wrong_paths_are_refused_before_heavy_imports(tmp_path) -> None:
    script = (
        "import sys; from typer.testing import CliRunner; from reftlens.cli import app\n"
        "for words in (['eval', 'nowhere'], ['generate', 'nowhere', 'a'], ['train', '--model', 'm', '--data', 'nowhere.jsonl'],\n"
        "              ['eval', '.', '--data', 'nowhere.csv'], ['convert', 'nowhere', '--model', 'm', '--positions', 'l1']):\n"
        "    found = CliRunner().invoke(app, words)\n"
        "    assert found.exit_code == 1 and any(said in found.stderr for said in ('does not exist', 'no such file')), (words, found.output)\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
