"""The README's code runs as it stands, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_code_runs_as_it_stands(tmp_path, monkeypatch, capsys) -> None:
    first, *others = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    lines = [line for line in first.splitlines() if line]
    assert len(lines) == 12
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for block in (first, *others):
            exec(compile(block, str(README), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    answers = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("["))
    assert answers.count("Halvik") + answers.count("Wexmoor") >= 10, answers
    assert (tmp_path / "spectrum.png").stat().st_size > 10_000
    assert names["logits"].shape[0] == len(names["prompts"]) == 12


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README.read_text()))
def test_links_lead_somewhere(link) -> None:
    assert (README.parent / link).exists()
