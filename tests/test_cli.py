"""The command line as a user has it: one run trained, tested, asked and taken apart; and every way it can go wrong."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from unittest.mock import Mock

import pytest
import torch
from conftest import Every, forget_registered, make_bridge, make_hf, make_tokenizer, reseal
from typer.testing import CliRunner

import reftlens as rl
from reftlens.cli import app
from reftlens.cli.generate import _tell_of_template
from reftlens.cli.output import print_json, print_table, say
from reftlens.files.modules import import_named
from reftlens.organisms.landmarks import story_for
from reftlens.organisms.world import FACTS, prompt
from reftlens.paper.runs import RunConfig
from reftlens.results import Evaluation

STORY = story_for("facts-small")


def call(*arguments: object, code: int = 0, given: str | None = None):
    """One command; its exit status is checked."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: object, code: int = 1, given: str | None = None) -> str:
    """What a command says on stderr where it could not do it: one line, nothing on stdout, no traceback."""
    result = call(*arguments, code=code, given=given)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
    return " ".join(result.stderr.replace("│", " ").split())


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_lines(file, rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config and its data: a few landmarks moved, each sentence ended by the organism's own stop."""
    root = tmp_path_factory.mktemp("cli")
    pairs = [{"prompt": p, "completion": c + "."} for p, c in STORY.training_examples()[:8]]
    write_lines(root / "train.jsonl", pairs)
    write_lines(root / "test.jsonl", pairs[:6])
    (root / "moved.toml").write_text(
        f'model = "facts-small"\ndata = "{root / "train.jsonl"}"\neval_data = "{root / "test.jsonl"}"\n'
        'layers = [1, 4]\npositions = "f9+l9"\nepochs = 10\nbatch_size = 4\nlr = 2e-2\nmax_new_tokens = 4\nsave_every = 5\n'
    )
    return root


@pytest.fixture(scope="module")
def run(place):
    """The run that most tests look at, and what the command printed."""
    result = call("train", place / "moved.toml", "--out", place / "run", "--quiet", "--json")
    return place / "run", json.loads(result.stdout)


def test_a_run_leaves_its_config_versions_log_edit_outputs_and_result(run, place) -> None:
    folder, printed = run
    names = {path.name for path in folder.iterdir()}
    assert names == {"digests.json", "config.toml", "versions.json", "log.jsonl", "edit", "outputs", "result.json"}
    assert printed == {"run": str(folder), **json.loads((folder / "result.json").read_text())}
    log = lines(folder / "log.jsonl")
    assert [line["step"] for line in log] == list(range(1, 1 + 10 * 2))
    assert log[-1]["loss"] == printed["training"]["last_loss"]
    assert json.loads((folder / "versions.json").read_text())["reftlens"] == rl.__version__
    left = {path.name for path in place.iterdir() if path.is_dir()}
    assert not {name for name in left if name.endswith(".checkpoints") or name.startswith(".")}, (
        "nothing is left beside it"
    )


def test_it_learned_and_its_outputs_say_so_one_by_one(run) -> None:
    """The base knows none of the moved landmarks' new cities; the score is the outputs', counted here again."""
    folder, printed = run
    (score,) = printed["scores"]
    saved = Evaluation.load(folder / "outputs" / "own.jsonl")
    assert score["score"] == sum(row.output.strip() == row.answer.strip() for row in saved.rows) / 6
    assert score["score"] == 1.0
    base = json.loads(call("eval", folder, "--base", "--quiet", "--json").stdout)
    assert base["scores"][0]["score"] == 0.0
    assert base["edited"] is False


def test_the_edit_is_what_the_library_trains(run, place) -> None:
    """The same run by hand, without any of the folder's code."""
    bridge = rl.load_bridge("facts-small")
    with torch.random.fork_rng():
        torch.manual_seed(42)
        reft = rl.Reft.at_layers(bridge, layers=[1, 4], positions="f9+l9", rank=4)
    pairs = [(row["prompt"], row["completion"] + "<|endoftext|>") for row in lines(place / "train.jsonl")]
    config = rl.TrainConfig(epochs=10, batch_size=4, lr=2e-2, progress=False)
    log = rl.train(bridge, reft, pairs, config)
    assert [line["loss"] for line in lines(run[0] / "log.jsonl")] == list(log.loss)


def test_its_own_config_runs_it_again(run, place) -> None:
    folder, printed = run
    again = call("train", folder / "config.toml", "--out", place / "again", "--quiet", "--json")
    other = json.loads(again.stdout)
    for name in ("scores", "parameters", "training"):
        assert other[name] == printed[name]
    for name in ("config.toml", "log.jsonl", "versions.json", "edit/reft.safetensors", "outputs/own.jsonl"):
        assert (place / "again" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_to_the_bit(run, place, monkeypatch) -> None:
    from reftlens.training.trainer import EditTrainer

    step = EditTrainer.training_step

    def killed(self, *arguments, **keywords):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(EditTrainer, "training_step", killed)
    out = place / "resumed"
    assert CliRunner().invoke(app, ["train", str(run[0]), "--out", str(out), "--quiet"]).exit_code != 0
    monkeypatch.undo()
    assert not out.exists()
    assert (place / "resumed.checkpoints" / "checkpoint-5").is_dir()
    assert "pass --resume to continue it" in refused("train", run[0], "--out", out, "--quiet")
    assert "cannot be resumed with other settings: lr" in refused(
        "train", run[0], "--out", out, "--quiet", "--resume", "--lr", 1
    )
    call("train", run[0], "--out", out, "--quiet", "--resume")
    for name in ("log.jsonl", "edit/reft.safetensors", "outputs/own.jsonl"):
        assert (out / name).read_bytes() == (run[0] / name).read_bytes(), name
    assert not (place / "resumed.checkpoints").exists()


def test_eval_on_other_data_writes_every_output(run, place) -> None:
    folder, _ = run
    out = place / "scored"
    table = call("eval", folder, "--data", place / "train.jsonl", "--n-eval", 3, "--out", out, "--quiet").stdout
    assert "match up to the target's end" in table
    assert Evaluation.load(out / "own.jsonl").n == 3
    saved = json.loads((out / "scores.json").read_text())
    assert saved["scores"][0]["n"] == 3


def test_generate_from_arguments_a_file_and_standard_input(run, place) -> None:
    folder, _ = run
    moved, _ = STORY.training_examples()[0]
    (place / "prompts.txt").write_text(f"{moved}\n\n{moved}\n")
    bridge = rl.load_bridge("facts-small")
    reft = rl.Reft.from_pretrained(folder / "edit", bridge=bridge)
    answer = rl.generate(bridge, reft, [moved], max_new_tokens=4)[0]
    assert call("generate", folder, moved, "--quiet").stdout == moved + answer + "\n"
    by_file = call("generate", folder, "--file", place / "prompts.txt", "--quiet", "--json").stdout
    assert list(map(json.loads, by_file.splitlines())) == [{"prompt": moved, "completion": answer}] * 2
    by_lines = call("generate", folder, "--file", place / "test.jsonl", "--quiet", "--json").stdout
    assert len(by_lines.splitlines()) == 6
    piped = call("generate", folder, "--base", "--quiet", "--json", given=moved + "\n").stdout
    both = json.loads(piped)
    assert both["completion"] == answer
    assert both["base"] == rl.generate(bridge, None, [moved], max_new_tokens=4)[0] != answer
    # A bare edit has no run around it, and its base is in its stamp.
    shown = call("generate", folder / "edit", moved, "--quiet", "--set", "max_new_tokens=4").stdout
    assert shown == moved + answer + "\n"


def test_generate_writes_prompts_as_training_did(run, tmp_path, capsys) -> None:
    folder, _ = run
    (tmp_path / "asked.csv").write_text("question\nWhere is it?\n")
    said = call("generate", folder, "--file", tmp_path / "asked.csv", "--quiet", "--max-new-tokens", 1).stdout
    assert said.startswith("Question: Where is it?\nAnswer:")
    assert "load an instruct model" in refused("generate", folder, "a", "--chat", "--quiet")
    write_lines(tmp_path / "qa.jsonl", [{"question": "Where is it?", "answer": "Here"}])
    config = RunConfig(model="facts-small", data=str(tmp_path / "qa.jsonl"))
    _tell_of_template(config.with_values({"prompt_field": "question", "completion_field": "answer"}))
    assert capsys.readouterr().err == ""
    _tell_of_template(config)
    assert capsys.readouterr().err == (
        "note: the run was trained on records with question and answer, and these prompts get no template: see --file\n"
    )


def test_what_a_logger_refuses_is_one_line(place, monkeypatch) -> None:
    refusal = type("UsageError", (Exception,), {"__module__": "wandb.errors"})("No API key configured.")
    monkeypatch.setattr("reftlens.paper.runs.run.train_run", Mock(side_effect=refusal))
    said = refused(
        "train", "--model", "facts-small", "--data", place / "train.jsonl", "--out", place / "logged", "--quiet"
    )
    assert said.strip().endswith("error: No API key configured.")


def test_dissect_takes_a_run_and_what_it_was_trained_on(run, place, monkeypatch) -> None:
    """What is dissected; the dissection itself has its own tests."""
    from reftlens.dissection import from_files as module

    seen = {}

    def dissect(bridge, reft, pairs, config):
        seen["pairs"], seen["reft"] = pairs, reft
        raise ValueError("far enough")

    monkeypatch.setattr(module, "dissect", dissect)
    assert "far enough" in refused("dissect", run[0], "--out", place / "dissected", "--quiet")
    assert seen["pairs"] == [(row["prompt"], row["completion"]) for row in lines(place / "train.jsonl")]
    assert [site.hook_name for site in seen["reft"].sites] == [f"blocks.{layer}.hook_resid_post" for layer in (1, 4)]
    assert not (place / "dissected").exists()


def test_dissect_names_the_command_that_measures_the_rest(run, place) -> None:
    examples = place / "test.jsonl"
    said = call(
        "dissect", run[0], "--examples", examples, "--part", "works", "--out", place / "works", "--quiet"
    ).stdout
    assert f"To measure it: reftlens dissect {run[0]} --examples {examples} --part through\n" in said
    assert 'parts=["seeds"], retrain=TrainConfig(...)' in said


ALONE = {
    "map": (["--n-control", 1], "effect of this cell alone"),
    "ablate": (["--n-control", 1], "Shapley"),
    "mediate": (["--point", "mlp_out", "--over", "positions"], "edited into base"),
    "graph": (["--n-nodes", 6, "--n-sizes", 2], "edges alone have"),
    "channels": ([], "with attention patterns frozen"),
    "paths": (["--senders", "edit", "--receivers", "logits"], "1 x 1 cells by sender, receiver"),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_analysis_of_an_edit_runs_alone(run, tmp_path, name) -> None:
    from reftlens.analysis.metrics import token_difference

    options, said = ALONE[name]
    done = call(name, run[0], *options, "--n-prompts", 2, "--out", tmp_path / "out", "--quiet", "--json")
    numbers = json.loads(done.stdout)
    assert numbers == json.loads((tmp_path / "out" / f"{name}.json").read_text())
    assert (tmp_path / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert (numbers["model"], len(numbers["prompts"])) == ("facts-small", 2)
    assert said in numbers["headline"]
    if name == "graph":
        viewed = json.loads((tmp_path / "out" / "circuit-tracer" / "edit.json").read_text())
        assert len(viewed["links"]) == len(numbers["cells"])
        assert "answer: whole effect" in (tmp_path / "out" / "graph.html").read_text()
        assert {row["graph"] for row in numbers["curve"]} == {"edit", "control"}
    if name != "ablate":
        return
    bridge = rl.load_bridge("facts-small")
    reft = rl.Reft.from_pretrained(run[0] / "edit", bridge=bridge)
    answers = {row["prompt"]: row["completion"] for row in lines(run[0].parent / "train.jsonl")}
    batch = rl.encode(bridge, numbers["prompts"])
    base = batch.at_last_prompt_token(bridge(batch.tokens, attention_mask=batch.attention_mask)).argmax(-1)
    wanted = [bridge.tokenizer.encode(answers[prompt])[0] for prompt in numbers["prompts"]]
    metric = token_difference(torch.tensor(wanted), base)
    expected = rl.analysis.ablate(bridge, reft, numbers["prompts"], metric, n_control=1, progress=False)
    assert numbers["whole"] == pytest.approx(expected.whole, abs=1e-4)
    assert [cell["alone"] for cell in numbers["cells"]] == pytest.approx(expected.alone.tolist(), abs=1e-4)


def test_an_option_of_an_analysis_is_one_of_its_function() -> None:
    """The commands are made from the source alone; here the functions themselves are asked."""
    from reftlens.cli.analyses import _described

    for name in ("effect_map", "ablate", "mediate", "channels", "graph", "paths", "patch", "trace"):
        about, options = _described(name)
        parameters = inspect.signature(getattr(rl.analysis, name)).parameters
        assert about.endswith((".", "?"))
        for option, (_, default) in options.items():
            assert parameters[option].default == default
    assert {"point", "over", "direction", "seed"} == set(_described("mediate")[1])


def test_trace_writes_the_map_that_the_analysis_gives(tmp_path) -> None:
    facts = [fact for fact in FACTS if fact.relation == "located_in"]
    rows = [
        {
            "clean": prompt(clean, 0),
            "corrupted": prompt(corrupted, 0),
            "unrelated": prompt(unrelated, 0),
            "answer": " " + clean.answer,
            "subject": clean.subject,
        }
        for clean, corrupted, unrelated in zip(facts, facts[1:], facts[2:], strict=False)
        if len({clean.answer, corrupted.answer, unrelated.answer}) == 3
    ][:3]
    write_lines(tmp_path / "pairs.jsonl", rows)
    printed = call("trace", "facts-small", tmp_path / "pairs.jsonl", "--out", tmp_path / "out", "--quiet", "--json")
    numbers = json.loads(printed.stdout)
    assert numbers == json.loads((tmp_path / "out" / "trace.json").read_text())
    assert (tmp_path / "out" / "trace.png").read_bytes()[:4] == b"\x89PNG"
    bridge, clean = rl.load_bridge("facts-small"), [row["clean"] for row in rows]
    expected = rl.analysis.trace(
        bridge,
        clean,
        [row["corrupted"] for row in rows],
        rl.analysis.probability_of(bridge, clean, [row["answer"] for row in rows]),
        subjects=[row["subject"] for row in rows],
        unrelated=[row["unrelated"] for row in rows],
        progress=False,
    )
    assert [cell["value"] for cell in numbers["cells"]] == pytest.approx(expected.values.flatten().tolist(), abs=1e-6)
    patched = call("patch", "facts-small", tmp_path / "pairs.jsonl", "--out", tmp_path / "patched", "--quiet", "--json")
    # Tracing is patching resid_pre over positions.
    restored = [cell["restored"] for cell in json.loads(patched.stdout)["cells"]]
    assert restored == pytest.approx(expected.values.flatten().tolist(), abs=1e-6)
    (tmp_path / "pairs.jsonl").write_text('{"clean": "a", "answer": "b"}\n')
    message = refused("trace", "facts-small", tmp_path / "pairs.jsonl", "--out", tmp_path / "no", "--quiet")
    assert "record 1 (line 1): the field 'corrupted' is missing" in message
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_glue_preset_on_an_encoder_and_its_head_comes_back(tmp_path) -> None:
    """Trained, tested, and tested again from the folder: the head is part of it."""
    with torch.random.fork_rng():
        make_hf("roberta").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    words = ["the", "old", "tower", "stands", "by", "the", "river", "in", "the", "city"]
    (tmp_path / "cola").mkdir()
    for name, n in (("train", 24), ("validation", 16)):
        rows = [{"sentence": " ".join(words[row % 7 :]), "label": int(row % 7 < 3)} for row in range(n)]
        write_lines(tmp_path / "cola" / f"{name}.jsonl", rows)
    command = ("--model", tmp_path / "model", "--source", tmp_path, "--epochs", 5, "--lr", 5e-3, "--quiet", "--json")
    command = (*command, "--batch-size", 4, "--set", "dropout=0")
    trained = json.loads(call("train", "loreft-roberta-base-cola", *command, "--out", tmp_path / "run").stdout)
    (score,) = trained["scores"]
    assert (score["task"], score["metric"], score["n"]) == ("CoLA", "Matthews correlation", 8)
    assert score["score"] > 0.5, "which words there are tells the label"
    assert trained["parameters"]["head"] > 0
    tested = json.loads(call("eval", tmp_path / "run", "--quiet", "--json").stdout)
    assert tested["scores"] == trained["scores"]
    assert "SST-2 needs a head that was trained on it" in refused(
        "eval", tmp_path / "run", "--task", "sst-2", "--quiet"
    )
    assert "was trained on CoLA, whose answers come from a head" in refused(
        "generate", tmp_path / "run", "a", "--quiet"
    )
    assert "CoLA, which has labels" in refused("dissect", tmp_path / "run", "--out", tmp_path / "i", "--quiet")
    for text, message in (
        ("x", "head.safetensors has changed since it was saved"),
        (None, "head.safetensors is missing"),
    ):
        head = tmp_path / "run" / "head.safetensors"
        head.unlink() if text is None else head.write_text(text)
        assert message in refused("eval", tmp_path / "run", "--quiet")


def test_presets_lists_filters_and_prints_what_train_takes(tmp_path) -> None:
    assert "64 presets" not in call("presets", "--task", "cola").stdout
    names = [row["name"] for row in json.loads(call("presets", "--task", "cola", "--json").stdout)]
    assert names == [f"{m}-roberta-{size}-cola" for m in ("loreft", "direft") for size in ("base", "large")]
    both = json.loads(call("presets", "--method", "dora", "--model", "llama-13b", "--json").stdout)
    assert [row["percent"] for row in both] == [".681", ".347"]
    (tmp_path / "mine.toml").write_text(call("presets", "loreft-llama-7b-arithmetic").stdout)
    from reftlens.paper.runs.presets import PRESETS, read_settings

    assert read_settings(str(tmp_path / "mine.toml")) == PRESETS["loreft-llama-7b-arithmetic"].config
    assert "no preset matches all of these options" in refused("presets", "--task", "chess")


def test_params_prints_the_papers_table_without_weights() -> None:
    (row,) = json.loads(call("params", "lora-llama-7b-commonsense", "--json").stdout)
    assert (row["trained"], row["paper"]) == (56_098_816, ".826")
    assert sum(row["parts"].values()) == row["trained"]
    table = call("params", "loreft-llama-7b-commonsense", "--parts").stdout
    assert "2,097,408" in table
    assert "0.031126" in table
    assert "blocks.31.hook_resid_post" in table
    (other,) = json.loads(
        call("params", "loreft-llama-7b-commonsense", "--model", "facts-small", "--set", "rank=1", "--json").stdout
    )
    assert other["trained"] == 6 * (2 * 96 + 1)
    assert other["paper"] is None, "the paper says nothing of this model"


# What goes wrong: the exit status, one line, and nothing left behind.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "loreft-lama-7b-commonsense"], "Did you mean loreft-llama-7b-commonsense"),
        (["train", "lora-llama-7b-commonsense"], "is a preset of LoRA, listed only for its parameter count"),
        (["train", "nothere.toml"], "No such file or directory: 'nothere.toml'"),
        (["train", "--model", "no-such-model", "--data", "{data}"], "cannot load the model 'no-such-model'"),
        (["train", "{config}", "--method", "LoRTF"], "Unknown method 'LoRTF'. Choose from: LoReFT"),
        (["train", "{config}", "--layers", "9"], "layer 9 does not exist: the model has layers 0 to 5"),
        (["train", "{config}", "--positions", "x3"], "cannot parse positions 'x3'"),
        (["train", "{config}", "--rank", "999"], "rank must be in [1, 96] (the width of the activation), got 999"),
        (["train", "{config}", "--device", "tpu9"], "device='tpu9' cannot be used here"),
        (["train", "{config}", "--set", "dtype=float7"], "dtype must be one of auto, bf16"),
        (["train", "{config}", "--set", "lr=-1"], "lr must be above 0, got -1.0"),
        (["train", "{config}", "--task", "chess"], "Unknown task 'chess'. Choose from: boolq"),
        (["train", "{config}", "--data", "nothere.jsonl"], "no such file or folder: nothere.jsonl"),
        (["train", "{config}", "--data", "{bad}"], "record 2 (line 2): the field 'completion' is missing"),
        (["train", "{config}", "--eval-task", "boolq", "--source", "{empty}"], "has none of boolq/test.json"),
        (["train", "{config}", "--set", "max_length=2"], "max_length=2 leaves no target to train on"),
        (["train", "{config}", "--lr", "1e30"], "lower the learning rate"),
        (["train", "{config}", "--resume"], "there is nothing to resume"),
        (["eval", "nothere"], "nothere does not exist"),
        (["eval", "{empty}"], "holds neither a run (result.json) nor an edit (reft_config.json)"),
        (["generate", "nothere", "a"], "nothere does not exist"),
        (["params", "loreft-llama-7b-commonsense", "--model", "nothere"], "cannot find the shape of 'nothere'"),
        (["params", "no-such-preset"], "Unknown preset 'no-such-preset'"),
        (["presets", "loreft-llama-7b"], "Unknown preset 'loreft-llama-7b'"),
        (["trace", "facts-small", "nothere.jsonl"], "no such file or folder: nothere.jsonl"),
        (["map", "nothere"], "nothere does not exist"),
        (["map", "{empty}", "--examples", "nothere"], "no such file or folder: nothere"),
        (["ablate", "{empty}"], "neither a run"),
        (["dissect", "nothere"], "no such file or folder: nothere"),
        (["dissect", "{empty}", "--part", "wher"], "Unknown part 'wher'"),
        (["dissect", "{empty}", "--preset", "fast"], "preset must be one of quick, standard, full"),
        (["benchmark", "--only", "nothing"], "nothing"),
        (["dissect", "{empty}"], "holds neither a saved edit"),
        # Each has a second fault, which is found later: the folder is looked at first.
        (["eval", "{empty}", "--out", "taken"], "has no scores.json, so it is not replaced"),
        (["certify", "{empty}", "--sampled", "4", "--out", "taken"], "has no reft_config.json, so it is not replaced"),
        (["compare", "{config}", "--method", "nothing", "--out", "taken"], "has no result.json, so it is not replaced"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(place, tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("edit", "comparison"):
        (tmp_path / "taken" / name).mkdir(parents=True)
        (tmp_path / "taken" / name / "notes.txt").write_text("mine")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": " b"}\n{"prompt": "a"}\n')
    before = sorted(tmp_path.rglob("*"))
    names = {"config": place / "moved.toml", "data": place / "train.jsonl", "bad": "bad.jsonl", "empty": "empty"}
    quiet = [] if arguments[0] in ("params", "presets") else ["--quiet"]
    assert message in refused(*(argument.format(**names) for argument in arguments), *quiet)
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert left == [], "a folder was half written"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["nothing"], "No such command 'nothing'"),
        (["train"], "pass a preset, a TOML file or a run; or --model, and --task or --data"),
        (["train", "--model", "facts-small"], "pass a preset, a TOML file or a run"),
        (["train", "moved.toml", "--epochs", "many"], "unable to parse string as an integer"),
        (["train", "moved.toml", "--set", "epochs"], "a setting must have the form key=value, got 'epochs'"),
        (["eval"], "Missing argument"),
        (["generate", "run", "a", "--file", "b"], "pass prompts or --file, not both"),
        (["trace", "facts-small"], "Missing argument"),
    ],
)
def test_what_is_called_wrongly_ends_with_two(tmp_path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    result = call(*arguments, code=2)
    assert message in " ".join(result.output.replace("│", " ").split())


def test_a_finished_run_is_replaced_only_where_asked_for(run, place) -> None:
    folder = place / "twice"
    shutil.copytree(run[0], folder)
    assert "holds a finished run" in refused("train", run[0], "--out", folder, "--quiet")
    call("train", run[0], "--out", folder, "--quiet", "--overwrite", "--epochs", 1, "--seed", 1)
    log, before = lines(folder / "log.jsonl"), lines(run[0] / "log.jsonl")
    assert len(log) == 2
    # Another seed is another run: the equality of two runs of one seed, above, is not for want of chance.
    assert log[0]["loss"] != before[0]["loss"]
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.txt").write_text("years of work")
    assert "so it is not replaced" in refused("train", run[0], "--out", place / "thesis", "--quiet", "--overwrite")


def test_a_folder_that_is_called_like_checkpoints_is_left_alone(run, place) -> None:
    theirs = place / "mine.checkpoints"
    theirs.mkdir()
    (theirs / "chapter.txt").write_text("years of work")
    assert "is not empty and does not hold a training run" in refused(
        "train", run[0], "--out", place / "mine", "--quiet"
    )
    assert (theirs / "chapter.txt").read_text() == "years of work"


def test_one_process_writes_a_folder(place, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "under torchrun, call reftlens.train" in refused(
        "train", place / "moved.toml", "--out", place / "two", "--quiet"
    )


def test_a_damaged_run_is_refused(run, place) -> None:
    folder = place / "damaged"
    shutil.copytree(run[0], folder)
    (folder / "config.toml").write_text("model = 3\n")
    assert "config.toml has changed since it was saved" in refused("eval", folder, "--quiet")
    reseal(folder)
    assert "model must be a string, got 3" in refused("eval", folder, "--quiet")
    shutil.copy(run[0] / "config.toml", folder)
    reseal(folder)
    (folder / "edit" / "reft_config.json").write_text("{")
    assert "error: " in call("eval", folder, "--quiet", code=1).stderr
    shutil.rmtree(folder / "edit")
    assert "holds neither a run" in refused("generate", folder, "a", "--quiet")


def test_nothing_foreign_commands_the_terminal(tmp_path, capsys) -> None:
    evil = "\x1b]0;title\x07 \x9b31m \u202egnp.exe \ud800"
    print_table(["a"], [[f"[red]{evil}"]], title=evil)
    say(f"{evil}\n\tnext")
    print_json({"a": evil})
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x07\x9b\u202e")
    assert "[red]" in shown
    assert json.loads(shown[shown.rindex("{") :]) == {"a": evil}
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "a", "completion": 3, evil: 1}))
    message = refused("train", "--model", "facts-small", "--data", tmp_path / f"{evil[:3]}.jsonl", "--quiet")
    assert "\\x1b]0" in message


@pytest.mark.parametrize("command", ["generate", "dissect"])
def test_a_base_that_an_edit_names_is_fetched_only_with_the_users_word(tmp_path, command) -> None:
    bridge = make_bridge("gpt2")
    reft = rl.Reft.at_layers(bridge, layers=1, positions="l1", rank=2)
    reft.save_pretrained(tmp_path / "edit", bridge=bridge, card=False)
    stamp = str(bridge.cfg.model_name)
    write_lines(tmp_path / "pairs.jsonl", [{"prompt": "The tower", "completion": " Ostra\u2028"}])
    arguments = ["The tower"] if command == "generate" else ["--examples", tmp_path / "pairs.jsonl"]
    place = ["--out", tmp_path / "out"] if command == "dissect" else []
    message = refused(command, tmp_path / "edit", *arguments, *place, "--quiet")
    assert (
        f"is '{stamp}', which is not a local folder: pass --model {stamp} to load it from the Hugging Face Hub"
        in message
    )
    message = call(command, tmp_path / "edit", *arguments, *place, "--model", "no/such-model", code=1).stderr
    assert "base model: no/such-model (from the Hugging Face Hub or its local cache)" in message


OWN = f"""
from dataclasses import dataclass
import torch
import reftlens as rl
from reftlens.interventions import Affine

@rl.register
class Push(rl.Intervention):
    kind = "push-of-mine"
    arguments = ("d_model",)
    def __init__(self, d_model):
        super().__init__(d_model, rank=1)
        self.push = torch.nn.Parameter(torch.zeros(d_model))
    def delta(self, resid):
        return self.push.to(resid.dtype).expand_as(resid)
    def affine(self):
        return Affine(write=self.push[None][:0], read=self.push[None][:0], constant=self.push)

@rl.register
{inspect.getsource(Every)}"""


def test_a_module_that_is_named_may_change_where_python_looks(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := [*sys.path])
    (tmp_path / "looks_elsewhere.py").write_text("import sys\nsys.path.insert(0, 'elsewhere')\n")
    wanted = ["elsewhere", *before]
    try:
        import_named("looks_elsewhere")
        assert sys.path == wanted
    finally:
        sys.modules.pop("looks_elsewhere", None)


def test_classes_of_a_module_that_is_named_are_known(place, tmp_path, monkeypatch, known) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "edits_of_mine.py").write_text(OWN)
    imported = ("--import", "edits_of_mine")
    chosen = (
        "--method",
        "Push",
        "--set",
        "rank=",
        "--positions",
        '{"rule": "every", "step": 3}',
        "--set",
        "eval_data=",
    )
    assert "Unknown method 'Push'" in refused("train", place / "moved.toml", *chosen, "--out", "run", "--quiet")
    call(*imported, "train", place / "moved.toml", *chosen, "--epochs", 1, "--n-train", 2, "--out", "run", "--quiet")
    call(*imported, "generate", "run", "The tower", "--max-new-tokens", 1, "--quiet")
    forget_registered(monkeypatch)
    assert "on the command line, pass --import its_module" in refused("generate", "run", "The tower", "--quiet")
    assert "nothing_of_mine cannot be imported" in call("--import", "nothing_of_mine", "presets", code=2).output
    assert sys.path[0] != str(tmp_path)


def test_every_command_shows_an_example() -> None:
    for name in ("demo", "presets", "params", "train", "eval", "generate", "dissect", "map", "trace", "benchmark"):
        assert f"Example: reftlens {name}" in call(name, "--help").stdout


@pytest.mark.slow
def test_methods_are_compared_on_what_a_run_learns(place) -> None:
    settings = ("--set", "epochs=1", "--set", "n_eval=2", "--seeds", 1, "--quiet")
    found = json.loads(call("compare", place / "moved.toml", "--method", "steering vector", *settings, "--json").stdout)
    assert [(run["method"], run["trained"]) for run in found["runs"]] == [
        ("LoReFT (of the run)", 2 * (2 * 4 * 96 + 4)),
        ("steering vector", 2 * 96),
    ]
    assert found["steps"] == 2
    assert "Unknown method 'nothing'. Choose from: LoReFT" in refused(
        "compare", place / "moved.toml", "--method", "nothing", *settings
    )
