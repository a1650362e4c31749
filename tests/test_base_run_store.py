"""Stores of base runs: budgets, what is refused, what is made again, and training from a folder."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest
import torch
from conftest import COMPLETIONS, PROMPTS, make_bridge

import reftlens as rl
from reftlens.cone.store import MARKER, InMemory, OnDisk, Run, write_whole

EXAMPLES = [*zip(PROMPTS, COMPLETIONS, strict=True), ("tower of the city", " river"), ("the weaver who", " speaks")]
MADE_FOR = {"base": "one", "examples": "two"}


def run(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "resid": torch.randn(1, 5, 8, generator=generator).to(dtype),
        "keys.0": torch.randn(1, 2, 3, 4).to(dtype),
    }
    return Run(tensors, {"start": 3, "boundary": -1})


def fresh(bridge, positions="l1", layer=1):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return rl.Reft.at_layers(bridge, layers=[layer], positions=positions, rank=2)


def same(one, two) -> bool:
    return one.numbers == two.numbers and all(torch.equal(one.tensors[name], two.tensors[name]) for name in two.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_put_is_got_in_both_stores_and_after_reopening(tmp_path, dtype) -> None:
    wanted = run(dtype=dtype)
    stores = [InMemory(10_000), OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000)]
    for store in stores:
        assert store.get(7) is None
        assert store.put(7, wanted)
        assert same(store.get(7), wanted)
        assert not store.put(8, Run({"resid": torch.zeros(5000)})), "over the budget"
        assert store.get(8) is None
    assert stores[1].put(1234, wanted)
    again = OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000)
    assert same(again.get(1234), wanted)
    assert again.n_bytes == stores[1].n_bytes


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=100)
    with pytest.raises(ValueError, match=r"base runs of other inputs \(different: base, dtype\)"):
        OnDisk(tmp_path / "runs", made_for={**MADE_FOR, "base": "other", "dtype": "x"}, max_bytes=100)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        OnDisk(tmp_path / "other", made_for=MADE_FOR, max_bytes=100)
    (tmp_path / "runs" / MARKER).write_text("[1, 2")
    with pytest.raises(ValueError, match="is damaged"):
        OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=100)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "another file", "no digest", "of another row"])
def test_a_damaged_run_is_never_used(tmp_path, damage, caplog) -> None:
    store = OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000)
    store.put(0, run())
    (file,) = (tmp_path / "runs").rglob("*.safetensors")
    content = file.read_bytes()
    store.put(1, run())
    other = file.with_name("00000001.safetensors").read_bytes()
    file.with_name("00000001.safetensors").unlink()
    changed = {
        "cut": content[:-7],
        "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "empty": b"",
        "another file": b"hello" * 100,
        "no digest": content.replace(b"sha256", b"sha255"),
        "of another row": other,
    }[damage]
    file.write_bytes(changed)
    opened = OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000)
    with caplog.at_level(logging.WARNING):
        assert opened.get(0) is None
    assert "is damaged" in caplog.text
    assert not file.exists()
    assert opened.n_bytes == 0
    assert opened.put(0, run())
    assert opened.get(0) is not None


def test_no_flipped_bit_gives_another_run(tmp_path) -> None:
    """One bit of each byte, header and numbers alike: the run comes back as it was, or is made again."""
    wanted = Run(
        {"resid": run().tensors["resid"], "keys.0": torch.ones(1, 2, 3, 4)}, {"start": 8, "boundary": 4, "past": 1}
    )
    OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000).put(0, wanted)
    (file,) = (tmp_path / "runs").rglob("*.safetensors")
    content = file.read_bytes()
    logging.disable(logging.WARNING)
    try:
        for place in range(len(content)):
            changed = bytearray(content)
            changed[place] ^= 1 << (place * 5 % 8)
            file.write_bytes(changed)
            got = OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000).get(0)
            assert got is None or (same(got, wanted) and set(got.tensors) == set(wanted.tensors)), place
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("when", "hold_bytes"), [("opening", 2**20), ("the third run", 2**20), ("the third run", 0)])
def test_a_full_disk_stops_no_training(gpt2, tmp_path, monkeypatch, caplog, when, hold_bytes) -> None:
    def losses(**settings):
        return rl.train(
            gpt2, fresh(gpt2), EXAMPLES, rl.TrainConfig(epochs=1, batch_size=2, progress=False, **settings)
        ).loss

    truth = losses()
    written = []

    def write(place, content, write=write_whole, **how):
        written.append(place)
        if len(written) > (0 if when == "opening" else 3):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(place, content, **how)

    monkeypatch.setattr("reftlens.cone.store.write_whole", write)
    with caplog.at_level(logging.WARNING):
        assert losses(hold_dir=tmp_path / "runs", hold_bytes=hold_bytes) == truth
    assert caplog.text.count("cannot be written (No space left on device). New base runs stay in memory") == 1
    monkeypatch.undo()
    assert losses(hold_dir=tmp_path / "runs") == truth


def test_runs_follow_the_umask_and_an_unusable_place_is_named(gpt2, tmp_path) -> None:
    old = os.umask(0o027)
    try:
        OnDisk(tmp_path / "runs", made_for=MADE_FOR, max_bytes=10_000).put(0, run())
    finally:
        os.umask(old)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "runs").rglob("*") if file.is_file()}
    assert modes == {0o640}
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/runs cannot be used \(Not a directory\): choose another folder"):
        OnDisk(tmp_path / "file" / "runs", made_for=MADE_FOR, max_bytes=10_000)


def test_training_from_a_folder_is_training_from_memory(gpt2, tmp_path, monkeypatch) -> None:
    def parameters(**settings):
        reft = fresh(gpt2)
        log = rl.train(gpt2, reft, EXAMPLES, rl.TrainConfig(epochs=3, batch_size=2, progress=False, **settings))
        return log.loss, [parameter.detach().clone() for parameter in reft.parameters()]

    runs = tmp_path / "runs"
    memory, none, first = parameters(), parameters(hold_bytes=0), parameters(hold_dir=runs)
    files = {file: file.stat().st_mtime_ns for file in runs.rglob("*.safetensors")}
    assert len(files) == len(EXAMPLES)
    damaged = next(iter(files))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    held = []
    monkeypatch.setattr("reftlens.training.base_runs.hold", lambda *a, **k: held.append(1) or rl.hold(*a, **k))
    second, small = parameters(hold_dir=runs), parameters(hold_dir=tmp_path / "small", hold_dir_bytes=5000)
    assert held.count(1) >= 1, "the damaged run is computed again"
    for file, time in files.items():
        assert (file.stat().st_mtime_ns == time) == (file != damaged), "what was there is used as it is"
    assert sum(file.stat().st_size for file in (tmp_path / "small").rglob("*.safetensors")) <= 5000
    for loss, values in (none, first, second, small):
        assert loss == memory[0]
        assert all(torch.equal(a, b) for a, b in zip(values, memory[1], strict=True))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("change", ["model", "examples", "positions", "layer", "objective"])
def test_training_never_uses_runs_of_something_else(gpt2, tmp_path, change) -> None:
    config = rl.TrainConfig(epochs=1, hold_dir=tmp_path / "runs", progress=False)
    rl.train(gpt2, fresh(gpt2), EXAMPLES, config)
    other = make_bridge("gpt2", seed=1) if change == "model" else gpt2
    examples = EXAMPLES[::-1] if change == "examples" else EXAMPLES
    reft = fresh(other, "f1" if change == "positions" else "l1", 2 if change == "layer" else 1)
    objective = rl.objectives.Distillation(fresh(other, layer=2)) if change == "objective" else None
    with pytest.raises(ValueError, match="base runs of other inputs"):
        rl.train(other, reft, examples, config, objective=objective)
    assert set(json.loads((tmp_path / "runs" / MARKER).read_text())) >= {"weights", "examples", "edit", "precision"}


def test_another_edit_at_the_same_places_uses_them(gpt2, tmp_path) -> None:
    config = rl.TrainConfig(epochs=1, hold_dir=tmp_path / "runs", progress=False)
    rl.train(gpt2, fresh(gpt2), EXAMPLES, config)
    wider = rl.Reft.at_layers(gpt2, layers=[1], positions="l1", intervention=rl.DiReFT, rank=4)
    rl.train(gpt2, wider, EXAMPLES, config)
