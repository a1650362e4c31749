"""Carrying an edit to another model: a rotated copy is known exactly, and twins from two seeds are measured with controls."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import make_hf
from conftest import make_bridge, make_edit, make_tokenizer
from transformers import AutoModelForCausalLM
from twins import rotated, rotation, unscaled
from typer.testing import CliRunner

import reftlens as rl
from reftlens.analysis.carry import _fitted, _ridge, _through, _turned
from reftlens.cli import app
from reftlens.interventions import Affine
from reftlens.organisms import ORGANISMS
from reftlens.organisms.world import FACTS, TEMPLATES

WORDS = [
    "The",
    "old",
    "tower",
    "stands",
    "by",
    "river",
    "in",
    "city",
    "of",
    "Ostra",
    "and",
    "weaver",
    "who",
    "lives",
    "there",
    "speaks",
    "Tharic",
]
POINT = "blocks.1.hook_resid_post"


def texts(n, *, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [" ".join(WORDS[i] for i in torch.randperm(len(WORDS), generator=draw)[: 4 + row % 5]) for row in range(n)]


HELD_OUT = [
    (text, answer) for text, answer in zip(texts(4, seed=1), (" Ostra", " Tharic", " river", " city"), strict=True)
]


def rotated_pair(architecture):
    model, turn = make_hf(architecture), rotation(32)
    bridges = [rl.load_bridge(hf_model=one, tokenizer=make_tokenizer()) for one in (model, rotated(model, turn))]
    return *bridges, turn


def logits_of(bridge, reft, prompts):
    found = []
    for prompt in prompts:
        batch = rl.encode(bridge, [prompt])
        with torch.no_grad(), reft.hooks(bridge, batch):
            found.append(bridge(batch.tokens)[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize(
    ("architecture", "fit"), [("llama", "ridge"), ("gpt_neox", "orthogonal"), ("gpt2", "orthogonal")]
)
def test_a_rotated_copy_is_recovered_exactly(architecture, fit, make_reft) -> None:
    bridge, target, turn = rotated_pair(architecture)
    reft = make_reft([POINT], positions="f1+l1").scaled(0.7)
    carried, result = rl.analysis.carry(bridge, reft, target, texts(60), HELD_OUT, fit=fit)
    prompts = [prompt for prompt, _ in HELD_OUT]
    own, there = logits_of(bridge, reft, prompts), logits_of(target, carried, prompts)
    torch.testing.assert_close(there, own, rtol=0, atol=1e-4)
    # The edit as a matrix: turned from both sides.
    one, other = (edits[0][1].affine() for edits in (reft, carried))
    expected = turn @ one.write.double().T @ one.read.double() @ turn.T
    torch.testing.assert_close(other.write.double().T @ other.read.double(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.constant.double(), turn @ one.constant.double(), rtol=0, atol=1e-4)
    assert isinstance(carried[0][1], rl.DiReFT)
    assert carried[0][1].rank == 3
    effects = {effect.edit: effect for effect in result.effects}
    assert effects["carried"].share == pytest.approx(1, abs=1e-3)
    assert effects["carried"].kl == pytest.approx(effects["on its own model"].kl, rel=1e-3)
    for direction in result.directions:
        assert min(direction.read, direction.write) > 1 - 1e-5
        assert max(direction.shuffled_read, direction.shuffled_write) < 0.9
    # The controls give other distributions, and so does the edit as it stands.
    for name in ("maps of shuffled prompts", "maps turned at random", "not mapped"):
        assert abs(effects[name].kl / effects["carried"].kl - 1) > 0.05, name
    assert len(result.to_dataframe()) == 5
    assert len(result.directions_to_dataframe()) == 3


def test_a_rotated_copy_of_a_trained_model_is_recovered(make_reft) -> None:
    """The shipped model in another basis: its norms scale coordinates, so their weights move into the matrices first."""
    model = AutoModelForCausalLM.from_pretrained(ORGANISMS["facts-small"], attn_implementation="eager").eval()
    facts_small, turn = rl.load_bridge("facts-small"), rotation(96)
    target = rl.load_bridge(hf_model=rotated(unscaled(model), turn), tokenizer=facts_small.tokenizer)
    reft = make_reft(["blocks.3.hook_resid_post"], positions="l1", width=96).scaled(8.0)
    text, *others = TEMPLATES["located_in"]
    places = [fact for fact in FACTS if fact.relation == "located_in"]
    prompts = [template.format(fact.subject) for template in others for fact in places]
    held_out = [(text.format(fact.subject), f" {fact.answer}") for fact in places[:4]]
    carried, result = rl.analysis.carry(facts_small, reft, target, prompts, held_out)
    asked = [prompt for prompt, _ in held_out]
    own, there = logits_of(facts_small, reft, asked), logits_of(target, carried, asked)
    moved = (own - logits_of(facts_small, reft.scaled(0.0), asked)).abs().max()
    assert float(moved) > 0.1
    torch.testing.assert_close(there, own, rtol=0, atol=2e-3 * float(moved))
    effects = {effect.edit: effect for effect in result.effects}
    assert effects["carried"].kl == pytest.approx(effects["on its own model"].kl, rel=1e-2)
    assert effects["carried"].share == pytest.approx(1, abs=1e-3)
    unmapped = logits_of(target, reft, asked)
    assert float((unmapped - own).abs().max()) > 0.3 * float(moved), "the edit as it stands does something else there"


def test_other_widths_other_points_and_constants(make_reft) -> None:
    """A twin whose states are a known linear function of the source's, in more dimensions, keeps what is read."""
    draw = torch.Generator().manual_seed(0)
    x, prompt = torch.randn(200, 6, generator=draw).double() + 1, torch.arange(200) // 4
    into = torch.linalg.qr(torch.randn(9, 6, generator=draw).double()).Q
    y = x @ into.T + 2
    maps = _fitted(x, y, prompt, "ridge")
    torch.testing.assert_close(maps.there(x), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(maps.home(y), x, rtol=0, atol=1e-6)
    for kind, made in ((rl.LoReFT, rl.DiReFT), (rl.DiReFT, rl.DiReFT), (rl.SteeringVector, rl.SteeringVector)):
        edit = make_edit(kind, 6, 2)
        through = _through(edit, maps)
        assert isinstance(through, made)
        torch.testing.assert_close(through.delta(y), edit.delta(x) @ into.T, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="RED scales each coordinate of the source"):
        _through(make_edit(rl.RED, 6), maps)
    with pytest.raises(ValueError, match="models of one width, got 6 and 9"):
        _fitted(x, y, prompt, "orthogonal")
    turned = _turned(maps, draw)
    torch.testing.assert_close(torch.linalg.svdvals(turned.forward), torch.linalg.svdvals(maps.forward))
    torch.testing.assert_close(turned.back @ turned.forward, maps.back @ maps.forward)


def test_the_penalty_is_chosen_on_other_prompts() -> None:
    draw = torch.Generator().manual_seed(1)
    x, prompt = torch.randn(60, 40, generator=draw).double(), torch.arange(60)
    true = torch.randn(40, 3, generator=draw).double()
    assert _ridge(x, x @ true, prompt)[1] == 1e-10
    noisy = 0.1 * x @ true + 3 * torch.randn(60, 3, generator=draw).double()
    coefficients, penalty = _ridge(x, noisy, prompt)
    assert penalty >= 0.1
    damped = x.T @ x + penalty * x.square().sum() / 40 * torch.eye(40).double()
    torch.testing.assert_close(coefficients, torch.linalg.solve(damped, x.T @ noisy).T)


def test_the_penalty_is_chosen_where_only_some_prompts_have_tokens() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(48, 40, generator=draw).double()
    noise = torch.randn(48, 3, generator=draw).double()
    # Four of every five prompts: of the fifth none.
    prompt = torch.tensor([n for n in range(60) if n % 5 != 4])
    assert _ridge(x, noise, prompt)[1] == 1.0, "noise is best not fitted"
    with pytest.raises(ValueError, match="at least five prompts with tokens that at= selects, got 2"):
        _ridge(x, noise, torch.arange(48) // 24)


class Fixed(rl.Intervention):
    """h + c, without parameters."""

    kind = "fixed"

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__(len(vector), 1)
        self.register_buffer("vector", vector)

    def delta(self, resid: torch.Tensor) -> torch.Tensor:
        return self.vector.expand_as(resid)

    def affine(self):
        nothing = self.vector[None][:0]
        return Affine(write=nothing, read=nothing, constant=self.vector)


def test_an_edit_without_parameters_is_carried() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=draw).double()
    into = torch.randn(9, 6, generator=draw).double()
    maps = _fitted(x, x @ into.T, torch.arange(200) // 4, "ridge")
    through = _through(Fixed(torch.arange(6.0)), maps)
    torch.testing.assert_close(through.vector.data, (into @ torch.arange(6.0).double()).float(), rtol=0, atol=1e-4)


def test_what_cannot_be_carried_is_refused(gpt2, make_reft) -> None:
    reft = make_reft([POINT])

    def carry(**options):
        return rl.analysis.carry(
            gpt2, reft, make_bridge("gpt2", seed=1), **{"prompts": texts(6), "held_out": HELD_OUT, **options}
        )

    with pytest.raises(ValueError, match="at least five prompts and one held-out pair, got 2 and 4"):
        carry(prompts=texts(2))
    with pytest.raises(ValueError, match="one name for each of the 1 sites"):
        carry(hook_names=[POINT, POINT])
    carried, _ = carry(hook_names=["blocks.2.hook_resid_pre"], at=rl.Last(2))
    assert carried.sites[0].hook_name == "blocks.2.hook_resid_pre"
    assert carried.sites[0].positions == reft.sites[0].positions


def test_the_command_writes_an_edit_that_loads(saved, monkeypatch) -> None:
    place, _, _ = saved
    monkeypatch.chdir(place)
    (place / "prompts.txt").write_text("\n".join(texts(8)) + "\n")
    lines = [json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in HELD_OUT]
    (place / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    given = ["edit", "--model", "model", "--target", "model", "--file", "prompts.txt", "--examples", "held_out.jsonl"]
    result = CliRunner().invoke(app, ["carry", *given, "--out", "out", "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    effects = {line["edit"]: line for line in json.loads(result.stdout)["effects"]}
    # To its own model: without a map it is the same edit.
    assert effects["not mapped"]["share"] == pytest.approx(1, abs=1e-3)
    bridge = rl.load_bridge("model")
    carried = rl.Reft.from_pretrained(place / "out" / "edit", bridge=bridge)
    assert [type(edit) for _, edit in carried] == [rl.DiReFT]
    assert rl.results.load(place / "out" / "result").effects[1].edit == "carried"


@pytest.mark.slow
def test_twins_from_two_seeds_keep_some_of_an_edit() -> None:
    from benchmarks.carry import carried_between_twins

    result = carried_between_twins(seeds=(0, 1))
    effects = {effect.edit: effect for effect in result.effects}
    assert effects["on its own model"].effect > 0.3
    assert effects["trained on the target"].effect > 0.3
    for control in ("maps of shuffled prompts", "maps turned at random", "not mapped"):
        assert effects["carried"].effect > effects[control].effect + 0.1
