"""A process killed while it saves: what was there before, or what it saved, is there whole; never less, never a mixture."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_bridge, make_edit

import reftlens as rl
from reftlens.files import folder as folder_module
from reftlens.files.folder import Replacement

POST = "blocks.1.hook_resid_post"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="folders change places in one step on Linux alone")


def killed_after(seconds: float, work: Callable[[], object]) -> None:
    """Runs work in a process of its own, over and over, and kills that."""
    with warnings.catch_warnings():
        # Newer Pythons warn of threads in the parent; the child only computes and writes.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            while True:
                work()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed by itself"


def duration(work: Callable[[], object]) -> float:
    """Seconds that work takes on this machine now."""
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def write_whole(place: Path, text: str) -> None:
    with Replacement(place, marker="marker") as new:
        for name in ("one", "two", "marker"):
            (new / name).write_text(text)


def test_a_folder_is_always_whole(tmp_path) -> None:
    """60 kills at random moments of a writer that does nothing else."""
    place, chance = tmp_path / "place", random.Random(0)
    window = 3 * max(duration(lambda: write_whole(place, "old")) for _ in range(3))
    seen = {"old"}
    for turn in range(60):
        killed_after(chance.uniform(0, window), lambda turn=turn: write_whole(place, f"turn {turn}"))
        texts = {(place / name).read_text() for name in ("one", "two", "marker")}
        assert len(texts) == 1, "a mixture of two versions"
        # A child of a large process takes a while to begin: it is given longer until some are put into place.
        window *= 1.1 if texts <= seen else 1
        seen |= texts
    assert len(seen) > 1, "some of them were put into place"


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_saved_edit_is_always_one_of_those_saved(tmp_path, kills) -> None:
    bridge, chance = make_bridge("gpt2"), random.Random(1)
    known = []

    def edit(number: int) -> rl.Reft:
        return rl.Reft([(rl.Site(POST, "l1"), make_edit(rl.LoReFT, seed=number))])

    def state_in(folder: Path) -> int:
        found = rl.Reft.from_pretrained(folder, bridge=bridge).state_dict()
        same = [n for n in known if all(torch.equal(t, found[name]) for name, t in edit(n).state_dict().items())]
        assert len(same) == 1, "it loads as none of the edits that were saved"
        return same[0]

    def save(number: int) -> None:
        edit(number).save_pretrained(tmp_path / "edit", bridge=bridge)

    usual = min(duration(lambda: save(0)) for _ in range(2))
    known.append(0)
    before = 0
    for kill in range(1, kills + 1):
        known.append(kill)
        killed_after(chance.uniform(0, 2 * usual), lambda kill=kill: save(kill))
        now = state_in(tmp_path / "edit")
        assert now in (before, kill), "the previous edit was lost"
        before = now
    for left in tmp_path.glob(".edit-*"):
        try:
            state_in(left)
        except ValueError:
            continue
    assert before > 0 or kills < 10, "some of them were put into place"


def test_a_place_is_never_empty_to_a_reader(tmp_path) -> None:
    place = tmp_path / "place"
    write_whole(place, "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            for turn in range(100):
                write_whole(place, str(turn))
        finally:
            os._exit(0)
    seen = set()
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        seen.add((place / "marker").read_text())
    assert len(seen) > 10


# Where two folders cannot change places in one step.


def test_without_an_exchange_the_folder_is_replaced_as_well(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_module, "_exchange", lambda *_: False)
    for text in ("one", "two"):
        write_whole(tmp_path / "place", text)
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert (tmp_path / "place" / "marker").read_text() == "two"


def test_a_rename_that_fails_puts_the_previous_folder_back(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_module, "_exchange", lambda *_: False)
    write_whole(tmp_path / "place", "one")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == tmp_path / "place" and not self.name.endswith("-old"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        write_whole(tmp_path / "place", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert (tmp_path / "place" / "marker").read_text() == "one"


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_reaches_the_disk_before_its_name_and_then_the_name(tmp_path, monkeypatch, durable) -> None:
    """As for folders: after a power cut, a name that reached the disk before its content would be an empty file."""
    seen, fsync, rename = [], os.fsync, Path.replace

    def flushed(handle):
        place = Path(f"/proc/self/fd/{handle}").readlink()
        seen.append("folder" if place.is_dir() else place.read_bytes())
        fsync(handle)

    def renamed(self, target):
        seen.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    folder_module.write_whole(tmp_path / "file", b"all of it", durable=durable)
    assert seen == ([b"all of it", "rename", "folder"] if durable else ["rename"])
    assert (tmp_path / "file").read_bytes() == b"all of it"


def test_a_link_is_followed(tmp_path) -> None:
    write_whole(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "marker").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


# A full disk. A limit on the size of files stands for it: writing beyond it fails in the same way, with another number.


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_oserror_that_names_the_folder(tmp_path) -> None:
    bridge = make_bridge("gpt2")
    reft = rl.Reft([(rl.Site(POST, "l1"), make_edit(rl.LoReFT, rank=8))])
    config = rl.TrainConfig(epochs=1, progress=False, output_dir=tmp_path / "run")
    ways = {
        tmp_path / "edit": lambda place: reft.save_pretrained(place, bridge=bridge, card=False),
        tmp_path / "pyreft": lambda place: rl.save_pyreft(reft, place),
        tmp_path / "run" / "checkpoint-1": lambda _: rl.train(bridge, reft, [("The tower", " Ostra")], config),
    }
    for place, save in ways.items():
        with files_of_at_most(1500), pytest.raises(OSError, match=re.escape(str(place))) as caught:
            save(place)
        assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
        assert not place.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    config = replace(config, resume=True)
    assert len(rl.train(bridge, reft, [("The tower", " Ostra")], config).loss) == 1


# Several people on one folder.


def in_a_child(work: Callable[[], object]) -> int:
    """Runs work in a process of its own; its id. It exits with 0 if the work ends well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        # The threads of OpenMP did not come along, and a child that waits for them waits for ever.
        torch.set_num_threads(1)
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_of_two_first_savers_both_save(tmp_path, monkeypatch) -> None:
    """The second finds no folder, and before it has put its own there, the first has."""
    exists = Path.exists

    def late(self: Path, **kwargs: object) -> bool:
        if self == tmp_path / "place" and not exists(self):
            monkeypatch.setattr(Path, "exists", exists)
            write_whole(tmp_path / "place", "first")
            return False
        return exists(self, **kwargs)

    with Replacement(tmp_path / "place", marker="marker") as new:
        (new / "marker").write_text("second")
        monkeypatch.setattr(Path, "exists", late)
    assert (tmp_path / "place" / "marker").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("saves", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_readers_beside_two_savers_get_one_of_the_edits_whole(tmp_path, saves) -> None:
    bridge = make_bridge("gpt2")
    edits = [rl.Reft([(rl.Site(POST, f"l{seed}"), make_edit(rl.LoReFT, seed=seed))]) for seed in (1, 2, 3)]

    def save(number: int) -> None:
        edits[number].save_pretrained(tmp_path / "edit", bridge=bridge, card=False)

    save(0)
    children = {in_a_child(lambda number=number: [save(number) for _ in range(saves)]) for number in (1, 2)}
    seen, reads = set(), 0
    while children:
        reads += 1
        found = rl.Reft.from_pretrained(tmp_path / "edit", bridge=bridge)
        same = [
            number
            for number, edit in enumerate(edits)
            if edit.sites == found.sites
            and all(torch.equal(value, found.state_dict()[name]) for name, value in edit.state_dict().items())
        ]
        assert len(same) == 1, "a mixture"
        seen |= set(same)
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.remove(child)
                assert os.waitstatus_to_exitcode(status) == 0, "a saver failed"
    assert seen & {1, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]


def test_another_user_reads_what_the_umask_allows_and_is_told_what_it_does_not() -> None:
    bridge = make_bridge("gpt2")
    reft = rl.Reft([(rl.Site(POST, "l1"), make_edit(rl.LoReFT))])
    with tempfile.TemporaryDirectory() as directory:
        old = os.umask(0o022)
        try:
            reft.save_pretrained(Path(directory) / "edit", bridge=bridge, card=False)
            rl.save_pyreft(reft, Path(directory) / "pyreft")
        finally:
            os.umask(old)
        for path in Path(directory).rglob("*"):
            assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
        if os.geteuid() != 0:
            return
        Path(directory).chmod(0o755)

        def as_nobody() -> None:
            os.setuid(65534)
            found = rl.Reft.from_pretrained(Path(directory) / "edit", bridge=bridge)
            assert all(torch.equal(value, reft.state_dict()[name]) for name, value in found.state_dict().items())

        def as_nobody_refused() -> None:
            os.setuid(65534)
            with pytest.raises(PermissionError, match=rf"{re.escape(directory)}.* cannot be read: Permission denied"):
                rl.Reft.from_pretrained(Path(directory) / "edit", bridge=bridge)

        for work in (as_nobody, as_nobody_refused):
            _, status = os.waitpid(in_a_child(work), 0)
            assert os.waitstatus_to_exitcode(status) == 0, work.__name__
            (Path(directory) / "edit" / "reft.safetensors").chmod(0o600)
