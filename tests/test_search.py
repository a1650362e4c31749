"""Searches: planted best settings are found, a continued search is the whole one, and test data take no part."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import PROMPTS
from test_cli import STORY, call, refused, write_lines

import reftlens as rl
from reftlens.paper.baselines import METHODS, EditAt, LoRA, completed, configured
from reftlens.paper.baselines import search as module
from reftlens.paper.baselines.configured import Tuning, compare_configured, sweep
from reftlens.paper.baselines.search import search
from reftlens.paper.baselines.space import Choice, Range, default_space, parse_space, within
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.examples import divided, eval_tasks, records_of_test, training_records, training_task
from reftlens.paper.tasks import Record
from reftlens.results import Search
from reftlens.results.search import Trial

CONFIG = rl.TrainConfig(epochs=4, batch_size=2, lr=1e-2, progress=False)
SPACE = {"lr": Range(1e-4, 1.0), "rank": Choice((1, 2, 3, 4)), "layers": Choice(("all", (0,), (1,)))}
PAIRS = [(prompt, " Ostra") for prompt in PROMPTS]


def needs_optuna() -> None:
    pytest.importorskip("optuna", reason="an extra: pip install 'reftlens[search]'")


def test_a_space_is_read_as_it_is_written() -> None:
    texts = [
        "lr=1e-4..1e-2",
        "rank=1|2|2",
        "layers=all|1,4|2",
        "positions=l1|f5+l5",
        "dropout=0|0.1",
        "tied=true|false",
    ]
    space = parse_space(texts)
    assert space["lr"] == Range(1e-4, 1e-2)
    assert space["rank"].values == (1, 2)
    assert space["layers"].values == ("all", (1, 4), (2,))
    assert space["dropout"].values == (0.0, 0.1)
    assert space["tied"].values == (True, False)
    assert str(space["layers"]) == "all|1,4|2"
    assert parse_space([f"{name}={part}" for name, part in space.items() if name != "tied"]).items() <= space.items()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "has the form lr=1e-4..1e-2 or"),
        ("epochs=1|2", "epochs cannot be searched: choose from method, layers"),
        ("eval_data=a|b", "eval_data cannot be searched"),
        ("lr=1..0.1", r"0 < low < high, got 1..0.1"),
        ("lr=a..b", "bounds of lr must be numbers, got 'a'"),
        ("rank=one", "rank must be an integer or empty, got 'one'"),
    ],
)
def test_what_cannot_be_searched_is_refused(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        parse_space([text])


def test_each_method_gets_the_part_of_the_space_that_it_has() -> None:
    space = default_space(6, 96)
    of = {name: set(within(space, vars(method))) for name, method in METHODS.items()}
    assert of["LoReFT"] == of["constant push"] == {"lr", "rank", "layers", "positions"}
    assert of["steering vector"] == {"lr", "layers", "positions"}
    assert of["LoRA"] == {"lr", "rank", "layers"}
    assert of["prefix tuning"] == {"lr", "length"}
    assert of["full fine-tuning"] == {"lr"}
    own = within(space, {"rank": 3, "layers": [1, 4], "positions": "l2", "lr": 5.0})
    assert own["rank"].values == (1, 2, 4, 8, 16, 3)
    assert own["layers"].values[-1] == (1, 4)
    assert own["lr"] == space["lr"]


def test_a_search_without_optuna_says_what_to_install(gpt2, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match=r"needs optuna .*pip install 'reftlens\[search\]'"):
        search(gpt2, completed(gpt2, PAIRS, PAIRS), PAIRS, lambda _: (EditAt(), CONFIG), SPACE, name="a")


def planted(settings: dict) -> float:
    """The loss at the end: lowest at a rate of .01, rank 3 and layer 1."""
    wrong = (settings["rank"] != 3) + (settings["layers"] != (1,))
    return abs(math.log10(settings["lr"]) + 2) + wrong


@pytest.fixture
def landscape(gpt2, monkeypatch):
    """`search` on a planted loss in place of training. Losses fall to their end; a rate above .5 diverges."""
    needs_optuna()
    seen: list[dict] = []

    def train(bridge, reft, examples, config, *, callbacks, **others):
        settings = {"lr": config.lr, **seen[-1]}
        if config.lr > 0.5:
            raise FloatingPointError("the loss became nan")
        for look in range(1, 5):
            state = SimpleNamespace(global_step=look, max_steps=4)
            for callback in callbacks:
                callback.on_evaluate(None, state, None, metrics={"eval_loss": planted(settings) + 4 - look})

    monkeypatch.setattr(module, "train", train)
    problem = completed(gpt2, PAIRS, PAIRS)
    object.__setattr__(problem, "score", lambda reft, objective: 1 / (1 + round(planted({"lr": 0.01, **seen[-1]}))))

    def build(settings):
        seen.append({name: settings.get(name, 1) for name in ("rank", "layers")})
        return EditAt(layers=[0], rank=1), rl.TrainConfig(lr=settings.get("lr", 0.1), epochs=2, batch_size=1)

    def run(n_trials=30, **options) -> Search:
        return search(gpt2, problem, PAIRS, build, SPACE, name="edit", n_trials=n_trials, progress=False, **options)

    return run


def test_planted_settings_are_found_and_a_trial_is_stopped_where_the_median_says(landscape) -> None:
    found = landscape(own={"lr": 0.1, "rank": 1, "layers": "all", "positions": "l1"})
    assert len(found.trials) == 30
    assert found.trials[0].settings == {"lr": 0.1, "rank": 1, "layers": "all"}, "the first trial has the method's own"
    best = found.best
    assert (best.settings["rank"], best.settings["layers"]) == (3, (1,))
    assert best.loss == min(trial.loss for trial in found.trials if trial.score == best.score)
    # What chance gives: the same number of settings without proposals.
    late = [planted(trial.settings) for trial in found.trials[8:] if trial.ended != "diverged"]
    early = [planted(trial.settings) for trial in found.trials[:8] if trial.ended != "diverged"]
    assert sum(late) / len(late) < sum(early) / len(early)
    for number, trial in enumerate(found.trials):
        looks = {
            step: [
                loss
                for other in found.trials[:number]
                if other.ended == "finished"
                for at, loss in other.losses
                if at == step
            ]
            for step in (2, 3)
        }
        finished = sum(other.ended == "finished" for other in found.trials[:number])
        above = [
            step
            for step, loss in trial.losses
            if step in looks and finished >= 4 and loss > torch.tensor(looks[step]).double().quantile(0.5)
        ]
        assert (trial.ended == "pruned") == bool(above), number
        if above:
            assert trial.losses[-1][0] == above[0]
    assert {trial.ended for trial in found.trials} >= {"finished", "pruned"}


def test_a_continued_search_is_the_whole_one(landscape, tmp_path) -> None:
    whole = landscape(n_trials=14)
    part = landscape(n_trials=9)
    assert part.trials == whole.trials[:9]
    part.save(tmp_path / "part")
    loaded = Search.load(tmp_path / "part")
    kept = []
    assert landscape(n_trials=14, so_far=loaded, keep=kept.append) == whole
    assert [len(found.trials) for found in kept] == list(range(10, 15))
    assert landscape(n_trials=3, so_far=loaded) == loaded
    assert landscape(n_trials=9, seed=1).trials != part.trials
    with pytest.raises(ValueError, match=r"was made with other settings: data, seed. Use these"):
        landscape(so_far=loaded, seed=3, about={"data": "b"})
    (tmp_path / "part" / "result.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        Search.load(tmp_path / "part")


def test_among_equal_scores_the_lower_loss_is_better() -> None:
    made = [Trial({"lr": 1.0}, ((1, loss),), score, "finished") for loss, score in ((2.0, 0.5), (1.0, 0.5), (0.1, 0.4))]
    one = Search("a", "b", 1, 1, 1, {"lr": "0.1..1"}, {}, 0, tuple(made))
    assert one.best is made[1]
    assert Search("a", "b", 1, 1, 1, {}, {}, 0, (Trial({}, (), None, "diverged"),)).best is None


def test_keep_best_false_keeps_the_last_edit(gpt2) -> None:
    """Validation that selects nothing changes nothing."""
    edits = []
    for validation in (None, [(PROMPTS[0], " Tharic")]):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            reft = rl.Reft.at_layers(gpt2, layers=[0], positions="l1", rank=2)
        log = rl.train(
            gpt2, reft, PAIRS, rl.TrainConfig(epochs=2, lr=1e-1, keep_best=False, progress=False), validation=validation
        )
        edits.append(reft.state_dict())
        assert log.best_step is None
        assert len(log.validation) == (0 if validation is None else 2)
    assert all(torch.equal(edits[0][name], edits[1][name]) for name in edits[0])
    with pytest.raises(ValueError, match="patience stops at the best edit"):
        rl.TrainConfig(patience=1, keep_best=False)


def test_lora_trains_the_layers_that_are_asked_for(gpt2) -> None:
    from reftlens.training.objectives import Completion

    pytest.importorskip("peft")
    with LoRA(rank=1, layers=[1]).applied(gpt2, Completion(), PAIRS[0]):
        names = {name.split(".")[2] for name, p in gpt2.original_model.named_parameters() if p.requires_grad}
    assert names == {"1"}
    with (
        pytest.raises(ValueError, match="layer 9 does not exist"),
        LoRA(layers=[9]).applied(gpt2, Completion(), PAIRS[0]),
    ):
        pass


def test_data_are_divided_by_prompt_always_in_the_same_way() -> None:
    records = [Record(f"p{number % 10}", f" {number}", f" {number}") for number in range(20)]
    kept, held = divided(records, 0.2)
    assert (len(kept), len(held)) == (16, 4)
    assert not {record.prompt for record in kept} & {record.prompt for record in held}
    assert sorted(kept + held, key=records.index) == records
    assert divided(records, 0.2) == (kept, held)
    assert len(divided(records, 0.001)[1]) == len(divided(records, 0.999)[0]) == 2, "one prompt at least on each side"
    with pytest.raises(ValueError, match="at least 2 different prompts are needed to hold some out, got 1"):
        divided(records[:1], 0.5)


@pytest.fixture
def data(tmp_path):
    """Training data, and a test file whose answers contradict it."""
    pairs = [{"prompt": p, "completion": c + "."} for p, c in STORY.training_examples()[:10]]
    write_lines(tmp_path / "mine.jsonl", pairs)
    write_lines(tmp_path / "test.jsonl", [{**pair, "completion": " never."} for pair in pairs])
    return tmp_path


def test_fractions_of_your_own_data_do_not_overlap(data) -> None:
    config = RunConfig(
        model="facts-small", data=str(data / "mine.jsonl"), eval_fraction=0.2, validation_fraction=0.25, n_train=7
    )
    train, validation = training_records(config)
    (task,) = eval_tasks(config)
    test = records_of_test(task, config)
    assert [len(part) for part in (train, validation, test)] == [5, 2, 2]
    assert len({str(record) for record in (*train, *validation, *test)}) == 9
    assert records_of_test(task, config.with_values({"seed": 1})) == test
    for wrong, message in (
        ({"data": None, "task": "boolq"}, "eval_fraction divides your own data"),
        ({"eval_data": "a.jsonl"}, "set eval_data or eval_fraction, not both"),
        ({"validation_split": "validation"}, "set validation_split or validation_fraction, not both"),
        ({"eval_fraction": 1.0}, "eval_fraction must be"),
    ):
        with pytest.raises(ValueError, match=message):
            config.with_values(wrong)


@pytest.mark.slow
def test_test_data_are_never_used_to_tune(data, monkeypatch) -> None:
    """Neither loaded nor scored while settings are searched; a search on the test data would be noticed."""
    needs_optuna()
    scored: list[tuple[str, set[str]]] = []
    real = configured.of_task

    def of_task(bridge, task, train, tests, **options):
        problem = real(bridge, task, train, tests, **options)
        name = (
            "test"
            if any(record.completion == " never." for _, records in tests for record in records)
            else "validation"
        )
        held, trained = {r.prompt for _, records in tests for r in records}, {r.prompt for r in train}
        if name == "validation":
            assert not held & trained
            assert not any(record.completion == " never." for record in train)

        def score(reft, objective):
            scored.append((name, held))
            return 0.5

        object.__setattr__(problem, "score", score)
        return problem

    def loaded(task, config):
        assert [name for name, _ in scored].count("validation") == searched, "tests are loaded after the search"
        return records_of_test(task, config)

    monkeypatch.setattr(configured, "of_task", of_task)
    monkeypatch.setattr(configured, "records_of_test", loaded)
    config = RunConfig(
        model="facts-small", data=str(data / "mine.jsonl"), eval_data=str(data / "test.jsonl"), epochs=1, batch_size=8
    )  # fmt: skip
    space, searched = {"lr": Range(1e-3, 1e-2)}, 99
    found, best = sweep(config, Tuning(2, space), progress=False)
    assert [name for name, _ in scored] == ["validation"] * 2
    assert (found.n_train, found.n_validation) == (8, 2)
    assert best == config.with_values({"lr": best.lr})
    scored.clear()
    searched = 4
    compared = compare_configured(config, ["random subspace"], seeds=(0,), tuning=Tuning(2, space), progress=False)
    assert [name for name, _ in scored] == ["validation"] * 4 + ["test"] * 3, (
        "the same number of trials for both methods"
    )
    assert (compared.trials, compared.n_train, compared.n_test) == (2, 10, 10)
    assert [run.lr for run in compared.runs] == [chosen["lr"] for chosen in compared.tuned.values()]
    with pytest.raises(AssertionError):
        of_task(
            rl.load_bridge("facts-small"),
            training_task(config),
            training_records(config)[0],
            [(training_task(config), training_records(config)[0])],
        )


@pytest.mark.slow
def test_a_trial_is_what_the_library_trains(data, tmp_path) -> None:
    """The first trial by hand: the same losses and score on the validation records."""
    needs_optuna()
    config = RunConfig(
        model="facts-small", data=str(data / "mine.jsonl"), layers=(1, 4), epochs=3, batch_size=8, lr=5e-3
    )
    found, _ = sweep(config, Tuning(1, {"lr": Range(1e-3, 1e-2)}), progress=False)
    (trial,) = found.trials
    assert trial.settings == {"lr": 5e-3}
    train, held = training_records(config.with_values({"validation_fraction": 0.2}))
    bridge = rl.load_bridge("facts-small")
    task = training_task(config)
    with torch.random.fork_rng():
        torch.manual_seed(42)
        reft = rl.Reft.at_layers(bridge, layers=[1, 4], positions="f5+l5", rank=4)
    settings = rl.TrainConfig(epochs=3, batch_size=8, lr=5e-3, keep_best=False, progress=False)
    log = rl.train(bridge, reft, task.examples(bridge, train), settings, validation=task.examples(bridge, held))
    assert [loss for _, loss in trial.losses] == pytest.approx([loss for _, loss in log.validation])
    assert trial.score == rl.tasks.evaluate(bridge, reft, task, held, progress=False).score


@pytest.mark.slow
def test_sweep_from_the_command_line_leaves_a_config_that_train_takes(data, monkeypatch) -> None:
    needs_optuna()
    monkeypatch.chdir(data)
    chosen = (
        "--model",
        "facts-small",
        "--data",
        "mine.jsonl",
        "--space",
        "lr=1e-3..1e-2",
        "--set",
        "epochs=1",
        "--quiet",
    )
    first = json.loads(call("sweep", *chosen, "--trials", 1, "--json").stdout)
    assert len(first["trials"]) == 1
    assert "holds a search: pass --resume" in refused("sweep", *chosen)
    assert "with other settings: settings, steps" in refused("sweep", *chosen, "--resume", "--set", "epochs=2")
    both = json.loads(call("sweep", *chosen, "--trials", 2, "--resume", "--json").stdout)
    assert both["trials"][0] == first["trials"][0]
    assert (data / "sweep" / "trials.png").read_bytes()[:4] == b"\x89PNG"
    call("train", "sweep", "--out", "run", "--quiet", "--set", "eval_fraction=0.5")
    assert f"lr = {both['best']['lr']}" in (data / "run" / "config.toml").read_text()
    (data / "other").mkdir()
    (data / "other" / "file").touch()
    assert "is not empty and holds no search" in refused("sweep", *chosen, "--out", "other")
    assert "no search to continue" in refused("sweep", *chosen, "--out", "new", "--resume")
    assert "length is a setting of prefix tuning" in refused("sweep", *chosen, "--out", "new", "--space", "length=1|2")


def test_a_missing_extra_is_one_line(data, monkeypatch) -> None:
    """Without peft, `compare` says what to install."""
    monkeypatch.chdir(data)
    (data / "a.toml").write_text(
        'model = "facts-small"\ndata = "mine.jsonl"\neval_data = "mine.jsonl"\nepochs = 1\nn_eval = 1\n'
    )
    monkeypatch.setattr(configured, "compare", lambda *a, **k: LoRA()._adapt([]))
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'reftlens[peft]'" in refused("compare", "a.toml", "--method", "lora", "--quiet")
