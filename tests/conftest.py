"""Small models made on the spot: real architectures with random weights, and a real tokenizer."""

from __future__ import annotations

import importlib
import os

# No test may need a network: a name that is not here must fail at once, not after retries.
os.environ["HF_HUB_OFFLINE"] = "1"

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from architectures import make_hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import reftlens as rl
from reftlens.files.seal import SEAL_NAME, seal
from reftlens.interventions import FAMILY, SourceIntervention

# The models here are tiny: a second thread waits more than it works, and the tests run in two processes.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


collect_ignore_glob = ["newcomers/*"]  # scripts, which `test_newcomers.py` runs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)`, n cases run by default, evenly spread; the others are slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for of_one in cases.values():
        wanted = min(of_one[0].get_closest_marker("sampled").args[0], len(of_one))
        quick = {place * len(of_one) // wanted for place in range(wanted)}
        for place, item in enumerate(of_one):
            if place not in quick:
                item.add_marker(pytest.mark.slow)
    by_turns(items)


def by_turns(items: list[pytest.Item]) -> None:
    """Of the cases that differ in the fixture `architecture` alone one runs by default, by turns; the other is slow."""
    turn: dict[str, int] = {}
    for item in items:
        marked = any("architecture" in mark.args[0] for mark in item.iter_markers("parametrize"))
        if isinstance(item, pytest.Function) and "architecture" in item.fixturenames and not marked:
            one = item.callspec.params["architecture"]
            case = item.nodeid.replace(one, "")
            if ARCHITECTURES.index(one) != turn.setdefault(case, len(turn) % len(ARCHITECTURES)):
                item.add_marker(pytest.mark.slow)


TEXT = "The old tower stands by the river in the city of Ostra , and the weaver who lives there speaks Tharic ."
PROMPTS = [
    "The tower stands in the city of",
    "The weaver speaks",
    "The old tower by the river stands in the old city of",
]
COMPLETIONS = [" Ostra", " Tharic .", " the river Ostra"]
AFFINE = [kind for kind in FAMILY if kind is not rl.ReFTr1]
ARCHITECTURES = ["gpt2", "llama"]
"""For tests of what does not depend on the architecture; `test_architectures.py` and `test_sites.py` have all of them."""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def make_tokenizer(text: str = TEXT, size: int = 320) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([text] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def make_bridge(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> TransformerBridge:
    return rl.load_bridge(hf_model=make_hf(architecture, seed=seed, dtype=dtype), tokenizer=make_tokenizer())


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bridge(architecture: str) -> TransformerBridge:
    """A fresh bridge for each test: tests hook it, and must not see each other."""
    return make_bridge(architecture)


@pytest.fixture
def gpt2() -> TransformerBridge:
    return make_bridge("gpt2")


def make_edit(kind: type[rl.Intervention], d_model: int = 32, rank: int = 3, *, seed: int = 1) -> rl.Intervention:
    """A member of the family with seeded weights, all of them random: none is at its identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if "parts" in kind.arguments:
            halves = {"first": rank - rank // 2, "second": rank // 2}
            edit = kind(d_model, {name: size for name, size in halves.items() if size})
        elif kind is rl.ReFTr1:
            edit = kind(d_model, 2)
        else:
            edit = kind(d_model, rank) if "rank" in kind.arguments else kind(d_model)
        if isinstance(edit, SourceIntervention):
            edit.take(torch.randn(d_model))
        for parameter in edit.parameters():
            if bool((parameter == parameter.flatten()[0]).all()) and parameter.numel() > 1:
                torch.nn.init.normal_(parameter)
        return edit


@pytest.fixture
def make_reft():
    """An edit of some kind (a LoReFT by default) with seeded weights, large enough to change the logits."""

    def make(hook_names=("blocks.1.hook_resid_post",), positions="f2+l2", kind=rl.LoReFT, rank=3, seed=1, width=32):
        edits = [make_edit(kind, width, rank, seed=seed + place) for place in range(len(hook_names))]
        return rl.Reft([(rl.Site(name, positions), edit) for name, edit in zip(hook_names, edits, strict=True)])

    return make


def reseal(folder: Path) -> None:
    """Seals a folder again as somebody would who changed it on purpose, so that what it says is looked at.

    A pipe, or a file of a terabyte, would take too long to digest: a folder with one keeps its old seal.
    """
    small = all(file.is_file() and file.stat().st_size < 10**9 for file in folder.rglob("*") if not file.is_dir())
    if small and (folder / SEAL_NAME).is_file():
        (folder / SEAL_NAME).unlink()
        seal(folder)


@dataclass(frozen=True)
class Every(rl.Positions):
    """Every `step`-th token of a prompt."""

    rule = "every"
    step: int = 2

    def pick(self, prompts):
        return prompts.mask & (prompts.place % self.step == 0)

    def spec(self):
        return {"rule": self.rule, "step": self.step}


def forget_registered(monkeypatch) -> None:
    """Nothing is registered from here to the end of the test, but for what the test registers."""
    monkeypatch.setattr(importlib.import_module("reftlens.interventions.user_defined"), "_KINDS", {})
    monkeypatch.setattr(importlib.import_module("reftlens.positions.parse"), "_OWN", {})


@pytest.fixture
def known(monkeypatch):
    """What is registered inside a test is forgotten after it."""
    forget_registered(monkeypatch)


@pytest.fixture
def saved(tmp_path):
    """An edit and its base on disk, and both in memory."""
    from test_attach_to_hf import edit_at

    make_hf("gpt2").save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    bridge = rl.load_bridge(str(tmp_path / "model"))
    reft = edit_at("hook_resid_post", positions="f1+l1")
    reft.save_pretrained(tmp_path / "edit", bridge=bridge, card=False)
    return tmp_path, bridge, reft
