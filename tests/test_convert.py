"""`reftlens convert`: a folder of pyreft becomes an edit with the same logits, and other commands point to it."""

from __future__ import annotations

import pytest
import torch
from architectures import make_hf
from conftest import PROMPTS, make_tokenizer
from test_attach_to_hf import edit_at
from typer.testing import CliRunner

import reftlens as rl
from reftlens.cli import app


@pytest.fixture
def there(tmp_path):
    make_hf("gpt2").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    bridge = rl.load_bridge(str(tmp_path / "model"))
    reft = edit_at("hook_resid_post")
    rl.save_pyreft(reft, tmp_path / "theirs")
    return tmp_path, bridge, reft


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_converted_edit_has_the_same_logits(there) -> None:
    folder, bridge, reft = there
    words = [["generate", folder / "theirs", "The", "--model", folder / "model"], ["dissect", folder / "theirs"]]
    words += [["eval", folder / "theirs"], ["map", folder / "theirs"]]
    for line in words:
        wrong = call(*line)
        assert wrong.exit_code == 1
        assert "is a pyreft checkpoint: convert it first" in wrong.stderr
    with pytest.raises(ValueError, match="is a pyreft checkpoint: convert it first"):
        rl.Reft.from_pretrained(folder / "theirs", bridge=bridge)
    done = call(
        "convert",
        folder / "theirs",
        "--model",
        folder / "model",
        "--positions",
        "f2+l2",
        "--out",
        folder / "edit",
        "--quiet",
    )
    assert done.exit_code == 0, done.stderr
    batch = rl.encode(bridge, PROMPTS)
    logits = []
    read = rl.load_pyreft(folder / "theirs", bridge=bridge, positions="f2+l2")
    for edit in (read, rl.Reft.from_pretrained(folder / "edit", bridge=bridge), reft.scaled(0.0)):
        with torch.no_grad(), edit.hooks(bridge, batch):
            logits.append(bridge(batch.tokens, attention_mask=batch.attention_mask))
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=0.05), "an edit without effect shows nothing"
    assert call("generate", folder / "edit", "The", "--quiet").exit_code == 0


def test_what_cannot_be_converted_is_refused(there) -> None:
    folder, _, _ = there
    missing = call("convert", folder / "nowhere", "--model", folder / "model", "--positions", "l1")
    assert (missing.exit_code, "does not exist" in missing.stderr) == (1, True)
    empty = call(
        "convert", folder / "model", "--model", folder / "model", "--positions", "l1", "--out", folder / "edit"
    )
    assert (empty.exit_code, "not a pyreft checkpoint" in empty.stderr) == (1, True)
    assert not (folder / "edit").exists()
