"""Several processes share the work of an analysis, and find what one process finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_bridge, make_edit

import reftlens as rl
from reftlens.bridge import processes as module
from reftlens.bridge.processes import Processes, each

WORDS = ("tower", "weaver", "river", "city", "old", "speaks")
EXAMPLES = [
    (f"The {word} by the {other}", " Ostra" if i % 2 else " Tharic")
    for i, word in enumerate(WORDS)
    for other in WORDS[2:]
]


def together(monkeypatch, n: int, work):
    """What `work(index)` returns or raises in each of n threads, which stand for processes."""
    barrier, sent, found = threading.Barrier(n, timeout=20), [None] * n, [None] * n
    here = threading.local()

    def gather(mine):
        sent[here.index] = mine
        barrier.wait()
        gathered = list(sent)
        barrier.wait()
        return gathered

    def run(index: int) -> None:
        here.index = index
        try:
            found[index] = work(index)
        except Exception as error:
            found[index] = error

    monkeypatch.setattr(module, "processes", lambda bridge: Processes(here.index, n, gather))
    threads = [threading.Thread(target=run, args=(index,)) for index in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("n_items", [0, 1, 5, 6])
def test_every_process_gets_all_results_in_order_and_computes_its_own(gpt2, monkeypatch, n_items) -> None:
    computed = [[], [], []]

    def work(index: int):
        def square(item: int) -> int:
            computed[index].append(item)
            return item**2

        return list(each(gpt2, square, range(n_items)))

    assert together(monkeypatch, 3, work) == [[item**2 for item in range(n_items)]] * 3
    assert computed == [list(range(n_items))[index::3] for index in range(3)]


class UnpicklableError(Exception):
    def __init__(self, one, two) -> None:
        super().__init__(f"{one} {two}")


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [(ValueError("item 1"), ValueError, "item 1"), (UnpicklableError("a", "b"), RuntimeError, "UnpicklableError: a b")],
)
def test_an_error_in_one_process_is_raised_in_all(gpt2, monkeypatch, error, kind, says) -> None:
    def fail(item: int) -> int:
        if item == 1:
            raise error
        return item

    for found in together(monkeypatch, 2, lambda index: list(each(gpt2, fail, range(4)))):
        assert type(found) is kind
        assert str(found) == says


def test_processes_with_different_work_are_told_so(gpt2, monkeypatch) -> None:
    for found in together(monkeypatch, 2, lambda index: list(each(gpt2, abs, range(2 + 2 * index)))):
        assert isinstance(found, RuntimeError)
        assert "2, 4 items" in str(found)


def numbers() -> dict[str, object]:
    """A dissection with all its parts, a patching map and a map of trained edits."""
    bridge = make_bridge("gpt2")
    edits = [make_edit(rl.LoReFT, 32, 3, seed=seed) for seed in (1, 2)]
    sites = [rl.Site("blocks.0.hook_resid_post", rl.All()), rl.Site("blocks.1.mlp.hook_post", "l1")]
    edits[1] = make_edit(rl.LoReFT, 128, 2, seed=2)
    reft = rl.Reft(list(zip(sites, edits, strict=True)))
    config = rl.DissectConfig(
        parts="full",
        retrain=rl.TrainConfig(epochs=1),
        seeds=(1,),
        n_null_edits=2,
        at=rl.Last(1),
        batch_size=5,
        n_null=70,
        n_pairs=16,
        n_random=4,
        progress=False,
    )
    found = rl.dissect(bridge, reft, EXAMPLES, config)
    clean, corrupted = ([prompt for prompt, _ in EXAMPLES[i : i + 3]] for i in (0, 4))
    metric = rl.analysis.probability_of(bridge, clean, [" Ostra"] * 3)
    patched = rl.analysis.patch(bridge, clean, corrupted, metric, progress=False)
    trained = rl.reft_map(
        bridge,
        EXAMPLES[2:6],
        EXAMPLES[6:9],
        positions={"last": rl.Last(1)},
        config=rl.TrainConfig(epochs=1, batch_size=2, progress=False),
    )
    where = rl.analysis.interchange(
        bridge, "blocks.0.mlp.hook_post", torch.eye(128)[:2], clean, corrupted, batch_size=1, n_random=2, n_placebo=2
    )
    tables = {f"dissection: {part}": value for part, value in _tables(found).items()}
    return {
        **tables,
        "left out": found.left_out,
        "patched": patched.values,
        "trained": torch.stack([trained.held_out, trained.control]),
        "interchange": where.to_dataframe(),
    }


def _tables(found) -> dict[str, object]:
    from reftlens.dissection.sections import report

    page = report(found)
    return {f"{section.name} {caption}": frame for section in page.sections for caption, frame in section.tables}


def main(out: str) -> None:
    torch.save(numbers(), Path(out) / f"{os.environ.get('RANK', 'one')}.pt")


def launch(*arguments: str) -> str:
    """Runs Python in two processes, and returns what they print."""
    two = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    return python(*two, *arguments)


def python(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path) -> None:
    launch(__file__, str(tmp_path))
    python(__file__, str(tmp_path))
    expected = torch.load(tmp_path / "one.pt", weights_only=False)
    assert len(expected) > 20
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(found[name], value) or torch.allclose(
                    found[name], value, equal_nan=True, atol=0, rtol=0
                ), name
            elif isinstance(value, tuple):
                assert found[name] == value
            else:
                assert found[name].equals(value), name


@pytest.mark.slow
def test_of_two_commands_one_writes_and_prints(tmp_path) -> None:
    bridge = rl.load_bridge("facts-small")
    rl.Reft.at_layers(bridge, layers=[2], positions="l1", rank=2).save_pretrained(tmp_path / "edit", bridge=bridge)
    lines = [json.dumps({"prompt": prompt, "completion": " Ostra"}) for prompt, _ in EXAMPLES[:4]]
    (tmp_path / "examples.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--examples", str(tmp_path / "examples.jsonl"), "--part", "works", "--json", "--quiet"]
    out = tmp_path / "out"
    printed = launch("-m", "reftlens", "dissect", str(tmp_path / "edit"), "--out", str(out), *arguments)
    assert json.loads(printed)["report"] == str(out / "report.html")
    assert rl.load_dissection(out / "dissection").parts == ("works",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edit", "examples.jsonl", "out"]


if __name__ == "__main__":
    main(sys.argv[1])
