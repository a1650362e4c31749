"""GLUE end to end on files that the test writes: planted rules are learned, shuffled labels are not; splits, metrics, faults."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import datasets
import pytest
import torch
from conftest import make_bridge
from encoders import make_encoder

import reftlens as rl
from reftlens.paper.tasks import evaluate, glue, records, task_named
from reftlens.training.objectives import Classification, Regression

A, B = ["old", "tower", "city", "river", "stands"], ["weaver", "lives", "speaks", "Tharic", "who"]
STS_COLUMNS = [
    "index",
    "genre",
    "filename",
    "year",
    "old_index",
    "source1",
    "source2",
    "sentence1",
    "sentence2",
    "score",
]


def rows_of(name, rng, n):
    """Rows in the columns of GLUE's own files. What decides a pair's answer stands in its second sentence."""
    for row in range(n):
        label, noise = rng.randrange(2), " ".join(rng.choices(A + B, k=2))
        match name:
            case "SST-2":
                yield [" ".join(rng.choices(A if label else B, k=6)), str(label)]
            case "CoLA":
                yield ["ks08", str(label), "*" * (1 - label), " ".join(rng.choices(A if label else B, k=6))]
            case "RTE":
                second = " ".join(["river"] * 3 * label + rng.choices(B, k=4 - 3 * label))
                yield [str(row), noise, second, "entailment" if label else "not_entailment"]
            case "STS-B":
                rivers = rng.randrange(5)
                second = " ".join(["river"] * rivers + rng.choices(B, k=4 - rivers))
                yield [str(row), "g", "f", "2012", str(row), "s", "s", noise, second, f"{rivers:.3f}"]


HEADERS = {
    "SST-2": ["sentence", "label"],
    "CoLA": None,
    "RTE": ["index", "sentence1", "sentence2", "label"],
    "STS-B": STS_COLUMNS,
}


def write_tsv(file, header, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in ([header] if header else []) + list(rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def download(folder, name):
    """The files of a task as GLUE's download has them."""
    rng = random.Random(0)
    write_tsv(folder / name / "train.tsv", HEADERS[name], rows_of(name, rng, 128))
    write_tsv(folder / name / "dev.tsv", HEADERS[name], rows_of(name, rng, 120))
    return folder


def trained(bridge, task, training, positions="f3"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = task.objective(bridge)
        reft = rl.Reft.at_layers(bridge, layers="all", positions=positions, rank=1)
    config = rl.TrainConfig(epochs=4, batch_size=16, lr=1e-2, dropout=0.05, progress=False)
    rl.train(bridge, reft, task.examples(bridge, training), config, objective=objective)
    return reft, objective


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture", "least"),
    [
        ("RTE", "bert", 0.85),
        pytest.param("CoLA", "roberta", 0.7, marks=pytest.mark.slow),
        ("STS-B", "roberta", 0.75),
    ],
)
def test_a_planted_rule_is_learned(tmp_path, name, architecture, least) -> None:
    task, bridge, source = task_named(name), make_encoder(architecture), download(tmp_path, name)
    reft, objective = trained(bridge, task, task.load("train", source=source))
    test = task.load("test", source=source)
    result = evaluate(bridge, reft, task, test, objective=objective, batch_size=32, progress=False)
    assert result.metric == {"RTE": "accuracy", "CoLA": "Matthews correlation", "STS-B": "Pearson correlation"}[name]
    assert result.n == 60
    assert result.score > least
    base = evaluate(bridge, None, task, test, objective=objective, batch_size=32, progress=False)
    assert base.score < result.score, "the head was trained with the edit"
    result.save(tmp_path / "result.jsonl")
    assert type(result).load(tmp_path / "result.jsonl") == result
    if name == "RTE":
        blind = [replace(record, second="") for record in test]
        without = evaluate(bridge, reft, task, blind, objective=objective, progress=False)
        assert without.score < 0.7, "it is the second text that decides"


@pytest.mark.slow
def test_a_file_with_shuffled_labels_gives_chance_and_a_causal_model_reads_the_last_token(tmp_path) -> None:
    """Whatever the model makes of such a file, a score above chance would mean that answers leak."""
    task, bridge, source = task_named("SST-2"), make_bridge("gpt2"), download(tmp_path, "SST-2")
    scores = []
    for shuffled in (False, True):
        if shuffled:
            for file in (source / "SST-2").iterdir():
                header, *rows = [line.split("\t") for line in file.read_text().splitlines()]
                labels = random.Random(1).sample([label for _, label in rows], len(rows))
                write_tsv(file, header, [[text, label] for (text, _), label in zip(rows, labels, strict=True)])
        reft, objective = trained(bridge, task, task.load("train", source=source), positions="f1+l1")
        assert objective.reads_last
        test = task.load("test", source=source)
        scores.append(evaluate(bridge, reft, task, test, objective=objective, progress=False).score)
    assert scores[0] > 0.9
    assert 0.3 < scores[1] < 0.7


def hub_columns(task, row):
    """A row of GLUE's own file under the hub's names."""
    names = task.header or HEADERS[task.name]
    values = dict(zip(names, row, strict=True))
    *texts, label = (values[column] for column in task.official)
    number = float(label) if not task.labels else int(label) if label.isdigit() else task.labels.index(label)
    return {**dict(zip(task.columns, texts, strict=True)), "label": number, "idx": 0}


@pytest.mark.parametrize("form", ["lines.jsonl", "list.json", "table.csv", "hub"])
@pytest.mark.parametrize("name", ["CoLA", "RTE", "STS-B"])
def test_every_form_gives_the_same_records(tmp_path, monkeypatch, name, form) -> None:
    task, rows = task_named(name), list(rows_of(name, random.Random(0), 12))
    text = task.official[0]
    place = (task.header or HEADERS[name]).index(text)
    rows[3][place] = 'the "old, one" is null'
    expected = task.load("train", source=write_tsv(tmp_path / "train.tsv", HEADERS[name], rows))
    assert expected[3].prompt == 'the "old, one" is null'
    found = [hub_columns(task, row) for row in rows]
    source = tmp_path / form
    match form:
        case "lines.jsonl":
            source.write_text("".join(json.dumps(row) + "\n" for row in found))
        case "list.json":
            source.write_text(json.dumps(found, indent=1))
        case "table.csv":
            datasets.Dataset.from_list(found).to_csv(source)
        case "hub":
            asked = []
            monkeypatch.setattr(
                records, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_list(found)
            )
            source = None
    got = task.load("train", source=source)
    if name == "STS-B":
        assert [float(record.answer) for record in got] == [float(record.answer) for record in expected]
        got = [replace(record, answer=other.answer) for record, other in zip(got, expected, strict=True)]
    assert got == expected
    if form == "hub":
        assert asked == [(("nyu-mll/glue", task.config), {"split": "train"})]


@pytest.mark.parametrize(("n", "to_choose_by"), [(5, 2), (50, 25), (5001, 1000)])
def test_the_validation_set_is_parted_as_the_paper_does_it(tmp_path, n, to_choose_by) -> None:
    task = task_named("SST-2")
    write_tsv(tmp_path / "dev.tsv", HEADERS["SST-2"], ([f"sentence {row}", "1"] for row in range(n)))
    parts = {split: [r.prompt for r in task.load(split, source=tmp_path)] for split in ("validation", "test")}
    assert len(parts["validation"]) == to_choose_by
    assert sorted(parts["validation"] + parts["test"]) == sorted(f"sentence {row}" for row in range(n))
    assert parts["test"] == [r.prompt for r in task.load("test", source=tmp_path)], "seeded"
    other = [r.prompt for r in replace(task, split_seed=1).load("test", source=tmp_path)]
    assert other != parts["test"] or n == 5
    assert [r.prompt for r in task.load("test", source=tmp_path, limit=2)] == parts["test"][:2]


def test_the_eight_are_glues() -> None:
    assert [task.name for task in glue.TASKS] == ["MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B"]
    mnli = task_named("MNLI")
    assert mnli.labels == ("entailment", "neutral", "contradiction")
    bridge = make_encoder("roberta")
    assert mnli.objective(bridge).n_classes == 3
    assert isinstance(task_named("STS-B").objective(bridge), Regression)


def test_metrics_against_their_definitions() -> None:
    cola, stsb, rte = (task_named(name) for name in ("CoLA", "STS-B", "RTE"))
    yes, no = "acceptable", "unacceptable"
    counts = {(yes, yes): 6, (yes, no): 3, (no, yes): 1, (no, no): 2}
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    result = score(cola, pairs)
    tp, fp, fn, tn = counts.values()
    by_hand = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert result.score == pytest.approx(by_hand)
    assert [row.right for row in result.rows].count(True) == 8
    assert score(cola, [(yes, yes), (yes, no)]).score == 0.0
    x, y = [0.5, 2.0, 4.5, 1.0], [1.0, 2.5, 5.0, 0.0]
    mx, my = sum(x) / 4, sum(y) / 4
    by_hand = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / math.sqrt(
        sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)
    )
    result = score(stsb, [(str(a), str(b)) for a, b in zip(x, y, strict=True)])
    assert result.score == pytest.approx(by_hand)
    assert all(row.right is None for row in result.rows)
    assert math.isnan(score(stsb, [("2.5", "1.0"), ("2.5", "4.0")]).score)
    assert score(rte, [("entailment", "entailment"), ("entailment", "not_entailment")]).score == 0.5


def score(task, pairs):
    return task.score([o for o, _ in pairs], [rl.tasks.Record("a text", "", answer) for _, answer in pairs])


def test_what_is_cut_and_what_is_lost_is_said(caplog) -> None:
    record = rl.tasks.Record("The old tower stands by the river", "", "entailment", "the weaver lives there " * 4)
    task = replace(task_named("RTE"), max_length=16)
    task.examples(make_encoder("bert"), [record, replace(record, second="who")])
    assert "RTE: 1 of 2 texts were cut to 16 tokens" in caplog.text
    assert "BertForMaskedLM has a token type for the second text, which is not used here" in caplog.text
    caplog.clear()
    replace(task, max_length=64).examples(make_encoder("roberta"), [record])
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        (
            "RTE",
            "train.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\n",
            r"record 1 \(line 2\): expected 4 columns",
        ),
        (
            "RTE",
            "train.tsv",
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
            r"\(line 2\): 'label' must be 0 or ent",
        ),
        ("CoLA", "train.tsv", "s\t1\t\tfine\ns\t0\t*\t\n", r"record 2 \(line 2\): 'sentence' is empty"),
        (
            "STS-B",
            "x.csv",
            "sentence1,sentence2,label\na,b,2.5\na,b,5.5\n",
            r"record 2 \(line 3\): 'label' must be a number",
        ),
        (
            "STS-B",
            "x.csv",
            'sentence1,sentence2,label\n"a\nc",b,2.5\na,b,nan\n',
            r"record 2 \(line 4\): 'label' must be a num",
        ),
        ("STS-B", "x.csv", 'sentence1,sentence2,label\n"a,b,2.5\n', r"x.csv, line 2: not a row"),
        (
            "SST-2",
            "x.jsonl",
            '{"sentence": "a", "label": -1}\n',
            r"record 1 \(line 1\): 'label' must be 0 or neg.*got '-1'",
        ),
        (
            "SST-2",
            "x.jsonl",
            '{"sentence": "a"}\n',
            r"record 1 \(line 1\): the field 'label' is missing; the record has sentence",
        ),
        (
            "MNLI",
            "x.jsonl",
            '{"premise": "a", "label": 1}\n',
            r"the field 'sentence1' is missing; the record has premise, label",
        ),
        ("SST-2", "x.tsv", "sentence\tlabel\n", "has no records of SST-2"),
        ("SST-2", "x.tsv", b"sentence\tlabel\nfine\t1\n\xff\t0\n", r"x.tsv, line 3: not UTF-8"),
    ],
)
def test_a_malformed_record_is_named_with_its_line(tmp_path, name, file, text, message) -> None:
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        task_named(name).load("train", source=tmp_path / file)


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    task, bridge = task_named("SST-2"), make_encoder("roberta")
    with pytest.raises(ValueError, match="split must be train, validation or test, got 'dev'"):
        task.load("dev", source=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nor its folders SST-2 and sst2 have a file dev or validation"):
        task.load("test", source=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        task.load("test", source=tmp_path / "dev.tsv")
    write_tsv(tmp_path / "dev.tsv", HEADERS["SST-2"], [["one", "1"]])
    with pytest.raises(ValueError, match="split in two, so it must have at least 2 records, got 1"):
        task.load("test", source=tmp_path)
    record = rl.tasks.Record("a text", "", "positive")
    for objective in (None, Classification(bridge, 3), Regression(bridge)):
        with pytest.raises(
            ValueError, match="pass the objective that the edit was trained with, Classification with 2"
        ):
            task.outputs(bridge, None, [record], objective=objective)
    with pytest.raises(ValueError, match="output 0 must be negative or positive, got 'good'"):
        task.score(["good"], [record])
    with pytest.raises(ValueError, match="each record needs one output"):
        task.score([], [record])


def test_the_hub_is_named_where_it_does_not_answer(monkeypatch) -> None:
    def refuse(*_args, **_settings):
        raise ConnectionError("no network")

    monkeypatch.setattr(records, "load_dataset", refuse)
    with pytest.raises(
        FileNotFoundError,
        match=r"nyu-mll/glue.*loading the split 'validation_matched' of 'mnli' of that dataset from the hub failed",
    ):
        task_named("MNLI").load("test")
