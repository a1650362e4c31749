"""Checkpoints: resumed training is uninterrupted training, to the bit; kills lose nothing; the best edit is kept."""

from __future__ import annotations

import json
import logging
import os
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
from reftlens.bridge import sampled_fingerprint
from reftlens.files.seal import seal
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


@pytest.mark.sampled(1)
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


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 1e-3}, "lr: was 0.005, is now 0.001"),
        ({"examples": EXAMPLES[:-1]}, "examples: it was 5, digest"),
        ({"rank": 3}, "edit: was Reft of 2 edits"),
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
    with pytest.raises(ValueError, match="does not hold a training run"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, output_dir=tmp_path, resume=True))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="resume=True needs the output_dir"):
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
    with pytest.raises(ValueError, match="patience needs a validation set"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(config, output_dir=None))


# Damage.


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A run of 4 epochs with the last three checkpoints (6, 9, 12), what it ended at, and its losses."""
    folder = tmp_path_factory.mktemp("run") / "run"
    bridge = make_bridge("gpt2")
    reft = fresh(bridge)
    log = rl.train(bridge, reft, EXAMPLES, replace(CONFIG, keep_checkpoints=3, output_dir=folder))
    return folder, values(reft), log.loss


@pytest.fixture
def damaged_run(three_checkpoints, tmp_path):
    return shutil.copytree(three_checkpoints[0], tmp_path / "run")


def found(folder) -> str:
    """The name of the checkpoint that a run in this folder would go on from."""
    training_folder = TrainingFolder(folder)
    place = training_folder.begin(training_folder.identity(), resume=True)
    return place.name


def test_a_checkpoint_with_any_damage_is_passed_over(damaged_run, caplog) -> None:
    newest = damaged_run / "checkpoint-12"
    assert found(damaged_run) == newest.name
    files = sorted(file for file in newest.rglob("*") if file.is_file())
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "digests.json"} <= {file.name for file in files}
    for file in files:
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damage in (None, bytes(flipped), content[: len(content) // 2], b"", content + b"x"):
            file.unlink() if damage is None else file.write_bytes(damage)
            assert found(damaged_run) == "checkpoint-9", file
            file.write_bytes(content)
        file.unlink()
        os.mkfifo(file)
        assert found(damaged_run) == "checkpoint-9", "a pipe would never end"
        file.unlink()
        file.write_bytes(content)
    (newest / "pytorch_model.bin").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert found(damaged_run) == "checkpoint-9"
    said = (
        "checkpoint-12 is damaged (pytorch_model.bin was added after it was saved): training resumes from checkpoint-9"
    )
    assert said in caplog.text
    (newest / "pytorch_model.bin").unlink()
    (newest / ".nfs0001").write_bytes(b"")
    assert found(damaged_run) == newest.name


def flip(file, place=-100, bit=2) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["a bit of the optimiser", pytest.param("no scheduler", marks=_SLOW)])
def test_training_from_the_checkpoint_before_is_the_same_training(gpt2, damaged_run, three_checkpoints, damage) -> None:
    if damage == "no scheduler":
        (damaged_run / "checkpoint-12" / "scheduler.pt").unlink()
    else:
        flip(damaged_run / "checkpoint-12" / "optimizer.pt")
    reft = fresh(gpt2)
    log = rl.train(gpt2, reft, EXAMPLES, replace(CONFIG, keep_checkpoints=3, output_dir=damaged_run, resume=True))
    assert log.loss == three_checkpoints[2]
    assert all(torch.equal(a, b) for a, b in zip(values(reft), three_checkpoints[1], strict=True))
    assert found(damaged_run) == "checkpoint-12", "made again, whole"


def test_where_all_are_damaged_it_says_so(gpt2, damaged_run) -> None:
    for place in damaged_run.glob("checkpoint-*"):
        flip(place / "model.safetensors")
    before = {file: file.read_bytes() for file in damaged_run.rglob("*") if file.is_file()}
    with pytest.raises(
        ValueError, match=r"all checkpoints in .* are damaged \(checkpoint-12: model.safetensors has changed"
    ):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, output_dir=damaged_run, resume=True))
    assert {file: file.read_bytes() for file in damaged_run.rglob("*") if file.is_file()} == before


def test_a_damaged_best_checkpoint_is_never_the_result(gpt2, tmp_path) -> None:
    against = [(prompt, " river tower") for prompt, _ in EXAMPLES]
    config = replace(CONFIG, lr=3e-2, warmup_ratio=0.0, output_dir=tmp_path / "run")
    log = rl.train(gpt2, fresh(gpt2), EXAMPLES, config, validation=against)
    name = f"checkpoint-{log.best_step}"
    assert log.best_step < 12, "it is not the newest"
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    again = fresh(gpt2)
    config = replace(config, output_dir=moved, resume=True)
    rl.train(gpt2, again, EXAMPLES, config, validation=against)
    best = rl.Reft.from_pretrained(moved / name / "edit", bridge=gpt2)
    assert all(torch.equal(a, b) for a, b in zip(values(again), values(best), strict=True)), "found after a move"
    flip(moved / name / "model.safetensors")
    with pytest.raises(ValueError, match=rf"its best checkpoint, {name}, is damaged: model\.safetensors has changed"):
        rl.train(gpt2, fresh(gpt2), EXAMPLES, config, validation=against)


def as_before(folder, bridge) -> None:
    """A run as earlier versions left it: without digests, and with the fingerprint of 64 values."""
    identity = json.loads((folder / "training.json").read_text())
    for name in ("computation", "tokens", "checkpoints"):
        del identity[name]
    identity["weights"] = sampled_fingerprint(bridge)
    (folder / "training.json").write_text(json.dumps(identity))
    for place in folder.glob("checkpoint-*"):
        (place / "digests.json").unlink()


def test_a_run_of_an_earlier_version_goes_on_and_says_that_it_is_not_checked(
    gpt2, damaged_run, three_checkpoints, caplog
) -> None:
    as_before(damaged_run, gpt2)
    (damaged_run / "checkpoint-12" / "rng_state.pth").unlink()
    reft = fresh(gpt2)
    config = replace(CONFIG, keep_checkpoints=3, output_dir=damaged_run, resume=True)
    with caplog.at_level(logging.WARNING):
        rl.train(gpt2, reft, EXAMPLES, config)
    assert "checkpoint-12 is damaged (rng_state*.pth is missing): training resumes from checkpoint-9" in caplog.text
    assert "checkpoint-9 was saved by an earlier version without digests, so damage cannot be detected" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(values(reft), three_checkpoints[1], strict=True))


class Touch:
    def __init__(self, place) -> None:
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_nothing_in_a_checkpoint_is_executed(gpt2, damaged_run, tmp_path) -> None:
    shutil.rmtree(damaged_run / "checkpoint-12")
    newest = damaged_run / "checkpoint-9"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (newest / name).read_bytes()
        torch.save({"state": Touch(tmp_path / "executed")}, newest / name)
        (newest / "digests.json").unlink()
        seal(newest)
        with pytest.raises(ValueError, match="checkpoint-9 cannot be loaded"):
            rl.train(gpt2, fresh(gpt2), EXAMPLES, replace(CONFIG, output_dir=damaged_run, resume=True))
        assert not (tmp_path / "executed").exists()
        (newest / name).write_bytes(content)
    torch.load(newest / "training_args.bin", weights_only=False)  # Written by transformers, and read by nobody here.


@pytest.mark.slow
def test_damage_at_random_is_always_noticed(damaged_run) -> None:
    """1,000 flipped bits and 200 truncations of the newest checkpoint, and of what says which run this is."""
    draw = random.Random(0)
    identity = TrainingFolder(damaged_run).identity()
    newest = damaged_run / "checkpoint-12"
    files = [*sorted(file for file in newest.rglob("*") if file.is_file()), damaged_run / "training.json"]
    outcomes = {"passed over": 0, "refused": 0}
    for turn in range(1200):
        file = draw.choice(files)
        content = file.read_bytes()
        if turn < 1000:
            flip(file, draw.randrange(len(content)), draw.randrange(8))
        else:
            file.write_bytes(content[: draw.randrange(len(content))])
        try:
            assert TrainingFolder(damaged_run).begin(identity, resume=True).name == "checkpoint-9", file
            outcomes["passed over"] += 1
        except ValueError:
            assert file.name == "training.json"
            outcomes["refused"] += 1
        file.write_bytes(content)
    assert sum(outcomes.values()) == 1200
    assert min(outcomes.values()) > 50


# A process that saves all the time, to be killed.
SAVING = """
import sys
sys.path.insert(0, {tests!r})
from dataclasses import replace
from conftest import make_bridge
import reftlens as rl
from reftlens.bridge import sampled_fingerprint
from reftlens.files.seal import seal
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
        assert found(out) == TrainingFolder(out).last().name, "the newest is whole"
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
