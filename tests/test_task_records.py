"""Reading records: what is there comes out in order, and what is wrong is named with its file, number and line."""

from __future__ import annotations

import json
import os
import subprocess
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from reftlens.paper.tasks import TASKS, commonsense, records, task_named
from reftlens.paper.tasks.arithmetic import LeakWarning
from reftlens.paper.tasks.llm_adapters import _blob, read_split

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("REFTLENS_LLM_ADAPTERS", ROOT.parent / "shared" / "data" / "llm_adapters"))
"""The files of LLM-Adapters lie outside the repository."""
YES = {"instruction": "Is it?", "input": "", "output": "the correct answer is true", "answer": "true"}
NO = {**YES, "instruction": "Was it?", "output": "the correct answer is false", "answer": "false"}
SUM = {"instruction": "What is 1 + 1?", "input": "", "output": "\nA: 1 + 1 = 2.", "answer": "2.0"}


def written(tmp_path, content) -> Path:
    """A file with this text, or these values as a JSON list with one field in a line."""
    file = tmp_path / "test.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content, indent=0), encoding="utf-8")
    return file


@pytest.mark.parametrize("form", ["list", "one line", "lines", "lines without a last end", "bom"])
def test_every_form_gives_the_same_records(tmp_path, form) -> None:
    text = {
        "list": json.dumps([YES, NO], indent=2),
        "one line": json.dumps([YES, NO]),
        "lines": f"{json.dumps(YES)}\n{json.dumps(NO)}\n",
        "lines without a last end": f"{json.dumps(YES)}\r\n{json.dumps(NO)}",
        "bom": "\ufeff" + json.dumps([YES, NO]),
    }[form]
    found = task_named("boolq").load("test", source=written(tmp_path, text))
    assert [(record.prompt, record.completion, record.answer) for record in found] == [
        ("Is it?\n", "the correct answer is true", "true"),
        ("Was it?\n", "the correct answer is false", "false"),
    ]


def test_the_arithmetic_prompt_is_alpacas(tmp_path) -> None:
    (record,) = task_named("gsm8k").load("test", source=written(tmp_path, [SUM]))
    assert record.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWhat is 1 + 1?\n\n### Response:\n"
    )
    assert (record.completion, record.answer) == ("\nA: 1 + 1 = 2.", "2.0")


def test_instructions_with_an_input_have_a_template_of_their_own(tmp_path) -> None:
    rows = [
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"instruction": "Say hi.", "output": "hi"},
    ]
    with_input, without, missing = task_named("ultrafeedback").load("train", source=written(tmp_path, rows))
    assert with_input.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\nGuten Tag\n\n"
        "### Response:\n"
    )
    assert "### Input" not in without.prompt
    assert without == missing
    assert (with_input.completion, with_input.answer) == ("Good day", "Good day")


def test_ultrafeedbacks_messages_are_read(tmp_path) -> None:
    chosen = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "hi"}]
    (record,) = task_named("ultrafeedback").load(
        "train", source=written(tmp_path, [{"prompt": "Say hi.", "chosen": chosen, "rejected": []}])
    )
    assert record.completion == "hi"
    assert "### Instruction:\nSay hi.\n" in record.prompt
    for wrong in ([], "hi", chosen[:1], [{"role": "assistant", "content": " "}], [{"role": "assistant"}]):
        with pytest.raises(ValueError, match=r"record 1 \(line 2\): 'chosen' must be messages"):
            task_named("ultrafeedback").load(
                "train", source=written(tmp_path, [{"prompt": "Say hi.", "chosen": wrong}])
            )


BROKEN = {
    "a field is missing": ([YES, {"instruction": "x"}], r"record 2 \(line 8\): the field 'answer' is missing; the record has instruc"),
    "an empty object": ([YES, {}], r"record 2 \(line 8\): the field 'answer' is missing; the record has no fields"),
    "a number": ([YES, {**YES, "answer": 1}], r"record 2 \(line 8\): 'answer' must be a string, got 1 \(int\)"),
    "null": ([{**YES, "instruction": None}], r"record 1 \(line 2\): 'instruction' must be a string, got None"),
    "empty": ([YES, {**NO, "instruction": " "}], r"record 2 \(line 8\): 'instruction' is empty"),
    "no such answer": ([YES, NO, {**YES, "answer": "True"}], r"record 3 \(line 14\): 'answer' must be one of true, false, got 'T"),
    "an input": ([{**YES, "input": "x"}], r"record 1 \(line 2\): 'input' must be empty"),
    "no record": ([YES, "x"], r"record 2 \(line 8\): a record must be an object with named fields, got str"),
    "not JSON": ('[\n{"instruction": "x",\n"answer": tru}\n]', r"record 1 \(line 2\): not JSON, in line 3 \(Expecting value\)"),
    "cut off": ('[\n{"instruction": "x"}', r"line 2: expected a comma or the end of the list after record 1"),
    "cut off inside": ('[\n{"instruction": "x', r"record 1 \(line 2\): not JSON, in line 2 \(Unterminated string"),
    "no comma": ("[{}\n{}]", "line 2: expected a comma or the end of the list after record 1"),
    "a comma too many": ("[{}\n,\n]", r"record 2 \(line 3\): not JSON, in line 3 \(Expecting value\)"),
    "something behind": ("[{}]\n\n{}", "line 3: unexpected text after the end of the list"),
    "twice": ('{"answer": "true",\t"answer": "false"}', r"record 1 \(line 1\): the key 'answer' occurs more than once"),
    "an empty line": (f"{json.dumps(YES)}\n\n{json.dumps(NO)}", r"record 2 \(line 2\): not JSON, in line 2"),
    "two in a line": (f"{json.dumps(YES)} {json.dumps(NO)}", r"record 1 \(line 1\): unexpected text after the record"),
    "text": ("question,answer\n", r"record 1 \(line 1\): not JSON"),
    "nothing": ("", "has no records"),
    "an empty list": ("[ ]", "has no records"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_malformed_record_is_named_with_its_line(tmp_path, fault) -> None:
    content, message = BROKEN[fault]
    file = written(tmp_path, content)
    with pytest.raises(ValueError, match=message) as raised:
        task_named("boolq").load("test", source=file)
    assert str(raised.value).startswith(str(file))


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path) -> None:
    file = tmp_path / "test.json"
    file.write_bytes(b'[\n{"instruction": "\xff"}]')
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        task_named("boolq").load("test", source=file)


@pytest.mark.parametrize(
    ("name", "split", "change", "message"),
    [
        ("gsm8k", "test", {"answer": "1,200"}, "'answer' must be a number, got '1,200'"),
        ("gsm8k", "test", {"answer": "A"}, "'answer' must be a number, got 'A'"),
        ("gsm8k", "test", {"answer": "nan"}, "'answer' must be a number, got 'nan'"),
        ("AQuA", "test", {"answer": "F"}, "'answer' must be a letter A to E, got 'F'"),
        ("AQuA", "test", {"answer": "2.0"}, "'answer' must be a letter A to E, got '2.0'"),
        ("math_10k", "train", {"answer": "none"}, "'answer' must be a number or a letter A to E, got 'none'"),
        ("math_10k", "train", {"output": ""}, "'output' is empty"),
        ("ultrafeedback", "train", {"output": ""}, "'output' is empty"),
        ("ultrafeedback", "train", {"input": 3}, "'input' must be a string, got 3"),
    ],
)
def test_each_task_knows_its_answers(tmp_path, name, split, change, message) -> None:
    file = written(tmp_path, [SUM, {**SUM, **change}])
    if name == "AQuA":
        file = written(tmp_path, [{**SUM, "answer": "B"}, {**SUM, **change}])
    with pytest.raises(ValueError, match=rf"record 2 \(line 8\): {message}"):
        task_named(name).load(split, source=file)


def test_a_test_record_may_have_no_output_and_then_cannot_be_trained_on(tmp_path, gpt2) -> None:
    task = task_named("mawps")
    found = task.load("test", source=written(tmp_path, [SUM, {**SUM, "output": ""}]))
    assert task.examples(gpt2, found[:1]) == [(found[0].prompt, found[0].completion + "<|endoftext|>")]
    with pytest.raises(ValueError, match="record 1 of mawps has no text to train on"):
        task.examples(gpt2, found)


def test_folders_have_a_file_for_each_task_and_split(tmp_path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "train.json").write_text(json.dumps([YES]))
    (tmp_path / "boolq" / "test.jsonl").write_text(json.dumps(NO))
    (tmp_path / "ft-training_set").mkdir()
    (tmp_path / "ft-training_set" / "math_10k.json").write_text(json.dumps([SUM]))
    boolq = task_named("boolq")
    assert [record.answer for record in boolq.load("train", source=tmp_path)] == ["true"]
    assert [record.answer for record in boolq.load("test", source=str(tmp_path))] == ["false"]
    assert len(task_named("math_10k").load("train", source=tmp_path)) == 1
    with pytest.raises(
        FileNotFoundError, match=r"has none of piqa/test\.json, piqa/test\.jsonl, dataset/piqa/test\.json"
    ):
        task_named("piqa").load("test", source=tmp_path)


def test_limit_takes_the_first(tmp_path) -> None:
    file = written(tmp_path, [YES, NO, YES])
    assert [record.answer for record in task_named("boolq").load("test", source=file, limit=2)] == ["true", "false"]
    assert len(task_named("boolq").load("test", source=file, limit=9)) == 3
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        task_named("boolq").load("test", source=file, limit=0)


def test_what_is_not_there_is_said(tmp_path) -> None:
    for name, split in [("boolq", "validation"), ("math_10k", "test"), ("ultrafeedback", "test")]:
        with pytest.raises(ValueError, match=f"got '{split}'"):
            task_named(name).load(split, source=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nowhere\.json"):
        task_named("boolq").load("test", source=tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        task_named("boolq").load("test", source=tmp_path / "nowhere")


def test_a_dataset_of_the_hub_is_read_by_name(monkeypatch) -> None:
    """The hub is played by a function: what it is asked for, and what becomes of its rows and of its refusal."""
    asked = []

    def hub(name: str, subset: str | None, *, split: str) -> Dataset:
        assert subset is None
        asked.append((name, split))
        if name != "me/boolq":
            raise DatasetNotFoundError(f"no {name}")
        return Dataset.from_list([YES, {**NO, "answer": None}])

    monkeypatch.setattr(records, "load_dataset", hub)
    boolq = task_named("boolq")
    assert boolq.load("test", source="me/boolq", limit=1)[0].answer == "true"
    with pytest.raises(ValueError, match=r"me/boolq \(test\), record 2: 'answer' must be a string, got None"):
        boolq.load("test", source="me/boolq")
    with pytest.raises(
        FileNotFoundError, match=r"loading the split 'test' of that dataset from the hub failed: no me/wrong"
    ):
        boolq.load("test", source="me/wrong")
    assert set(asked) == {("me/boolq", "test"), ("me/wrong", "test")}


def test_without_a_source_the_published_file_is_asked_for(monkeypatch, tmp_path) -> None:
    asked = []

    def fetch(address: str, blob: str | None) -> Path:
        asked.append(address)
        return written(tmp_path, [{**YES, "answer": "maybe"}])

    monkeypatch.setattr(records, "_download", fetch)
    with pytest.raises(ValueError, match=r"^https://.*dataset/boolq/test\.json, record 1 \(line 2\): 'answer' must be"):
        task_named("boolq").load("test")
    with pytest.raises(ValueError, match="'answer' must be one of true, false, solution1"):
        task_named("commonsense_170k").load("train")
    assert len(task_named("ultrafeedback").load("train")) == 1
    assert [address.rsplit("/", 2)[-2:] for address in asked] == [
        ["boolq", "test.json"],
        ["ft-training_set", "commonsense_170k.json"],
        ["d1b3193643daff9361fe95885ac580e0991f471a", "train.json"],
    ]


def test_a_web_address_is_fetched_once(monkeypatch, tmp_path) -> None:
    """From a server in this process."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "test.json").write_text(json.dumps([YES]))
    monkeypatch.setattr(records.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/test.json"
        found = task_named("boolq").load("test", source=address)
        with pytest.raises(
            FileNotFoundError, match=r"none\.json could not be fetched \(HTTP Error 404.*pass the file as source"
        ):
            task_named("boolq").load("test", source=address.replace("test.json", "none.json"))
        server.shutdown()
    assert [record.answer for record in found] == ["true"]
    assert task_named("boolq").load("test", source=address) == found
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        task_named("boolq").load("test", source=address.replace("test.json", "other.json"))
    assert len(list((tmp_path / "cache" / "reftlens").iterdir())) == 1


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


def test_leaked_test_sets_say_so(tmp_path) -> None:
    file = written(tmp_path, [SUM])
    for name in ("AddSub", "MultiArith", "SingleEq"):
        with pytest.warns(LeakWarning, match=f"{name} is part of MAWPS, whose training set is in math_10k"):
            assert len(task_named(name).load("test", source=file)) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task_named("mawps").load("test", source=file)


def test_the_training_set_takes_every_tasks_answers() -> None:
    for task in commonsense.TASKS:
        assert set(task.answers) <= set(commonsense.TRAINING.answers)


def test_a_fetched_file_must_be_the_published_one(tmp_path, monkeypatch) -> None:
    content, fetched = b'[{"instruction": "a", "input": "", "output": "b", "answer": "b"}]', []

    def fetch(address: str, file: str) -> None:
        fetched.append(address)
        Path(file).write_bytes(content)

    monkeypatch.setattr(records, "download_url_to_file", fetch)
    monkeypatch.setattr(records.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=r"is not the published file: its Git digest is \w{40}, not 6d7edb0a"):
        read_split("boolq", "test", splits=("train", "test"))
    assert not list(tmp_path.rglob("*.json"))
    digest = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True).stdout
    (raw,) = records.read(fetched[0], within=(), split="test", blob=digest.decode().strip())
    assert raw.text("answer") == "b"
    for task in TASKS.values():
        if hasattr(task, "splits") and type(task).__module__.endswith(("arithmetic", "commonsense")):
            for split in task.splits:
                only = tuple(task.splits) == ("train",)
                assert (
                    len(_blob(f"ft-training_set/{task.name}.json" if only else f"dataset/{task.name}/{split}.json"))
                    == 40
                )


@pytest.mark.skipif(not REAL.is_dir(), reason="LLM-Adapters' files are not on this machine")
def test_the_real_files_are_read_whole() -> None:
    """As many records as a plain parse finds, in its order; and one that has nothing to train on is found."""
    n_files = 0
    for task in TASKS.values():
        for split in ("train", "test"):
            file = REAL / task.name / f"{split}.json"
            if file.is_file():
                plain = json.loads(file.read_text())
                found = task.load(split, source=REAL)
                assert [record.answer for record in found] == [record["answer"] for record in plain]
                assert all(plain[row]["instruction"] in found[row].prompt for row in range(len(plain)))
                n_files += 1
    assert n_files >= 11
    with pytest.raises(ValueError, match=r"math_data\.json, record 176 \(line 1052\): 'output' is empty"):
        task_named("math_10k").load("train", source=REAL / "ft-training_set" / "math_data.json")
