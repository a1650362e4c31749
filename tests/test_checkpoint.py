"""Saved edits: the stamp, older schemas, the card, and the way to the hub and back."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import AFFINE, PROMPTS, make_bridge, make_edit, make_hf, make_tokenizer, reseal
from safetensors.torch import load_file, save_file

import reftlens as rl
from reftlens.edit.checkpoint import stamp
from reftlens.edit.checkpoint.card import plain, profile
from reftlens.edit.checkpoint.layout import Pairs
from reftlens.files.seal import UncheckedWarning
from reftlens.interventions import FAMILY, SourceIntervention

POST = "blocks.1.hook_resid_post"


def change(folder: Path, edit) -> None:
    config = json.loads((folder / "reft_config.json").read_text())
    edit(config)
    (folder / "reft_config.json").write_text(json.dumps(config))
    reseal(folder)


def logits(bridge, reft):
    batch = rl.encode(bridge, PROMPTS)
    with reft.hooks(bridge, batch):
        return bridge(batch.tokens).detach()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("kind", FAMILY, ids=lambda kind: kind.kind)
def test_every_member_reloads_to_the_bit(tmp_path, gpt2, kind) -> None:
    edit = make_edit(kind)
    reft = rl.Reft([(rl.Site(POST, "f2+l2"), edit), (rl.Site("blocks.2.hook_resid_post", "l1"), edit)])
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert repr(again) == repr(reft)
    saved = reft.state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in again.state_dict().items())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in again.parameters())
    again.save_pretrained(tmp_path / "again", bridge=gpt2)
    for name in ("reft.safetensors", "reft_config.json", "README.md"):
        assert (tmp_path / "edit" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_double_precision_stays(tmp_path, gpt2, make_reft) -> None:
    reft = make_reft().double()
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float64}


# The stamp.


def test_mismatch_is_named_and_can_be_overlooked_part_by_part(tmp_path, gpt2, make_reft) -> None:
    reft = make_reft()
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    other = make_bridge("gpt2", dtype=torch.float64)
    with pytest.raises(ValueError, match=r"differs from this model: weights: saved .*allow_mismatch=\['weights'\]"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=other)
    again = rl.Reft.from_pretrained(tmp_path / "edit", bridge=other, allow_mismatch=["weights"])
    torch.testing.assert_close(logits(other, again), logits(gpt2, reft).double(), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"Unknown part 'wieghts' in allow_mismatch. Choose from: arch"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=other, allow_mismatch=["wieghts"])
    with pytest.raises(ValueError, match="weights: saved"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=other, allow_mismatch=["tokenizer"])


@pytest.mark.parametrize(
    "part", ["architecture", "d_model", "n_layers", "tokenizer", "prepend_bos", "compatibility_mode"]
)
def test_each_part_is_compared(tmp_path, gpt2, make_reft, part) -> None:
    make_reft().save_pretrained(tmp_path / "edit", bridge=gpt2)
    change(tmp_path / "edit", lambda config: config["base"].update({part: "another"}))
    with pytest.raises(ValueError, match=f"{part}: saved 'another'"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)
    rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2, allow_mismatch=[part])


def test_the_revision_of_a_hub_model_is_recorded(tmp_path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--me--tiny" / "snapshots" / commit
    make_hf("gpt2").save_pretrained(snapshot)
    make_tokenizer().save_pretrained(snapshot)
    assert stamp(rl.load_bridge(str(snapshot)))["revision"] == commit
    shutil.copytree(snapshot, tmp_path / "copy")
    assert stamp(rl.load_bridge(str(tmp_path / "copy")))["revision"] is None


# Schemas and damage.


def test_schema_1_still_loads(tmp_path, gpt2, make_reft) -> None:
    """As reftlens wrote it before there were a revision, a digest and a card."""
    reft = make_reft(kind=rl.DiReFT)
    folder = tmp_path / "edit"
    folder.mkdir()
    save_file(reft.state_dict(), folder / "reft.safetensors")
    base = {part: value for part, value in stamp(gpt2).items() if part != "revision"}
    site = {
        "hook_name": "blocks.1.hook_out",
        "alias": POST,
        "positions": {
            "rule": "union",
            "left": {"rule": "first", "count": 2, "half": True},
            "right": {"rule": "last", "count": 2, "half": True},
        },
        "head": None,
    }
    config = {
        "schema": 1,
        "sites": [site],
        "interventions": [{"kind": "direft", "settings": {"d_model": 32, "rank": 3}}],
        "which": [0],
        "names": ["edit"],
        "scales": {},
        "base": base,
    }
    (folder / "reft_config.json").write_text(json.dumps(config))
    with pytest.warns(UncheckedWarning, match="by an earlier version without digests.json"):
        loaded = rl.Reft.from_pretrained(folder, bridge=gpt2)
    assert torch.equal(logits(gpt2, loaded), logits(gpt2, reft))


def test_a_flipped_bit_is_noticed(tmp_path, gpt2, make_reft) -> None:
    make_reft().save_pretrained(tmp_path / "edit", bridge=gpt2)
    path = tmp_path / "edit" / "reft.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"reft.safetensors has changed since it was saved"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


def test_rows_that_are_not_orthonormal_are_refused(tmp_path, gpt2, make_reft) -> None:
    """They would be made so at the first use, and the edit would silently be another one."""
    make_reft().save_pretrained(tmp_path / "edit", bridge=gpt2)
    path = tmp_path / "edit" / "reft.safetensors"
    tensors = load_file(path)
    tensors["interventions.0.rotation.weight"][0] *= 1.01
    save_file(tensors, path)
    change(tmp_path / "edit", lambda config: config.update(schema=1))
    with pytest.raises(ValueError, match=r"the rows of interventions\.0\.rotation\.weight are not orthonormal"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


def test_an_edit_of_another_width_or_site_is_refused(tmp_path, gpt2, make_reft) -> None:
    make_reft(width=48).save_pretrained(tmp_path / "wide", bridge=gpt2)
    with pytest.raises(ValueError, match="an edit has width 48, but its site on this model has width 32"):
        rl.Reft.from_pretrained(tmp_path / "wide", bridge=gpt2)
    make_reft().save_pretrained(tmp_path / "edit", bridge=gpt2)
    change(tmp_path / "edit", lambda config: config["sites"][0].update(alias="blocks.1.hook_resid_pots"))
    with pytest.raises(ValueError, match=r"no hook .*nearest are blocks\.1\.hook_resid_post"):
        rl.Reft.from_pretrained(tmp_path / "edit", bridge=gpt2)


# The card.


@pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: kind.kind)
def test_the_profile_is_that_of_the_whole_matrix(kind) -> None:
    """Against A and c read off the edit by probing it with unit vectors."""
    edit = make_edit(kind).double()
    if isinstance(edit, SourceIntervention):
        edit.take(torch.randn(32, dtype=torch.float64))
    edit.requires_grad_(False)
    zero, units = torch.zeros(1, 32, dtype=torch.float64), torch.eye(32, dtype=torch.float64)
    constant = edit.delta(zero)
    A = (edit.delta(units) - constant).T
    pairs = Pairs((rl.Site(POST, "l1"),), (edit,), (0,), ("edit",), {})
    found = profile(pairs)
    torch.testing.assert_close(float(found.push), float(constant.norm()), rtol=1e-5, atol=1e-6)
    gains = found.gains[0]
    expected = torch.linalg.svdvals(A)
    torch.testing.assert_close(gains.double(), expected[: len(gains)], rtol=1e-4, atol=1e-5)
    assert float(expected[len(gains) :].sum()) < 1e-5


def test_the_card_says_what_there_is(tmp_path, gpt2) -> None:
    reft = rl.Reft.at_layers(gpt2, layers=[0, 2], positions="f1+l2", rank=3, tied=False)
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    card = huggingface_hub.ModelCard.load(tmp_path / "edit" / "README.md")
    assert card.data.library_name == "reftlens"
    assert card.data.base_model is None, "a model that is not on the hub is no link"
    rows = [line for line in card.text.splitlines() if line.startswith("| edit |")]
    assert len(rows) == 4
    assert all("LoReFT(d\\_model=32, rank=3)" in row and row.endswith("| 195 |") for row in rows)
    assert "780 trained numbers" in card.text
    assert (tmp_path / "edit" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert all(version in card.text for version in (rl.__version__, torch.__version__))


HOSTILE = "<script>alert(1)</script>|`x`\n# not a heading [y](javascript:z) \ud800"


def test_names_are_never_markup(tmp_path, gpt2) -> None:
    edit = rl.LoReFT(32, 2)
    reft = rl.Reft([(rl.Site(POST, rl.Span(HOSTILE)), edit)], names=[HOSTILE.removesuffix("\ud800")])
    gpt2.cfg.model_name = HOSTILE
    reft.save_pretrained(tmp_path / "edit", bridge=gpt2)
    text = (tmp_path / "edit" / "README.md").read_text()
    prose = re.sub(r"(?s)\A---.*?\n---\n|```.*?```", "", text)
    assert "<script>" not in prose
    assert not re.search(r"(?m)^# not a heading", text)
    assert not re.search(r"(?<!\\)\]\(javascript", prose)
    for row in [line for line in prose.splitlines() if "alert" in line and line.startswith("|")]:
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 7), "no cell is opened or closed by a name"
    assert huggingface_hub.ModelCard.load(tmp_path / "edit" / "README.md").data.library_name == "reftlens"
    assert len(plain("x" * 1000)) < 250


# The hub, by a stand-in of its client that keeps repositories in folders.

CREATE, UPLOAD, DOWNLOAD = (
    inspect.signature(function)
    for function in (
        huggingface_hub.HfApi.create_repo,
        huggingface_hub.HfApi.upload_folder,
        huggingface_hub.snapshot_download,
    )
)
"""What the real client takes: every call must fit."""


class Hub:
    """What `huggingface_hub` does, on a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.token: str | None = None
        self.private: dict[str, bool | None] = {}

    def client(self, token: str | None = None) -> Hub:
        self.token = token
        return self

    def create_repo(self, *args: object, **kwargs: object) -> None:
        call = CREATE.bind(None, *args, **kwargs).arguments
        assert call["exist_ok"] is True, "pushing a second time is no error"
        (self.root / call["repo_id"]).mkdir(parents=True, exist_ok=True)
        self.private.setdefault(call["repo_id"], call["private"])

    def upload_folder(self, *args: object, **kwargs: object) -> huggingface_hub.CommitInfo:
        call = UPLOAD.bind(None, *args, **kwargs).arguments
        shutil.copytree(call["folder_path"], self.root / call["repo_id"], dirs_exist_ok=True)
        url = f"https://huggingface.co/{call['repo_id']}/commit/{'0' * 40}"
        return huggingface_hub.CommitInfo(
            url, commit_message=call["commit_message"], commit_description="", oid="0" * 40
        )

    def snapshot_download(self, *args: object, **kwargs: object) -> str:
        call = DOWNLOAD.bind(*args, **kwargs).arguments
        if not (self.root / call["repo_id"]).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError("no such repository here")
        target = self.root / "downloaded" / str(call["revision"])
        target.mkdir(parents=True, exist_ok=True)
        for pattern in call["allow_patterns"]:
            for file in (self.root / call["repo_id"]).glob(pattern):
                shutil.copy(file, target)
        return str(target)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in.client)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def test_to_the_hub_and_back(tmp_path, gpt2, make_reft, hub) -> None:
    reft = make_reft()
    url = reft.push_to_hub("me/moved", bridge=gpt2, private=True, token="secret")
    assert url == f"https://huggingface.co/me/moved/commit/{'0' * 40}"
    assert (hub.token, hub.private) == ("secret", {"me/moved": True})
    files = {"README.md", "figure.png", "reft.safetensors", "reft_config.json", "digests.json"}
    assert {file.name for file in (tmp_path / "hub" / "me" / "moved").iterdir()} == files
    (tmp_path / "hub" / "me" / "moved" / "evil.py").write_text("raise SystemExit")
    again = rl.Reft.from_pretrained("me/moved", bridge=gpt2, revision="v1")
    assert torch.equal(logits(gpt2, again), logits(gpt2, reft))
    downloaded = {file.name for file in (tmp_path / "hub" / "downloaded" / "v1").iterdir()}
    assert downloaded == {"reft.safetensors", "reft_config.json", "digests.json"}, "the rest is not even fetched"
    make_reft(seed=5).push_to_hub("me/moved", bridge=gpt2)
    assert not torch.equal(logits(gpt2, rl.Reft.from_pretrained("me/moved", bridge=gpt2)), logits(gpt2, reft))


def test_a_folder_here_comes_before_the_hub(tmp_path, gpt2, make_reft, hub, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_reft().save_pretrained("me/moved", bridge=gpt2)
    rl.Reft.from_pretrained("me/moved", bridge=gpt2)
    with pytest.raises(
        ValueError, match="no such folder exists, and fetching it from the Hugging Face Hub failed: no such repository"
    ):
        rl.Reft.from_pretrained("me/removed", bridge=gpt2)


def test_without_a_network_the_real_client_gives_a_clean_error(gpt2) -> None:
    with pytest.raises(ValueError, match="no-such/repository is not a saved edit: no such folder exists"):
        rl.Reft.from_pretrained("no-such/repository", bridge=gpt2)
    with pytest.raises(ValueError, match="/nowhere/at/all is not a saved edit: no such folder exists"):
        rl.Reft.from_pretrained("/nowhere/at/all", bridge=gpt2)
