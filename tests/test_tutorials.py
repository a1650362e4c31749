"""The notebooks: what is committed has run from start to end, and runs again."""

from __future__ import annotations

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
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SWITCH = 'MODEL = "facts-small"'
MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|usr|work|Users|private|var)/|[A-Z]:\\\\")
each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


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
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert SWITCH in first.source
    assert "?**" in cells[0].source, "it opens with its question"
    assert any("## What is not shown" in cell.source for cell in cells)
    assert cells[-1].cell_type == "code"
    assert cells[-1].source.count("assert ") >= 3


@each
def test_links_lead_somewhere(file) -> None:
    prose = "\n".join(cell.source for cell in read(file).cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (FOLDER / link).exists(), link


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
    run(read(file), tmp_path)


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
    notebook = read(file)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = first.source.replace(SWITCH, f"MODEL = {str(other_model)!r}")
    run(notebook, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_failed_check_fails(tmp_path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(Exception, match="AssertionError"):
        run(notebook, tmp_path)
