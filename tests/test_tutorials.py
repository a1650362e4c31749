"""The notebooks: what is committed has run from start to end, and runs again."""

from __future__ import annotations

import ast
import importlib
import io
import re
from pathlib import Path

import nbformat
import pytest
import torch
from conftest import make_tokenizer
from nbclient import NotebookClient
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

import reftlens as rl
from reftlens.organisms.landmarks import story_for

FOLDER = Path(__file__).parent.parent / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
UNRUN = FOLDER / "gpt2-real-landmarks.ipynb"
"""Needs weights that are not here, so it has no outputs."""
SWITCH = 'MODEL = "facts-small"'
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|usr|work|Users|private|var)/|[A-Z]:\\\\")
PUBLIC = ("reftlens.cli", "reftlens.organisms.landmarks")
"""Modules whose names are public without an `__all__`."""
FOLDED = re.compile(r"<details.*?</details>", re.DOTALL)
each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
every = pytest.mark.parametrize("file", [*NOTEBOOKS, UNRUN], ids=lambda file: file.stem)


def read(file: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(file: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(file).cells if cell.cell_type == "code"]


def shown(cell: nbformat.NotebookNode) -> str:
    """All text that a cell has put out."""
    texts = [output.get("text", "") for output in cell.outputs]
    return "\n".join(texts + [str(text) for output in cell.outputs for text in output.get("data", {}).values()])


@each
def test_committed_outputs_are_of_one_whole_run(file) -> None:
    cells = code_cells(file)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run `make tutorials`"
    kinds = [output.output_type for cell in cells for output in cell.outputs]
    assert "error" not in kinds
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs), (
        "warnings, or progress bars"
    )
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    for cell in cells:
        assert "execution" not in cell.metadata, "times of a run say nothing to a reader"
        assert not MACHINE.search(shown(cell)), MACHINE.search(shown(cell))
        assert "widget-view" not in str(cell.outputs)


@each
def test_it_has_a_switch_a_question_what_is_not_shown_and_checks(file) -> None:
    cells = read(file).cells
    assert sum(SWITCH in cell.source for cell in cells) == 1
    _, first, *_ = code_cells(file)
    assert SWITCH in first.source, "the switch follows the cell that installs"
    assert "?**" in cells[0].source, "it opens with its question"
    assert any("## What is not shown" in cell.source for cell in cells)
    assert cells[-1].cell_type == "code"
    assert cells[-1].source.count("assert ") >= 3


@every
def test_links_lead_somewhere(file) -> None:
    prose = "\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (FOLDER / link).exists(), link


@every
def test_the_first_cell_installs_only_where_nothing_is_installed(file, monkeypatch) -> None:
    source, ran = code_cells(file)[0].source, []
    monkeypatch.setattr("subprocess.check_call", ran.append)
    exec(source, {})
    assert not ran
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    exec(source, {})
    assert [command[1:] for command in ran] == [["-m", "pip", "install", "--quiet", "reftlens"]]


def hidden_names(source: str) -> list[str]:
    """What code uses of this package that is not public: names with underscores, and names from inside its packages."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            found.append(node.attr)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("reftlens.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "reftlens":
            listed = getattr(importlib.import_module(str(node.module)), "__all__", ())
            found += [alias.name for alias in node.names if alias.name not in listed and node.module not in PUBLIC]
    return found


@every
def test_it_uses_public_names_only(file) -> None:
    text = "\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")
    folded = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert not [name for code in (*(cell.source for cell in code_cells(file)), *folded) for name in hidden_names(code)]
    hidden = "import reftlens.edit\nfrom reftlens.paper.runs.run import train_run\nreft._which\nreft.__len__()"
    assert sorted(hidden_names(hidden)) == ["_which", "reftlens.edit", "train_run"]
    assert not hidden_names("from reftlens.paper.runs import train_run\nfrom reftlens.cli import app")


@every
def test_it_has_an_exercise_and_its_answer_is_folded(file) -> None:
    text = "\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")
    assert re.search(r"^\*\*Predict", text, flags=re.MULTILINE)
    folded = FOLDED.findall(text)
    assert folded
    assert len(folded) == text.count("<details") == text.count("</summary>")
    assert all("</summary>\n\n" in one for one in folded), "without an empty line Markdown is not read"


def test_the_notebook_that_was_not_run_says_so_and_holds_no_number_of_a_run() -> None:
    cells = read(UNRUN).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(UNRUN))
    assert "**This notebook was not run here.**" in cells[0].source
    expected = [
        line.split("|")[2].strip()
        for cell in cells
        for line in cell.source.split("| expected | result |\n|---|---|\n")[-1].splitlines()
        if "| expected | result |" in cell.source and line.startswith("|")
    ]
    assert len(expected) >= 8
    assert set(expected) == {"not run here"}
    assert "not run here" in (FOLDER / "README.md").read_text()


def test_they_are_small() -> None:
    assert NOTEBOOKS
    assert sum(file.stat().st_size for file in NOTEBOOKS) < 2_500_000


def test_a_figure_shows_itself_at_its_size_without_pyplot() -> None:
    figure = rl.plot.training_curve(rl.TrainLog((3.0, 2.0, 1.0), (1.0, 1.0, 1.0), rl.TrainConfig()))
    image, size = figure._repr_png_()
    with Image.open(io.BytesIO(image)) as opened:
        assert opened.size == pytest.approx((size["width"] * 150 / 96, size["height"] * 150 / 96), abs=2)
    # What is drawn is cut out with a margin, so its size is about that of the sheet.
    assert size["width"] == pytest.approx(96 * figure.get_size_inches()[0], rel=0.1)


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """From the first cell to the last; raises where a cell does."""
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's client, which is not what is tested
@each
def test_it_runs(file, tmp_path) -> None:
    """With the folded solutions, each before the next code cell: they use what is there by then."""
    notebook = read(file)
    for cell in list(notebook.cells):
        folded = "\n".join(FOLDED.findall(cell.source)) if cell.cell_type == "markdown" else ""
        for code in re.findall(r"```python\n(.*?)```", folded, flags=re.DOTALL):
            notebook.cells.insert(notebook.cells.index(cell) + 1, nbformat.v4.new_code_cell(code))
    run(notebook, tmp_path)


def switched(file: Path, model: str) -> nbformat.NotebookNode:
    notebook = read(file)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code" and "MODEL = " in cell.source)
    cell.source = re.sub(r"^MODEL = \"[\w-]+\"", f"MODEL = {model!r}", cell.source, flags=re.MULTILINE)
    assert f"MODEL = {model!r}" in cell.source
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_code_of_the_notebook_that_was_not_run_runs_on_the_model_that_ships(tmp_path) -> None:
    run(switched(UNRUN, "facts-small"), tmp_path)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    """A folder as the hub has them: another architecture, that knows nothing, with a tokenizer of the questions asked."""
    story = story_for("another")
    texts = [prompt + completion for prompt, completion in story.training_examples()]
    texts += [question.prompt for group in story.other_facts.values() for question in group]
    tokenizer = make_tokenizer("\n".join(texts), size=700)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("models") / "another"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # not the seed of the models that the notebooks compare with
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@each
def test_the_switch_runs_the_same_on_another_model(file, other_model, tmp_path) -> None:
    run(switched(file, str(other_model)), tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_failed_check_fails(tmp_path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(Exception, match="AssertionError"):
        run(notebook, tmp_path)
