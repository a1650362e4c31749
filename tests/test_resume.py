"""Checkpoints: resumed training is uninterrupted training, to the bit; kills lose nothing; the best edit is kept."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge
from safetensors.torch import load_file
from transformers.trainer_utils import sort_checkpoints

import reftlens as rl
from reftlens.training import train as training
from reftlens.training.checkpoints import TrainingFolder

EXAMPLES = [
    *zip(PROMPTS, COMPLETIONS, strict=True),
    ("tower of the city , old", " river"),
    ("In the old tower", " Ostra , and"),
]
CONFIG = rl.TrainConfig(epochs=4, batch_size=2, lr=5e-3, weight_decay=0.1, warmup_ratio=0.2, seed=7, progress=False)


def fresh(bridge, rank=2):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=[0, 1], positions="f1+l1", rank=rank)


def values(reft):
    return [parameter.detach().clone() for parameter in reft.parameters()]


class CrashError(Exception):
    pass


def interrupt_after(monkeypatch, step):
    """Ends the process' work right after a step, as a crash would."""

    class Interrupt(training._Progress):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise CrashError

    monkeypatch.setattr(training, "_Progress", Interrupt)


_SLOW = pytest.mark.slow


@pytest.mark.parametrize("interrupted", [pytest.param(1, marks=_SLOW), 4, 5, pytest.param(11, marks=_SLOW)])
@pytest.mark.parametrize(
    "settings", [{}, {"save_every": 2, "gradient_accumulation": 2, "dropout": 0.2}], ids=["epochs", "accumulated"]
)
def test_resumed_training_is_uninterrupted_training(gpt2, tmp_path, monkeypatch, interrupted, settings) -> None:
    config = replace(CONFIG, **settings)
    whole = fresh(gpt2)
    expected = rl.train(gpt2, whole, EXAMPLES, replace(config, output_dir=tmp_path / "whole"))
    interrupted = min(interrupted, len(expected.loss) - 1)
    with monkeypatch.context() as patched:
        interrupt_after(patched, interrupted)
        with pytest.raises(CrashError):
            rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(config, output_dir=tmp_path / "cut"))
    torch.manual_seed(99)
    reft = fresh(make_bridge("gpt2"))
    log = rl.train(gpt2, reft, EXAMPLES, replace(config, output_dir=tmp_path / "cut", resume=True))
    assert log.loss == expected.loss
    assert log.lr == expected.lr
    assert all(torch.equal(a, b) for a, b in zip(values(reft), values(whole), strict=True))
    done = fresh(gpt2)
    rl.train(gpt2, done, EXAMPLES, replace(config, output_dir=tmp_path / "cut", resume=True))
    assert all(torch.equal(a, b) for a, b in zip(values(done), values(whole), strict=True)), (
        "a finished run is finished"
    )


def test_a_checkpoint_holds_the_edit_alone_and_loads(gpt2, tmp_path) -> None:
    reft = fresh(gpt2)
    rl.train(gpt2, reft, EXAMPLES, replace(CONFIG, output_dir=tmp_path / "run"))
    newest = sort_checkpoints(str(tmp_path / "run"))
    assert len(newest) == 2, "keep_checkpoints"
    tensors = load_file(f"{newest[-1]}/model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"reft"}
    assert sum(tensor.numel() for tensor in tensors.values()) == reft.n_parameters()
    loaded = rl.Reft.from_pretrained(f"{newest[-1]}/edit", bridge=gpt2)
    assert all(torch.equal(a, b) for a, b in zip(values(loaded), values(reft), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-3}, "lr: it was 0.005, now it is 0.001"),
        ({"examples": EXAMPLES[:-1]}, "examples: it was 5, digest"),
        ({"rank": 3}, "edit: it was Reft of 2 edits"),
        ({"resume": False}, "holds a training run: pass resume=True"),
        ({"seed_of_model": 1}, "weights: it was"),
    ],
)
def test_another_run_is_not_resumed(gpt2, tmp_path, change, message) -> None:
    rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, epochs=1, output_dir=tmp_path / "run"))
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    bridge = make_bridge("gpt2", seed=change.get("seed_of_model", 0))
    config = replace(CONFIG, epochs=1, output_dir=tmp_path / "run", resume=change.get("resume", True))
    config = replace(config, lr=change.get("lr", config.lr))
    with pytest.raises(ValueError, match=message):
        rl.train(bridge, fresh(bridge, change.get("rank", 2)), change.get("examples", EXAMPLES), config)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


def test_a_folder_of_something_else_is_left_alone(gpt2, tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no training run"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, output_dir=tmp_path, resume=True))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="resume wants the output_dir"):
        rl.TrainConfig(resume=True)


def test_the_best_on_validation_is_kept_and_patience_ends(gpt2, tmp_path) -> None:
    """Validation asks for the opposite of training, so the first look is the best one."""
    against = [(prompt, " river tower") for prompt, _ in EXAMPLES]
    config = replace(CONFIG, epochs=30, lr=3e-2, warmup_ratio=0.0, patience=3, output_dir=tmp_path / "run")
    reft = fresh(gpt2)
    log = rl.train(gpt2, reft, EXAMPLES, config, validation=against)
    looks = dict(log.validation)
    assert log.best_step == min(looks, key=looks.__getitem__)
    assert len(log.loss) < 90, "patience ended it"
    assert max(looks) >= log.best_step + 3 * 3
    at_best = rl.Reft.from_pretrained(tmp_path / "run" / f"checkpoint-{log.best_step}" / "edit", bridge=gpt2)
    assert all(torch.equal(a, b) for a, b in zip(values(reft), values(at_best), strict=True))
    batch = rl.encode(gpt2, *map(list, zip(*against, strict=True)))
    with reft.hooks(gpt2, batch):
        loss = rl.objectives.completion_loss(gpt2(batch.tokens, attention_mask=batch.attention_mask), batch.labels)
    assert float(loss.detach()) == pytest.approx(looks[log.best_step], rel=1e-5), "a mean over tokens, not over batches"
    assert "best on validation" in repr(log)
    with pytest.raises(ValueError, match="patience counts looks"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(config, output_dir=None))


# A process that saves all the time, to be killed.
SAVING = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from conftest import make_bridge
import reftlens as rl
from test_resume import CONFIG, EXAMPLES, fresh
bridge = make_bridge("gpt2")
config = replace(CONFIG, epochs=200, save_every=1, output_dir={out!r}, resume=True)
print("ready", flush=True)
rl.train(bridge, fresh(bridge), EXAMPLES, config)
"""


def kill_and_look(tmp_path, kills) -> None:
    """Kills a training process at random moments; whatever is called a checkpoint must load, and be the newest yet."""
    out, draw, newest = tmp_path / "run", random.Random(0), 0
    bridge = make_bridge("gpt2")
    while kills:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SAVING.format(tests=str(Path(__file__).parent), out=str(out))],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the process did not come up"
        while TrainingFolder(out).last() is None or int(TrainingFolder(out).last().name.split("-")[1]) <= newest:
            assert process.poll() is None, "training ended by itself"
            time.sleep(0.01)
        # From here on a checkpoint is written nearly all of the time.
        time.sleep(draw.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills -= 1
        for place in map(Path, sort_checkpoints(str(out))):
            rl.Reft.from_pretrained(place / "edit", bridge=bridge)
            assert {file.name for file in place.iterdir()} >= {
                "model.safetensors",
                "optimizer.pt",
                "trainer_state.json",
            }
        last = int(TrainingFolder(out).last().name.split("-")[1])
        assert last > newest, "a kill lost a checkpoint"
        newest = last
    whole = fresh(bridge)
    expected = rl.train(
        bridge, whole, EXAMPLES, replace(CONFIG, epochs=200, save_every=1, output_dir=tmp_path / "whole")
    )
    resumed = fresh(bridge)
    log = rl.train(bridge, resumed, EXAMPLES, replace(CONFIG, epochs=200, save_every=1, output_dir=out, resume=True))
    assert log.loss == expected.loss
    assert all(torch.equal(a, b) for a, b in zip(values(resumed), values(whole), strict=True))


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path) -> None:
    kill_and_look(tmp_path, kills=20)


@pytest.mark.slow
def test_a_kill_between_any_two_steps_of_a_save_leaves_what_was_there(gpt2, tmp_path, monkeypatch) -> None:
    """The same, in one process and at every place of `publish` and `prune` where the folder changes."""
    config = replace(CONFIG, epochs=2, save_every=1, keep_checkpoints=1, output_dir=tmp_path / "run")
    expected = fresh(gpt2)
    rl.train(gpt2, expected, EXAMPLES, replace(config, output_dir=tmp_path / "whole"))
    moments = 0
    for dies_at in range(1, 200):
        seen = 0

        def dying(call, dies_at=dies_at):
            def wrapped(*args, **kwargs):
                nonlocal seen
                if "run" in str(args[0]):
                    seen += 1
                    if seen == dies_at:
                        raise CrashError
                return call(*args, **kwargs)

            return wrapped

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", dying(Path.rename))
            patched.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(config, resume=(tmp_path / "run").exists()))
            except CrashError:
                moments += 1
            else:
                break
        for place in sort_checkpoints(str(tmp_path / "run")):
            rl.Reft.from_pretrained(f"{place}/edit", bridge=gpt2)
    assert moments >= 8, "each of them was a place where a kill could do harm"
    resumed = fresh(gpt2)
    rl.train(gpt2, resumed, EXAMPLES, replace(config, resume=True))
    assert all(torch.equal(a, b) for a, b in zip(values(resumed), values(expected), strict=True))
