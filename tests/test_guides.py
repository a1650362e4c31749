"""The guides' code runs as it stands; their links lead somewhere; the table of questions holds every analysis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import reftlens as rl

FOLDER = Path(__file__).parent.parent / "tutorials"
ROOMS = ("concepts", "guides", "reference")
GUIDES = sorted([*FOLDER.glob("*.md"), *(file for room in ROOMS for file in FOLDER.glob(f"{room}/*.md"))])
each = pytest.mark.parametrize("file", GUIDES, ids=lambda file: file.stem)


def test_the_guides_are_there() -> None:
    names = {
        "alignment",
        "architectures",
        "benchmarks",
        "controls",
        "edits",
        "from-pyreft",
        "from-transformerlens",
        "gotchas",
        "identified",
        "light-cone",
        "maps",
        "names",
        "positions",
        "steering",
        "README",
        "serving",
        "the-papers-tasks",
        "training",
    }
    assert {file.stem for file in GUIDES} == names | {"which-question-which-function"}


@each
def test_the_code_runs_as_it_stands(file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads, names = torch.get_num_threads(), {}
    torch.set_num_threads(1)
    try:
        for block in re.findall(r"```python\n(.*?)```", file.read_text(), flags=re.DOTALL):
            exec(compile(block, str(file), "exec"), names)
    finally:
        torch.set_num_threads(threads)


@each
def test_links_lead_somewhere(file) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / link).exists(), link


@each
def test_names_in_it_exist(file) -> None:
    """`rl.something` in prose or table is a public name, and so on for the packages."""
    for name in re.findall(r"\brl((?:\.\w+)+)", file.read_text()):
        thing = rl
        for part in name.strip(".").split("."):
            thing = getattr(thing, part)


def test_every_notebook_is_in_the_list() -> None:
    text = (FOLDER / "README.md").read_text()
    assert all(f"({file.name})" in text for file in FOLDER.glob("*.ipynb"))


def test_the_table_holds_every_analysis() -> None:
    text = (FOLDER / "guides" / "which-question-which-function.md").read_text()
    assert not [name for name in rl.analysis.__all__ if f"`{name}`" not in text]


def test_the_analysis_of_the_contributors_guide_runs(gpt2, make_reft) -> None:
    text = (FOLDER.parent / "CONTRIBUTING.md").read_text()
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "def length" in block]
    names: dict[str, object] = {}
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    reft = make_reft(("blocks.0.hook_resid_post", "blocks.1.hook_resid_post"), positions="all")
    found = names["length"](gpt2, reft, ["The old tower"])
    assert [one.where for one in found] == list(reft.site_names)
    sizes = rl.analysis.edit_size(gpt2, reft, "The old tower")
    assert [one.share for one in found] == pytest.approx(sizes.relative.mean(1).tolist(), rel=1e-4)
    assert found[0].untrained != found[0].share
    assert repr(found[0]).startswith(f"Length({reft.site_names[0]}: a change of ")
    assert "<table" in found[0]._repr_html_()
    assert found[0].plot().axes
    with pytest.raises(TypeError, match="several of one class"):
        rl.plot.draw([found[0], sizes])
