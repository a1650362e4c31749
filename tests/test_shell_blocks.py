"""Every command in the README and the docs: its options exist, and in `make test-all` each block runs from top to bottom.

The blocks run as they stand, on files that are made here under the names that the docs use. `SMALLER` lists what is added to a
command so that it needs no hub and no GPU: a small model in place of the one it names, and fewer examples.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import typer
from test_cli import STORY, call, write_lines
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import reftlens as rl
from reftlens.cli import app
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS, prompt
from reftlens.paper.runs.config import RunConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "tutorials").rglob("*.md")])
LLAMA = "--model wide --source LLM-Adapters --n-train 4 --n-eval 1 --epochs 1 --set max_new_tokens=2 --quiet"
SMALLER = {
    "reftlens train loreft-llama-7b": LLAMA,
    "reftlens train loreft-roberta": "--model facts-small --source glue --n-train 8 --n-eval 4 --epochs 1 --quiet",
    "reftlens dissect": "--preset quick",
    "reftlens train --model facts-small --data mine.csv": "--epochs 2",
    "reftlens train --model facts-small --data mine.jsonl --eval-fraction": "--epochs 5",
    "reftlens sweep": "--set epochs=2",
    "reftlens train sweep": "--epochs 2",
    "reftlens explain-finetune": "--model facts-small --epochs 1 --ranks 1 --max-sites 1 --layers 4 --quiet",
    "reftlens --import": "--model facts-small --epochs 1",
    "reftlens compare": "--set epochs=1 --set n_eval=2",
}
"""Beginning of a command -> what is added to it."""
ELSEWHERE = {"pip install": "make test-wheel", "make demo": "the Makefile", "torchrun": "tests/test_processes.py"}
"""Lines of shell blocks that are not `reftlens` commands, and where they run."""


def commands(page: Path) -> list[str]:
    """The lines of its shell blocks, which are the fenced blocks without a language."""
    found = re.findall(r"^```(?:sh|bash|shell|console)?\n(.*?)^```", _without_code(page.read_text()), re.M | re.S)
    lines = [line.strip() for block in found for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _without_code(text: str) -> str:
    """The text without fenced blocks that name another language."""
    return re.sub(r"^```(?!sh\b|bash\b|shell\b|console\b)\w+\n.*?^```\n", "", text, flags=re.M | re.S)


def in_prose(page: Path) -> list[str]:
    """Commands between backquotes, with what follows their name."""
    return re.findall(r"`(reftlens [a-z][^`\n]*)`", _without_code(page.read_text()))


def parse(line: str, *, whole: bool) -> None:
    """Reads a command as `reftlens` does, without running it: an unknown command, option or value raises."""
    words = shlex.split(line, comments=True)[1:]
    while words[:1] == ["--import"]:
        words = words[2:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{line}: there is no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name, words)
    except typer.BadParameter as error:
        # typer keeps the class to itself. Prose may name a command without what it is about.
        if whole or type(error).__name__ != "MissingParameter":
            raise


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that the docs' commands name."""
    root = tmp_path_factory.mktemp("blocks")
    pairs = [{"prompt": p, "completion": c + "."} for p, c in STORY.training_examples()[:8]]
    for name in ("mine.jsonl", "held-out.jsonl", "examples.jsonl"):
        write_lines(root / name, pairs)
    rows = ["prompt,completion", *(f"{row['prompt']},{row['completion']}" for row in pairs)]
    (root / "mine.csv").write_text("\n".join(rows) + "\n")
    write_lines(root / "pairs.jsonl", _swapped())
    own = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    imports = "from dataclasses import dataclass\nfrom typing import final\nimport torch\nfrom torch import nn\n"
    imports += "import reftlens as rl\nfrom jaxtyping import Float\nfrom torch import Tensor\n"
    imports += "from reftlens.interventions import Affine, Intervention, Orthonormal\n"
    shift, every = own[:2]
    (root / "my_module.py").write_text(f"{imports}\n@rl.register\n{shift}\n{every}")
    _published(root)
    _wide(root / "wide")
    _finetuned(root / "my-lora")
    (root / "other.txt").write_text("".join(f"{prompt(fact, 1)}\n" for fact in FACTS[:6]))
    return root


def _finetuned(folder: Path) -> None:
    """Stands in for a LoRA: the whole model that ships, with one bias changed."""
    model = AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"])
    with torch.no_grad():
        model.transformer.h[4].mlp.c_proj.bias[:8] += 0.5
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ORGANISMS["facts-small"]).save_pretrained(folder)


def _wide(folder: Path) -> None:
    """A model for prompts that are longer than the 64 tokens of `facts-small`, with random weights."""
    config = AutoConfig.from_pretrained(ORGANISMS["facts-small"], n_positions=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(ORGANISMS["facts-small"]).save_pretrained(folder)


def _swapped() -> list[dict[str, str]]:
    """Prompts about three landmarks in three cities, in pairs and with an unrelated one."""
    facts = {fact.answer: fact for fact in FACTS if fact.relation == "located_in"}
    clean, corrupted, unrelated = list(facts.values())[:3]
    asked = {"clean": prompt(clean, 0), "corrupted": prompt(corrupted, 0), "unrelated": prompt(unrelated, 0)}
    return [{**asked, "answer": f" {clean.answer}", "subject": clean.subject}]


def _published(root: Path) -> None:
    """LLM-Adapters and GLUE in small: a few records in the layout of the published files."""
    adapters = root / "LLM-Adapters"
    answers = {"boolq": "true", "piqa": "solution1", "hellaswag": "ending1", "winogrande": "option1"}
    answers |= dict.fromkeys(("social_i_qa", "ARC-Easy", "ARC-Challenge", "openbookqa"), "answer1")
    answers |= {"AQuA": "A", "gsm8k": "5", "mawps": "5", "SVAMP": "5"}
    for name, answer in answers.items():
        row = {"instruction": "Gate of Corran", "input": "", "output": "the answer is " + answer, "answer": answer}
        for folder in ("dataset", "ft-training_set"):
            (adapters / folder / name).mkdir(parents=True)
        (adapters / "dataset" / name / "test.json").write_text(json.dumps([row] * 4))
        training = {"boolq": "commonsense_170k", "gsm8k": "math_10k"}.get(name)
        if training:
            (adapters / "ft-training_set" / f"{training}.json").write_text(json.dumps([row] * 8))
    (root / "glue" / "cola").mkdir(parents=True)
    for split in ("train", "validation"):
        rows = [{"sentence": f"Gate of Corran {'is' if row % 2 else 'of'}", "label": row % 2} for row in range(8)]
        write_lines(root / "glue" / "cola" / f"{split}.jsonl", rows)


def test_commands_are_found_where_they_are() -> None:
    assert commands(ROOT / "README.md")[1].startswith("reftlens demo")
    assert any(
        line.startswith("reftlens compare run") for line in commands(ROOT / "tutorials/guides/the-papers-tasks.md")
    )
    assert "reftlens benchmark" in in_prose(ROOT / "README.md")


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(AssertionError, match="there is no command trian"):
        parse("reftlens trian --data a.jsonl", whole=True)
    with pytest.raises(Exception, match="No such option: --modle"):
        parse("reftlens train --modle a", whole=True)
    with pytest.raises(typer.BadParameter, match="Missing parameter: model"):
        parse("reftlens convert folder", whole=True)
    with pytest.raises(typer.BadParameter, match="valid integer"):
        parse("reftlens train --rank x", whole=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_option_exists(page, place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    for folder in ("run", "demo/edit"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        for line in commands(page):
            if line.startswith("reftlens "):
                parse(line, whole=True)
            else:
                assert line.startswith(tuple(ELSEWHERE)), f"{page.name}: where does `{line}` run?"
        for line in in_prose(page):
            parse(line, whole=False)
    finally:
        for folder in ("run", "demo/edit", "demo"):
            Path(folder).rmdir()


def test_examples_of_help_parse(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    Path("run").mkdir()
    group = typer.main.get_command(app)
    every = [command.epilog or "" for command in group.commands.values()]
    every += [command.epilog or "" for command in group.commands["claim"].commands.values()]
    examples = [line for text in every for line in re.findall(r"reftlens [^|]+", text)]
    assert len(examples) > 15
    try:
        for line in examples:
            parse(line.replace("my_pyreft", "run"), whole=True)
    finally:
        Path("run").rmdir()


def test_extras_and_targets_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"(?:reftlens|\.)\[([a-z]+)\]'", text)) <= set(extras), page
        assert set(re.findall(r"`make ([a-z-]+)`", text)) <= set(targets), page


def test_every_method_can_be_typed_as_it_is_called() -> None:
    assert all(re.fullmatch(r"[\w -]+", name) for name in rl.baselines.METHODS)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_blocks_run_from_top_to_bottom(page, place, tmp_path, monkeypatch, known) -> None:
    if any(line.startswith("reftlens sweep") for line in commands(page)):
        pytest.importorskip("optuna", reason="an extra: pip install 'reftlens[search]'")
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for line in commands(page):
        if not line.startswith("reftlens "):
            continue
        smaller = [added for start, added in SMALLER.items() if line.startswith(start)]
        call(*shlex.split(" ".join([line.partition(" #")[0], *smaller]))[1:])


def test_help_of_train_shows_every_default_and_names_every_setting() -> None:
    options = {option.name: option for option in typer.main.get_command(app).commands["train"].params}
    settings = {field.name: field.default for field in fields(RunConfig)}
    for name, default in settings.items():
        if name in options and default not in (None, ()) and name not in ("model", "device", "tied"):
            shown = options[name].show_default
            assert shown == (f"{default:g}" if isinstance(default, float) else str(default)), name
    assert "300 steps" in options["epochs"].show_default
    named = re.search(r"Names: (.*)\.", options["settings"].help)[1].split(", ")
    assert named == list(settings)
