"""Folders from somebody who means harm, or from a bad disk: a ValueError, soon, in little memory, and nothing else."""

from __future__ import annotations

import copy
import cProfile
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import robustness
import torch
from conftest import make_bridge, make_edit, reseal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import reftlens as rl
from reftlens.cone.store import OnDisk
from reftlens.edit.pyreft.archive import describe

KINDS = (rl.LoReFT, rl.NoReFT, rl.ConsReFT, rl.AdditiveLoReFT)
CALLS, MEGABYTES = 20_000_000, 200
"""Allowed for one folder: function calls, which are the same on every machine, and memory on top of the process."""
BRIDGE = make_bridge("gpt2")


def high_water() -> int:
    """The most memory that this process had since `reset`, in megabytes (0 where the system does not say)."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else 0


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where the block takes too much work or memory."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")
    before, work = high_water(), cProfile.Profile()
    with work:
        yield
    assert sum(entry.callcount for entry in work.getstats()) < CALLS
    assert high_water() - before < MEGABYTES


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A saved edit and a pyreft folder, whole."""
    root = tmp_path_factory.mktemp("pristine")
    post = "blocks.{}.hook_resid_post"
    pairs = [(rl.Site(post.format(place % 3), "f2+l2"), make_edit(kind)) for place, kind in enumerate(KINDS)]
    reft = rl.Reft(pairs, names=["a", "b", "c", "d"], scales={"b": 0.5})
    reft.save_pretrained(root / "saved", bridge=BRIDGE)
    rl.save_pyreft(rl.Reft(pairs[:3]), root / "pyreft")
    return root


def load_saved(folder: Path) -> rl.Reft:
    return rl.Reft.from_pretrained(folder, bridge=BRIDGE)


def load_theirs(folder: Path) -> rl.Reft:
    return rl.load_pyreft(folder, bridge=BRIDGE, positions="l1")


def config(**changes: object) -> Callable[[Path], None]:
    """Damage: values of a config, by paths such as `sites__0__alias`."""

    def damage(folder: Path) -> None:
        path = next(folder.glob("*config.json"))
        document = json.loads(path.read_text())
        for name, value in changes.items():
            *way, last = [int(part) if part.isdigit() else part for part in name.split("__")]
            inside = document
            for step in way:
                inside = inside[step]
            inside[last] = value
        path.write_text(json.dumps(document))

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Damage: the tensors, with a digest that is right."""

    def damage(folder: Path) -> None:
        path = folder / "reft.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path)
        config(tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)

    return damage


def grow(name: str, size: int) -> Callable[[Path], None]:
    """Damage: a file with a hole of zeros behind it, which takes no disk."""
    return lambda folder: os.truncate(next(folder.glob(name)), size)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def many(folder: Path, n: int) -> None:
    """Site after site, each with an edit of its own that has no tensors."""
    saved = json.loads((folder / "reft_config.json").read_text())
    sites, edits = saved["sites"][:1] * n, saved["interventions"][:1] * n
    sites = [{**site, "positions": {"rule": "all"}} for site in sites]
    saved |= {"sites": sites, "interventions": edits, "which": list(range(n)), "names": [""] * n, "scales": {}}
    (folder / "reft_config.json").write_text(json.dumps(saved))


def rules(folder: Path) -> None:
    """900 unions, one in the other."""
    path = folder / "reft_config.json"
    whole = json.dumps({"rule": "all"})
    nested = '{"rule": "union", "right": {"rule": "all"}, "left": ' * 900 + whole + "}" * 900
    config(sites__0__positions={"rule": "all"})(folder)
    path.write_text(path.read_text().replace(whole, nested, 1))


W = "interventions.0.source.weight"
SAVED: list[tuple[str, Callable[[Path], object], str]] = [
    ("a config of 100 MB", grow("reft_config.json", 10**8), "more than the limit of 4,194,304"),
    ("a config of garbage", lambda f: (f / "reft_config.json").write_bytes(os.urandom(5000)), "damaged"),
    ("a config without end", lambda f: (f / "reft_config.json").write_text("[" * 10**6), "damaged"),
    ("many empty lists", lambda f: (f / "reft_config.json").write_text(f"[{'[],' * 10**5}[]]"), "damaged"),
    ("a number of a million digits", lambda f: (f / "reft_config.json").write_text("1" * 10**6), "damaged"),
    ("a stamp that is a list", config(base=[]), "the stamp must be an object"),
    ("nine thousand sites", lambda f: many(f, 9_000), "it has 9,000 sites, more than the limit of 8,192"),
    ("many edits without numbers", lambda f: many(f, 300), "missing or unexpected"),
    ("a rank beyond all memory", config(interventions__0__settings__rank=10**12), r"rank must be in \[1, 32\]"),
    ("a width beyond all memory", config(interventions__0__settings__d_model=10**12), "but its site on this model has width 32"),
    ("a width that is a list", config(interventions__0__settings__d_model=[32]), "but its site on this model has width 32"),
    ("a class of Python", config(interventions__0__kind="os.system"), "Unknown kind 'os.system'"),
    ("more settings", config(interventions__0__settings__evil="x"), "unexpected keyword"),
    ("a path as a hook", config(sites__0__alias="../../../../etc/passwd"), "no hook '../../../../etc/passwd'"),
    ("markup as a hook", config(sites__0__alias="<script>alert(1)</script>"), "no hook '<script>"),
    ("a hook of a megabyte", config(sites__0__alias="x" * 10**6), "has no hook 'xxxx"),
    ("a head far away", config(sites__0__head=10**9), "has no heads"),
    ("rules in rules in rules", rules, "damaged"),
    ("an index from behind", config(which=[0, 1, 2, -1]), "use all 4 interventions"),
    ("an index twice", config(which=[1, 0, 2, 3]), "in order of first use"),
    ("a scale of infinity", config(scales={"b": 1e999}), "Infinity is not a JSON number"),
    ("a scale for nobody", config(scales={"z": 1.0}), "must only have keys from 'names'"),
    ("a name that is a number", config(names=[1, 2, 3, 4]), "must have a string for each"),
    ("a schema from the future", config(schema=10**9), "schema 1000000000"),
    ("a schema that is a list", config(schema=[2]), r"schema \[2\]"),
    ("NaN", tensors(lambda t: t[W].fill_(float("nan"))), "source.weight holds NaN or infinite values"),
    ("infinity", tensors(lambda t: t[W].fill_(float("inf"))), "holds NaN or infinite values"),
    ("integers", tensors(lambda t: t.update({W: t[W].int()})), "must be float32 or float64, got int32"),
    ("bfloat16", tensors(lambda t: t.update({W: t[W].bfloat16()})), "must be float32 or float64, got bfloat16"),
    ("another shape", tensors(lambda t: t.update({W: t[W][:2].clone()})), r"must be \[3, 32\], got \[2, 32\]"),
    ("a tensor more", tensors(lambda t: t.update(evil=torch.zeros(1))), "unexpected: 'evil'"),
    ("a tensor less", tensors(lambda t: t.pop(W)), "missing or unexpected"),
    ("a path as a tensor", tensors(lambda t: t.update({"../../evil": torch.zeros(1)})), "unexpected: '../../evil'"),
    ("megabytes that nobody asked for", tensors(lambda t: t.update(evil=torch.zeros(10**6))), "describes tensors of at most"),
    ("a file of a terabyte", grow("reft.safetensors", 10**12), "describes tensors of at most"),
    ("a header of a terabyte", lambda f: (f / "reft.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}"), "describes tensors of at most"),
    ("a header of garbage", lambda f: (f / "reft.safetensors").write_bytes(struct.pack("<Q", 900) + os.urandom(900)), "SHA-256"),
    ("cut short", lambda f: os.truncate(f / "reft.safetensors", 900), "SHA-256"),
    ("an empty file", lambda f: os.truncate(f / "reft.safetensors", 0), "SHA-256"),
    ("a pipe that nobody writes to", lambda f: pipe(f / "reft.safetensors"), "missing or not a regular file"),
    ("a config that nobody writes", lambda f: pipe(f / "reft_config.json"), "is not a saved edit"),
    ("a folder for a file", lambda f: ((f / "reft.safetensors").unlink(), (f / "reft.safetensors").mkdir()), "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [line[1:] for line in SAVED], ids=[line[0] for line in SAVED])
def test_saved_edits_that_mean_harm(tmp_path, pristine, damage, message) -> None:
    folder = tmp_path / "edit"
    shutil.copytree(pristine / "saved", folder)
    damage(folder)
    reseal(folder)
    with bounded(), pytest.raises(ValueError, match=message) as caught:
        load_saved(folder)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 3000


# pyreft's folders.

KEY = "intkey_layer_0_comp_block_output_unit_pos_nunit_1#0.bin"


def repack(change: Callable[[str, bytes], bytes], *, compression: int = zipfile.ZIP_STORED) -> Callable[[Path], None]:
    """Damage: the records of an archive, each changed, in a zip that is whole."""

    def damage(folder: Path) -> None:
        data = io.BytesIO()
        with zipfile.ZipFile(folder / KEY) as old, zipfile.ZipFile(data, "w", compression) as new:
            for name in old.namelist():
                new.writestr(name, change(name, old.read(name)))
        (folder / KEY).write_bytes(data.getvalue())

    return damage


def pickled(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return repack(lambda name, data: change(data) if name.endswith("data.pkl") else data)


class Exec:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/reftlens-was-here",)


class Memory:
    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (self.size,)


def larger_storage(data: bytes) -> bytes:
    """3 * 32 numbers become 200: torch would read beyond the record."""
    assert b"K\x60" in data
    return data.replace(b"K\x60", b"K\xc8", 1)


def bomb(folder: Path) -> None:
    with zipfile.ZipFile(folder / KEY, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
        archive.writestr("x/data/0", bytes(10**8))


def save_bin(value: object, **kwargs: object) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, folder / KEY, **kwargs)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda folder: ((folder / KEY).unlink(), (folder / KEY).symlink_to(target))


def wide(folder: Path) -> None:
    """A shape of 10^12 numbers over a storage of one."""
    state = torch.load(folder / KEY, weights_only=True)
    state["weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(state, folder / KEY)


def holding(value: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        state = torch.load(folder / KEY, weights_only=True)
        state["weight"] = torch.full_like(state["weight"], value)
        torch.save(state, folder / KEY)

    return damage


THEIRS: list[tuple[str, Callable[[Path], object], str]] = [
    ("a command", save_bin({"weight": Exec()}), "which a state dict never needs; nothing was executed"),
    ("a bytearray of 100 GB", save_bin({"weight": Memory(10**11)}), "a state dict never needs; nothing was executed"),
    ("a module", save_bin(torch.nn.Linear(2, 2)), "nothing was executed"),
    ("a tensor alone", save_bin(torch.zeros(3)), "does not hold a state dict"),
    ("strings for tensors", save_bin({"weight": "x"}), "other values than named tensors"),
    ("torch's old format", save_bin({"weight": torch.zeros(2)}, _use_new_zipfile_serialization=False), "is not a zip file"),
    ("a plain pickle", lambda f: (f / KEY).write_bytes(pickle.dumps({"weight": 1})), "is not a zip file"),
    ("a zip bomb", bomb, "its records overlap or are larger than the file"),
    ("a compressed archive", repack(lambda _, data: data, compression=zipfile.ZIP_DEFLATED), "larger than the file|compressed"),
    ("a storage beyond its record", pickled(larger_storage), "storage does not match its description"),
    ("a memo of 32 GB", pickled(lambda data: b"\x80\x02]r\xff\xff\xff\x7f" + data[2:]), "which a state dict never needs"),
    ("a pickle without end", pickled(lambda data: data[:-1]), "not the torch archive"),
    ("a pickle of a megabyte", pickled(lambda data: data + bytes(2**20)), "does not contain the pickle of a state dict"),
    ("a shape of 10^12 numbers", wide, "reaches beyond its storage"),
    ("NaN", holding(float("nan")), "weight holds NaN or infinite values"),
    ("a file of a terabyte", grow(KEY.replace("[", "[[]"), 10**12), "more than the limit of"),
    ("a link to nothing that ends", link_to("/dev/zero"), "missing or not a regular file"),
    ("a pipe that nobody writes to", lambda f: pipe(f / KEY), "missing or not a regular file"),
    ("a config that nobody writes", lambda f: pipe(f / "config.json"), "missing or not a regular file"),
    ("a link to a secret", link_to("/etc/passwd"), "is not a zip file"),
    ("a path as a key", lambda f: (f / "intkey_..bin").write_bytes(b""), "does not edit a block's output"),
    ("a layer of many digits", lambda f: (f / KEY).rename(f / KEY.replace("layer_0", "layer_" + "9" * 50)), "does not edit a block"),
    ("a path as a class", config(intervention_types__0="<class 'pyreft.interventions.../../x'>"), "not one of pyreft's own"),
    ("markup as a component", config(representations__0__1="<script>"), "'<script>' is not supported"),
    ("a component of a list", config(representations__0__1=["x"]), "config.json in"),
    ("a rank beyond all memory", config(representations__0__4=10**12), r"rank must be in \[1, 32\]"),
    ("a config of 100 MB", grow("config.json", 10**8), "more than the limit of 4,194,304"),
    ("a config without end", lambda f: (f / "config.json").write_text("[" * 10**6), "config.json in"),
    ("bytes for a config", lambda f: (f / "config.json").write_bytes(os.urandom(999)), "config.json in"),
    ("no files", lambda f: [file.unlink() for file in f.glob("*.bin")], "no intkey_"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [line[1:] for line in THEIRS], ids=[line[0] for line in THEIRS])
def test_pyreft_folders_that_mean_harm(tmp_path, pristine, damage, message) -> None:
    folder = tmp_path / "x"
    shutil.copytree(pristine / "pyreft", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damage(folder)
    with bounded(), pytest.raises(ValueError, match=message) as caught:
        load_theirs(folder)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 3000
    assert not Path("/tmp/reftlens-was-here").exists()


def test_torch_itself_gives_memory_to_whoever_asks(tmp_path, pristine) -> None:
    """Why archives are looked through first, although `weights_only` executes nothing."""
    data = io.BytesIO()
    torch.save({"weight": torch.zeros(10**6)}, data)
    packed = io.BytesIO()
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert len(packed.getvalue()) < 10**4
    asking = io.BytesIO()
    torch.save({"weight": Memory(10**6)}, asking)
    for archive in (packed, asking):
        archive.seek(0)
        assert len(torch.load(archive, weights_only=True)["weight"]) == 10**6
        with pytest.raises(ValueError, match="not the torch archive"):
            describe(archive.getvalue(), "archive")


# Damage by chance.

VALUES = [
    None, True, -1, 0, 10**30, 1e308, 2.5, "", "../../etc/passwd", "<b>", "x" * 5000, [], {}, [[]], [None] * 50, "loreft",
    "reft-r1", "split-loreft", {"a": 3}, {"rule": "all"}, {"rule": "union"}, "block_output", [[["deep"]]],
]  # fmt: skip


def spots(document: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The way to every value of a JSON document."""
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [way] * bool(way) + [spot for key, child in children for spot in spots(child, (*way, key))]


def damage_json(path: Path, chance: random.Random) -> None:
    document = json.loads(path.read_text())
    for _ in range(chance.randint(1, 3)):
        *way, last = chance.choice(spots(document) or [()])
        inside = document
        for step in way:
            inside = inside[step]
        if chance.random() < 0.3:
            del inside[last]
        elif chance.random() < 0.2 and isinstance(inside, list):
            inside.append(copy.deepcopy(inside[last]))
        else:
            inside[last] = copy.deepcopy(chance.choice(VALUES))
        if not spots(document):
            break
    path.write_text(json.dumps(document))


def damage_bytes(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(max(1, len(changed)))
        match chance.randrange(5):
            case 0:
                del changed[place:]
            case 1:
                changed[place : place + chance.randint(1, 40)] = b""
            case 2:
                changed[place:place] = chance.randbytes(chance.randint(1, 40))
            case 3:
                changed[place : place + 8] = struct.pack("<Q", chance.choice((0, 2**31 - 1, 2**63 - 1, 2**64 - 1)))
            case _ if changed:
                changed[place % len(changed)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def damage_saved(folder: Path, chance: random.Random) -> None:
    """The config's values, its text, the tensors' bytes, or tensors of another kind; the digest is set right half the time."""
    path = folder / "reft.safetensors"
    match chance.randrange(4):
        case 0:
            damage_json(folder / "reft_config.json", chance)
            return
        case 1:
            text = folder / "reft_config.json"
            text.write_bytes(damage_bytes(text.read_bytes(), chance))
            return
        case 2:
            path.write_bytes(damage_bytes(path.read_bytes(), chance))
        case _:
            state = load_file(path)
            name = chance.choice(sorted(state))
            dtype = chance.choice([torch.float32, torch.float64, torch.float16, torch.int8, torch.bool])
            shape = chance.choice([list(state[name].shape), [], [0], [1], [3, 33], [96], [2, 2, 2]])
            state[name] = torch.full(shape, chance.choice([0.0, 1.0, 100.0])).to(dtype)
            save_file(state, path)
    if chance.random() < 0.7:
        config(tensors_sha256=hashlib.sha256(path.read_bytes()).hexdigest())(folder)


def damage_theirs(folder: Path, chance: random.Random) -> None:
    """The config's values, bytes of a file, or bytes of one record in a zip that is whole."""
    match chance.randrange(4):
        case 0:
            damage_json(folder / "config.json", chance)
        case 1:
            path = chance.choice(sorted(folder.iterdir()))
            path.write_bytes(damage_bytes(path.read_bytes(), chance))
        case _:
            hit = chance.choice(("data.pkl", "data.pkl", "data/0", "data/2", "byteorder", "version"))
            repack(lambda name, data: damage_bytes(data, chance) if name.endswith(hit) else data)(folder)


def outcome(load: Callable[[Path], rl.Reft], folder: Path) -> rl.Reft | ValueError:
    try:
        return load(folder)
    except ValueError as error:
        return error


def fuzz(
    pristine: Path, damage: Callable[[Path, random.Random], None], load: Callable[[Path], rl.Reft], n: int
) -> None:
    """Damaged folders load as finite edits, or are refused by a ValueError."""
    refused = 0

    @settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False, note_method_calls=False))
    def one(chance: random.Random) -> None:
        nonlocal refused
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / "x"
            shutil.copytree(pristine, folder)
            damage(folder, chance)
            reseal(folder)
            with bounded():
                found = outcome(load, folder)
            if isinstance(found, ValueError):
                assert type(found) is ValueError
                assert len(str(found)) < 3000
                refused += 1
                return
            for tensor in found.state_dict().values():
                assert bool(torch.isfinite(tensor).all())

    one()
    assert refused > n / 3, "the damage must be damage"


# Every kind of file: `make robustness` has the whole table.


def no_harm(root: Path, counts: tuple[int, int, int], *, only: Collection[str], seed: int = 0) -> None:
    tried = set()
    for kind in robustness.kinds(root, only=only):
        (root / f"{kind.name} damaged").mkdir()
        said: list[str] = []
        found = robustness.try_kind(kind, root / f"{kind.name} damaged", counts, seed=seed, tell=said.append)
        assert said == []
        assert found["refused"] > sum(counts) / 8, "the damage must be damage"
        tried.add(kind.name)
    assert tried == set(only)


def test_a_sample_of_damages_is_noticed(tmp_path) -> None:
    no_harm(
        tmp_path, (2, 5, 5), only=["saved edit", "pyreft folder", "held base runs", "patching map", "result"], seed=1
    )


def test_a_damage_that_is_not_noticed_would_be_counted(tmp_path, monkeypatch) -> None:
    """Without the digests, a flipped bit of a base run is another run."""
    monkeypatch.setattr(OnDisk, "_digest", lambda *_: "always the same")
    (kind,) = robustness.kinds(tmp_path, only=["held base runs"])
    found = robustness.try_kind(kind, tmp_path / "held", (0, 60, 0))
    assert found["silent"] > 10


@pytest.mark.slow
def test_no_damage_is_silent_raw_hanging_or_executed(tmp_path) -> None:
    assert robustness.TRUNCATIONS >= 200
    assert robustness.BITS >= 1000
    assert robustness.STRUCTURED >= 100
    counts = (robustness.TRUNCATIONS, robustness.BITS, robustness.STRUCTURED)
    no_harm(tmp_path, counts, only=robustness.KINDS)


LOADERS = [("saved", damage_saved, load_saved), ("pyreft", damage_theirs, load_theirs)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "damage", "load"), LOADERS, ids=["saved", "pyreft"])
def test_damaged_folders_are_refused_or_harmless(pristine, kind, damage, load) -> None:
    fuzz(pristine / kind, damage, load, 100)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "damage", "load"), LOADERS, ids=["saved", "pyreft"])
def test_two_thousand_damaged_folders(pristine, kind, damage, load) -> None:
    fuzz(pristine / kind, damage, load, 1500)
