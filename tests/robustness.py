"""Damages every kind of file that is read here, and counts what happens: `make robustness` prints the table.

For each kind, 200 truncations, 1,000 flipped bits and 100 structured damages (a value of a JSON document changed, dropped or
doubled; a file taken away, swapped with another, replaced by a pickle that runs a command, by a folder or by a pipe), each of
one file of a whole folder, seeded. What is read of a damaged folder must be the original, to the bit, or be refused:

- silent: it loads and any value differs.
- raw: an exception that is neither a ValueError nor an OSError.
- hangs: nothing comes back in 20 seconds.
- code executed: a command in a file was run.

A held base run or a checkpoint that is damaged is passed over and made again: that counts as refused. Files that nothing reads
back (the card and figure of an edit, the log and versions of a run, older checkpoints) are left out. Sealed folders get 100
structured damages more and are then sealed again, as somebody would who means harm: what loads then may differ, and is not
counted as silent.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parent))
from architectures import make_hf
from conftest import COMPLETIONS, PROMPTS, make_bridge, make_edit, make_tokenizer
from made import made_beside

import reftlens as rl
from reftlens.analysis.engine.saved import Saved
from reftlens.cone.store import OnDisk, Run
from reftlens.files.seal import SEAL_NAME, seal
from reftlens.paper.runs import folder as runs
from reftlens.paper.runs.config import RunConfig
from reftlens.paper.runs.run import train_run
from reftlens.results import Evaluation
from reftlens.results import load as load_result
from reftlens.training.checkpoints import TrainingFolder

TRUNCATIONS, BITS, STRUCTURED = 200, 1000, 100
KINDS = (
    "saved edit",
    "pyreft folder",
    "dissection",
    "run",
    "training checkpoint",
    "held base runs",
    "patching map",
    "result",
)
SECONDS = 20
EXAMPLES = list(zip(PROMPTS, COMPLETIONS, strict=True))
POST = "blocks.{}.hook_resid_post"
VALUES = [
    None, True, False, -1, 0, 1, 2, 10**30, int("9" * 4000), 0.5, 1e308, -2.5, "", "x", "../../etc/passwd", "\ud800", "\x1b[2J", "\u202e",
    "x" * 5000, [], {}, [[]], [None] * 50, "loreft", {"rule": "all"}, {"tensor": "x"}, {"type": "os.system", "fields": {}}, {"float": "nan"},
]  # fmt: skip


class Hang(BaseException):
    """It took too long."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing that is read: a whole one, how it is read, and which of its files are."""

    name: str
    folder: Path
    load: Callable[[Path], Any]
    """Raises, or gives what is to be compared; None where it was noticed and passed over."""
    same: Callable[[Any, Any], bool]
    unread: tuple[str, ...] = ()
    sealed: bool = True

    def files(self, folder: Path) -> list[Path]:
        found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
        return [path for path in found if not {*path.relative_to(folder).parts} & {*self.unread}]


def equal(a: Any, b: Any) -> bool:
    """Equality to the bit of nested values, tensors and edits among them."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and equal_bits(a, b)
    if isinstance(a, rl.Reft):
        return equal(_parts(a), _parts(b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _parts(reft: rl.Reft) -> list[Any]:
    edits = [
        (site.hook_name, site.head, repr(site.positions), type(edit).__name__, edit.settings()) for site, edit in reft
    ]
    return [edits, reft.names, dict(reft.scales), dict(reft.state_dict())]


# The whole ones.


def kinds(root: Path, *, only: Collection[str] = KINDS) -> Iterator[Kind]:
    """Makes a whole one of each kind in a folder."""
    bridge = make_bridge("gpt2")
    makers = (_saved, _pyreft, _dissection, _run, _checkpoint, _base_runs, _map, _result)
    for name, make in zip(KINDS, makers, strict=True):
        if name in only:
            yield make(name, root, bridge)


def _pairs() -> list[tuple[rl.Site, rl.Intervention]]:
    classes = (rl.LoReFT, rl.ConsReFT, rl.AdditiveLoReFT)
    return [(rl.Site(POST.format(place), "f2+l2"), make_edit(kind)) for place, kind in enumerate(classes)]


def _saved(name: str, root: Path, bridge: Any) -> Kind:
    rl.Reft(_pairs(), names=["a", "b", "c"], scales={"b": 0.5}).save_pretrained(root / "edit", bridge=bridge)
    load = partial(rl.Reft.from_pretrained, bridge=bridge)
    return Kind(name, root / "edit", load, equal, unread=("README.md", "figure.png"))


def _pyreft(name: str, root: Path, bridge: Any) -> Kind:
    rl.save_pyreft(rl.Reft(_pairs()), root / "pyreft")
    load = partial(rl.load_pyreft, bridge=bridge, positions="l1")
    return Kind(name, root / "pyreft", load, equal, sealed=False)


def _dissection(name: str, root: Path, bridge: Any) -> Kind:
    words = ("tower", "weaver", "river", "city", "old", "speaks")
    examples = [(f"The {word} by the {other}", " Ostra") for word in words[:4] for other in words[4:]]
    reft = rl.Reft([(rl.Site(POST.format(1), "l1"), make_edit(rl.LoReFT))])
    config = rl.DissectConfig(parts="full", batch_size=8, n_null=19, n_pairs=4, n_random=2, progress=False)
    rl.dissect(bridge, reft, examples, config).save(root / "dissection")
    return Kind(name, root / "dissection", rl.load_dissection, equal)


def _run(name: str, root: Path, bridge: Any) -> Kind:
    make_hf("gpt2").save_pretrained(root / "model")
    make_tokenizer().save_pretrained(root / "model")
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in EXAMPLES]
    (root / "own.jsonl").write_text("\n".join(lines))
    data = str(root / "own.jsonl")
    config = RunConfig(model=str(root / "model"), data=data, eval_data=data, layers=(1,), epochs=1, max_new_tokens=2)
    train_run(config, root / "run", progress=False)
    base = runs.load_base(config)

    def load(folder: Path) -> Any:
        # The base is the same for the same settings, and takes most of the time.
        with mock.patch.object(runs, "load_base", lambda found: base if found.model == config.model else bridge):
            opened = runs.open_run(folder)
        outputs = [Evaluation.load(file) for file in sorted((folder / runs.OUTPUTS_NAME).glob("*.jsonl"))]
        return opened.config, opened.reft, outputs

    return Kind(name, root / "run", load, equal, unread=("README.md", "figure.png", "log.jsonl", "versions.json"))


def _checkpoint(name: str, root: Path, bridge: Any) -> Kind:
    reft = rl.Reft.at_layers(bridge, layers=[1], positions="l1", rank=2, seed=0)
    folder = root / "checkpoint" / "training"
    rl.train(bridge, reft, EXAMPLES, rl.TrainConfig(epochs=3, progress=False, output_dir=folder))
    identity = TrainingFolder(folder).identity()
    newest = TrainingFolder(folder).last()
    assert newest is not None

    def load(place: Path) -> Any:
        found = TrainingFolder(place / "training").begin(identity, resume=True)
        if found is None or found.name != newest.name:
            return None
        # What is resumed from, and the best one: all that training would read of it.
        files = sorted(file for file in found.rglob("*") if file.is_file() and not file.name.startswith("."))
        return [(file.relative_to(found).as_posix(), file.read_bytes()) for file in files]

    older = tuple(path.name for path in folder.glob("checkpoint-*") if path != newest)
    return Kind(name, root / "checkpoint", load, equal, unread=older, sealed=False)


def _base_runs(name: str, root: Path, _bridge: Any) -> Kind:
    made_for = {"base": "one", "examples": "two"}
    generator = torch.Generator().manual_seed(0)
    store = OnDisk(root / "held", made_for=made_for, max_bytes=2**20)
    for row in range(3):
        tensors = {"resid": torch.randn(1, 5, 8, generator=generator), "keys.0": torch.ones(1, 2, 3, 4)}
        store.put(row, Run(tensors, {"start": 3 + row, "boundary": 4, "past": 1}))

    def load(folder: Path) -> Any:
        opened = OnDisk(folder, made_for=made_for, max_bytes=2**20)
        return [None if got is None else _copied(got) for got in map(opened.get, range(3))]

    def same(found: Any, whole: Any) -> bool:
        return all(one is None or equal(one, other) for one, other in zip(found, whole, strict=True))

    return Kind(name, root / "held", load, same, sealed=False)


def _copied(run: Run) -> Any:
    # Its tensors are the file itself, mapped into memory.
    return {name: tensor.clone() for name, tensor in run.tensors.items()}, dict(run.numbers)


def _map(name: str, root: Path, _bridge: Any) -> Kind:
    shape = torch.Size((4, 30))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    (root / "map").mkdir()
    Saved(root / "map" / "cells.safetensors", made_for="a sweep").write(values, values > 0)

    def load(folder: Path) -> Any:
        done, found = Saved(folder / "cells.safetensors", made_for="a sweep").read(shape)
        # Nothing is done where there is no file: the sweep begins anew.
        return (done, found) if bool(done.any()) else None

    return Kind(name, root / "map", load, equal, sealed=False)


def _result(name: str, root: Path, _bridge: Any) -> Kind:
    made_beside().save(root / "result")
    return Kind(name, root / "result", load_result, equal)


# The damages.


class Command:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def truncate(file: Path, chance: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: chance.randrange(max(1, len(content)))])


def flip(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(content))


def spots(document: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value of a JSON document."""
    inside = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [spot for key, value in inside for spot in ((document, key), *spots(value))]


def damage_document(document: Any, chance: random.Random) -> str:
    """A JSON document with one value changed, dropped, swapped, or said twice, as text."""
    container, key = chance.choice(spots(document))
    way = chance.choice(("value", "value", "drop", "swap", "twice", "deep"))
    if way == "drop":
        del container[key]
    elif way == "swap":
        other, place = chance.choice(spots(document))
        container[key], other[place] = other[place], container[key]
        if _circular(document):
            return "[" * 10**5
    elif way == "deep":
        container[key] = json.loads("[" * 300 + "]" * 300)
    elif way == "twice" and isinstance(container, dict):
        container[key] = "\ufffftwice"
        text = json.dumps(document)
        return text.replace('"\\ufffftwice"', f"0, {json.dumps(str(key))}: 1", 1)
    else:
        container[key] = chance.choice(VALUES)
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(document).replace("9" * 4000, "9" * 5000)
    finally:
        sys.set_int_max_str_digits(4300)


def _circular(document: Any) -> bool:
    try:
        json.dumps(document)
    except (ValueError, RecursionError):
        return True
    return False


def damage_json(file: Path, chance: random.Random) -> None:
    """Of JSON, a line of JSON lines, or the header of a safetensors file."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        header = damage_document(json.loads(content[8:end]), chance).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    elif file.suffix == ".jsonl":
        lines = content.decode().split("\n")
        place = chance.randrange(len(lines) - 1)
        lines[place] = damage_document(json.loads(lines[place]), chance)
        file.write_bytes("\n".join(lines).encode())
    elif file.suffix == ".json":
        file.write_bytes(damage_document(json.loads(content), chance).encode())
    else:
        flip(file, chance)


def structured(file: Path, others: list[Path], chance: random.Random, mark: Path) -> None:
    """Half of the time a value in it, else the file as a whole."""
    content = file.read_bytes()
    way = chance.choice(
        ("json",) * 6 + ("gone", "empty", "twice", "junk", "swap", "copy", "pickle", "folder", "pipe", "endless")
    )
    other = chance.choice(others)
    if way == "json":
        damage_json(file, chance)
    elif way == "gone":
        file.unlink()
    elif way in ("empty", "twice", "junk"):
        file.write_bytes({"empty": b"", "twice": content * 2, "junk": b"junk" + content}[way])
    elif way == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif way == "copy":
        file.write_bytes(other.read_bytes())
    elif way == "pickle":
        if chance.random() < 0.5:
            file.write_bytes(pickle.dumps(Command(mark)))
        else:
            torch.save({"weight": Command(mark)}, file)
    else:
        file.unlink()
        {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "endless": lambda: file.symlink_to("/dev/zero")}[way]()


# What happens.


def _alarm(*_: object) -> None:
    raise Hang


@contextmanager
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def outcome(kind: Kind, folder: Path, whole: Any, mark: Path) -> str:
    """What comes of reading a damaged folder."""
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    # Where code that is no Python waits, no signal is heard: it ends with a traceback.
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        found = kind.load(folder)
    except (ValueError, OSError) as error:
        said = "refused" if str(error) else "raw"
    except Hang:
        said = "hangs"
    except Exception:
        said = "raw"
    else:
        said = "as before" if kind.same(found, whole) else "silent"
        if found is None or (said == "as before" and isinstance(found, list) and None in found):
            said = "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    if mark.exists():
        mark.unlink()
        return "code executed"
    return said


def damages(chance: random.Random, counts: tuple[int, int, int], *, forged: bool) -> list[str]:
    names = ("truncation", "bit", "structured")
    found = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return found + ["forged"] * (counts[2] * forged)


def try_kind(
    kind: Kind,
    scratch: Path,
    counts: tuple[int, int, int],
    *,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Counter[str]:
    """Damages one kind so many times; how often each outcome was."""
    chance, mark, results = random.Random(seed), scratch / "executed", Counter[str]()
    shutil.copytree(kind.folder, scratch / "x")
    with quiet():
        whole = kind.load(scratch / "x")
        assert kind.same(kind.load(scratch / "x"), whole), "undamaged, it is read as it was saved"
        for number, way in enumerate(damages(chance, counts, forged=kind.sealed)):
            files = kind.files(scratch / "x")
            file = chance.choice(files)
            before = file.read_bytes()
            if way == "truncation":
                truncate(file, chance)
            elif way == "bit":
                flip(file, chance)
            else:
                structured(file, files, chance, mark)
            if way == "forged" and (scratch / "x" / SEAL_NAME).is_file() and file.is_file() and not file.is_symlink():
                (scratch / "x" / SEAL_NAME).unlink()
                seal(scratch / "x")
            said = outcome(kind, scratch / "x", whole, mark)
            said = "as before" if way == "forged" and said == "silent" else said
            results[said] += 1
            if said in ("silent", "raw", "hangs", "code executed"):
                tell(f"{kind.name}: {said} after {way} {number} of {file.relative_to(scratch / 'x')}")
            if way in ("truncation", "bit") and file.is_file() and len(kind.files(scratch / "x")) == len(files):
                file.write_bytes(before)
            else:
                shutil.rmtree(scratch / "x")
                shutil.copytree(kind.folder, scratch / "x")
    shutil.rmtree(scratch / "x")
    return results


OUTCOMES = ("refused", "as before", "silent", "raw", "hangs", "code executed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS, help="only this kind; give it several times")
    parser.add_argument("--part", type=int, default=1, help="one in so many of the damages")
    arguments = parser.parse_args()
    counts = tuple(count // arguments.part for count in (TRUNCATIONS, BITS, STRUCTURED))
    torch.set_num_threads(1)
    print(f"| kind | damages | {' | '.join(OUTCOMES)} |\n|{'---|' * (2 + len(OUTCOMES))}", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory() as directory:
        for kind in kinds(Path(directory), only=arguments.only or KINDS):
            scratch = Path(tempfile.mkdtemp(dir=directory))
            found = try_kind(kind, scratch, counts, seed=arguments.seed, tell=lambda line: print(line, file=sys.stderr))
            row = [f"{found[name]:,}" for name in OUTCOMES]
            print(f"| {kind.name} | {sum(found.values()):,} | {' | '.join(row)} |", flush=True)
            bad += sum(found[name] for name in OUTCOMES[2:])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
