"""Bad input, one line each: what is done, and what the error must say was wanted.

Functions are called past the type checker that the tests switch on, as they are in a notebook.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import PROMPTS, make_bridge, make_hf, make_tokenizer

import reftlens as rl
from reftlens.files.folder import Replacement
from reftlens.organisms.world import FACTS, prompt
from reftlens.plot.page import Picture
from reftlens.positions import from_spec
from reftlens.training.objectives import Completion, Objective

POST = "blocks.1.hook_resid_post"


def unchecked(function: Callable) -> Callable:
    """The function without the tests' type checker, however deep it is wrapped."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


@pytest.fixture(scope="module")
def given():
    """What the lines below start from."""
    bridge = make_bridge("gpt2")
    reft = rl.Reft([(rl.Site(POST, "f1+l1"), rl.LoReFT(32, 2))])
    return SimpleNamespace(bridge=bridge, reft=reft, batch=rl.encode(bridge, PROMPTS), width=32)


def layers(given, **changes):
    arguments = {"layers": [1], "positions": "l1", "rank": 2, **changes}
    return unchecked(rl.Reft.at_layers.__func__)(rl.Reft, given.bridge, **arguments)


def effect(given, **changes):
    arguments = {"new": [" Tharic"], "old": [" Ostra"], "subjects": ["tower"], "progress": False, **changes}
    prompts = arguments.pop("prompts", PROMPTS[:1])
    metric = rl.analysis.logit_difference_of(given.bridge, prompts, arguments.pop("new"), arguments.pop("old"))
    return rl.analysis.effect_map(given.bridge, given.reft, prompts, metric, **arguments)


def trace(given, clean, corrupted, **changes):
    arguments = {"answers": [" Ostra"] * len(clean), "subjects": ["tower"] * len(clean), "progress": False, **changes}
    metric = rl.analysis.probability_of(given.bridge, clean, arguments.pop("answers"))
    return rl.analysis.trace(given.bridge, clean, corrupted, metric, **arguments)


def run(given, reft, batch=None):
    batch = batch or given.batch
    with reft.hooks(given.bridge, batch):
        given.bridge(batch.tokens)


def one(rule) -> rl.Reft:
    return rl.Reft([(rl.Site(POST, rule), rl.LoReFT(32, 2))])


LINES: list[tuple[str, Callable, str]] = [
    # positions
    ("empty positions", lambda g: rl.parse(""), "expected 'f<n>'"),
    ("unknown letter", lambda g: rl.parse("x3"), "at 'x3': expected"),
    ("no number", lambda g: rl.parse("f"), "with n >= 1"),
    ("zero tokens", lambda g: rl.parse("f0+l1"), "at 'f0'"),
    ("negative tokens", lambda g: rl.parse("l-2"), "at 'l-2'"),
    ("a fraction", lambda g: rl.parse("f1.5"), "expected"),
    ("trailing plus", lambda g: rl.parse("f5+"), "at ''"),
    ("f twice", lambda g: rl.parse("f5+f3"), "at most one f and one l"),
    ("spaces", lambda g: rl.parse("f5 + l5"), "expected"),
    ("capitals", lambda g: rl.parse("F5"), "expected"),
    ("leading zero", lambda g: rl.parse("l05"), "expected"),
    ("a list as positions", lambda g: unchecked(rl.parse)([0, 1]), "a rule such as First"),
    ("First of nothing", lambda g: rl.First(0), "number of tokens of at least 1, got 0"),
    ("Last of minus one", lambda g: rl.Last(-1), "number of tokens of at least 1, got -1"),
    ("First of True", lambda g: rl.First(True), "number of tokens of at least 1, got True"),
    ("At True", lambda g: rl.At(True), "an integer index"),
    ("Span of nothing", lambda g: rl.Span(""), "a non-empty text to look for"),
    ("At past a prompt", lambda g: rl.At(50).mask(g.batch.prompts), r"does not exist in the prompt in row 0, which has"),
    ("At before a prompt", lambda g: rl.At(-50).mask(g.batch.prompts), "use a smaller index"),
    ("Span not in a prompt", lambda g: rl.Span("castle").mask(g.batch.prompts), "not in the prompt in row 0"),
    ("Span too often", lambda g: rl.Span("city", 4).mask(rl.encode(g.bridge, PROMPTS[:1]).prompts), "occurs only 1 times"),
    ("Span without text", lambda g: rl.Span("city").mask(g.batch.prompt_mask), "pass the batch of rl.encode instead"),
    ("a foreign spec", lambda g: from_spec({"rule": "eval", "code": "1"}), "not a position rule"),
    ("a spec with more in it", lambda g: from_spec({"rule": "all", "and": 1}), "not a position rule"),
    # interventions
    ("rank above the width", lambda g: rl.LoReFT(32, 33), r"rank must be in \[1, 32\].*got 33"),
    ("rank zero", lambda g: rl.DiReFT(32, 0), r"rank must be in \[1, 32\].*got 0"),
    ("no width", lambda g: rl.LoReFT(0, 1), "d_model must be at least 1, got 0"),
    ("NaN in R", lambda g: nan_R()(torch.zeros(2, 32)), "lower the learning rate"),
    # sites and containers
    ("an empty hook name", lambda g: rl.Site("", "l1"), "a TransformerLens hook name such as"),
    ("no edits", lambda g: rl.Reft([]), "at least one"),
    ("half a pair", lambda g: unchecked(rl.Reft.__init__)(rl.Reft.__new__(rl.Reft), [rl.Site(POST, "l1")]), r"\(Site, Intervention\) pairs"),
    ("too few names", lambda g: rl.Reft(list(g.reft), names=[]), "one name for each"),
    ("an unknown name", lambda g: g.reft.only("french"), "Unknown edit 'french'. Choose from: edit"),
    ("a scale for nobody", lambda g: g.reft.scaled({"french": 2.0}), "Unknown edit 'french'"),
    ("everything off", lambda g: g.reft.without("edit"), "every edit off"),
    ("nothing to compose", lambda g: rl.Reft.compose({}), "needs at least one edit"),
    ("no layers", lambda g: layers(g, layers=[]), "layers must be a block index, a list of block indices or 'all'"),
    ("layers as a word", lambda g: layers(g, layers="most"), "layers must be a block index, a list of block indices or 'all'"),
    ("a layer too high", lambda g: layers(g, layers=[3]), "the model has layers 0 to 2"),
    ("a layer too low", lambda g: layers(g, layers=[-4]), "the model has layers 0 to 2"),
    ("rank above the model", lambda g: layers(g, rank=64), r"rank must be in \[1, 32\]"),
    ("a misspelt hook", lambda g: layers(g, hook="hook_resid_pots"), r"the nearest are blocks\.1\.hook_resid_post"),
    ("a hook of no model", lambda g: layers(g, hook="zzz"), "has no hook 'blocks.1.zzz'"),
    # running
    ("an edit too wide", lambda g: run(g, rl.Reft([(rl.Site(POST, "l1"), rl.LoReFT(48, 2))])), r"width 48 and needs activations"),
    ("positions of no prompt", lambda g: run(g, one(rl.All() - rl.First(99))), "no prompt has a token at"),
    ("a mask of another batch", lambda g: wrong_mask(g), "pass the mask of the batch"),
    ("a mask of one dimension", lambda g: unchecked(rl.Reft.edits)(g.reft, torch.ones(4, dtype=torch.bool)), r"\[batch, pos\]"),
    ("attached twice", lambda g: twice(g), "edited one activation twice"),
    ("never reached", lambda g: never(g), "was never applied"),
    # loading
    ("no model", lambda g: rl.load_bridge(), "either a name or hf_model"),
    ("two models", lambda g: rl.load_bridge("gpt2", hf_model=make_hf("gpt2")), "either a name or hf_model"),
    ("no tokenizer", lambda g: rl.load_bridge(hf_model=make_hf("gpt2")), "also needs the model's tokenizer"),
    ("a bridge's model", lambda g: rl.load_bridge(hf_model=g.bridge.original_model, tokenizer=make_tokenizer()), "already belongs to a bridge"),
    ("an unknown model", lambda g: rl.load_bridge("no-such-model"), "not an embedded organism"),
    # data
    ("no prompts", lambda g: rl.encode(g.bridge, []), "the list of prompts is empty"),
    ("one string", lambda g: unchecked(rl.encode)(g.bridge, "a prompt"), r"single string: write"),
    ("too few completions", lambda g: rl.encode(g.bridge, PROMPTS, [" a"]), "completions must have one item for each prompt, got 3 prompts and 1"),
    ("an empty completion", lambda g: rl.encode(g.bridge, ["a"], [""]), "the completion of prompt 0"),
    ("an empty prompt", lambda g: rl.encode(g.bridge, ["a", ""], prepend_bos=False), "prompt 1 has no tokens"),
    ("a prompt too long", lambda g: rl.encode(g.bridge, ["tower " * 99]), "context has only 64: shorten"),
    ("an unknown side", lambda g: unchecked(rl.encode)(g.bridge, PROMPTS, padding_side="top"), "must be 'left' or 'right', got 'top'"),
    # training and decoding
    ("no examples", lambda g: rl.train(g.bridge, g.reft, []), "no examples"),
    ("an example of three", lambda g: unchecked(Objective.read)(Completion(), [("a", "b", "c")]), r"example 0 must be a tuple \(prompt: str, completion: str\)"),
    ("zero epochs", lambda g: rl.TrainConfig(epochs=0), "epochs must be at least 1, got 0"),
    ("an empty batch", lambda g: rl.TrainConfig(batch_size=0), "batch_size must be at least 1"),
    ("no learning rate", lambda g: rl.TrainConfig(lr=0.0), "lr must be above 0"),
    ("negative decay", lambda g: rl.TrainConfig(weight_decay=-1.0), "weight_decay must not be negative"),
    ("all warm-up", lambda g: rl.TrainConfig(warmup_ratio=1.0), r"warmup_ratio must be in \[0, 1\)"),
    ("generate from nothing", lambda g: rl.generate(g.bridge, None, []), "list of prompts is empty"),
    ("generate nothing", lambda g: rl.generate(g.bridge, None, PROMPTS, max_new_tokens=0), "must be at least 1"),
    ("generate too much", lambda g: rl.generate(g.bridge, None, PROMPTS, max_new_tokens=99), "exceeds the context of 64"),
    # folders
    ("no saved edit", lambda g: rl.Reft.from_pretrained("/nowhere/at/all", bridge=g.bridge), "not a saved edit"),
    ("a file in the way", lambda g: Replacement(Path(__file__), marker="x").__enter__(), "is a file: choose another folder"),
    # analyses
    ("prompts of two lengths", lambda g: effect(g, prompts=PROMPTS[:2], new=[" Tharic"] * 2, old=[" Ostra"] * 2, subjects=["The"] * 2), "equal length"),
    ("one answer twice", lambda g: effect(g, old=[" Tharic"]), "begin with the same token"),
    ("an empty answer", lambda g: effect(g, new=[""]), "has no tokens"),
    ("a subject elsewhere", lambda g: effect(g, subjects=["castle"]), "not in the prompt"),
    ("traces of two lengths", lambda g: trace(g, PROMPTS[:1], PROMPTS[2:]), "the same shape in tokens"),
    ("nothing to trace", lambda g: trace(g, PROMPTS[:1], PROMPTS[:1]), "nothing to restore"),
    ("nothing to decompose on", lambda g: rl.analysis.decompose(g.bridge, g.reft, []), "list of prompts is empty"),
    ("weights of no token", lambda g: rl.analysis.decompose(g.bridge, g.reft, [g.batch], at=rl.All() - rl.First(99)), "does not edit any token"),
    # the rest
    ("no such template", lambda g: prompt(FACTS[0], 99), "has templates 0 to 7, got 99"),
    ("not a picture", lambda g: Picture("a", b"GIF89a", "b"), "the bytes of a PNG"),
    ("no completions to learn", lambda g: loss_without_completions(g), "no completion tokens"),
]  # fmt: skip


def nan_R() -> rl.LoReFT:
    edit = rl.LoReFT(32, 2)
    with torch.no_grad():
        edit.rotation.weight.fill_(float("nan"))
    return edit


def wrong_mask(given) -> None:
    given.bridge.run_with_hooks(given.batch.tokens, fwd_hooks=given.reft.fwd_hooks(given.batch.prompt_mask[:2]))


def twice(given) -> None:
    with given.reft.hooks(given.bridge, given.batch), given.reft.hooks(given.bridge, given.batch):
        given.bridge(given.batch.tokens)


def never(given) -> None:
    with given.reft.hooks(given.bridge, given.batch):
        given.bridge(given.batch.tokens, stop_at_layer=1)


def loss_without_completions(given) -> None:
    from reftlens.training.objectives import completion_loss

    completion_loss(given.bridge(given.batch.tokens), given.batch.labels)


@pytest.mark.parametrize(("do", "message"), [line[1:] for line in LINES], ids=[line[0] for line in LINES])
def test_bad_input_says_what_was_wanted(given, do, message) -> None:
    before = given.bridge(given.batch.tokens)
    with pytest.raises((ValueError, TypeError, rl.EditError), match=message) as caught:
        do(given)
    assert type(caught.value).__name__ in ("ValueError", "TypeError", "EditError"), "not the type checker's own error"
    assert torch.equal(given.bridge(given.batch.tokens), before), "a refused call leaves the base as it was"


def test_there_are_at_least_sixty_lines_and_each_is_its_own() -> None:
    assert len(LINES) >= 60
    assert len({name for name, _, _ in LINES}) == len(LINES)
