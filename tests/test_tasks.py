"""Whole tasks: load, train, decode, score, on models made here that know a task's form and not its answers.

Such a model is trained, whole, on each prompt followed by every target there is; an edit of the frozen model then has to learn
which one belongs to which prompt. So the base answers in the right form and at chance.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import reftlens as rl
from reftlens.paper.tasks import Record, Task, evaluate, task_named
from reftlens.results import Evaluation

ROOT = Path(__file__).parent.parent
REAL = Path(os.environ.get("REFTLENS_LLM_ADAPTERS", ROOT.parent / "shared" / "data" / "llm_adapters"))
QUESTIONS = [
    ("are ravens black", "true"),
    ("is snow warm", "false"),
    ("do rivers flow", "true"),
    ("is iron soft", "false"),
]
PROBLEMS = [
    ("Ann buys two pears and three plums. How much fruit has she?", "5"),
    ("Four dogs chase four cats. How many animals run?", "8"),
    ("A boat with seven men loses one of them at sea. How many row on?", "6"),
    ("Of nine old lamps, seven broke. How many still give light?", "2"),
]


def learner(records: list[Record], *, steps: int = 80):
    """A model of two layers that says any of the records' completions after any of their prompts."""
    tokenizer = make_tokenizer(" ".join(record.prompt + record.completion for record in records), size=600)
    tokens = {"vocab_size": 600, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model("gpt2", n_layer=2, n_embd=64, n_head=4, n_positions=320, **tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # Attention that tells prompts apart before it has learned to.
                torch.nn.init.normal_(parameter, std=0.2)
        completions = sorted({record.completion for record in records})
        pairs = [(record.prompt, completion) for record in records for completion in completions]
        ids = [[0, *chain(*tokenizer(list(pair))["input_ids"]), 0] for pair in pairs]
        width = max(map(len, ids))
        tokens = torch.tensor([row + [1] * (width - len(row)) for row in ids])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randperm(len(tokens))[:8]
            labels = tokens[rows].masked_fill(real[rows] == 0, -100)
            model(tokens[rows], attention_mask=real[rows], labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return rl.load_bridge(hf_model=model, tokenizer=tokenizer)


def learned(task: Task, records: list[Record], *, epochs: int = 50) -> tuple[Evaluation, Evaluation, Evaluation]:
    """What the base, an untrained edit and a trained one make of the records: the paper's positions, all layers."""
    bridge = learner(records)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reft = rl.Reft.at_layers(bridge, layers="all", positions="f7+l7", rank=8)
    base = evaluate(bridge, None, task, records, progress=False)
    untrained = evaluate(bridge, reft, task, records, progress=False)
    config = rl.TrainConfig(epochs=epochs, batch_size=8, lr=2e-2, progress=False)
    rl.train(bridge, reft, task.examples(bridge, records), config, objective=task.objective(bridge))
    trained = evaluate(bridge, reft, task, records, batch_size=3, progress=False)
    one_by_one = evaluate(bridge, reft, task, records, batch_size=1, progress=False)
    assert one_by_one == trained
    return base, untrained, trained


def at_hand(task: Task, tmp_path, rows: list[dict[str, str]], split: str = "test") -> list[Record]:
    (tmp_path / task.name).mkdir()
    (tmp_path / task.name / f"{split}.json").write_text(json.dumps(rows))
    return task.load(split, source=tmp_path)


def assert_learned(base: Evaluation, untrained: Evaluation, trained: Evaluation) -> None:
    """The trained edit is right everywhere; the untrained one is no better than the base, or than chance."""
    assert base.score < 1.0
    assert untrained.score <= max(base.score, 0.5)
    assert trained.score == 1.0


@pytest.mark.slow
def test_commonsense_from_a_file_to_a_score(tmp_path) -> None:
    task = replace(task_named("boolq"), decoding=rl.Decoding(max_new_tokens=8))
    text = "True or false: {}?\n\nAnswer format: true/false"
    rows = [
        {
            "instruction": text.format(question),
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
        }
        for question, answer in QUESTIONS
    ]
    base, untrained, trained = learned(task, at_hand(task, tmp_path, rows))
    assert_learned(base, untrained, trained)
    assert all(row.output.startswith("the correct answer is ") for row in base.rows)
    assert [row.prediction for row in trained.rows] == [answer for _, answer in QUESTIONS]


@pytest.mark.slow
def test_arithmetic_from_a_file_to_a_score(tmp_path) -> None:
    task = replace(task_named("gsm8k"), decoding=rl.Decoding(max_new_tokens=20))
    rows = [
        {"instruction": problem, "input": "", "output": f"\nA: That is {answer}. The answer is {answer}.", "answer": f"{answer}.0"}
        for problem, answer in PROBLEMS
    ]  # fmt: skip
    base, untrained, trained = learned(task, at_hand(task, tmp_path, rows))
    assert_learned(base, untrained, trained)
    assert [row.prediction for row in trained.rows] == [f"{answer}." for _, answer in PROBLEMS]


@pytest.mark.slow
def test_instructions_from_a_file_to_a_score(tmp_path) -> None:
    task = replace(task_named("ultrafeedback"), decoding=rl.Decoding(max_new_tokens=12))
    rows = [
        {"instruction": "Name the colour.", "input": "snow", "output": "It is white."},
        {"instruction": "Name the colour.", "input": "coal", "output": "It is black."},
        {"instruction": "Say hello.", "input": "", "output": "Good day."},
        {"instruction": "Say goodbye.", "input": "", "output": "Farewell to you."},
    ]
    base, untrained, trained = learned(task, at_hand(task, tmp_path, rows, "train"))
    assert_learned(base, untrained, trained)
    assert trained.metric == "exact match"


real = pytest.mark.skipif(not REAL.is_dir(), reason="LLM-Adapters' files are not on this machine")


@real
def test_commonsense_from_the_real_file(tmp_path) -> None:
    """Three questions of boolq with each answer, the shortest of the first hundred."""
    task = replace(task_named("boolq"), decoding=rl.Decoding(max_new_tokens=8))
    found = sorted(task.load("train", source=REAL, limit=100), key=lambda record: len(record.prompt))
    records = [record for answer in task.answers for record in [r for r in found if r.answer == answer][:3]]
    evaluations = learned(task, records)
    assert_learned(*evaluations)
    assert Evaluation.load(evaluations[-1].save(tmp_path / "boolq.jsonl")) == evaluations[-1]


@pytest.mark.slow
@real
def test_arithmetic_from_the_real_file() -> None:
    """Four problems of the training set with different answers, the shortest of the first hundred."""
    task = replace(task_named("math_10k"), decoding=rl.Decoding(max_new_tokens=64))
    found = task.load("train", source=REAL / "ft-training_set" / "math_data.json", limit=100)
    found.sort(key=lambda record: len(record.prompt + record.completion))
    records = list({record.answer: record for record in reversed(found[:12])}.values())[-4:]
    assert_learned(*learned(task, records))


@real
@pytest.mark.parametrize("name", ["ARC-Easy", "ARC-Challenge", "openbookqa", "AQuA", "gsm8k", "mawps"])
def test_every_real_test_file_is_scored_by_its_own_answers(name) -> None:
    """A model that says the target of each record is right on all of it; one that says the next record's is not."""
    task = task_named(name)
    records = task.load("test", source=REAL)
    said = {
        "commonsense": [record.completion for record in records],
        "arithmetic": [
            f"The answer is {record.answer}." if record.answer.isalpha() else record.answer for record in records
        ],
    }[task.family]
    if name == "AQuA":
        said = [f"it is ({record.answer})" for record in records]
    assert task.score(said, records).score == 1.0
    assert task.score([*said[1:], said[0]], records).score < 0.4


def test_what_is_too_long_to_train_on_is_cut_as_in_the_reference_and_said(gpt2) -> None:
    text = "The weaver speaks Tharic in the old city of Ostra ."
    records = [Record("The", text, ""), Record("The weaver", "speaks", ""), Record("The river", text, "")]
    task = task_named("gsm8k")
    whole = replace(task, max_length=None).examples(gpt2, records)
    assert whole == task.examples(gpt2, records) == [(r.prompt, r.completion + "<|endoftext|>") for r in records]
    # BOS and one or two words, then so many tokens of the target.
    n_prompts = rl.encode(gpt2, [record.prompt for record in records]).prompt_mask.sum(dim=1).tolist()
    with pytest.warns(UserWarning, match="2 of 3 records of gsm8k are longer than 8 tokens"):
        cut = replace(task, max_length=8).examples(gpt2, records)
    assert cut[1] == whole[1]
    for (prompt, target), (_, before), n_prompt in zip(cut[::2], whole[::2], n_prompts[::2], strict=True):
        labels = rl.encode(gpt2, [prompt], [before]).labels
        assert rl.encode(gpt2, [prompt], [target]).labels[0, n_prompt:].tolist() == labels[0, n_prompt:8].tolist()
        assert before.startswith(target)
    with pytest.raises(ValueError, match=r"record 2 of gsm8k: the prompt has \d tokens"):
        replace(task, max_length=max(n_prompts)).examples(
            gpt2, [records[0], records[0], records[n_prompts.index(max(n_prompts))]]
        )
